//! The arms of the gap study: one table for each axis, and one of what each arm takes from them.

use fsq_trainer::Recipe;
use fsq_trainer::stages::fc_rl::{Advantages, ConfidenceSignal, RlConfig, Scale};
use fsq_trainer::stages::text::{Material, TextConfig};
use fsq_trainer::text::{Told, Turns};

use crate::evaluate::World;
use crate::failure::Refusal;

/// What mid-training reads: the same episodes and tokens, with blocks that tell more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mid {
    WmAmt,
    Control,
    States,
    NextState,
}

/// What fine-tuning reads: the same episodes, with turns that say more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tuning {
    Plain,
    Foresight,
    States,
}

/// What reinforcement rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reward {
    /// The outcome, on every token.
    Grpo,
    /// Outcome, rollout and confidence, each on its own span; the confidence token by its exact gradient.
    FcRl,
    /// The same with the confidence token rewarded like any other.
    Rewarded(Scale),
}

/// One arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arm {
    pub(super) name: &'static str,
    pub(super) mid: Mid,
    pub(super) tuning: Option<Tuning>,
    pub(super) reward: Reward,
}

/// Every arm, as `docs/studies/gap/predictions.md` registers it.
pub(super) const ARMS: [Arm; 10] = [
    arm("A", Mid::Control, Some(Tuning::Plain), Reward::Grpo),
    arm("B", Mid::Control, Some(Tuning::Foresight), Reward::Grpo),
    arm("C", Mid::WmAmt, Some(Tuning::Plain), Reward::Grpo),
    arm("D", Mid::WmAmt, Some(Tuning::Foresight), Reward::Grpo),
    arm("E", Mid::WmAmt, Some(Tuning::Foresight), Reward::FcRl),
    arm("F", Mid::States, Some(Tuning::States), Reward::Grpo),
    arm("G", Mid::NextState, Some(Tuning::Foresight), Reward::Grpo),
    arm("H", Mid::WmAmt, None, Reward::Grpo),
    arm("I", Mid::WmAmt, Some(Tuning::Foresight), Reward::Rewarded(Scale::Deviation)),
    arm("J", Mid::WmAmt, Some(Tuning::Foresight), Reward::Rewarded(Scale::None)),
];

const fn arm(name: &'static str, mid: Mid, tuning: Option<Tuning>, reward: Reward) -> Arm {
    Arm { name, mid, tuning, reward }
}

impl Mid {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WmAmt => "wm-amt",
            Self::Control => "control",
            Self::States => "states",
            Self::NextState => "next-state",
        }
    }

    fn material(self) -> Material {
        match self {
            Self::WmAmt => Material::Blocks,
            Self::Control => Material::Matched(Told::Actions),
            Self::States => Material::Matched(Told::States),
            Self::NextState => Material::Matched(Told::NextState),
        }
    }
}

impl Tuning {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain-sft",
            Self::Foresight => "fe-sft",
            Self::States => "state-sft",
        }
    }

    fn material(self, counts: [usize; 2]) -> Material {
        match self {
            Self::Plain => Material::Untagged(counts),
            Self::Foresight => Material::Tagged(counts),
            Self::States => Material::TaggedStates(counts),
        }
    }
}

impl Reward {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Grpo => "grpo",
            Self::FcRl => "fc-rl",
            Self::Rewarded(Scale::Deviation) => "divided",
            Self::Rewarded(Scale::None) => "rewarded",
        }
    }
}

impl Arm {
    /// The arm of a name.
    pub(super) fn of(name: &str) -> Result<Self, Refusal> {
        let found = ARMS.into_iter().find(|it| it.name.eq_ignore_ascii_case(name));
        let names = ARMS.map(|it| it.name).join(", ");
        found.ok_or_else(|| Refusal::new(format!("--arms {name}: expected arms among {names}")))
    }

    /// What the arm's turns say. Without fine-tuning a policy knows no format but its base's own.
    pub(super) fn turns(&self) -> Turns {
        match self.tuning {
            Some(Tuning::Foresight) => Turns::Foresight,
            Some(Tuning::States) => Turns::States,
            Some(Tuning::Plain) | None => Turns::Plain,
        }
    }
}

/// A budget: a run file with the three stages of arm E, of which each arm takes its own variant.
pub(super) struct Budget {
    mid: TextConfig,
    tuning: TextConfig,
    counts: [usize; 2],
    rl: RlConfig,
}

impl Budget {
    /// Takes the stages out of a run file, for some environments alone.
    pub(super) fn of(recipe: &Recipe, worlds: &[World]) -> Result<Self, Refusal> {
        let missing = |table: &str| Refusal::new(format!("budget: expected a table [{table}], found nothing"));
        let mut mid = recipe.wm_amt.clone().ok_or_else(|| missing("wm-amt"))?;
        let mut tuning = recipe.fe_sft.clone().ok_or_else(|| missing("fe-sft"))?;
        let mut rl = recipe.fc_rl.clone().ok_or_else(|| missing("fc-rl"))?;
        let Material::Tagged(mut counts) = tuning.material else {
            let found = format!("{:?}", tuning.material);
            return Err(Refusal::new(format!("budget: fe-sft.material: expected `tagged`, found {found}")));
        };
        if mid.material != Material::Blocks {
            let found = format!("{:?}", mid.material);
            return Err(Refusal::new(format!("budget: wm-amt.material: expected `blocks`, found {found}")));
        }
        for (index, world) in World::ALL.iter().enumerate() {
            if !worlds.contains(world) {
                (mid.mix[index], tuning.mix[index], counts[index]) = (0.0, 0.0, 0);
                (rl.tasks[index], rl.calibration_tasks[index]) = (0, 0);
            }
        }
        Ok(Self { mid, tuning, counts, rl })
    }

    pub(super) fn mid(&self, mid: Mid) -> TextConfig {
        TextConfig { material: mid.material(), ..self.mid.clone() }
    }

    pub(super) fn tuning(&self, tuning: Tuning) -> TextConfig {
        TextConfig { material: tuning.material(self.counts), ..self.tuning.clone() }
    }

    pub(super) fn rl(&self, arm: &Arm) -> RlConfig {
        let own = RlConfig { turns: arm.turns(), ..self.rl.clone() };
        match arm.reward {
            Reward::FcRl => own,
            Reward::Grpo => RlConfig {
                advantages: Advantages::Outcome,
                confidence: ConfidenceSignal::Reward,
                calibration_tasks: [0, 0],
                confidence_weight: 0.0,
                fidelity_weight: 0.0,
                signal_weight: 0.0,
                // Traces that hold a format would be a fine-tuning.
                format_weight: if arm.tuning.is_some() { own.format_weight } else { 0.0 },
                ..own
            },
            Reward::Rewarded(scale) => RlConfig {
                scale,
                confidence: ConfidenceSignal::Reward,
                calibration_tasks: [0, 0],
                confidence_weight: 0.0,
                ..own
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    #[test]
    fn every_arm_has_a_recipe_that_goes_together() {
        let recipe = Recipe::parse(include_str!("../../../finetune/recipes/study-t1-lite.toml")).unwrap();
        for worlds in [&World::ALL[..], &World::ALL[..1], &World::ALL[1..]] {
            let budget = Budget::of(&recipe, worlds).unwrap();
            for arm in &ARMS {
                let rl = budget.rl(arm);
                assert!(rl.check().is_ok(), "{}: {:?}", arm.name, rl.check());
                assert_eq!(rl.steps, recipe.fc_rl.as_ref().unwrap().steps);
                assert_eq!(budget.mid(arm.mid).batch_tokens, recipe.wm_amt.as_ref().unwrap().batch_tokens);
            }
        }
    }

    /// The arms are registered in a table that people read; both must say the same.
    #[test]
    fn the_registered_arms_are_these() {
        let registered = include_str!("../../../docs/studies/gap/predictions.md");
        for arm in &ARMS {
            let row = registered.lines().find(|it| it.starts_with(&format!("| {} |", arm.name))).unwrap();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let mid = match arm.mid {
                Mid::WmAmt => "WM-AMT",
                Mid::Control => "control",
                Mid::States => "states only",
                Mid::NextState => "next state only",
            };
            let tuning = match arm.tuning {
                None => "none",
                Some(Tuning::Plain) => "plain",
                Some(Tuning::Foresight) => "FE-SFT",
                Some(Tuning::States) => "State-SFT",
            };
            assert_eq!((cells[2], cells[3]), (mid, tuning), "{row}");
            assert_eq!(cells[4] == "GRPO", arm.reward == Reward::Grpo, "{row}");
        }
    }
}
