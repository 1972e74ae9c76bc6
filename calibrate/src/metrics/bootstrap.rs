//! Cluster bootstrap intervals: whole tasks are drawn with replacement, so outcomes of one task may
//! depend on one another in any way.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{MetricIntervals, Metrics, Outcome, Tally};
use crate::intervals::percentile;

/// How to resample. The same values and outcomes give the same intervals everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// How many times the tasks are drawn anew.
    pub resamples: usize,
    /// Seed of the ChaCha generator.
    pub seed: u64,
    /// Two-sided confidence of the intervals.
    pub confidence: f64,
}

impl Bootstrap {
    /// What reports use: 2,000 resamples, 95 %, seed 0.
    pub const REPORT: Bootstrap = Bootstrap { resamples: 2000, seed: 0, confidence: 0.95 };
}

/// Percentile intervals of every metric. All `None` with fewer than two clusters: then nothing
/// shows how much clusters vary.
pub fn intervals(outcomes: &[Outcome], bootstrap: &Bootstrap) -> MetricIntervals {
    let mut tally = Tally::support(outcomes);
    let clusters = Clusters::of(outcomes, &tally);
    if clusters.len() < 2 {
        return MetricIntervals::default();
    }
    let mut resampled = [const { Vec::new() }; Metrics::NAMES.len()];
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    for _ in 0..bootstrap.resamples {
        tally.clear();
        for _ in 0..clusters.len() {
            for &(index, success) in clusters.get(random.random_range(0..clusters.len())) {
                tally.add(index as usize, success);
            }
        }
        for (values, value) in resampled.iter_mut().zip(tally.metrics().values()) {
            values.extend(value);
        }
    }
    MetricIntervals::from_array(
        resampled.map(|mut values| percentile(&mut values, bootstrap.resamples, bootstrap.confidence)),
    )
}

/// Outcomes as (place in the tally, success), cluster after cluster.
struct Clusters {
    members: Vec<(u32, bool)>,
    /// Where each cluster ends in `members`.
    ends: Vec<usize>,
}

impl Clusters {
    fn of(outcomes: &[Outcome], tally: &Tally) -> Self {
        let mut tagged: Vec<(u64, u32, bool)> =
            outcomes.iter().map(|it| (it.cluster(), tally.index_of(it.probability()) as u32, it.success())).collect();
        // Sorting makes a draw mean the same cluster whatever the order of the outcomes was.
        tagged.sort_unstable();
        let ends = tagged.chunk_by(|a, b| a.0 == b.0).scan(0, |end, chunk| {
            *end += chunk.len();
            Some(*end)
        });
        Self { ends: ends.collect(), members: tagged.iter().map(|&(_, index, won)| (index, won)).collect() }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, cluster: usize) -> &[(u32, bool)] {
        let start = if cluster == 0 { 0 } else { self.ends[cluster - 1] };
        &self.members[start..self.ends[cluster]]
    }
}
