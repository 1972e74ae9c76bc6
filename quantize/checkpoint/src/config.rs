//! A `config.json` as [`Dimensions`], as transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`)
//! write it. What would be computed otherwise than there says is refused by name.

use std::path::Path;

use serde_json::Value;

use crate::architecture::{Activation, Description, Windows};
use crate::dimensions::{Biases, Experts, Options, Sliding};
use crate::rope::{RopeScaling, YARN_BETA_FAST, YARN_BETA_SLOW};
use crate::{Architecture, CheckpointError, Dimensions};

/// Longest context a configuration may ask for; far above any released policy, far below an overflow.
const CONTEXT_MAX: u64 = 1 << 24;
/// Largest width, vocabulary or layer count that is believed.
const DIMENSION_MAX: u64 = 1 << 24;
/// What transformers takes for an absent `max_window_layers` of a Qwen.
const MAX_WINDOW_LAYERS: u64 = 28;
/// The share of each head that is turned, in files that do not say.
const WHOLE_HEAD: f32 = 1.0;

impl Dimensions {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError::Field`] names the first field that is absent, of another type, or impossible.
    pub fn from_config(path: &Path, config: &Value) -> Result<Self, CheckpointError> {
        let reader = ConfigReader { path, config };
        let model_type = reader.string("model_type")?;
        let architecture = Architecture::from_hf(model_type).ok_or_else(|| {
            let known: Vec<_> = Architecture::ALL.iter().map(|it| it.description().hf_model_type).collect();
            CheckpointError::field(path, "model_type", format!("one of {}", known.join(", ")), model_type)
        })?;
        let description = architecture.description();
        reader.check_activation(description.activation)?;
        let hidden = reader.size("hidden_size")?;
        let n_heads = reader.size("num_attention_heads")?;
        let n_layers = reader.size("num_hidden_layers")?;
        let head_dim = reader.size_or("head_dim", hidden / n_heads)?;
        let context = reader.size("max_position_embeddings")?;
        let rope = RopeReader::new(&reader, description)?;
        let rotary_dim = rope.rotary_dim(head_dim)?;
        let dimensions = Self {
            architecture,
            n_layers,
            hidden,
            intermediate: reader.size("intermediate_size")?,
            n_heads,
            n_kv_heads: reader.size_or("num_key_value_heads", n_heads)?,
            head_dim,
            vocab: reader.size("vocab_size")?,
            context,
            rms_eps: reader.float("rms_norm_eps").unwrap_or(1e-6),
            rope_theta: rope.theta,
            tied: reader.flag("tie_word_embeddings", description.tied),
            options: Options {
                rope: rope.scaling(rotary_dim, context)?,
                rotary_dim: (rotary_dim != head_dim).then_some(rotary_dim),
                sliding: reader.sliding(description, n_layers, rope.sliding_theta()?.or(description.sliding_theta))?,
                biases: reader.biases(description),
                attention_scale: reader.attention_scale(head_dim),
                logit_cap: reader.logit_cap()?,
                experts: if description.experts { Some(reader.experts()?) } else { None },
            },
        };
        dimensions.check(path)?;
        Ok(dimensions)
    }

    fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of num_attention_heads = {}", self.n_heads);
            return Err(CheckpointError::field(path, "num_key_value_heads", expected, self.n_kv_heads.to_string()));
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim == 0 {
            return Err(CheckpointError::field(path, "head_dim", "an even number", self.head_dim.to_string()));
        }
        Ok(())
    }
}

/// Typed access to the fields of one `config.json`.
struct ConfigReader<'a> {
    path: &'a Path,
    config: &'a Value,
}

impl<'a> ConfigReader<'a> {
    /// A field, unless it is absent or null.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.config.get(field).filter(|it| !it.is_null())
    }

    fn string(&self, field: &str) -> Result<&'a str, CheckpointError> {
        let value = self.config.get(field);
        value.and_then(Value::as_str).ok_or_else(|| self.fault(field, "a string", value))
    }

    fn size(&self, field: &str) -> Result<usize, CheckpointError> {
        let value = self.config.get(field);
        let limit = if field.ends_with("max_position_embeddings") { CONTEXT_MAX } else { DIMENSION_MAX };
        match value.and_then(Value::as_u64) {
            Some(size) if size > 0 && size <= limit => usize::try_from(size)
                .map_err(|_| CheckpointError::field(self.path, field, "a size of this machine", size.to_string())),
            _ => Err(self.fault(field, format!("a whole number from 1 to {limit}"), value)),
        }
    }

    fn size_or(&self, field: &str, default: usize) -> Result<usize, CheckpointError> {
        if self.get(field).is_some() { self.size(field) } else { Ok(default) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "configuration numbers are read at f32, as they are used")]
    fn float(&self, field: &str) -> Option<f32> {
        self.config.get(field).and_then(Value::as_f64).map(|it| it as f32)
    }

    fn flag(&self, field: &str, default: bool) -> bool {
        self.config.get(field).and_then(Value::as_bool).unwrap_or(default)
    }

    fn fault(&self, field: &str, expected: impl Into<String>, found: Option<&Value>) -> CheckpointError {
        let found = found.map_or_else(|| "nothing".into(), |it| it.to_string().chars().take(80).collect::<String>());
        CheckpointError::field(self.path, field, expected, found)
    }

    fn check_activation(&self, activation: Activation) -> Result<(), CheckpointError> {
        let field = if self.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
        let names: &[&str] = match activation {
            Activation::Silu => &["silu", "swish"],
            Activation::GeluTanh => &["gelu_pytorch_tanh"],
        };
        match self.get(field) {
            Some(found) if !found.as_str().is_some_and(|it| names.contains(&it)) => {
                Err(self.fault(field, names.join(" or "), Some(found)))
            }
            _ => Ok(()),
        }
    }

    fn biases(&self, description: &Description) -> Biases {
        let attention = self.flag("attention_bias", false);
        Biases {
            qkv: attention || description.qkv_biased,
            output: attention,
            feed_forward: self.flag("mlp_bias", false),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a head's width is far below 2^24")]
    fn attention_scale(&self, head_dim: usize) -> Option<f32> {
        let scalar = self.float("query_pre_attn_scalar").filter(|it| *it > 0.0 && *it != head_dim as f32);
        scalar.map(|it| 1.0 / it.sqrt())
    }

    /// transformers passes over Gemma 3's cap on attention, llama.cpp refuses it.
    fn logit_cap(&self) -> Result<Option<f32>, CheckpointError> {
        if let Some(found) = self.get("attn_logit_softcapping") {
            return Err(self.fault("attn_logit_softcapping", "nothing", Some(found)));
        }
        let field = "final_logit_softcapping";
        match (self.get(field), self.float(field)) {
            (None, _) => Ok(None),
            (_, Some(cap)) if cap.is_finite() && cap > 0.0 => Ok(Some(cap)),
            (found, _) => Err(self.fault(field, "a number above 0", found)),
        }
    }

    fn experts(&self) -> Result<Experts, CheckpointError> {
        let dense = self.get("mlp_only_layers").filter(|it| it.as_array().is_none_or(|it| !it.is_empty()));
        if dense.is_some() {
            return Err(self.fault("mlp_only_layers", "none", dense));
        }
        if self.size_or("decoder_sparse_step", 1)? != 1 {
            return Err(self.fault("decoder_sparse_step", "1", self.get("decoder_sparse_step")));
        }
        let (n, n_used) = (self.size("num_experts")?, self.size("num_experts_per_tok")?);
        if n < 2 {
            return Err(self.fault("num_experts", "several", self.get("num_experts")));
        }
        if n_used > n {
            return Err(self.fault("num_experts_per_tok", format!("at most {n}"), self.get("num_experts_per_tok")));
        }
        let normalized = self.flag("norm_topk_prob", false);
        Ok(Experts { n, n_used, intermediate: self.size("moe_intermediate_size")?, normalized })
    }

    /// The window and the layers that have it.
    fn sliding(
        &self,
        description: &Description,
        n_layers: usize,
        rope_theta: Option<f32>,
    ) -> Result<Option<Sliding>, CheckpointError> {
        let windows = description.windows;
        let asked = match windows {
            Windows::Never => false,
            Windows::AllIfAsked | Windows::UpperIfAsked => self.flag("use_sliding_window", false),
            Windows::All | Windows::AllBut { .. } => true,
        };
        let absent = description.window_absent.filter(|_| self.config.get("sliding_window").is_none());
        let window = match (self.get("sliding_window"), absent) {
            (Some(_), _) if asked => self.size("sliding_window")?,
            (None, Some(absent)) if asked => absent,
            _ => return Ok(None),
        };
        let layers: Vec<bool> = match self.get("layer_types") {
            Some(listed) => self.listed_layers(listed, n_layers)?,
            None => {
                let every = self.size_or("sliding_window_pattern", 0)?;
                let first = self.config.get("max_window_layers").and_then(Value::as_u64).unwrap_or(MAX_WINDOW_LAYERS);
                let slides = |layer: usize| match windows {
                    Windows::Never => false,
                    Windows::All | Windows::AllIfAsked => true,
                    Windows::UpperIfAsked => layer as u64 >= first,
                    Windows::AllBut { every: usual } => {
                        !(layer + 1).is_multiple_of(if every > 0 { every } else { usual })
                    }
                };
                (0..n_layers).map(slides).collect()
            }
        };
        Ok(layers.contains(&true).then_some(Sliding { window, layers, rope_theta }))
    }

    fn listed_layers(&self, listed: &Value, n_layers: usize) -> Result<Vec<bool>, CheckpointError> {
        let slides = |it: &Value| match it.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let layers: Option<Vec<bool>> = listed.as_array().and_then(|it| it.iter().map(slides).collect());
        let expected = || format!("{n_layers} times sliding_attention or full_attention");
        layers.filter(|it| it.len() == n_layers).ok_or_else(|| self.fault("layer_types", expected(), Some(listed)))
    }
}

/// The fields that tell of rotary positions, wherever they lie.
struct RopeReader<'a> {
    config: &'a ConfigReader<'a>,
    /// What tells of the layers that attend to everything: `rope_parameters`, a part of it, or `rope_scaling`.
    fields: ConfigReader<'a>,
    kind: &'a str,
    theta: f32,
}

/// Stands in where there are no fields.
const NOTHING: Value = Value::Null;

impl<'a> RopeReader<'a> {
    fn new(config: &'a ConfigReader<'a>, description: &Description) -> Result<Self, CheckpointError> {
        let newer = config.get("rope_parameters");
        let by_layer = newer.and_then(|it| it.get("full_attention")).filter(|it| !it.is_null());
        let found = by_layer.or(newer).or(config.get("rope_scaling"));
        if let Some(found) = found.filter(|it| !it.is_object()) {
            return Err(config.fault("rope_scaling", "an object", Some(found)));
        }
        let fields = ConfigReader { path: config.path, config: found.unwrap_or(&NOTHING) };
        let kind = match fields.get("rope_type").or(fields.get("type")) {
            None => "default",
            Some(kind) => kind.as_str().ok_or_else(|| config.fault("rope_type", "a string", Some(kind)))?,
        };
        let theta = fields.float("rope_theta").or(config.float("rope_theta")).unwrap_or(description.rope_theta);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(CheckpointError::field(config.path, "rope_theta", "a number above 1", theta.to_string()));
        }
        Ok(Self { config, fields, kind, theta })
    }

    /// How many numbers of a head are turned.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a head's width")]
    #[expect(clippy::cast_precision_loss, reason = "a head's width is far below 2^24")]
    fn rotary_dim(&self, head_dim: usize) -> Result<usize, CheckpointError> {
        let field = "partial_rotary_factor";
        let share = self.fields.float(field).or(self.config.float(field)).unwrap_or(WHOLE_HEAD);
        let rotary_dim = (head_dim as f32 * share) as usize;
        if !(share > 0.0 && share <= 1.0) || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let expected = format!("a share of {head_dim} that is an even number");
            return Err(CheckpointError::field(self.config.path, field, expected, share.to_string()));
        }
        Ok(rotary_dim)
    }

    /// The base of layers with a window, where it is their own.
    fn sliding_theta(&self) -> Result<Option<f32>, CheckpointError> {
        let Some(fields) = self.config.config.pointer("/rope_parameters/sliding_attention").filter(|it| !it.is_null())
        else {
            return Ok(self.config.float("rope_local_base_freq"));
        };
        let fields = ConfigReader { path: self.config.path, config: fields };
        match fields.get("rope_type").and_then(Value::as_str) {
            None | Some("default") => Ok(fields.float("rope_theta")),
            Some(_) => Err(fields.fault("sliding_attention.rope_type", "default", fields.get("rope_type"))),
        }
    }

    fn scaling(&self, rotary_dim: usize, context: usize) -> Result<RopeScaling, CheckpointError> {
        let original = || self.original_context(context);
        match self.kind {
            // Dynamic scaling begins beyond `max_position_embeddings`, where no sequence goes.
            "default" | "dynamic" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.factor("factor")? }),
            "llama3" => {
                let waves = (self.factor("low_freq_factor")?, self.factor("high_freq_factor")?);
                Ok(RopeScaling::llama3(self.theta, rotary_dim, self.factor("factor")?, waves, original()?))
            }
            // Phi-3's early files call its longrope `su`; some call it `yarn`, but give long factors.
            "longrope" | "su" => self.longrope(rotary_dim, context),
            "yarn" if self.fields.get("long_factor").is_some() => self.longrope(rotary_dim, context),
            "yarn" => self.yarn(original()?),
            other => {
                let expected = "default, linear, dynamic, llama3, yarn or longrope";
                Err(CheckpointError::field(self.config.path, "rope_type", expected, other))
            }
        }
    }

    fn original_context(&self, context: usize) -> Result<usize, CheckpointError> {
        let field = "original_max_position_embeddings";
        // Phi-3 keeps it outside, and there it counts.
        if self.config.get(field).is_some() { self.config.size(field) } else { self.fields.size_or(field, context) }
    }

    fn yarn(&self, original_context: usize) -> Result<RopeScaling, CheckpointError> {
        if !self.fields.flag("truncate", true) {
            return Err(self.fields.fault("truncate", "true", self.fields.get("truncate")));
        }
        let factor = self.factor("factor")?;
        let by_scale = |scale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let scales = (self.fields.float("mscale"), self.fields.float("mscale_all_dim"));
        let magnitude = match (self.fields.float("attention_factor"), scales) {
            (Some(given), _) => given,
            (None, (Some(scale), Some(all))) if scale != 0.0 && all != 0.0 => by_scale(scale) / by_scale(all),
            _ => RopeScaling::yarn_magnitude(factor),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast: self.fields.float("beta_fast").unwrap_or(YARN_BETA_FAST),
            beta_slow: self.fields.float("beta_slow").unwrap_or(YARN_BETA_SLOW),
            magnitude,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are at most 2^24")]
    fn longrope(&self, rotary_dim: usize, context: usize) -> Result<RopeScaling, CheckpointError> {
        let original_context = self.original_context(context)?;
        let by_length = context as f64 / original_context as f64;
        let factor = match self.fields.float("factor") {
            Some(factor) if original_context == context => f64::from(factor),
            _ => by_length,
        };
        let magnitude = self.fields.float("attention_factor");
        let magnitude = magnitude.unwrap_or_else(|| RopeScaling::longrope_magnitude(factor, original_context));
        let (short, long) = (self.factors("short_factor", rotary_dim)?, self.factors("long_factor", rotary_dim)?);
        Ok(RopeScaling::LongRope { original_context, short, long, magnitude })
    }

    fn factor(&self, field: &str) -> Result<f32, CheckpointError> {
        let factor = self.fields.float(field).filter(|it| it.is_finite() && *it > 0.0);
        factor.ok_or_else(|| self.fields.fault(field, "a number above 0", self.fields.get(field)))
    }

    #[expect(clippy::cast_possible_truncation, reason = "GGUF files hold these factors in f32")]
    fn factors(&self, field: &str, rotary_dim: usize) -> Result<Vec<f32>, CheckpointError> {
        let found = self.fields.get(field);
        let factor = |it: &Value| it.as_f64().map(|it| it as f32).filter(|it| it.is_finite() && *it > 0.0);
        let factors: Option<Vec<f32>> = found.and_then(Value::as_array).and_then(|it| it.iter().map(factor).collect());
        let factors = factors.filter(|it| it.len() == rotary_dim / 2);
        factors.ok_or_else(|| self.fields.fault(field, format!("{} numbers above 0", rotary_dim / 2), found))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use serde_json::json;

    use super::*;

    fn read(model_type: &str, changes: Value) -> Result<Dimensions, CheckpointError> {
        let mut config = json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 128, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Dimensions::from_config(Path::new("config.json"), &config)
    }

    #[test]
    fn rotary_positions_are_told_alike_in_both_styles() {
        let older = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}});
        let newer = json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}});
        let (older, newer) = (read("llama", older).unwrap(), read("llama", newer).unwrap());
        assert_eq!(older, newer);
        assert_eq!((older.rope_theta, older.options.rope), (5e5, RopeScaling::Linear { factor: 2.0 }));
        let older = json!({"rope_local_base_freq": 7e3, "rope_theta": 2e6});
        let newer = json!({"rope_parameters": {
            "full_attention": {"rope_theta": 2e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
        }});
        assert_eq!(read("gemma3_text", older).unwrap(), read("gemma3_text", newer).unwrap());
    }

    #[test]
    fn windows_are_where_transformers_has_them() {
        let layers = |model_type: &str, changes| {
            let sliding = read(model_type, changes).unwrap().options.sliding;
            sliding.map(|it| (it.window, it.layers))
        };
        assert_eq!(layers("llama", json!({"sliding_window": 8})), None);
        assert_eq!(layers("mistral", json!({"sliding_window": null})), None);
        assert_eq!(layers("mistral", json!({})), Some((4096, vec![true; 3])));
        assert_eq!(layers("qwen2", json!({"sliding_window": 8})), None);
        let asked = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2});
        assert_eq!(layers("qwen2", asked.clone()), Some((8, vec![false, false, true])));
        assert_eq!(layers("qwen3_moe", asked), Some((8, vec![true; 3])));
        let pattern = json!({"sliding_window": 8, "sliding_window_pattern": 2});
        assert_eq!(layers("gemma3_text", pattern), Some((8, vec![true, false, true])));
    }

    #[test]
    fn what_would_be_computed_otherwise_is_refused_by_name() {
        let yarn = |more: Value| {
            let mut fields = json!({"rope_type": "yarn", "factor": 2.0});
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"rope_parameters": fields})
        };
        let longrope = json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]});
        for (model_type, changes, named) in [
            ("gpt2", json!({}), "`model_type`: expected one of llama, mistral, qwen2"),
            ("llama", json!({"rope_scaling": {"type": "spiral"}}), "`rope_type`: expected default"),
            ("llama", json!({"rope_scaling": 7}), "`rope_scaling`: expected an object, found 7"),
            ("llama", json!({"rope_scaling": {"type": "linear", "factor": 0}}), "`factor`: expected a number above 0"),
            ("llama", json!({"rope_theta": 1.0}), "`rope_theta`: expected a number above 1"),
            ("llama", yarn(json!({"truncate": false})), "`truncate`: expected true"),
            ("phi3", json!({"rope_scaling": longrope}), "`short_factor`: expected 8 numbers above 0"),
            ("phi3", json!({"partial_rotary_factor": 1.5}), "`partial_rotary_factor`: expected a share of 16"),
            ("gemma3_text", json!({"layer_types": ["full_attention"]}), "`layer_types`: expected 3 times"),
            ("gemma3_text", json!({"attn_logit_softcapping": 50.0}), "`attn_logit_softcapping`: expected nothing"),
            ("llama", json!({"hidden_act": "gelu"}), "`hidden_act`: expected silu or swish"),
            ("qwen3_moe", json!({"mlp_only_layers": [1]}), "`mlp_only_layers`: expected none"),
            ("qwen3_moe", json!({"num_experts_per_tok": 9}), "`num_experts_per_tok`: expected at most 4"),
        ] {
            let message = read(model_type, changes).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn only_a_plain_llama_is_plain() {
        assert_eq!(read("llama", json!({})).unwrap().beyond_plain(), None);
        assert_eq!(read("mistral", json!({"sliding_window": null})).unwrap().beyond_plain(), None);
        assert_eq!(read("qwen2", json!({})).unwrap().beyond_plain(), Some("biases"));
        for other in ["qwen3", "qwen3_moe", "phi3", "gemma3_text"] {
            assert!(read(other, json!({})).unwrap().beyond_plain().is_some(), "{other}");
        }
    }
}
