//! How well stated probabilities (or estimates) and outcomes agree.
//!
//! Every metric is a function of how often each probability was followed by success and failure, so
//! the order of the outcomes never matters. A metric that is not defined is `None`, never NaN.
//! Knows nothing of policies, episodes or what a good value is; that is for [`crate::gates`].

mod auroc;
mod bootstrap;
mod cells;
mod chance;
mod reliability;
mod selection;
mod smooth;
mod tally;

use serde::Serialize;

pub use auroc::{auroc_interval, delong};
pub use bootstrap::{Bootstrap, intervals};
pub use cells::{CELL_OUTCOMES_MIN, Cell, CellGap, cell_gaps};
pub use chance::{CalibratedErrors, Chance, errors_if_calibrated};
pub use reliability::{ReliabilityBin, reliability_curve, reliability_curve_equal_mass};
pub use selection::{RiskPoint, risk_coverage};
pub use smooth::{smooth_ece, smooth_ece_interval};

pub(crate) use tally::Tally;

use crate::recalibration::Estimate;
use crate::stated::{NotAProbability, Stated};

/// One probability and what really happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    probability: f64,
    success: bool,
    cluster: u64,
}

impl Outcome {
    /// A stated probability and its outcome. `cluster` names what depends on one another: the task.
    pub fn new(stated: f64, success: bool, cluster: u64) -> Result<Self, NotAProbability> {
        Stated::new(stated).map(|stated| Self::of_stated(stated, success, cluster))
    }

    /// As [`Outcome::new`], for a probability that is already one.
    pub fn of_stated(stated: Stated, success: bool, cluster: u64) -> Self {
        Self { probability: stated.value(), success, cluster }
    }

    /// An estimate and its outcome: to measure what a recalibration map makes of the stated ones.
    pub fn of_estimate(estimate: Estimate, success: bool, cluster: u64) -> Self {
        Self { probability: estimate.value(), success, cluster }
    }

    /// The probability given, in `0..=1`.
    pub fn probability(self) -> f64 {
        self.probability
    }

    /// Whether the episode succeeded.
    pub fn success(self) -> bool {
        self.success
    }

    /// The task, or whatever else makes outcomes depend on one another.
    pub fn cluster(self) -> u64 {
        self.cluster
    }
}

/// Makes [`Metrics`] and [`MetricIntervals`] from one table, so that they never disagree.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Agreement of probabilities and outcomes. `None`: not defined for these outcomes.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        pub struct Metrics {
            /// Number of outcomes.
            pub n: usize,
            $($(#[$doc])* pub $name: Option<f64>,)*
        }

        /// Intervals of [`Metrics`], field by field; [`intervals`] says of what kind.
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        pub struct MetricIntervals {
            $($(#[$doc])* pub $name: Option<crate::intervals::Interval>,)*
        }

        impl Metrics {
            /// The names of all metrics but `n`, in order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// The values of all metrics but `n`, in the order of [`Metrics::NAMES`].
            pub fn values(&self) -> [Option<f64>; Self::NAMES.len()] {
                [$(self.$name),*]
            }
        }

        impl MetricIntervals {
            /// From the intervals of every metric, in the order of [`Metrics::NAMES`].
            fn from_array(intervals: [Option<crate::intervals::Interval>; Metrics::NAMES.len()]) -> Self {
                let [$($name),*] = intervals;
                Self { $($name),* }
            }

            /// The intervals of every metric, in the order of [`Metrics::NAMES`].
            pub fn values(&self) -> [Option<crate::intervals::Interval>; Metrics::NAMES.len()] {
                [$(self.$name),*]
            }
        }
    };
}

metrics! {
    /// Share of successes, `b`.
    base_rate,
    /// Mean of `(q - I)²`; 0 is perfect, lower is better.
    brier,
    /// Brier score of always saying the base rate: `b (1 - b)`.
    brier_constant,
    /// `1 - brier / brier_constant`; above 0 means better than a constant. Not defined for one class.
    brier_skill,
    /// Mean negative log likelihood in nats, with `q` clipped to `0.01..=0.99`.
    nll,
    /// Chance that a success was given a higher `q` than a failure; ties count half. Needs both classes.
    auroc,
    /// Mean `q` minus base rate; positive is overconfident.
    signed_gap,
    /// Murphy's reliability over the 21 levels, debiased (Bröcker 2012; Ferro & Fricker 2012).
    /// Perfect calibration gives 0 on average, so it may be slightly negative. Needs two outcomes.
    reliability,
    /// Murphy's resolution, debiased likewise: how much the levels separate successes.
    resolution,
    /// Murphy's uncertainty, debiased likewise.
    uncertainty,
    /// `brier - (reliability - resolution + uncertainty)`: 0 when every `q` is on the grid, otherwise
    /// what is lost by looking at an expectation through its nearest level.
    within_level,
    /// Expected calibration error over ten equal-width bins `(lower, upper]`, 0 in the first.
    /// Biased upwards: a perfect predictor averages 0.042 at n = 500. Report, never gate.
    ece_equal_width_10,
    /// Expected calibration error over fifteen bins of equal mass; equal `q` stay together.
    ece_equal_mass_15,
    /// Share of failures among the half with the highest `q`; ties at the edge count in proportion.
    selective_risk_at_50,
    /// Share of failures among the 80 % with the highest `q`, likewise.
    selective_risk_at_80,
    /// Area under risk against coverage: the share of failures among the `k` highest, on average over
    /// all `k`. A tie is broken at random, on average. 0 is perfect; the base rate of failures is none.
    aurc,
    /// Average precision of detecting failures by low `q`; ties count as one threshold. Needs a failure.
    auprc_failure,
}

impl Metrics {
    /// All metrics of these outcomes.
    pub fn of(outcomes: &[Outcome]) -> Self {
        Tally::of(outcomes).metrics()
    }
}
