//! The sizes and options of a policy from a GGUF file, under the names that the architecture's description gives.

use fsq_checkpoint::architecture::Windows;
use fsq_checkpoint::rope::{YARN_BETA_FAST, YARN_BETA_SLOW};
use fsq_checkpoint::{Architecture, Biases, Description, Dimensions, Experts, Options, RopeScaling, Sliding};
use fsq_gguf::Gguf;

use crate::ModelError;

/// Largest of any size that is believed: far above any released policy, far below an overflow.
const SIZE_MAX: u64 = 1 << 24;

/// Reads the sizes of a policy from its file, without loading it, and checks that they fit each other.
///
/// # Errors
/// Names the first field that is absent, of another type, or impossible.
pub fn read(gguf: &Gguf) -> Result<Dimensions, ModelError> {
    let name: &str = gguf.metadata().need("general.architecture")?;
    let architecture = Architecture::from_gguf(name).ok_or_else(|| {
        let known: Vec<_> = Architecture::ALL.iter().map(|it| it.description().gguf_name).collect();
        unfit("general.architecture", format!("one of {}", known.join(", ")), format!("`{name}`"))
    })?;
    let fields = Fields { gguf, name };
    let (hidden, n_heads) = (fields.size("embedding_length")?, fields.size("attention.head_count")?);
    let head_dim = fields.size_or("attention.key_length", hidden / n_heads)?;
    let embedding = gguf.tensor("token_embd.weight");
    let embedding = embedding.ok_or_else(|| ModelError::MissingTensor { name: "token_embd.weight".into() })?;
    let (n_layers, context) = (fields.size("block_count")?, fields.size("context_length")?);
    let rotary_dim = fields.size_or("rope.dimension_count", head_dim)?;
    let dimensions = Dimensions {
        architecture,
        n_layers,
        hidden,
        intermediate: fields.size("feed_forward_length")?,
        n_heads,
        n_kv_heads: fields.size_or("attention.head_count_kv", n_heads)?,
        head_dim,
        vocab: embedding.rows(),
        context,
        rms_eps: gguf.metadata().need(&fields.key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: fields.float("rope.freq_base")?.unwrap_or(10_000.0),
        tied: gguf.tensor("output.weight").is_none(),
        options: Options {
            rope: fields.scaling(rotary_dim, context)?,
            rotary_dim: (rotary_dim != head_dim).then_some(rotary_dim),
            sliding: fields.sliding(architecture.description(), n_layers)?,
            biases: fields.biases(),
            attention_scale: fields.attention_scale(architecture.description(), (n_layers, hidden, n_heads))?,
            logit_cap: fields.float("final_logit_softcapping")?,
            experts: if architecture.description().experts { Some(fields.experts()?) } else { None },
        },
    };
    check(&dimensions, &fields)?;
    check_floats(&dimensions, &fields)?;
    Ok(dimensions)
}

fn check_floats(dimensions: &Dimensions, fields: &Fields<'_>) -> Result<(), ModelError> {
    let Dimensions { rms_eps, rope_theta, .. } = *dimensions;
    if !(0.0..1.0).contains(&rms_eps) {
        let field = fields.key("attention.layer_norm_rms_epsilon");
        return Err(unfit(&field, "a number from 0 to below 1".into(), rms_eps.to_string()));
    }
    // Frequencies fall from pair to pair only above 1.
    if rope_theta <= 1.0 {
        let field = fields.key("rope.freq_base");
        return Err(unfit(&field, "a number above 1".into(), rope_theta.to_string()));
    }
    Ok(())
}

fn check(dimensions: &Dimensions, fields: &Fields<'_>) -> Result<(), ModelError> {
    let Dimensions { n_heads, n_kv_heads, head_dim, .. } = *dimensions;
    if !n_heads.is_multiple_of(n_kv_heads) {
        let field = fields.key("attention.head_count_kv");
        return Err(unfit(&field, format!("a divisor of {n_heads}"), n_kv_heads.to_string()));
    }
    if head_dim == 0 {
        let field = fields.key("attention.head_count");
        return Err(unfit(&field, format!("at most {}, the width", dimensions.hidden), n_heads.to_string()));
    }
    if !head_dim.is_multiple_of(16) {
        let field = fields.key("attention.key_length");
        return Err(unfit(&field, "a multiple of 16".into(), head_dim.to_string()));
    }
    let n_tokens = fields.gguf.metadata().str_array("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
    if n_tokens > dimensions.vocab {
        let expected = format!("at most {} entries, the rows of `token_embd.weight`", dimensions.vocab);
        return Err(unfit("tokenizer.ggml.tokens", expected, n_tokens.to_string()));
    }
    let values = fields.size_or("attention.value_length", head_dim)?;
    if values != head_dim {
        let field = fields.key("attention.value_length");
        return Err(unfit(&field, format!("{head_dim}, the width of a head"), values.to_string()));
    }
    let rotary_dim = dimensions.rotary_dim();
    if rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        let field = fields.key("rope.dimension_count");
        return Err(unfit(&field, format!("an even number up to {head_dim}"), rotary_dim.to_string()));
    }
    Ok(())
}

/// The file's keys under its architecture's name.
struct Fields<'a> {
    gguf: &'a Gguf,
    name: &'a str,
}

impl Fields<'_> {
    fn key(&self, field: &str) -> String {
        format!("{}.{field}", self.name)
    }

    fn size(&self, field: &str) -> Result<usize, ModelError> {
        let key = self.key(field);
        let found: u64 = self.gguf.metadata().need(&key)?;
        let size = usize::try_from(found).ok().filter(|_| (1..=SIZE_MAX).contains(&found));
        size.ok_or_else(|| unfit(&key, format!("a number from 1 to {SIZE_MAX}"), found.to_string()))
    }

    fn size_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        if self.gguf.metadata().get(&self.key(field)).is_some() { self.size(field) } else { Ok(default) }
    }

    /// A number above 0; `None` when the key is absent.
    fn float(&self, field: &str) -> Result<Option<f32>, ModelError> {
        let key = self.key(field);
        if self.gguf.metadata().get(&key).is_none() {
            return Ok(None);
        }
        let found: f32 = self.gguf.metadata().need(&key)?;
        if found.is_finite() && found > 0.0 {
            return Ok(Some(found));
        }
        Err(unfit(&key, "a number above 0".into(), found.to_string()))
    }

    /// The linears of the first block that have a bias; those of the others are checked against it at load.
    fn biases(&self) -> Biases {
        let has = |names: &[&str]| names.iter().any(|it| self.gguf.tensor(&format!("blk.0.{it}.bias")).is_some());
        Biases {
            qkv: has(&["attn_q", "attn_qkv"]),
            output: has(&["attn_output"]),
            feed_forward: has(&["ffn_gate", "ffn_up", "ffn_down"]),
        }
    }

    fn scaling(&self, rotary_dim: usize, context: usize) -> Result<RopeScaling, ModelError> {
        if let Some(long) = self.factors("rope_factors_long.weight", rotary_dim)? {
            let name = "rope_factors_short.weight";
            return Ok(RopeScaling::LongRope {
                original_context: self.size_or("rope.scaling.original_context_length", context)?,
                short: self
                    .factors(name, rotary_dim)?
                    .ok_or_else(|| ModelError::MissingTensor { name: name.into() })?,
                long,
                magnitude: self.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            });
        }
        if let Some(factors) = self.factors("rope_freqs.weight", rotary_dim)? {
            return Ok(RopeScaling::PerPair { factors });
        }
        let factor = self.float("rope.scaling.factor")?.unwrap_or(1.0);
        let key = self.key("rope.scaling.type");
        let kind: &str = self.gguf.metadata().get(&key).map_or(Ok("linear"), |_| self.gguf.metadata().need(&key))?;
        match kind {
            "none" => Ok(RopeScaling::None),
            "linear" if factor == 1.0 => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor,
                original_context: self.size_or("rope.scaling.original_context_length", context)?,
                beta_fast: self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(YARN_BETA_FAST),
                beta_slow: self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(YARN_BETA_SLOW),
                magnitude: RopeScaling::yarn_magnitude(factor) * self.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            }),
            other => Err(unfit(&key, "`none`, `linear`, `yarn`, or tensors of factors".into(), format!("`{other}`"))),
        }
    }

    /// One factor above 0 for each pair.
    fn factors(&self, name: &str, rotary_dim: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(view) = self.gguf.tensor(name) else { return Ok(None) };
        if view.shape != [rotary_dim / 2] {
            let (expected, found) = (vec![rotary_dim / 2], view.shape.iter().rev().copied().collect());
            return Err(ModelError::TensorShape { name: name.into(), expected, found });
        }
        let factors = view.to_f32();
        match factors.iter().find(|it| !(it.is_finite() && **it > 0.0)) {
            Some(found) => {
                let expected = "finite numbers above 0".into();
                Err(ModelError::TensorValue { name: name.into(), expected, found: found.to_string() })
            }
            None => Ok(Some(factors)),
        }
    }

    fn attention_scale(
        &self,
        description: &Description,
        (n_layers, hidden, n_heads): (usize, usize, usize),
    ) -> Result<Option<f32>, ModelError> {
        let by_stream = description.scaled_by_stream == Some(n_layers);
        let usual = by_stream.then(|| 1.0 / ((hidden / n_heads) as f32).sqrt());
        Ok(self.float("attention.scale")?.or(usual))
    }

    fn experts(&self) -> Result<Experts, ModelError> {
        let (n, n_used) = (self.size("expert_count")?, self.size("expert_used_count")?);
        if n_used > n {
            return Err(unfit(&self.key("expert_used_count"), format!("at most {n}"), n_used.to_string()));
        }
        let normalized = self.gguf.metadata().bool(&self.key("expert_weights_norm")).unwrap_or(true);
        Ok(Experts { n, n_used, intermediate: self.size("expert_feed_forward_length")?, normalized })
    }

    /// A window of 0 is none, as Phi-4's files have it.
    fn sliding(&self, description: &Description, n_layers: usize) -> Result<Option<Sliding>, ModelError> {
        let metadata = self.gguf.metadata();
        if metadata.u64(&self.key("attention.sliding_window")).is_none_or(|it| it == 0) {
            return Ok(None);
        }
        let pattern = self.key("attention.sliding_window_pattern");
        let all_but = |every: usize| (0..n_layers).map(|it| every == 0 || !(it + 1).is_multiple_of(every)).collect();
        let layers: Vec<bool> = match (metadata.read(&pattern), metadata.read(&pattern), description.windows) {
            (Some(layers), None::<usize>, _) => layers,
            (None, Some(every), _) => all_but(every),
            (_, _, Windows::AllBut { every }) => all_but(every),
            _ => vec![true; n_layers],
        };
        if layers.len() != n_layers {
            return Err(unfit(&pattern, format!("{n_layers} bools"), layers.len().to_string()));
        }
        let window = self.size("attention.sliding_window")?;
        let rope_theta = self.float("rope.freq_base_swa")?.or(description.sliding_theta);
        Ok(layers.contains(&true).then_some(Sliding { window, layers, rope_theta }))
    }
}

fn unfit(field: &str, expected: String, found: String) -> ModelError {
    ModelError::Metadata { field: field.into(), expected, found }
}
