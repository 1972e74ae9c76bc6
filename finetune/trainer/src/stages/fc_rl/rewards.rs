//! What a group's episodes are rewarded for, and how far each lies above its peers.

use std::collections::HashMap;

use super::{ConfidenceSignal, Group, RlConfig, Scale, mean, to_f32};

/// A group's rewards and stated probabilities, by rollout and step.
pub(super) struct Rewards {
    world_model: Vec<Vec<f32>>,
    stated: Vec<Vec<Option<f32>>>,
    outcome: Vec<f32>,
    /// Of all steps, for steps that hardly anyone reached.
    by_step: HashMap<usize, Vec<f32>>,
    scale: Scale,
}

impl Rewards {
    pub(super) fn of(group: &Group, config: &RlConfig) -> Self {
        let mut rewards = Self {
            world_model: Vec::new(),
            stated: Vec::new(),
            outcome: Vec::new(),
            by_step: HashMap::new(),
            scale: config.scale,
        };
        for episode in group {
            let outcome = f32::from(u8::from(episode.success));
            let mut of_steps = Vec::new();
            let mut stated = Vec::new();
            for (t, step) in episode.steps.iter().enumerate() {
                let expected = step.stated();
                let written = step.foresight.as_ref().map(|it| it.stated);
                let stated_here = match config.confidence {
                    ConfidenceSignal::Brier => expected,
                    // A token can only be rewarded for what it was.
                    ConfidenceSignal::Reward => expected.and(written),
                };
                #[expect(clippy::cast_possible_truncation, reason = "a probability")]
                let q = stated_here.map(|it| it.value() as f32);
                let truths: Vec<f64> = step.fidelity.iter().flatten().map(|it| f64::from(u8::from(*it))).collect();
                #[expect(clippy::cast_possible_truncation, reason = "a share")]
                let fidelity = mean(truths.into_iter()) as f32;
                let reward = q.map_or(-1.0, |q| outcome - (q - outcome).powi(2) + config.fidelity_weight * fidelity);
                rewards.by_step.entry(t).or_default().push(reward);
                of_steps.push(reward);
                stated.push(q);
            }
            let broken = episode.steps.iter().any(|it| it.fault.is_some());
            rewards.outcome.push(outcome - if broken { 0.1 } else { 0.0 });
            rewards.world_model.push(of_steps);
            rewards.stated.push(stated);
        }
        rewards
    }

    /// Reward minus the mean of the other rollouts' at the same step; of all their steps where fewer than two reach it.
    pub(super) fn world_model_advantage(&self, index: usize, t: usize) -> f32 {
        let own = self.world_model[index][t];
        let peers = &self.by_step[&t];
        if self.scale == Scale::Deviation {
            return standardized(own, peers);
        }
        let (sum, n) = if peers.len() > 2 {
            (peers.iter().sum::<f32>() - own, peers.len() - 1)
        } else {
            let others = self.world_model.iter().enumerate().filter(|(it, _)| *it != index).flat_map(|(_, it)| it);
            others.fold((0.0, 0), |(sum, n), it| (sum + it, n + 1))
        };
        if n == 0 { 0.0 } else { own - sum / to_f32(n) }
    }

    pub(super) fn outcome_advantage(&self, index: usize) -> f32 {
        if self.scale == Scale::Deviation {
            return standardized(self.outcome[index], &self.outcome);
        }
        let others = self.outcome.len() - 1;
        if others == 0 {
            return 0.0;
        }
        self.outcome[index] - (self.outcome.iter().sum::<f32>() - self.outcome[index]) / to_f32(others)
    }

    /// What brings the signal to the size of the outcome's advantage, whose own deviation is at most one half.
    pub(super) fn signal_scale(&self) -> f32 {
        match self.scale {
            Scale::None => 0.5,
            Scale::Deviation => 1.0,
        }
    }

    /// How much more this rollout states than its peers at the same step, in floored deviations.
    pub(super) fn signal(&self, index: usize, t: usize) -> f32 {
        const DEVIATION_MIN: f32 = 0.1;
        let Some(own) = self.stated[index][t] else { return 0.0 };
        let peers: Vec<f32> = self.stated.iter().filter_map(|it| *it.get(t)?).collect();
        let n = to_f32(peers.len());
        let mean = peers.iter().sum::<f32>() / n;
        let deviation = (peers.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / n).sqrt();
        ((own - mean) / deviation.max(DEVIATION_MIN)).clamp(-2.0, 2.0)
    }
}

/// How many of its group's deviations a value lies above the group's mean; 0 where nothing deviates.
fn standardized(own: f32, group: &[f32]) -> f32 {
    const DEVIATION_MIN: f32 = 1e-4;
    let n = to_f32(group.len());
    let mean = group.iter().sum::<f32>() / n;
    let deviation = (group.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / n).sqrt();
    if deviation < DEVIATION_MIN { 0.0 } else { (own - mean) / deviation }
}

#[cfg(test)]
mod tests {
    use fsq_episodes::Episode;

    use super::*;
    use crate::Recipe;

    fn config(settings: &[&str]) -> RlConfig {
        let settings: Vec<String> = settings.iter().map(|it| format!("fc-rl.{it}")).collect();
        let recipe = Recipe::parse_with(include_str!("../../../../recipes/demo.toml"), &settings).unwrap();
        recipe.fc_rl.unwrap()
    }

    /// A rollout of one step that stated so much and came out so.
    fn episode(percent: f64, success: bool) -> Episode {
        use fsq_calibrate::foresight::Foresight;
        use fsq_calibrate::stated::{Stated, StatedDistribution};
        let mut log_probs = [-20.0f32; 21];
        log_probs[10] = 0.0;
        let foresight = Foresight {
            imaginary: Vec::new(),
            keyword: Vec::new(),
            analysis: String::new(),
            stated: Stated::new(percent / 100.0).unwrap(),
            think: String::new(),
            action: "x".into(),
        };
        let step = fsq_episodes::PlayedStep {
            observation: String::new(),
            text: String::new(),
            tokens: 1..4,
            log_probabilities: vec![-1.0; 3],
            confidence_at: Some(1),
            foresight: Some(foresight),
            distribution: StatedDistribution::from_log_probs(&log_probs),
            action: Some("x".into()),
            fault: None,
            fidelity: vec![Some(true)],
        };
        Episode {
            task_id: 1,
            difficulty: String::new(),
            tokens: vec![0; 4],
            steps: vec![step],
            last_observation: String::new(),
            found_all: false,
            success,
        }
    }

    #[test]
    fn switches_that_contradict_each_other_are_refused_by_name() {
        assert!(config(&[]).check().is_ok());
        let grpo = ["advantages=outcome", "confidence=reward", "confidence_weight=0.0", "calibration_tasks=[0,0]"];
        assert!(config(&grpo).check().is_ok());
        assert!(config(&[&grpo[..], &["turns=plain"]].concat()).check().is_ok());
        for (settings, field) in [
            (&["turns=plain"][..], "fc-rl.advantages"),
            (&["advantages=outcome"], "fc-rl.confidence"),
            (&["calibration_tasks=[0,0]"], "fc-rl.calibration_tasks"),
            (&["confidence=reward"], "fc-rl.confidence_weight"),
        ] {
            let refused = config(settings).check().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{field}: ")), "{refused}");
        }
        let unknown = Recipe::parse_with(include_str!("../../../../recipes/demo.toml"), &["fc-rl.scale=std".into()]);
        assert!(unknown.unwrap_err().to_string().contains("deviation"));
    }

    #[test]
    fn advantages_are_divided_only_where_asked() {
        // Three of four succeed; what they stated in the expectation is 50 % throughout.
        let group: Group = [true, true, true, false].map(|it| episode(80.0, it)).into();
        let plain = Rewards::of(&group, &config(&[]));
        assert!((plain.outcome_advantage(0) - 1.0 / 3.0).abs() < 1e-6, "{}", plain.outcome_advantage(0));
        assert!((plain.outcome_advantage(3) + 1.0).abs() < 1e-6);
        let divided = Rewards::of(&group, &config(&["scale=deviation"]));
        let deviation = (0.75f32 * 0.25).sqrt();
        assert!((divided.outcome_advantage(0) - 0.25 / deviation).abs() < 1e-4);
        assert!((divided.outcome_advantage(3) + 0.75 / deviation).abs() < 1e-4);
        assert!(divided.world_model_advantage(3, 0) < 0.0 && divided.world_model_advantage(0, 0) > 0.0);
        let even: Group = [true, true].map(|it| episode(80.0, it)).into();
        assert_eq!(Rewards::of(&even, &config(&["scale=deviation"])).outcome_advantage(0), 0.0);
    }

    #[test]
    fn a_rewarded_confidence_is_the_level_that_was_written() {
        let group: Group = vec![episode(80.0, true), episode(20.0, true)];
        let written = Rewards::of(&group, &config(&["confidence=reward", "confidence_weight=0.0"]));
        assert_eq!(written.stated, [[Some(0.8)], [Some(0.2)]]);
        // 0.64 less 0.04 of squared error; both imagined what came.
        assert!((written.world_model_advantage(0, 0) - 0.6).abs() < 1e-6, "{}", written.world_model_advantage(0, 0));
        let expected = Rewards::of(&group, &config(&[]));
        assert_eq!(expected.world_model_advantage(0, 0), 0.0);
    }
}
