//! Two evaluations side by side, task by task, and the harms measured on (resampled) tasks.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{EpisodeRecord, Evaluation, GateError};
use crate::recalibration::RecalibrationMap;

/// A harm as a function of how often each task was drawn; `None` where it is not defined.
pub(super) type Measure<'a> = Box<dyn Fn(&[u32]) -> Option<f64> + 'a>;

/// Groups of tasks that are left out in turn.
const GROUPS: usize = 200;

/// How what each task adds to a harm is distributed, as far as an interval depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Efron's acceleration: the skewness over 6.
    pub(super) acceleration: f64,
    /// Degrees of freedom of the harm's standard error. Where few tasks carry all of the harm, these are few.
    pub(super) freedom: f64,
}

/// The shape of a harm over `n` tasks, seen by leaving out one of 200 groups of tasks at a time.
///
/// A variance estimated from `n` values of kurtosis `k` varies as one of `2 n / (k - 1)` degrees of freedom does; the
/// kurtosis beyond 3 of a group's sum is that of a task over the group's size.
pub(super) fn shape(n: usize, harm: &Measure<'_>) -> Shape {
    let mut weights = vec![1; n];
    let mut without = Vec::with_capacity(GROUPS);
    for group in 0..GROUPS.min(n) {
        (group..n).step_by(GROUPS).for_each(|it| weights[it] = 0);
        without.extend(harm(&weights));
        (group..n).step_by(GROUPS).for_each(|it| weights[it] = 1);
    }
    let groups = without.len() as f64;
    let mean = without.iter().sum::<f64>() / groups;
    let powers = |exponent: i32| without.iter().map(|it| (mean - it).powi(exponent)).sum::<f64>();
    let squares = powers(2);
    if squares.is_nan() || squares <= 0.0 {
        return Shape { acceleration: 0.0, freedom: f64::INFINITY };
    }
    let beyond = (groups * powers(4) / (squares * squares) - 3.0).max(0.0) * n as f64 / groups;
    Shape { acceleration: powers(3) / (6.0 * squares.powf(1.5)), freedom: 2.0 * n as f64 / (2.0 + beyond) }
}

/// Episodes of one task.
pub(super) struct Pair<'a> {
    pub(super) reference: &'a EpisodeRecord,
    pub(super) candidate: &'a EpisodeRecord,
}

/// All pairs, by task.
pub(super) struct Pairs<'a>(pub(super) Vec<Pair<'a>>);

impl<'a> Pairs<'a> {
    pub(super) fn of(reference: &'a Evaluation, candidate: &'a Evaluation) -> Result<Self, GateError> {
        let reference = sorted(&reference.episodes, "reference")?;
        let candidate = sorted(&candidate.episodes, "candidate")?;
        let mut pairs = Vec::with_capacity(reference.len());
        let mut candidates = candidate.into_iter().peekable();
        for reference in reference {
            match candidates.peek() {
                Some(it) if it.task < reference.task => break,
                Some(it) if it.task == reference.task => {}
                _ => return Err(GateError::Unpaired { task: reference.task, missing: "candidate" }),
            }
            pairs.extend(candidates.next().map(|candidate| Pair { reference, candidate }));
        }
        match candidates.next() {
            Some(extra) => Err(GateError::Unpaired { task: extra.task, missing: "reference" }),
            None => Ok(Self(pairs)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What each side shows in every pair that has it on both.
    pub(super) fn both(&self, of: impl Fn(&EpisodeRecord, Side) -> Option<f64>) -> Both {
        let value = |pair: &Pair<'_>| of(pair.reference, Side::Reference).zip(of(pair.candidate, Side::Candidate));
        Both(self.0.iter().map(value).collect())
    }

    /// How often each task was drawn, for each resample in turn.
    pub(super) fn resample(&self, resamples: usize, seed: u64, mut with: impl FnMut(&[u32])) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = vec![0; self.len()];
        for _ in 0..resamples {
            weights.fill(0);
            for _ in 0..self.len() {
                weights[random.random_range(0..self.len())] += 1;
            }
            with(&weights);
        }
    }
}

/// Which evaluation a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Reference,
    Candidate,
}

/// A value of reference and candidate per pair; `None` where one of them lacks it.
pub(super) struct Both(Vec<Option<(f64, f64)>>);

impl Both {
    /// Pairs that have the value.
    pub(super) fn n(&self) -> u64 {
        self.0.iter().flatten().count() as u64
    }

    /// Means of reference and candidate over the drawn pairs.
    pub(super) fn means(&self, weights: &[u32]) -> Option<(f64, f64)> {
        let (mut n, mut reference, mut candidate) = (0.0, 0.0, 0.0);
        for (values, &weight) in self.0.iter().zip(weights) {
            if let Some((r, c)) = values {
                let weight = f64::from(weight);
                n += weight;
                reference += weight * r;
                candidate += weight * c;
            }
        }
        (n > 0.0).then(|| (reference / n, candidate / n))
    }

    /// Mean of `candidate - reference`; exactly 0 where they never differ.
    pub(super) fn mean_rise(&self, weights: &[u32]) -> Option<f64> {
        let (mut n, mut sum) = (0.0, 0.0);
        for (values, &weight) in self.0.iter().zip(weights) {
            if let Some((reference, candidate)) = values {
                n += f64::from(weight);
                sum += f64::from(weight) * (candidate - reference);
            }
        }
        (n > 0.0).then(|| sum / n)
    }
}

/// Squared error of a record's estimate; `None` without a stated probability.
pub(super) fn squared_error(record: &EpisodeRecord, map: &RecalibrationMap) -> Option<f64> {
    gap(record, map).map(|it| it * it)
}

/// Estimate minus outcome of a record.
pub(super) fn gap(record: &EpisodeRecord, map: &RecalibrationMap) -> Option<f64> {
    record.stated.map(|stated| map.apply(stated).value() - f64::from(u8::from(record.success)))
}

/// One side's episodes in the order of what they stated, for AUROC on resampled tasks.
pub(super) struct Ranking(Vec<Ranked>);

struct Ranked {
    pair: u32,
    success: bool,
    /// Whether the stated probability is above that of the entry before.
    higher: bool,
}

impl Ranking {
    /// Ranks the pairs in which both sides stated something.
    pub(super) fn of(pairs: &Pairs<'_>, side: Side) -> Self {
        let stated = |(index, pair): (usize, &Pair<'_>)| {
            let (reference, candidate) = (pair.reference.stated?, pair.candidate.stated?);
            Some(match side {
                Side::Reference => (reference.value(), index as u32, pair.reference.success),
                Side::Candidate => (candidate.value(), index as u32, pair.candidate.success),
            })
        };
        let mut entries: Vec<(f64, u32, bool)> = pairs.0.iter().enumerate().filter_map(stated).collect();
        entries.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut before = f64::NEG_INFINITY;
        let ranked = entries.into_iter().map(|(stated, pair, success)| {
            let higher = stated > before;
            before = stated;
            Ranked { pair, success, higher }
        });
        Self(ranked.collect())
    }

    /// AUROC over the drawn tasks, ties counting half; `None` with one class only.
    pub(super) fn auroc(&self, weights: &[u32]) -> Option<f64> {
        // Whole numbers: twice the number of pairs in the right order.
        let (mut doubled, mut won_all, mut lost_below) = (0_u64, 0_u64, 0_u64);
        let (mut won, mut lost) = (0_u64, 0_u64);
        for entry in &self.0 {
            if entry.higher {
                doubled += won * (2 * lost_below + lost);
                won_all += won;
                lost_below += lost;
                (won, lost) = (0, 0);
            }
            let weight = u64::from(weights[entry.pair as usize]);
            if entry.success { won += weight } else { lost += weight }
        }
        doubled += won * (2 * lost_below + lost);
        let ordered_pairs = (won_all + won) * (lost_below + lost);
        (ordered_pairs > 0).then(|| doubled as f64 / (2 * ordered_pairs) as f64)
    }
}

fn sorted<'a>(episodes: &'a [EpisodeRecord], side: &'static str) -> Result<Vec<&'a EpisodeRecord>, GateError> {
    for it in episodes {
        let wrong = |field, expected, found| GateError::Record { task: it.task, side, field, expected, found };
        if it.steps_parsed > it.steps {
            let expected = "no more than `steps`";
            return Err(wrong("steps_parsed", expected, f64::from(it.steps_parsed)));
        }
        if let Some(&found) = it.fidelity.iter().flatten().find(|share| !(0.0..=1.0).contains(*share)) {
            return Err(wrong("fidelity", "a share in 0..=1", found));
        }
    }
    let mut episodes: Vec<&EpisodeRecord> = episodes.iter().collect();
    episodes.sort_by_key(|it| it.task);
    match episodes.windows(2).find(|two| two[0].task == two[1].task) {
        Some(two) => Err(GateError::Repeated { task: two[0].task, side }),
        None => Ok(episodes),
    }
}
