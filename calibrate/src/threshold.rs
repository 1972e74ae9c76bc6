//! "Act if the estimate is at least `t`", with a bound on failures that holds whatever the estimates mean.
//!
//! The threshold is picked on outcomes that no gate uses and no map was fitted on. It holds for plans that
//! are exchangeable with those: the same environments, the same artefact, the same map.
//! Knows nothing of who acts.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::metrics::Outcome;

/// What is to be bounded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "bound")]
pub enum FailureBound {
    /// The chance that a plan is followed *and* fails is at most `rate`, on average over outcomes to pick
    /// the threshold on and the next plan (conformal risk control, Angelopoulos et al. 2022).
    OfAll {
        /// The most failures there may be, of all plans.
        rate: f64,
    },
    /// Of the plans that are followed at most the share `rate` fails; the threshold keeps that promise
    /// with probability `1 - risk` (learn then test, Angelopoulos et al. 2021: exact binomial tests in a
    /// fixed order, from the strictest threshold down, until one does not reject).
    OfFollowed {
        /// The most failures there may be, of the plans that are followed.
        rate: f64,
        /// How often outcomes may mislead.
        risk: f64,
    },
}

/// Where to act, and what acting there meant for the outcomes it was picked on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ActThreshold {
    /// Act if the estimate is at least this.
    pub threshold: f64,
    /// Independent outcomes it was picked on.
    pub n: usize,
    /// Those that would have been followed.
    pub n_followed: usize,
    /// Those followed that failed.
    pub n_failed: usize,
}

/// Fewest outcomes above the first threshold that is tested: a test on fewer cannot reject, and the order
/// of thresholds ends at the first that does not.
fn followed_min(rate: f64, risk: f64) -> f64 {
    (risk.ln() / (1.0 - rate).ln()).ceil()
}

/// The lowest threshold that keeps the bound; `None` if none does, so that no plan may be followed on the
/// strength of its estimate, or if the bound is no share between 0 and 1.
///
/// Where a cluster has several outcomes one of them is drawn by `seed`, as the others add no independent
/// evidence. `seed` decides nothing where every cluster has one.
pub fn act_threshold(outcomes: &[Outcome], bound: FailureBound, seed: u64) -> Option<ActThreshold> {
    let levels = levels(&one_of_each_cluster(outcomes, seed));
    let n = levels.iter().map(|it| it.n).sum::<f64>();
    let share = |it: f64| it > 0.0 && it < 1.0;
    match bound {
        FailureBound::OfAll { rate } if share(rate) => {
            // The next plan's loss is at most 1: it stands for the worst that n outcomes did not show.
            let kept = |failed: f64| (failed + 1.0) / (n + 1.0) <= rate;
            lowest(&levels, n, |_, failed| kept(failed), 0.0)
        }
        FailureBound::OfFollowed { rate, risk } if share(rate) && share(risk) => {
            let kept = |followed: f64, failed: f64| {
                Binomial::new(rate, followed as u64).is_ok_and(|it| it.cdf(failed as u64) <= risk)
            };
            lowest(&levels, n, kept, followed_min(rate, risk))
        }
        _ => None,
    }
}

/// One distinct probability: its outcomes and failures.
struct Level {
    probability: f64,
    n: f64,
    failed: f64,
}

/// Goes down from the highest probability while the bound is kept on all above; says where that ended.
fn lowest(levels: &[Level], n: f64, kept: impl Fn(f64, f64) -> bool, followed_min: f64) -> Option<ActThreshold> {
    let (mut followed, mut failed, mut found) = (0.0, 0.0, None);
    for level in levels.iter().rev() {
        followed += level.n;
        failed += level.failed;
        if followed < followed_min {
            continue;
        }
        if !kept(followed, failed) {
            break;
        }
        found = Some(ActThreshold {
            threshold: level.probability,
            n: n as usize,
            n_followed: followed as usize,
            n_failed: failed as usize,
        });
    }
    found
}

fn one_of_each_cluster(outcomes: &[Outcome], seed: u64) -> Vec<Outcome> {
    let mut sorted = outcomes.to_vec();
    sorted.sort_unstable_by(|a, b| {
        let by_probability = a.probability().total_cmp(&b.probability());
        a.cluster().cmp(&b.cluster()).then(by_probability).then(a.success().cmp(&b.success()))
    });
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    sorted.chunk_by(|a, b| a.cluster() == b.cluster()).map(|it| it[random.random_range(0..it.len())]).collect()
}

/// Ascending by probability.
fn levels(outcomes: &[Outcome]) -> Vec<Level> {
    let mut sorted = outcomes.to_vec();
    sorted.sort_unstable_by(|a, b| a.probability().total_cmp(&b.probability()));
    let tied = sorted.chunk_by(|a, b| a.probability() == b.probability());
    let level = |it: &[Outcome]| Level {
        probability: it[0].probability(),
        n: it.len() as f64,
        failed: it.iter().filter(|it| !it.success()).count() as f64,
    };
    tied.map(level).collect()
}
