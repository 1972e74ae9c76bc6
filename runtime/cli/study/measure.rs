//! What is measured of played episodes, with intervals in which seeds and instances both are chance.

use fsq_calibrate::crossed::crossed;
use fsq_calibrate::metrics::Bootstrap;

use super::results::{Played, Row};
use crate::report::record::Measured;

/// A measure by its registered name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Adherence,
    /// So many steps ahead, from 1.
    Fidelity(usize),
    Success,
    Brier,
    Auroc,
    SignedGap,
    GapIndex,
    SuccessGrowth,
    /// Tokens that an episode takes.
    Tokens,
}

impl Measure {
    /// The measure of a name.
    pub(super) fn of(name: &str) -> Option<Self> {
        if let Some(horizon) = name.strip_prefix("fidelity-") {
            return horizon.parse().ok().filter(|it| *it > 0).map(Self::Fidelity);
        }
        let named = [
            ("adherence", Self::Adherence),
            ("success", Self::Success),
            ("brier", Self::Brier),
            ("auroc", Self::Auroc),
            ("signed-gap", Self::SignedGap),
            ("gap-index", Self::GapIndex),
            ("success-growth", Self::SuccessGrowth),
            ("tokens", Self::Tokens),
        ];
        named.into_iter().find(|it| it.0 == name).map(|it| it.1)
    }
}

/// The episodes of one policy in one environment, all seeds together.
pub(super) struct Sample {
    /// (seed, instance, what it showed), in the order of what was stated.
    episodes: Vec<(usize, usize, Row)>,
    n_seeds: usize,
    n_instances: usize,
    hardest: usize,
}

impl Sample {
    /// Joins what the seeds played, one after the other; `None` unless all played the same instances.
    pub(super) fn of(played: &[&Played]) -> Option<Self> {
        let first = played.first()?;
        if played.iter().any(|it| it.instances != first.instances || it.n != first.n) {
            return None;
        }
        let of_seed = |(seed, it): (usize, &&Played)| -> Vec<(usize, usize, Row)> {
            it.rows.iter().enumerate().map(|(instance, row)| (seed, instance, row.clone())).collect()
        };
        let mut episodes: Vec<_> = played.iter().enumerate().flat_map(of_seed).collect();
        let stated = |it: &Row| it.stated().unwrap_or(f64::INFINITY);
        episodes.sort_by(|a, b| stated(&a.2).total_cmp(&stated(&b.2)));
        let hardest = first.difficulties.len().saturating_sub(1);
        Some(Self { episodes, n_seeds: played.len(), n_instances: first.n, hardest })
    }

    /// The measure over episodes that count as often as their seed and instance were drawn.
    fn value(&self, measure: Measure, seeds: &[u32], instances: &[u32]) -> Option<f64> {
        let weights = (seeds, instances);
        let missed = |it: &Row| it.stated().map(|q| q - f64::from(u8::from(it.success())));
        match measure {
            Measure::Adherence => self.ratio(weights, |it| Some((f64::from(it.turns_parsed()), f64::from(it.turns())))),
            Measure::Fidelity(h) => self.ratio(weights, |it| it.fidelity().nth(h - 1)?.map(|it| (truth(it), 1.0))),
            Measure::Success => self.ratio(weights, |it| Some((truth(it.success()), 1.0))),
            Measure::Brier => self.ratio(weights, |it| missed(it).map(|it| (it * it, 1.0))),
            Measure::SignedGap => self.ratio(weights, |it| missed(it).map(|it| (it, 1.0))),
            Measure::Tokens => self.ratio(weights, |it| Some((f64::from(it.tokens()), 1.0))),
            Measure::Auroc => self.auroc(weights),
            Measure::GapIndex => {
                let came_true = self.ratio(weights, |it| shares(it.fidelity()))?;
                let shuffled = self.ratio(weights, |it| shares(it.fidelity_shuffled()))?;
                let normalised = (came_true - shuffled) / (1.0 - shuffled);
                Some(self.value(Measure::Adherence, seeds, instances)? - normalised).filter(|it| it.is_finite())
            }
            Measure::SuccessGrowth => {
                let at = |difficulty: usize| {
                    let own = |it: &Row| (it.difficulty() == difficulty).then(|| (truth(it.success()), 1.0));
                    self.ratio(weights, own)
                };
                Some(at(self.hardest)? - at(0)?)
            }
        }
    }

    /// The sum of first parts over the sum of second parts.
    fn ratio(&self, (seeds, instances): (&[u32], &[u32]), of: impl Fn(&Row) -> Option<(f64, f64)>) -> Option<f64> {
        let (mut sum, mut n) = (0.0, 0.0);
        for (seed, instance, row) in &self.episodes {
            let weight = seeds[*seed] * instances[*instance];
            if weight > 0
                && let Some((above, below)) = of(row)
            {
                sum += f64::from(weight) * above;
                n += f64::from(weight) * below;
            }
        }
        (n > 0.0).then(|| sum / n)
    }

    /// The chance that a success was given a higher probability than a failure, ties counting half.
    fn auroc(&self, (seeds, instances): (&[u32], &[u32])) -> Option<f64> {
        let stated = self.episodes.iter().filter(|it| it.2.stated().is_some());
        let (mut ordered, mut won_all, mut lost_below) = (0.0, 0.0, 0.0);
        let (mut won, mut lost, mut before) = (0.0, 0.0, f64::NEG_INFINITY);
        for (seed, instance, row) in stated {
            let own = row.stated()?;
            if own > before {
                ordered += won * (lost_below + 0.5 * lost);
                (won_all, lost_below) = (won_all + won, lost_below + lost);
                (won, lost, before) = (0.0, 0.0, own);
            }
            let weight = f64::from(seeds[*seed] * instances[*instance]);
            if row.success() { won += weight } else { lost += weight }
        }
        ordered += won * (lost_below + 0.5 * lost);
        let pairs = (won_all + won) * (lost_below + lost);
        (pairs > 0.0).then(|| ordered / pairs)
    }
}

fn truth(it: bool) -> f64 {
    f64::from(u8::from(it))
}

/// What came true of a rollout, and what there was to come true.
fn shares(truths: impl Iterator<Item = Option<bool>>) -> Option<(f64, f64)> {
    let sums = truths.flatten().fold((0.0, 0.0), |(sum, n), it| (sum + truth(it), n + 1.0));
    (sums.1 > 0.0).then_some(sums)
}

/// A measure with its 95 % interval.
pub(super) fn measured(measure: Measure, sample: &Sample) -> Option<Measured> {
    compared(measure, sample, None)
}

/// A measure of one policy less `share` times that of another that played the same, with its 95 % interval.
pub(super) fn compared(measure: Measure, of: &Sample, less: Option<(&Sample, f64)>) -> Option<Measured> {
    if less.is_some_and(|(it, _)| (it.n_seeds, it.n_instances) != (of.n_seeds, of.n_instances)) {
        return None;
    }
    let difference = |seeds: &[u32], instances: &[u32]| {
        let own = of.value(measure, seeds, instances)?;
        match less {
            Some((other, share)) => Some(own - share * other.value(measure, seeds, instances)?),
            None => Some(own),
        }
    };
    let value = difference(&vec![1; of.n_seeds], &vec![1; of.n_instances])?;
    let around = crossed(of.n_seeds, of.n_instances, &Bootstrap::REPORT, difference)?;
    if around.low < around.high {
        return Some(Measured { value, low: around.low, high: around.high });
    }
    // No draw differed from another, which shows no more than that what would differ is rare.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let rare = -(0.5 * (1.0 - Bootstrap::REPORT.confidence)).ln() / of.n_instances as f64;
    Some(Measured { value, low: value - rare, high: value + rare })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use fsq_calibrate::metrics::{Metrics, Outcome};

    use super::super::results::After;
    use super::*;

    fn played(rows: Vec<Row>) -> Played {
        Played {
            after: After::Rl,
            environment: "countdown".into(),
            horizon: 2,
            difficulties: vec!["easy".into(), "hard".into()],
            instances: "same".into(),
            n: rows.len(),
            rows,
        }
    }

    fn row(success: bool, stated: f64, fidelity: &str, shuffled: &str, difficulty: u8) -> Row {
        Row(u8::from(success), Some(stated), fidelity.into(), shuffled.into(), 2, 2, 50, difficulty)
    }

    fn rows() -> Vec<Row> {
        vec![
            row(true, 0.9, "11", "00", 0),
            row(false, 0.4, "10", "00", 0),
            row(true, 0.4, "11", "10", 1),
            row(false, 0.1, "0-", "0-", 1),
            row(false, 0.6, "00", "10", 1),
        ]
    }

    #[test]
    fn measures_are_those_of_the_metrics() {
        let sample = Sample::of(&[&played(rows())]).unwrap();
        let found = |measure| measured(measure, &sample).unwrap().value;
        let outcomes: Vec<Outcome> =
            rows().iter().map(|it| Outcome::new(it.1.unwrap(), it.success(), 0).unwrap()).collect();
        let metrics = Metrics::of(&outcomes);
        assert!((found(Measure::Brier) - metrics.brier.unwrap()).abs() < 1e-12);
        assert!((found(Measure::Auroc) - metrics.auroc.unwrap()).abs() < 1e-12);
        assert!((found(Measure::SignedGap) - metrics.signed_gap.unwrap()).abs() < 1e-12);
        assert_eq!(found(Measure::Success), 0.4);
        assert_eq!((found(Measure::Fidelity(1)), found(Measure::Fidelity(2))), (0.6, 0.5));
        assert!((found(Measure::SuccessGrowth) - (1.0 / 3.0 - 0.5)).abs() < 1e-12);
        // Five of nine states came true, two of nine by chance.
        let normalised = (5.0 / 9.0 - 2.0 / 9.0) / (7.0 / 9.0);
        assert!((found(Measure::GapIndex) - (1.0 - normalised)).abs() < 1e-12);
    }

    #[test]
    fn a_comparison_with_itself_is_nothing_but_not_for_certain() {
        let (one, other) = (played(rows()), played(rows().into_iter().rev().collect()));
        let sample = Sample::of(&[&one, &other]).unwrap();
        let same = compared(Measure::Success, &sample, Some((&sample, 1.0))).unwrap();
        // What one instance in five would show may not have been among five.
        assert!(same.value == 0.0 && same.low < -0.5 && same.high > 0.5, "{same:?}");
        let half = compared(Measure::Success, &sample, Some((&sample, 0.5))).unwrap();
        assert!((half.value - 0.2).abs() < 1e-12 && half.low < half.value && half.value < half.high);
        let other = Played { instances: "others".into(), ..one.clone() };
        assert!(Sample::of(&[&one, &other]).is_none());
        let single = Sample::of(&[&one]).unwrap();
        assert!(compared(Measure::Success, &sample, Some((&single, 1.0))).is_none());
    }

    #[test]
    fn what_is_not_there_is_not_measured() {
        let plain = Row(1, None, String::new(), String::new(), 2, 2, 9, 0);
        let sample = Sample::of(&[&played(vec![plain.clone(), plain])]).unwrap();
        for measure in [Measure::Fidelity(1), Measure::Brier, Measure::Auroc, Measure::GapIndex] {
            assert!(measured(measure, &sample).is_none(), "{measure:?}");
        }
        assert_eq!(measured(Measure::Success, &sample).unwrap().value, 1.0);
    }
}
