//! What is done when a gate fails: three rounds, each with a remedy of its own, and then an honest end.
//!
//! Whoever tries four files and takes the first that passes errs more often than whoever tries one, on the same tasks
//! or on others. So the rounds divide what a gate may err: together they pass a harmful file as seldom as one
//! judgement.

use std::fmt::Write as _;

use fsq_blocks::Format;
use fsq_gguf::Gguf;
use fsq_quantizer::{Importance, Mix, raise};

use super::document::Round;
use super::judged::{Court, Judgement, is_unfit};
use super::maker::{Candidate, Maker};
use crate::failure::Outcome;

/// The gates that look at stated probabilities alone: those a recalibration map can mend.
const MENDED_BY_MAPS: [&str; 3] = ["G2", "G2b", "G3"];
/// Of a file's bytes, the part that its most sensitive tensors may grow by: less than the step to the next format.
const GROWTH_DIVISOR: usize = 8;

/// Of what a gate may err, the part of the file as asked for; remedies have equal parts of the rest.
const SHARE_OF_FIRST: f64 = 0.5;

/// What a failing file may be helped by, in the order in which it is tried.
#[derive(Clone, Copy)]
enum Remedy {
    Map,
    MoreBits,
    LargerFormat,
}

// No more than the whole, but for what floats leave.
const _: () = assert!(SHARE_OF_FIRST + Remedy::ALL.len() as f64 * Remedy::SHARE < 1.0 + 1e-9);

impl Remedy {
    const ALL: [Self; 3] = [Self::Map, Self::MoreBits, Self::LargerFormat];
    /// The part of the error that each may make.
    const SHARE: f64 = (1.0 - SHARE_OF_FIRST) / Self::ALL.len() as f64;
}

/// Where the ladder ended.
pub(super) struct Climbed {
    pub(super) candidate: Candidate,
    pub(super) judgement: Judgement,
    pub(super) rounds: Vec<Round>,
}

/// Climbs for one requested format.
pub(super) struct Ladder<'a> {
    pub(super) court: &'a Court<'a>,
    pub(super) maker: &'a Maker<'a>,
    /// Formats asked for: no rung may take the name of another file.
    pub(super) asked: &'a [Mix],
    pub(super) importance: Option<&'a Importance>,
    /// The 16-bit format of the reference.
    pub(super) largest: Mix,
    /// Judge once: the user publishes whatever comes of it.
    pub(super) is_overridden: bool,
}

impl Ladder<'_> {
    /// Encodes, judges and, while a gate fails, tries the next remedy.
    pub(super) fn climb(&self, mix: Mix) -> anyhow::Result<Climbed> {
        let mut candidate = self.maker.make(mix, &[])?;
        // Judged once, a file has all of the error to itself.
        let share = if self.is_overridden { 1.0 } else { SHARE_OF_FIRST };
        let mut judgement = self.court.judge(mix.name(), &candidate.file, false, share)?;
        let mut rounds = vec![self.round("as asked for".into(), &candidate, &judgement)?];
        let mut mapped = false;
        for remedy in Remedy::ALL {
            if self.is_overridden || judgement.outcome() != Outcome::Failed {
                break;
            }
            let can_be_mended = judgement.unmet().iter().any(|it| MENDED_BY_MAPS.contains(&it.0));
            let needs_map = mapped || can_be_mended;
            let (told, next) = match remedy {
                Remedy::Map if !can_be_mended => {
                    rounds.push(self.passed_over("recalibration map", "no gate that a map can mend failed"));
                    continue;
                }
                Remedy::Map => ("recalibration map".to_owned(), candidate.clone()),
                Remedy::MoreBits => match self.more_bits(&candidate)? {
                    Some(next) => next,
                    None => {
                        rounds.push(self.passed_over("more bits", "no tensor has a larger format within the bytes"));
                        continue;
                    }
                },
                Remedy::LargerFormat => match self.larger(mix).filter(|it| !self.asked.contains(it)) {
                    Some(larger) => (format!("{} instead", larger.name()), self.maker.make(larger, &[])?),
                    None => {
                        rounds.push(self.passed_over("larger format", "there is none that was not asked for anyway"));
                        continue;
                    }
                },
            };
            let told = if needs_map && !matches!(remedy, Remedy::Map) { told + ", with a map" } else { told };
            match self.court.judge(next.mix.name(), &next.file, needs_map, Remedy::SHARE) {
                Ok(judged) => {
                    (candidate, judgement, mapped) = (next, judged, needs_map);
                    rounds.push(self.round(told, &candidate, &judgement)?);
                }
                Err(error) if is_unfit(&error) => rounds.push(self.passed_over(&told, &error.to_string())),
                Err(error) => return Err(error),
            }
        }
        Ok(Climbed { candidate, judgement, rounds })
    }

    /// The tensors that lose most for their bytes in their next larger formats.
    fn more_bits(&self, candidate: &Candidate) -> anyhow::Result<Option<(String, Candidate)>> {
        let observed = match self.importance {
            Some(importance) => importance.clone(),
            None => self.court.observed()?,
        };
        let (reference, file) = (Gguf::open(&self.court.reference)?, Gguf::open(&candidate.file)?);
        let budget = file.n_bytes() / GROWTH_DIVISOR;
        let raised: Vec<(String, Format)> = raise(&reference, &file, &|it| observed.means(it), budget);
        if raised.is_empty() {
            return Ok(None);
        }
        let mut told = format!("more bits for {} tensors:", raised.len());
        for (tensor, format) in &raised {
            let _ = write!(told, " {tensor}={}", format.name());
        }
        Ok(Some((told, self.maker.make(candidate.mix, &raised)?)))
    }

    fn round(&self, remedy: String, candidate: &Candidate, judgement: &Judgement) -> anyhow::Result<Round> {
        let round = Round {
            remedy,
            format: candidate.mix.name().into(),
            n_bytes: Gguf::open(&candidate.file)?.n_bytes(),
            level: Some(judgement.level()),
            verdict: judgement.verdict().into(),
            sentences: judgement.unmet().into_iter().map(|it| it.1).collect(),
        };
        self.court.progress.say(&format!("ladder, {} {}: {}", round.format, round.remedy, round.verdict));
        Ok(round)
    }

    fn passed_over(&self, remedy: &str, why: &str) -> Round {
        let told = Round {
            remedy: remedy.into(),
            format: String::new(),
            n_bytes: 0,
            level: None,
            verdict: format!("not tried: {why}"),
            sentences: Vec::new(),
        };
        self.court.progress.say(&format!("ladder, {remedy}: {}", told.verdict));
        told
    }

    /// The next larger recipe, in steps of about a bit.
    fn larger(&self, mix: Mix) -> Option<Mix> {
        match mix {
            Mix::Q2_K | Mix::Q2_K_S => Some(Mix::Q3_K_M),
            Mix::Q3_K_S | Mix::Q3_K_M | Mix::Q3_K_L => Some(Mix::Q4_K_M),
            Mix::Q4_0 | Mix::Q4_1 | Mix::Q4_K_S | Mix::Q4_K_M | Mix::IQ4_NL | Mix::IQ4_XS => Some(Mix::Q5_K_M),
            Mix::Q5_0 | Mix::Q5_1 | Mix::Q5_K_S | Mix::Q5_K_M => Some(Mix::Q6_K),
            Mix::Q6_K => Some(Mix::Q8_0),
            Mix::Q8_0 => Some(self.largest),
            _ => None,
        }
    }
}
