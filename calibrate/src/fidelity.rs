//! Rollout fidelity by horizon, and how much of it a candidate keeps for each step further ahead.
//!
//! Works on shares of imagined states that came true; whether the rollouts followed the reference's own
//! prefixes (open loop) or each policy's own play (closed loop) is for whoever recorded them.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::intervals::{Interval, mean_clustered, percentile, wilson};
use crate::metrics::Bootstrap;

/// How true one episode's rollout was.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutTruth {
    /// The task, or whatever else makes episodes depend on one another.
    pub cluster: u64,
    /// Share of the imagined state that came true, in `0..=1`, for horizons 1, 2, ..; `None` where
    /// nothing was imagined or the episode had ended.
    pub shares: Vec<Option<f64>>,
}

/// Fidelity at one horizon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HorizonFidelity {
    /// Steps ahead, from 1.
    pub horizon: usize,
    /// Episodes that show it.
    pub n: usize,
    /// Mean share that came true.
    pub fidelity: f64,
    /// Its interval: Wilson's where every state is right or wrong and clusters are single, else Student's
    /// t over clusters.
    pub interval: Option<Interval>,
}

/// Fidelity at every horizon that some episode shows. Values that are no shares are passed over.
pub fn fidelity_by_horizon(episodes: &[RolloutTruth], confidence: f64) -> Vec<HorizonFidelity> {
    let horizons = episodes.iter().map(|it| it.shares.len()).max().unwrap_or(0);
    (1..=horizons).filter_map(|it| at_horizon(episodes, it, confidence)).collect()
}

fn at_horizon(episodes: &[RolloutTruth], horizon: usize, confidence: f64) -> Option<HorizonFidelity> {
    let mut values: Vec<(u64, f64)> =
        episodes.iter().filter_map(|it| Some((it.cluster, share_at(it, horizon)?))).collect();
    values.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let n = values.len();
    let sum: f64 = values.iter().map(|it| it.1).sum();
    let single = values.windows(2).all(|two| two[0].0 != two[1].0);
    let whole = values.iter().all(|it| it.1 == 0.0 || it.1 == 1.0);
    let interval =
        if single && whole { wilson(sum as u64, n as u64, confidence) } else { mean_clustered(&values, confidence) };
    (n > 0).then(|| HorizonFidelity { horizon, n, fidelity: sum / n as f64, interval })
}

fn share_at(episode: &RolloutTruth, horizon: usize) -> Option<f64> {
    episode.shares.get(horizon - 1).copied().flatten().filter(|it| (0.0..=1.0).contains(it))
}

/// How a candidate's fidelity falls behind the reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retention {
    /// `F_candidate(h) / F_reference(h)` for horizons 1, 2, .. over the pairs that show both; `None`
    /// where there is none, or the reference was never right.
    pub ratios: Vec<Option<f64>>,
    /// `r` in `F_candidate(h) / F_reference(h) = r^h`: the share kept at each step. Least squares of the
    /// logarithms through 0, weighted by the pairs of each horizon. 0.99 leaves 95 % at five steps.
    /// `None` where no horizon has a ratio above 0.
    pub per_step: Option<f64>,
    /// Its cluster bootstrap interval.
    pub interval: Option<Interval>,
}

/// Compares the rollouts of pairs `(reference, candidate)` of the same tasks.
pub fn retention(pairs: &[(RolloutTruth, RolloutTruth)], bootstrap: &Bootstrap) -> Retention {
    let mut sums: Vec<(u64, Vec<Sums>)> = pairs.iter().map(|it| (it.0.cluster, sums_of(it))).collect();
    sums.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| order(&a.1, &b.1)));
    let clusters: Vec<&[(u64, Vec<Sums>)]> = sums.chunk_by(|a, b| a.0 == b.0).collect();
    let once = total(clusters.iter().flat_map(|it| it.iter()).map(|it| &it.1));
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let mut values = Vec::new();
    if clusters.len() > 1 {
        for _ in 0..bootstrap.resamples {
            let drawn = (0..clusters.len()).map(|_| clusters[random.random_range(0..clusters.len())]);
            values.extend(per_step(&total(drawn.flatten().map(|it| &it.1))));
        }
    }
    Retention {
        ratios: once.iter().map(Sums::ratio).collect(),
        per_step: per_step(&once),
        interval: percentile(&mut values, bootstrap.resamples, bootstrap.confidence),
    }
}

/// Pairs that show a horizon, and what came true on both sides.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    n: f64,
    reference: f64,
    candidate: f64,
}

impl Sums {
    fn ratio(&self) -> Option<f64> {
        (self.reference > 0.0).then(|| self.candidate / self.reference)
    }
}

fn sums_of((reference, candidate): &(RolloutTruth, RolloutTruth)) -> Vec<Sums> {
    let horizons = reference.shares.len().min(candidate.shares.len());
    let at = |horizon| match (share_at(reference, horizon), share_at(candidate, horizon)) {
        (Some(reference), Some(candidate)) => Sums { n: 1.0, reference, candidate },
        _ => Sums::default(),
    };
    (1..=horizons).map(at).collect()
}

fn order(a: &[Sums], b: &[Sums]) -> std::cmp::Ordering {
    let key = |it: &Sums| [it.n, it.reference, it.candidate].map(f64::to_bits);
    a.iter().map(key).cmp(b.iter().map(key))
}

fn total<'a>(all: impl Iterator<Item = &'a Vec<Sums>>) -> Vec<Sums> {
    let mut total: Vec<Sums> = Vec::new();
    for sums in all {
        total.resize(total.len().max(sums.len()), Sums::default());
        for (into, from) in total.iter_mut().zip(sums) {
            into.n += from.n;
            into.reference += from.reference;
            into.candidate += from.candidate;
        }
    }
    total
}

fn per_step(sums: &[Sums]) -> Option<f64> {
    let (mut products, mut squares) = (0.0, 0.0);
    for (index, sums) in sums.iter().enumerate() {
        if let Some(ratio) = sums.ratio().filter(|it| *it > 0.0) {
            let horizon = (index + 1) as f64;
            products += sums.n * horizon * ratio.ln();
            squares += sums.n * horizon * horizon;
        }
    }
    (squares > 0.0).then(|| (products / squares).exp())
}
