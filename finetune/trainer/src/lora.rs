//! The shape of an adapter to be trained, as PEFT names its options.

use fsq_checkpoint::{Adapter, Module};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::policy::to_f32;

/// What PEFT calls all linear layers but the output matrix.
const ALL_LINEAR: &str = "all-linear";

/// The shape of an adapter to be trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every pair.
    pub rank: usize,
    /// Numerator of the scale: `alpha / rank`.
    pub alpha: f32,
    /// The scale is `alpha / √rank` (rsLoRA, arXiv 2312.03732).
    #[serde(default)]
    pub rslora: bool,
    /// Modules that get a pair, by the last part of their path; all linear ones where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<String>>,
    /// Share of the inputs of `A` that is dropped. Only 0 is trained, so that a run can be repeated.
    #[serde(default)]
    pub dropout: f32,
}

impl LoraConfig {
    /// A pair on every linear layer, scaled by `alpha / rank`.
    #[must_use]
    pub fn new(rank: usize, alpha: f32) -> Self {
        Self { rank, alpha, rslora: false, target_modules: None, dropout: 0.0 }
    }

    /// The shape of an adapter that exists.
    #[must_use]
    pub fn of(adapter: &Adapter) -> Self {
        let mut targets: Vec<String> = adapter.pairs.keys().map(|it| last_part(it).to_string()).collect();
        targets.sort_unstable();
        targets.dedup();
        let (rank, alpha, rslora) = (adapter.rank, adapter.alpha, adapter.rslora);
        Self { rank, alpha, rslora, target_modules: Some(targets), dropout: 0.0 }
    }

    /// What the update is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = to_f32(self.rank);
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether a module gets a pair.
    pub(crate) fn adapts(&self, module: &Module) -> bool {
        let named = |targets: &Vec<String>| targets.iter().any(|it| it == last_part(&module.hf) || it == ALL_LINEAR);
        self.target_modules.as_ref().is_none_or(named)
    }

    /// Refuses what cannot be trained on a block of these modules.
    pub(crate) fn check(&self, modules: &[Module]) -> Result<(), TrainError> {
        let refuse = |field: &str, expected: String, found: String| {
            Err(TrainError::Config { field: format!("lora.{field}"), expected, found })
        };
        if self.rank == 0 {
            return refuse("rank", "at least 1".into(), "0".into());
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            return refuse("alpha", "a number other than 0".into(), self.alpha.to_string());
        }
        if self.dropout != 0.0 {
            return refuse("dropout", "0, since dropout is not trained".into(), self.dropout.to_string());
        }
        let names: Vec<&str> = modules.iter().map(|it| last_part(&it.hf)).collect();
        let targets = self.target_modules.iter().flatten();
        if let Some(unknown) = targets.into_iter().find(|it| *it != ALL_LINEAR && !names.contains(&it.as_str())) {
            let expected = format!("{ALL_LINEAR} or some of {}", names.join(", "));
            return refuse("target_modules", expected, unknown.clone());
        }
        if self.target_modules.as_ref().is_some_and(Vec::is_empty) {
            return refuse("target_modules", "at least one module".into(), "none".into());
        }
        Ok(())
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use fsq_checkpoint::{Architecture, Dimensions, Options, modules};

    use super::*;

    fn of_llama() -> Vec<Module> {
        let dimensions = Dimensions {
            architecture: Architecture::Llama,
            n_layers: 1,
            hidden: 8,
            intermediate: 8,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 4,
            vocab: 8,
            context: 8,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            tied: true,
            options: Options::PLAIN,
        };
        modules(&dimensions, 0)
    }

    #[test]
    fn scales_are_those_of_peft() {
        let plain = LoraConfig::new(16, 32.0);
        assert!((plain.scale() - 2.0).abs() < 1e-6);
        assert!((LoraConfig { rslora: true, ..plain }.scale() - 8.0).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_be_trained_is_refused_by_name() {
        let named = |it: &str| LoraConfig { target_modules: Some(vec![it.into()]), ..LoraConfig::new(4, 8.0) };
        let cases = [
            (LoraConfig::new(0, 8.0), "lora.rank: expected at least 1, found 0"),
            (LoraConfig { dropout: 0.1, ..LoraConfig::new(4, 8.0) }, "lora.dropout"),
            (
                named("c_attn"),
                "expected all-linear or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
            ),
        ];
        for (config, expected) in cases {
            let error = config.check(&of_llama()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let adapted = |config: &LoraConfig| of_llama().iter().filter(|it| config.adapts(it)).count();
        assert_eq!([adapted(&named("all-linear")), adapted(&named("q_proj"))], [7, 1]);
    }
}
