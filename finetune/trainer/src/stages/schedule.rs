//! Learning rates over a run.

use serde::{Deserialize, Serialize};

/// The course of the rate behind its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Course {
    /// A plateau, then linear decay over the last share of the run.
    #[default]
    Linear,
    /// Half a cosine, from the plateau to zero.
    Cosine,
    /// A plateau to the end.
    Constant,
}

/// Linear warm-up, then what the course says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The plateau's rate.
    pub learning_rate: f32,
    /// Share of the run that warms up.
    #[serde(default)]
    pub warmup: f32,
    /// Share of the run that decays, where the course is linear.
    #[serde(default)]
    pub decay: f32,
    /// What follows the warm-up.
    #[serde(default)]
    pub course: Course,
}

impl Schedule {
    /// The rate at a point of the run, `progress` from 0 to 1.
    #[must_use]
    pub fn rate(&self, progress: f32) -> f32 {
        let up = if self.warmup > 0.0 { progress / self.warmup } else { 1.0 };
        let down = match self.course {
            Course::Linear if self.decay > 0.0 => (1.0 - progress) / self.decay,
            Course::Linear | Course::Constant => 1.0,
            Course::Cosine => {
                let behind = ((progress - self.warmup) / (1.0 - self.warmup).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
                0.5 * (1.0 + (std::f32::consts::PI * behind).cos())
            }
        };
        // Never zero: a step that changes nothing would still be counted.
        self.learning_rate * up.min(down).clamp(1e-3, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(course: Course, at: [f32; 3]) -> [f32; 3] {
        let schedule = Schedule { learning_rate: 2.0, warmup: 0.1, decay: 0.5, course };
        at.map(|it| schedule.rate(it))
    }

    #[track_caller]
    fn assert_close(found: [f32; 3], expected: [f32; 3]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
    }

    #[test]
    fn every_course_warms_up_and_goes_its_way() {
        assert_close(rates(Course::Linear, [0.05, 0.3, 0.75]), [1.0, 2.0, 1.0]);
        assert_close(rates(Course::Constant, [0.05, 0.3, 1.0]), [1.0, 2.0, 2.0]);
        // Half way behind the warm-up, half the rate.
        assert_close(rates(Course::Cosine, [0.05, 0.1, 0.55]), [1.0, 2.0, 1.0]);
        assert_close(rates(Course::Cosine, [0.1, 0.325, 1.0]), [2.0, 1.0 + 0.5f32.sqrt(), 2e-3]);
    }
}
