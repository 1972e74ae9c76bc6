//! The interval of AUROC: how well a ranking is known from so many successes and failures.

use super::Outcome;
use crate::intervals::{Interval, reach};

/// The interval of AUROC, two-sided: DeLong's variance (DeLong, DeLong & Clarke-Pearson 1988), summed by
/// cluster where outcomes depend on one another (Obuchowski 1997), on the scale of the log odds.
///
/// The log odds keep the ends inside `0..=1` and the coverage near nominal at an AUROC of 0.9, where the
/// plain interval falls short. `None` with fewer than two of a class, or where the ranking is perfect or
/// perfectly wrong: its variance is then not to be seen.
pub fn auroc_interval(outcomes: &[Outcome], confidence: f64) -> Option<Interval> {
    let (auroc, error) = delong(outcomes)?;
    if !(auroc > 0.0 && auroc < 1.0 && error > 0.0) {
        return None;
    }
    let odds = (auroc / (1.0 - auroc)).ln();
    let half = reach(confidence)? * error / (auroc * (1.0 - auroc));
    let share = |odds: f64| 1.0 / (1.0 + (-odds).exp());
    Some(Interval { low: share(odds - half), high: share(odds + half) })
}

/// AUROC and its standard error; `None` with fewer than two of a class or one cluster.
pub fn delong(outcomes: &[Outcome]) -> Option<(f64, f64)> {
    let mut sorted: Vec<Outcome> = outcomes.to_vec();
    sorted.sort_unstable_by(|a, b| {
        let key = |it: &Outcome| (it.cluster(), it.success());
        a.probability().total_cmp(&b.probability()).then_with(|| key(a).cmp(&key(b)))
    });
    let won = sorted.iter().filter(|it| it.success()).count() as f64;
    let lost = sorted.len() as f64 - won;
    if won < 2.0 || lost < 2.0 {
        return None;
    }
    let placements = placements(&sorted, won, lost);
    let auroc = mean_of(&sorted, &placements, true);
    // What each outcome adds to the error, by class: its placement less the mean, over the class.
    let share = |it: &Outcome| if it.success() { won } else { lost };
    let mut influence: Vec<(u64, bool, f64)> = sorted
        .iter()
        .zip(&placements)
        .map(|(it, placement)| (it.cluster(), it.success(), (placement - auroc) / share(it)))
        .collect();
    influence.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
    let clusters: Vec<&[(u64, bool, f64)]> = influence.chunk_by(|a, b| a.0 == b.0).collect();
    let variance = if clusters.len() == sorted.len() {
        let squares = |won: bool| influence.iter().filter(move |it| it.1 == won).map(|it| it.2 * it.2).sum::<f64>();
        squares(true) * won / (won - 1.0) + squares(false) * lost / (lost - 1.0)
    } else {
        let n = clusters.len() as f64;
        let squares: f64 = clusters.iter().map(|it| it.iter().map(|it| it.2).sum::<f64>().powi(2)).sum();
        squares * n / (n - 1.0)
    };
    (clusters.len() > 1 && variance.is_finite()).then(|| (auroc, variance.sqrt()))
}

/// For a success the share of failures below it, for a failure the share of successes above it, ties half.
fn placements(sorted: &[Outcome], won: f64, lost: f64) -> Vec<f64> {
    let mut placements = Vec::with_capacity(sorted.len());
    let (mut won_below, mut lost_below) = (0.0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.probability() == b.probability()) {
        let tied_won = tied.iter().filter(|it| it.success()).count() as f64;
        let tied_lost = tied.len() as f64 - tied_won;
        for outcome in tied {
            placements.push(if outcome.success() {
                (lost_below + 0.5 * tied_lost) / lost
            } else {
                (won - won_below - 0.5 * tied_won) / won
            });
        }
        won_below += tied_won;
        lost_below += tied_lost;
    }
    placements
}

fn mean_of(sorted: &[Outcome], placements: &[f64], success: bool) -> f64 {
    let mut of =
        sorted.iter().zip(placements).filter(|it| it.0.success() == success).map(|it| *it.1).collect::<Vec<_>>();
    // Sorted, so that clusters of another name give the same last digits.
    of.sort_unstable_by(f64::total_cmp);
    of.iter().sum::<f64>() / of.len() as f64
}
