//! What a map does to outcomes that it has not seen, from one set of outcomes: cross-fitting.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Family, RecalibrationError, RecalibrationMap};
use crate::metrics::Outcome;

/// The outcomes with estimates in place of what was stated, in their order: clusters are dealt into `folds`, and each
/// fold gets its estimates from a map of `family` that was fitted on the others.
///
/// The same outcomes and seed give the same estimates. Below two folds there are two.
///
/// # Errors
/// As [`RecalibrationMap::fit_family`], on what is left when a fold is taken out.
pub fn cross_fitted(
    family: Family,
    outcomes: &[Outcome],
    folds: usize,
    seed: u64,
) -> Result<Vec<Outcome>, RecalibrationError> {
    let mut clusters: Vec<u64> = outcomes.iter().map(|it| it.cluster()).collect();
    clusters.sort_unstable();
    clusters.dedup();
    // Dealt by chance: the names of clusters may follow what is to be learnt.
    let mut fold_of: Vec<usize> = (0..clusters.len()).map(|it| it % folds.max(2)).collect();
    fold_of.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let fold = |it: &Outcome| fold_of[clusters.partition_point(|cluster| *cluster < it.cluster())];
    let map = |left_out: usize| {
        let others: Vec<Outcome> = outcomes.iter().copied().filter(|it| fold(it) != left_out).collect();
        RecalibrationMap::fit_family(family, &others)
    };
    let maps: Vec<RecalibrationMap> = (0..folds.max(2)).map(map).collect::<Result<_, _>>()?;
    let estimate = |it: &Outcome| maps[fold(it)].applied(std::slice::from_ref(it));
    Ok(outcomes.iter().flat_map(estimate).collect())
}
