//! Intervals of statistics over two crossed sets that are both chance, such as training seeds and instances.
//!
//! Every seed's policy plays every instance, so neither set is nested in the other: episodes of one seed depend on
//! one another, and so do those of one instance. Both sets are drawn anew, independently, and an episode counts as
//! often as its seed was drawn times its instance (the pigeonhole bootstrap, Owen 2007, which errs on the wide side).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::intervals::{Interval, percentile};
use crate::metrics::Bootstrap;

/// The percentile interval of a statistic, which is given how often each row and each column was drawn.
///
/// A set of one element is kept as it is: the interval then says nothing of how much others would differ. Two
/// statistics that are compared belong into one closure, so that both see the same draws. `None` as for
/// [`percentile`], and where neither set has two elements.
pub fn crossed(
    n_rows: usize,
    n_columns: usize,
    bootstrap: &Bootstrap,
    mut statistic: impl FnMut(&[u32], &[u32]) -> Option<f64>,
) -> Option<Interval> {
    if n_rows.max(n_columns) < 2 || n_rows.min(n_columns) == 0 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let (mut rows, mut columns) = (vec![0; n_rows], vec![0; n_columns]);
    let mut values = Vec::with_capacity(bootstrap.resamples);
    for _ in 0..bootstrap.resamples {
        draw(&mut rows, &mut random);
        draw(&mut columns, &mut random);
        values.extend(statistic(&rows, &columns));
    }
    percentile(&mut values, bootstrap.resamples, bootstrap.confidence)
}

fn draw(weights: &mut [u32], random: &mut ChaCha8Rng) {
    let n = weights.len();
    weights.fill(0);
    for _ in 0..n {
        weights[random.random_range(0..n)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 1000, seed: 1, confidence: 0.95 };

    /// The weighted mean of a table `[rows][columns]`.
    fn mean_of(table: &[Vec<f64>]) -> impl Fn(&[u32], &[u32]) -> Option<f64> {
        move |rows, columns| {
            let (mut sum, mut n) = (0.0, 0.0);
            for (row, values) in rows.iter().zip(table) {
                for (column, value) in columns.iter().zip(values) {
                    let weight = f64::from(row * column);
                    (sum, n) = (sum + weight * value, n + weight);
                }
            }
            (n > 0.0).then(|| sum / n)
        }
    }

    /// Normal enough: the sum of twelve uniform draws.
    fn noise(random: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
    }

    fn table(n_rows: usize, n_columns: usize, deviations: [f64; 3], random: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
        let columns: Vec<f64> = (0..n_columns).map(|_| deviations[1] * noise(random)).collect();
        let row = |random: &mut ChaCha8Rng| {
            let own = deviations[0] * noise(random);
            columns.iter().map(|it| own + it + deviations[2] * noise(random)).collect()
        };
        (0..n_rows).map(|_| row(random)).collect()
    }

    #[test]
    fn the_true_mean_is_inside_about_as_often_as_said() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let bootstrap = Bootstrap { resamples: 300, ..BOOTSTRAP };
        let mut inside = 0;
        for _ in 0..200 {
            let table = table(8, 40, [0.3, 0.5, 1.0], &mut random);
            let interval = crossed(8, 40, &bootstrap, mean_of(&table)).unwrap();
            inside += u32::from(interval.contains(0.0));
        }
        assert!((174..=199).contains(&inside), "{inside} of 200");
    }

    #[test]
    fn seeds_that_differ_widen_the_interval() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let width = |table: &[Vec<f64>]| {
            let it = crossed(table.len(), 40, &BOOTSTRAP, mean_of(table)).unwrap();
            it.high - it.low
        };
        let (alike, apart) = (table(5, 40, [0.0, 0.5, 1.0], &mut random), table(5, 40, [2.0, 0.5, 1.0], &mut random));
        assert!(width(&apart) > 2.0 * width(&alike), "{} and {}", width(&apart), width(&alike));
    }

    #[test]
    fn too_little_gives_nothing_and_the_same_gives_the_same() {
        assert_eq!(crossed(1, 1, &BOOTSTRAP, |_, _| Some(1.0)), None);
        assert_eq!(crossed(0, 9, &BOOTSTRAP, |_, _| Some(1.0)), None);
        assert_eq!(crossed(3, 9, &BOOTSTRAP, |_, _| None), None);
        let table = table(1, 30, [0.0, 1.0, 1.0], &mut ChaCha8Rng::seed_from_u64(5));
        let once = crossed(1, 30, &BOOTSTRAP, mean_of(&table));
        assert!(once.is_some_and(|it| it.low < it.high));
        assert_eq!(once, crossed(1, 30, &BOOTSTRAP, mean_of(&table)));
    }
}
