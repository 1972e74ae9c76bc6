//! Learning rates over a run.

use serde::{Deserialize, Serialize};

/// Linear warm-up, a plateau, then linear decay to zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The plateau's rate.
    pub learning_rate: f32,
    /// Share of the run that warms up.
    pub warmup: f32,
    /// Share of the run that decays.
    pub decay: f32,
}

impl Schedule {
    /// The rate at a point of the run, `progress` from 0 to 1.
    #[must_use]
    pub fn rate(&self, progress: f32) -> f32 {
        let up = if self.warmup > 0.0 { progress / self.warmup } else { 1.0 };
        let down = if self.decay > 0.0 { (1.0 - progress) / self.decay } else { 1.0 };
        // Never zero: a step that changes nothing would still be counted.
        self.learning_rate * up.min(down).clamp(1e-3, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_stays_and_decays() {
        let schedule = Schedule { learning_rate: 2.0, warmup: 0.1, decay: 0.5 };
        let rates = [0.05, 0.3, 0.75].map(|it| schedule.rate(it));
        assert!((rates[0] - 1.0).abs() < 1e-5 && (rates[1] - 2.0).abs() < 1e-5 && (rates[2] - 1.0).abs() < 1e-5);
    }
}
