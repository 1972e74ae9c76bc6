//! Plays the 16-bit reference and the candidates on the same tasks, and has the gates judge. Encodes nothing.

use std::path::{Path, PathBuf};

use clap::Args;
use fsq_calibrate::gates::{GateProfile, Passed, Report, Verdict};
use fsq_calibrate::recalibration::{RecalibrationError, RecalibrationMaps};
use fsq_checkpoint::Adapter;
use fsq_environments::Split;
use fsq_episodes::Format;
use fsq_gguf::Gguf;
use fsq_quantizer::Importance;

use super::work::Work;
use crate::evaluate::{Plan, Played, World, forecasts, observe_file, play_adapted};
use crate::failure::{Outcome, Refusal};
use crate::gate::{gate_runs, judge_worlds_sharing, outcome_of};
use crate::output::hex;
use crate::policy::Kv;
use crate::progress::Progress;
use crate::report::record::GateRun;

/// Episodes behind what the matrices of the reference read, in each environment.
const OBSERVED: usize = 48;

/// What the gates judge by.
#[derive(Args)]
pub(crate) struct JudgingArguments {
    /// An environment to judge in: countdown, dochop, dagmath, slipgrid; the first two if none is named
    #[arg(long, value_name = "NAME", value_parser = crate::environment::ours)]
    environment: Vec<World>,
    /// Episodes in each environment [default: as many as the profile wants at least]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    episodes: Option<u32>,
    /// Seed of the tasks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Give each file its name whatever the gates say, for this reason: it lands in the file and in the report
    #[arg(long = "override", value_name = "REASON")]
    pub(super) override_reason: Option<String>,
}

/// Where files are judged: the reference has played, or plays when it is first needed.
pub(super) struct Court<'a> {
    pub(super) work: &'a Work,
    pub(super) progress: &'a Progress,
    pub(super) threads: usize,
    profile: GateProfile,
    worlds: Vec<World>,
    episodes: usize,
    seed: u64,
    /// The 16-bit file.
    pub(super) reference: PathBuf,
    /// What both sides play under, where it is not merged.
    adapter: Option<&'a Adapter>,
}

/// What the gates said of one candidate.
pub(super) struct Judgement {
    pub(super) reports: Vec<(String, Report)>,
    pub(super) maps: Option<RecalibrationMaps>,
}

impl<'a> Court<'a> {
    pub(super) fn new(
        arguments: &JudgingArguments,
        profile: GateProfile,
        (work, progress, threads): (&'a Work, &'a Progress, usize),
        reference: PathBuf,
        adapter: Option<&'a Adapter>,
    ) -> Self {
        let worlds = if arguments.environment.is_empty() { World::ALL.to_vec() } else { arguments.environment.clone() };
        let episodes = arguments.episodes.map_or(profile.episodes_min, u64::from);
        let episodes = usize::try_from(episodes).unwrap_or(usize::MAX);
        Self { work, progress, threads, profile, worlds, episodes, seed: arguments.seed, reference, adapter }
    }

    /// Judges a file; `mapped` gives both sides the recalibration maps that fit them. Of several files that are judged
    /// in turn each has a share of the error that all of them together may make.
    ///
    /// # Errors
    /// When a file cannot be played. Maps that no outcomes carry are the second kind of error, which a ladder survives.
    pub(super) fn judge(&self, name: &str, file: &Path, mapped: bool, share: f64) -> anyhow::Result<Judgement> {
        let reference = self.side("the 16-bit reference", &self.reference, mapped)?;
        let candidate = self.side(name, file, mapped)?;
        let (of_reference, own) = ((&*reference.0, reference.1.as_ref()), (&*candidate.0, candidate.1.as_ref()));
        let reports = judge_worlds_sharing(of_reference, own, &self.profile, share)?;
        Ok(Judgement { reports, maps: candidate.1 })
    }

    fn side(&self, name: &str, file: &Path, mapped: bool) -> anyhow::Result<(Vec<Played>, Option<RecalibrationMaps>)> {
        let maps = if mapped {
            let played = self.play(name, file, Split::Calibration)?;
            let outcomes = played.iter().map(|it| (it.environment.clone(), forecasts(&it.records, None)));
            Some(RecalibrationMaps::fit(&outcomes.collect())?)
        } else {
            None
        };
        Ok((self.play(name, file, Split::Test)?, maps))
    }

    /// Episodes of a file in every world, from the work folder where an earlier round or run has left them.
    fn play(&self, name: &str, file: &Path, split: Split) -> anyhow::Result<Vec<Played>> {
        let data = hex(&Gguf::open(file)?.data_sha256());
        let mut all = Vec::with_capacity(self.worlds.len());
        for world in &self.worlds {
            let plan = self.plan(*world, split, self.episodes);
            let kept = format!("{data}-{}-{split:?}-{}-{}.json", world.name(), plan.episodes, plan.seed);
            if let Some(played) = self.work.kept(&kept) {
                all.push(played);
                continue;
            }
            self.progress.stage(format!("play {name} in {} ({split:?})", world.name()), plan.episodes as u64);
            let mut watch = |done: usize| self.progress.set(done as u64);
            let (played, _) = play_adapted(file, self.adapter, &plan, self.threads, &mut watch)?;
            self.work.keep(&kept, &played)?;
            all.push(played);
        }
        self.progress.finish();
        Ok(all)
    }

    fn plan(&self, world: World, split: Split, episodes: usize) -> Plan {
        Plan { world, split, episodes, seed: self.seed, temperature: 0.0, format: Format::Foresight, kv: Kv::F16 }
    }

    /// What the reference's matrices read while it plays tasks that no gate sees.
    pub(super) fn observed(&self) -> anyhow::Result<Importance> {
        let plans: Vec<Plan> = self.worlds.iter().map(|it| self.plan(*it, Split::Calibration, OBSERVED)).collect();
        self.progress.stage("observe what matrices read", (plans.len() * OBSERVED) as u64);
        let mut watch = |done: usize| self.progress.set(done as u64);
        let importance = observe_file(&self.reference, &plans, self.threads, &mut watch)?;
        self.progress.finish();
        Ok(importance)
    }
}

impl Judgement {
    pub(super) fn outcome(&self) -> Outcome {
        outcome_of(self.reports.iter().map(|it| it.1.verdict()))
    }

    /// The one-sided level of every gate's bound.
    pub(super) fn level(&self) -> f64 {
        self.reports.first().map_or(0.0, |it| it.1.look().level)
    }

    /// The word for the report.
    pub(super) fn verdict(&self) -> &'static str {
        match self.outcome() {
            Outcome::Done => "pass",
            Outcome::Failed => "fail",
            Outcome::Inconclusive => "inconclusive",
        }
    }

    /// The judgements as reports hold them.
    pub(super) fn runs(&self, candidate: &str) -> anyhow::Result<Vec<GateRun>> {
        gate_runs("16-bit reference", candidate, &self.reports)
    }

    /// The gates that count and did not pass: their short names, and what they said.
    pub(super) fn unmet(&self) -> Vec<(&'static str, String)> {
        let of_world = |(environment, report): &(String, Report)| {
            let unmet = report.gates().iter().filter(|it| !it.excused && it.verdict != Verdict::Pass);
            unmet.map(|it| (it.id, format!("{environment}: {}", it.sentence))).collect::<Vec<_>>()
        };
        self.reports.iter().flat_map(of_world).collect()
    }

    /// The tokens of a pass in every environment, or of a written reason where it is none.
    pub(super) fn passes(self, override_reason: Option<&str>) -> anyhow::Result<Option<Vec<(String, Passed)>>> {
        let mut passes = Vec::with_capacity(self.reports.len());
        for (environment, report) in self.reports {
            let passed = match override_reason {
                Some(reason) if report.verdict() != Verdict::Pass => Some(report.override_with(reason)?),
                _ => report.passed(),
            };
            match passed {
                Some(passed) => passes.push((environment, passed)),
                None => return Ok(None),
            }
        }
        Ok(Some(passes))
    }
}

/// Whether a judgement could not be had because no map fits the outcomes.
pub(super) fn is_unfit(error: &anyhow::Error) -> bool {
    error.downcast_ref::<RecalibrationError>().is_some()
}

/// Refuses a reason without words before anything is played.
pub(super) fn check_reason(reason: Option<&str>, is_judged: bool) -> anyhow::Result<()> {
    match reason {
        Some(_) if !is_judged => Err(Refusal::new("--override: expected --gate PROFILE beside it, found none").into()),
        Some(reason) if !reason.contains(char::is_alphabetic) => {
            Err(Refusal::new(format!("--override: expected a sentence, found `{reason}`")).into())
        }
        _ => Ok(()),
    }
}
