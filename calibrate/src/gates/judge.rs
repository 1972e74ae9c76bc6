//! The gates themselves: what each measures, on which tasks, against which limit.

use super::pairs::{Both, Measure, Pairs, Ranking, Side, gap, shape, squared_error};
use super::report::{Confidence, Flips, GateResult, Report, Verdict};
use super::sequence::Look;
use super::verdict::{Evidence, decide};
use super::{EpisodeRecord, Evaluation, GateError, GateProfile};
use crate::intervals::{Interval, accelerated, mcnemar_exact, percentile, student, tango};
use crate::metrics::{Metrics, Outcome};
use crate::recalibration::RecalibrationMap;

/// How a gate's numbers are written.
#[derive(Debug, Clone, Copy)]
enum Unit {
    /// A share, written in points of a hundred.
    Points,
    /// A score of its own, three decimals.
    Score,
    /// Tokens per episode, harm as a relative growth.
    Tokens,
}

/// One property to be judged, before any resampling.
struct Question<'a> {
    id: &'static str,
    name: String,
    unit: Unit,
    limit: f64,
    n: u64,
    n_min: u64,
    reference: Option<f64>,
    candidate: Option<f64>,
    harm: Measure<'a>,
    /// Two ways to pass (G3): the candidate's own value lies within ± limit, or it is not beyond the reference's by
    /// more, on the side it errs to. The harm, the lesser of the two, has no interval of its own: it has a kink
    /// where the reference changes sides.
    either: Option<[Measure<'a>; 2]>,
    /// The floor of a rate and the candidate's rate, where the reference reaches the floor (G6).
    floor: Option<(f64, Measure<'a>)>,
}

/// Judges a candidate against the reference it was made from.
///
/// # Errors
/// A profile that cannot be judged by, tasks that are not paired one to one, records that contradict
/// themselves. No tasks at all are not an error: every gate is then inconclusive.
pub fn judge(reference: &Evaluation, candidate: &Evaluation, profile: &GateProfile) -> Result<Report, GateError> {
    judge_look(reference, candidate, profile, &Look::only(profile.episodes_min))
}

/// As [`judge`], at one of several [`super::looks`] at a growing number of tasks. A look that passes or fails is
/// the last; one that is inconclusive is followed by the next.
///
/// # Errors
/// As [`judge`].
pub fn judge_look(
    reference: &Evaluation,
    candidate: &Evaluation,
    profile: &GateProfile,
    look: &Look,
) -> Result<Report, GateError> {
    let profile = &GateProfile { episodes_min: look.tasks, ..profile.clone() };
    profile.check()?;
    let pairs = Pairs::of(reference, candidate)?;
    let identity = RecalibrationMap::identity();
    let reference_map = reference.recalibration.as_ref().unwrap_or(&identity);
    let candidate_map = candidate.recalibration.as_ref().unwrap_or(&identity);
    let maps = |side| if side == Side::Reference { reference_map } else { candidate_map };

    let success = pairs.both(|record, _| Some(share(record.success)));
    let brier = pairs.both(|record, _| squared_error(record, &identity));
    let brier_mapped = pairs.both(|record, side| squared_error(record, maps(side)));
    let gaps = pairs.both(|record, side| gap(record, maps(side)));
    let rankings = [Side::Reference, Side::Candidate].map(|side| Ranking::of(&pairs, side));
    let fidelity = fidelities(&pairs, profile);
    let parsed = pairs.both(|record, _| Some(f64::from(record.steps_parsed)));
    let steps = pairs.both(|record, _| Some(f64::from(record.steps)));
    let tokens = pairs.both(|record, _| Some(f64::from(record.tokens)));

    let asker = Asker { profile, n: pairs.len() as u64, once: vec![1; pairs.len()] };
    let mut questions = vec![
        asker.success(&success),
        asker.brier("G2", "Brier score as stated", profile.brier_rise_max, &brier),
        asker.brier("G2b", "Brier score after the map", profile.brier_recalibrated_rise_max, &brier_mapped),
        asker.signed_gap(&gaps),
        asker.auroc(&rankings, brier.n()),
    ];
    questions.extend(fidelity.iter().map(|(horizon, both)| asker.fidelity(*horizon, both)));
    questions.extend([asker.parse_rate(&parsed, &steps), asker.tokens(&tokens)]);

    let flips = flips(&pairs);
    let mut gates = answers(&pairs, &questions, profile, look, flips);
    let recalibration_required = settle_brier(&mut gates, candidate.recalibration.is_some(), profile);
    let stated = |evaluation: &Evaluation| Metrics::of(&outcomes(evaluation, &identity));
    let candidate_estimate = Metrics::of(&outcomes(candidate, candidate_map));
    Ok(Report {
        profile: profile.name.clone(),
        verdict: overall(&gates),
        n: asker.n,
        episodes_missing: episodes_missing(&gates, asker.n),
        look: *look,
        confidence: confidence(&candidate_estimate, profile),
        recalibration_required,
        flips,
        gates,
        reference: stated(reference),
        candidate: stated(candidate),
        candidate_estimate,
    })
}

fn share(success: bool) -> f64 {
    f64::from(u8::from(success))
}

/// Makes the questions; holds what they share.
struct Asker<'p> {
    profile: &'p GateProfile,
    n: u64,
    /// Every task drawn once: the data as they are.
    once: Vec<u32>,
}

impl Asker<'_> {
    /// A question about a mean of both sides. `worse` is +1 where more is worse, -1 where less is.
    fn mean<'a>(&self, id: &'static str, name: impl Into<String>, both: &'a Both, worse: f64) -> Question<'a> {
        let means = both.means(&self.once);
        let n = both.n();
        // A part of the episodes may lack the value; half of the minimum still carries a verdict.
        let n_min = if n == self.n { self.profile.episodes_min } else { self.profile.episodes_min.div_ceil(2) };
        Question {
            id,
            name: name.into(),
            unit: Unit::Points,
            limit: 0.0,
            n,
            n_min,
            reference: means.map(|it| it.0),
            candidate: means.map(|it| it.1),
            // Adding zero turns -0.0 into 0.0, which reads better in a report.
            harm: Box::new(move |weights| both.mean_rise(weights).map(|rise| worse * rise + 0.0)),
            either: None,
            floor: None,
        }
    }

    fn success<'a>(&self, both: &'a Both) -> Question<'a> {
        Question { limit: self.profile.success_loss_max, ..self.mean("G1", "task success", both, -1.0) }
    }

    fn brier<'a>(&self, id: &'static str, name: &str, limit: f64, both: &'a Both) -> Question<'a> {
        Question { limit, unit: Unit::Score, ..self.mean(id, name, both, 1.0) }
    }

    fn signed_gap<'a>(&self, gaps: &'a Both) -> Question<'a> {
        let side = gaps.means(&self.once).map_or(1.0, |it| it.1.signum());
        Question {
            limit: self.profile.signed_gap_max,
            harm: Box::new(|weights| gaps.means(weights).map(|(reference, candidate)| excess(reference, candidate))),
            either: Some([
                Box::new(|weights| gaps.means(weights).map(|it| it.1)),
                Box::new(move |weights| gaps.means(weights).map(|(reference, own)| side * (own - reference))),
            ]),
            ..self.mean("G3", "signed gap of the estimate", gaps, 1.0)
        }
    }

    fn auroc<'a>(&self, [reference, candidate]: &'a [Ranking; 2], n: u64) -> Question<'a> {
        let n_min = if n == self.n { self.profile.episodes_min } else { self.profile.episodes_min.div_ceil(2) };
        Question {
            id: "G4",
            name: "AUROC of the stated probability".to_owned(),
            unit: Unit::Score,
            limit: self.profile.auroc_loss_max,
            n,
            n_min,
            reference: reference.auroc(&self.once),
            candidate: candidate.auroc(&self.once),
            harm: Box::new(|weights| Some(reference.auroc(weights)? - candidate.auroc(weights)?)),
            either: None,
            floor: None,
        }
    }

    fn fidelity<'a>(&self, horizon: usize, both: &'a Both) -> Question<'a> {
        let limit = match horizon {
            1 => self.profile.fidelity_first_loss_max,
            _ => self.profile.fidelity_last_loss_max,
        };
        Question { limit, ..self.mean("G5", format!("rollout fidelity at h = {horizon}"), both, -1.0) }
    }

    fn parse_rate<'a>(&self, parsed: &'a Both, steps: &'a Both) -> Question<'a> {
        let rates = move |weights: &[u32]| {
            let (parsed, steps) = (parsed.means(weights)?, steps.means(weights)?);
            (steps.0 > 0.0 && steps.1 > 0.0).then(|| (parsed.0 / steps.0, parsed.1 / steps.1))
        };
        let rate = rates(&self.once);
        let floor = self.profile.parse_rate_min;
        let reached = rate.is_some_and(|(reference, _)| reference >= floor);
        let candidate_rate: Measure<'a> = Box::new(move |weights| rates(weights).map(|it| it.1));
        Question {
            limit: self.profile.parse_rate_loss_max,
            reference: rate.map(|it| it.0),
            candidate: rate.map(|it| it.1),
            harm: Box::new(move |weights| rates(weights).map(|(reference, candidate)| reference - candidate)),
            floor: reached.then_some((floor, candidate_rate)),
            ..self.mean("G6", "parse rate", parsed, -1.0)
        }
    }

    fn tokens<'a>(&self, tokens: &'a Both) -> Question<'a> {
        let growth = |weights: &[u32]| {
            let (reference, candidate) = tokens.means(weights)?;
            (reference > 0.0).then(|| candidate / reference - 1.0)
        };
        Question {
            unit: Unit::Tokens,
            limit: self.profile.tokens_growth_max,
            harm: Box::new(growth),
            ..self.mean("G7", "tokens per episode", tokens, 1.0)
        }
    }
}

/// How much further from 0 the candidate's gap lies, on the side it errs to, than the reference's.
fn excess(reference: f64, candidate: f64) -> f64 {
    candidate.abs() - (reference * candidate.signum()).max(0.0)
}

/// Fidelity at horizon 1 and at the longest one that enough pairs show.
fn fidelities(pairs: &Pairs<'_>, profile: &GateProfile) -> Vec<(usize, Both)> {
    let at = |horizon: usize| {
        let shown = |record: &EpisodeRecord| record.fidelity.get(horizon - 1).copied().flatten();
        pairs.both(|record, _| shown(record))
    };
    let horizons = pairs.0.iter().map(|it| it.reference.fidelity.len()).max().unwrap_or(0);
    let n_min = profile.episodes_min.div_ceil(2);
    let last = (2..=horizons).rev().map(|horizon| (horizon, at(horizon))).find(|(_, both)| both.n() >= n_min);
    std::iter::once((1, at(1))).chain(last).collect()
}

fn flips(pairs: &Pairs<'_>) -> Flips {
    let count = |won: bool| {
        let flipped = pairs.0.iter().filter(|it| it.candidate.success == won && it.reference.success != won);
        flipped.count() as u64
    };
    let (gained, lost) = (count(true), count(false));
    Flips { gained, lost, mcnemar_p: mcnemar_exact(gained, lost) }
}

/// The outcomes of an evaluation as a map sees them.
fn outcomes(evaluation: &Evaluation, map: &RecalibrationMap) -> Vec<Outcome> {
    let outcome = |it: &EpisodeRecord| Some(Outcome::of_estimate(map.apply(it.stated?), it.success, it.task));
    evaluation.episodes.iter().filter_map(outcome).collect()
}

fn confidence(estimate: &Metrics, profile: &GateProfile) -> Confidence {
    let skilled = estimate.brier_skill.is_some_and(|it| it > profile.usable_brier_skill_min);
    let ranks = estimate.auroc.is_some_and(|it| it > profile.usable_auroc_min);
    if skilled && ranks { Confidence::Usable } else { Confidence::Unusable }
}

/// Resampled values of one question.
#[derive(Default)]
struct Resampled {
    harm: Vec<f64>,
    either: [Vec<f64>; 2],
    rate: Vec<f64>,
    /// How many were drawn; values that are not defined are missing.
    resamples: usize,
}

/// Resamples the tasks once for all questions, then decides each.
fn answers(
    pairs: &Pairs<'_>,
    questions: &[Question<'_>],
    profile: &GateProfile,
    look: &Look,
    flips: Flips,
) -> Vec<GateResult> {
    let mut resampled: Vec<Resampled> = questions.iter().map(|_| Resampled::default()).collect();
    pairs.resample(profile.resamples, profile.seed, |weights| {
        for (question, values) in questions.iter().zip(&mut resampled) {
            values.resamples += 1;
            values.harm.extend((question.harm)(weights));
            for (values, measure) in values.either.iter_mut().zip(question.either.iter().flatten()) {
                values.extend(measure(weights));
            }
            values.rate.extend(question.floor.as_ref().and_then(|(_, rate)| rate(weights)));
        }
    });
    let once = vec![1; pairs.len()];
    let both = questions.iter().zip(resampled);
    both.map(|(question, values)| answer(question, values, &once, look, flips)).collect()
}

fn answer(question: &Question<'_>, mut values: Resampled, once: &[u32], look: &Look, flips: Flips) -> GateResult {
    let (n, resamples, confidence) = (question.n, values.resamples, look.confidence());
    let harm = (question.harm)(once);
    let shape = shape(once.len(), &question.harm);
    let error = deviation(&values.harm);
    let mut evidence = Evidence {
        n,
        n_min: question.n_min,
        harm,
        deviation: error.map(|it| it * (n as f64).sqrt()),
        interval: harm.zip(error).and_then(|(harm, error)| {
            let (skew, freedom) = (shape.acceleration, shape.freedom);
            let skewed = accelerated(&mut values.harm, resamples, confidence, harm, skew, freedom)?;
            let half = student(freedom, confidence)? * error;
            // The skewness is measured too, and where little carries all of a harm it is measured badly.
            Some(Interval { low: skewed.low.min(harm - half), high: skewed.high.max(harm + half) })
        }),
    };
    if question.id == "G1" && n > 0 {
        // The score interval knows that a task which did not flip here may flip elsewhere.
        let interval = tango(flips.gained, flips.lost, n, confidence);
        evidence.interval = interval.map(|it| Interval { low: -it.high, high: -it.low });
        let rise = (flips.gained as f64 - flips.lost as f64) / n as f64;
        let variance = (flips.gained + flips.lost) as f64 / n as f64 - rise * rise;
        evidence.deviation = Some(variance.max(0.0).sqrt());
    }
    let mut verdict = decide(&evidence, question.limit, look);
    let mut remark = String::new();
    if question.either.is_some() {
        (verdict, remark) = settle_either(verdict, question, &mut values, look);
    }
    if let (Some((floor, _)), Some(rate)) = (&question.floor, question.candidate)
        && rate < *floor
    {
        let bound = percentile(&mut values.rate, resamples, confidence);
        verdict = below_floor(verdict, &evidence, bound.is_some_and(|it| it.high < *floor));
        remark = format!(" Below the floor of {}, which the reference reaches.", written(*floor, Unit::Points));
    }
    let sentence = sentence(question, &evidence, verdict, look) + &remark;
    GateResult {
        id: question.id,
        name: question.name.clone(),
        verdict,
        excused: false,
        n,
        reference: question.reference,
        candidate: question.candidate,
        measured: evidence.harm,
        interval: evidence.interval,
        limit: question.limit,
        sentence,
    }
}

/// Passes in either of two ways. Each is tested at half the level, so that both together err no more often.
fn settle_either(verdict: Verdict, question: &Question<'_>, values: &mut Resampled, look: &Look) -> (Verdict, String) {
    let (n, limit, confidence) = (question.n, question.limit, 1.0 - look.level);
    let resamples = values.resamples;
    let [own, beside] = values.either.each_mut().map(|it| percentile(it, resamples, confidence));
    let within = own.is_some_and(|it| it.low > -limit && it.high < limit);
    let no_worse = beside.is_some_and(|it| it.high < limit);
    match verdict {
        _ if n >= question.n_min && no_worse => (Verdict::Pass, String::new()),
        _ if n >= question.n_min && within => {
            (Verdict::Pass, " The candidate's own gap is within the limit.".to_owned())
        }
        // Close to the limit either way, which more tasks of the same would tell.
        Verdict::Pass => (Verdict::Inconclusive { n, n_needed: Some(2 * n) }, String::new()),
        other => (other, String::new()),
    }
}

/// The verdict of a rate that is below a floor its reference reaches.
fn below_floor(verdict: Verdict, evidence: &Evidence, clearly: bool) -> Verdict {
    let &Evidence { n, n_min, .. } = evidence;
    match verdict {
        Verdict::Pass if clearly => Verdict::Fail,
        Verdict::Pass => Verdict::Inconclusive { n, n_needed: Some((2 * n).max(n_min)) },
        other => other,
    }
}

/// Standard deviation of resampled values: the standard error of what was measured.
fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|it| (it - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
}

/// Settles G2 and G2b with each other; says whether the verdict rests on the map.
///
/// Without a map of its own the candidate serves what it states, so G2b has nothing to add to G2.
/// With one, G2b always counts, and a profile may let it make up for G2.
fn settle_brier(gates: &mut [GateResult], mapped: bool, profile: &GateProfile) -> bool {
    let mapped_passes = gates.iter().any(|it| it.id == "G2b" && it.verdict == Verdict::Pass);
    let excusable = mapped && mapped_passes && profile.recalibration_excuses_brier;
    let mut required = false;
    for gate in gates {
        if gate.id == "G2b" && !mapped {
            gate.excused = true;
            gate.sentence += " Set aside: the candidate has no recalibration map.";
        }
        if gate.id == "G2" && gate.verdict != Verdict::Pass && excusable {
            gate.excused = true;
            gate.sentence += " Set aside: G2b passes, so the recalibration map must be served with the file.";
            required = true;
        }
    }
    required
}

fn overall(gates: &[GateResult]) -> Verdict {
    let counted: Vec<Verdict> = gates.iter().filter(|it| !it.excused).map(|it| it.verdict).collect();
    if counted.contains(&Verdict::Fail) {
        return Verdict::Fail;
    }
    let open = counted.iter().filter_map(|it| match it {
        Verdict::Inconclusive { n, n_needed } => Some((*n, *n_needed)),
        _ => None,
    });
    let worst = open.reduce(|a, b| (a.0.min(b.0), a.1.zip(b.1).map(|(x, y)| x.max(y))));
    worst.map_or(Verdict::Pass, |(n, n_needed)| Verdict::Inconclusive { n, n_needed })
}

/// Episodes missing to the gate that misses most, of which each informs a gate as often as those judged did.
fn episodes_missing(gates: &[GateResult], n: u64) -> Option<u64> {
    let missing = |it: &GateResult| match it.verdict {
        Verdict::Inconclusive { n: informing, n_needed } => {
            let each = n.max(1) as f64 / informing.max(1) as f64;
            // The cast saturates: "more episodes than there are" is the largest number.
            Some(n_needed.map(|it| (it.saturating_sub(informing) as f64 * each).ceil() as u64))
        }
        _ => None,
    };
    let failed = gates.iter().any(|it| !it.excused && it.verdict == Verdict::Fail);
    let open = gates.iter().filter(|it| !it.excused && !failed).filter_map(missing);
    open.reduce(|a, b| Some(a?.max(b?))).flatten()
}

/// A value in the unit of its gate.
fn written(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Points => format!("{:.1} %", 100.0 * value),
        Unit::Score => format!("{value:.3}"),
        Unit::Tokens => format!("{value:.1}"),
    }
}

/// A harm or a limit in the unit of its gate.
fn written_harm(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Points => format!("{:.2} points", 100.0 * value),
        Unit::Score => format!("{value:.4}"),
        Unit::Tokens => format!("{:.1} %", 100.0 * value),
    }
}

fn sentence(question: &Question<'_>, evidence: &Evidence, verdict: Verdict, look: &Look) -> String {
    let Question { id, name, unit, limit, .. } = question;
    let ending = match verdict {
        Verdict::Pass => "pass".to_owned(),
        Verdict::Fail => "fail".to_owned(),
        Verdict::Inconclusive { n, n_needed: Some(needed) } => {
            format!("inconclusive with {n} tasks, about {needed} needed")
        }
        Verdict::Inconclusive { n, n_needed: None } => {
            format!("inconclusive, not defined for these {n} tasks")
        }
    };
    let (Some(reference), Some(candidate), Some(harm), Some(interval)) =
        (question.reference, question.candidate, evidence.harm, evidence.interval)
    else {
        return format!("{id} {name}: {ending}.");
    };
    format!(
        "{id} {name}: {} for the reference, {} for the candidate; worse by {} ({} % interval {} to {}), \
         limit {}: {ending}.",
        written(reference, *unit),
        written(candidate, *unit),
        written_harm(harm, *unit),
        (1000.0 * look.confidence()).round() / 10.0,
        written_harm(interval.low, *unit),
        written_harm(interval.high, *unit),
        written_harm(*limit, *unit),
    )
}
