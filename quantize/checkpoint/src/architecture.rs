//! One description of each architecture: tensor names, shapes and options.
//!
//! Adding an architecture is one [`Description`] row. Knows nothing of weights or of how they are multiplied.

use std::path::Path;

use serde_json::{Value, json};

use crate::CheckpointError;

/// Longest context a configuration may ask for; far above any released policy, far below an overflow.
const CONTEXT_MAX: u64 = 1 << 24;
/// Largest width, vocabulary or layer count that is believed.
const DIMENSION_MAX: u64 = 1 << 24;

/// A family of policies that share names, shapes and options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and later: RMS norm, rotary positions, gated SiLU, grouped queries.
    Llama,
}

/// What distinguishes an architecture from the others.
#[derive(Debug)]
pub struct Description {
    /// `model_type` in `config.json`.
    pub hf_model_type: &'static str,
    /// First entry of `architectures` in `config.json`.
    pub hf_class: &'static str,
    /// `general.architecture` in a GGUF file, and the prefix of its keys.
    pub gguf_name: &'static str,
    /// GGUF files hold query and key rows reordered, so that rotary pairs lie side by side.
    pub qk_permuted: bool,
}

impl Architecture {
    /// Every architecture, in the order in which error messages list them.
    pub const ALL: &'static [Self] = &[Self::Llama];

    /// The row of this architecture.
    #[must_use]
    pub fn description(self) -> &'static Description {
        match self {
            Self::Llama => &Description {
                hf_model_type: "llama",
                hf_class: "LlamaForCausalLM",
                gguf_name: "llama",
                qk_permuted: true,
            },
        }
    }

    /// By `model_type` of a `config.json`.
    #[must_use]
    pub fn from_hf(model_type: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.description().hf_model_type == model_type)
    }

    /// By `general.architecture` of a GGUF file.
    #[must_use]
    pub fn from_gguf(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.description().gguf_name == name)
    }
}

/// The sizes of one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Dimensions {
    /// Which family.
    pub architecture: Architecture,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even, since rotary positions turn pairs.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Epsilon inside the root of the RMS norm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// The output matrix is the embedding.
    pub tied: bool,
}

impl Dimensions {
    /// Reads a `config.json`, as transformers 4 (`rope_theta`) and 5 (`rope_parameters`) write it.
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
        reader.refuse_rope_scaling()?;
        let hidden = reader.size("hidden_size")?;
        let n_heads = reader.size("num_attention_heads")?;
        let dimensions = Self {
            architecture,
            n_layers: reader.size("num_hidden_layers")?,
            hidden,
            intermediate: reader.size("intermediate_size")?,
            n_heads,
            n_kv_heads: reader.size_or("num_key_value_heads", n_heads)?,
            head_dim: reader.size_or("head_dim", hidden / n_heads)?,
            vocab: reader.size("vocab_size")?,
            context: reader.size("max_position_embeddings")?,
            rms_eps: reader.float("rms_norm_eps").unwrap_or(1e-6),
            rope_theta: reader.rope_theta(),
            tied: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
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

    /// The `config.json` that transformers reads back to the same sizes.
    #[must_use]
    pub fn to_config(&self, bos: u32, eos: u32) -> Value {
        let description = self.architecture.description();
        json!({
            "architectures": [description.hf_class],
            "model_type": description.hf_model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": f64::from(self.rms_eps.to_string().parse::<f32>().unwrap_or(self.rms_eps)),
            "rope_theta": f64::from(self.rope_theta),
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": self.tied,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "torch_dtype": "float16",
        })
    }

    /// Number of weights, a tied embedding counted once.
    #[must_use]
    pub fn parameters(&self) -> usize {
        tensor_names(self).iter().map(|it| it.shape.iter().product::<usize>()).sum()
    }
}

/// Typed access to the fields of one `config.json`.
struct ConfigReader<'a> {
    path: &'a Path,
    config: &'a Value,
}

impl ConfigReader<'_> {
    fn string(&self, field: &str) -> Result<&str, CheckpointError> {
        let value = self.config.get(field);
        value.and_then(Value::as_str).ok_or_else(|| CheckpointError::field(self.path, field, "a string", shown(value)))
    }

    fn size(&self, field: &str) -> Result<usize, CheckpointError> {
        let value = self.config.get(field);
        let limit = if field == "max_position_embeddings" { CONTEXT_MAX } else { DIMENSION_MAX };
        match value.and_then(Value::as_u64) {
            Some(size) if size > 0 && size <= limit => usize::try_from(size)
                .map_err(|_| CheckpointError::field(self.path, field, "a size of this machine", size.to_string())),
            _ => {
                Err(CheckpointError::field(self.path, field, format!("a whole number from 1 to {limit}"), shown(value)))
            }
        }
    }

    fn size_or(&self, field: &str, default: usize) -> Result<usize, CheckpointError> {
        match self.config.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(_) => self.size(field),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "configuration numbers are read at f32, as they are used")]
    fn float(&self, field: &str) -> Option<f32> {
        self.config.get(field).and_then(Value::as_f64).map(|it| it as f32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "configuration numbers are read at f32, as they are used")]
    fn rope_theta(&self) -> f32 {
        let newer = self.config.pointer("/rope_parameters/rope_theta").and_then(Value::as_f64).map(|it| it as f32);
        self.float("rope_theta").or(newer).unwrap_or(10_000.0)
    }

    /// Scaled rotary positions are not computed yet; running such a policy without them would be silently wrong.
    fn refuse_rope_scaling(&self) -> Result<(), CheckpointError> {
        let scaling = self.config.get("rope_scaling").filter(|it| !it.is_null());
        let newer = self.config.pointer("/rope_parameters/rope_type").filter(|it| it.as_str() != Some("default"));
        match scaling.or(newer) {
            Some(found) => Err(CheckpointError::field(self.path, "rope_scaling", "none", found.to_string())),
            None => Ok(()),
        }
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".into(), Value::to_string)
}

/// One of the matrices that adapters are put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Linear {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Back from the heads to the residual stream.
    O,
    /// The gate of the feed-forward part.
    Gate,
    /// Up to the feed-forward width.
    Up,
    /// Down from the feed-forward width.
    Down,
}

impl Linear {
    /// All of them, in the order in which a block applies them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// PEFT's name of the module: the last part of its path.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Hugging Face's path of the module, without `.weight`.
    #[must_use]
    pub fn hf_path(self, layer: usize) -> String {
        let part = match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("model.layers.{layer}.{part}.{}", self.module())
    }

    /// llama.cpp's name of the tensor, without `.weight`.
    #[must_use]
    pub fn gguf_path(self, layer: usize) -> String {
        let name = match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        };
        format!("blk.{layer}.{name}")
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(self, dimensions: &Dimensions) -> [usize; 2] {
        let (heads, kv) = (dimensions.n_heads * dimensions.head_dim, dimensions.n_kv_heads * dimensions.head_dim);
        match self {
            Self::Q => [heads, dimensions.hidden],
            Self::K | Self::V => [kv, dimensions.hidden],
            Self::O => [dimensions.hidden, heads],
            Self::Gate | Self::Up => [dimensions.intermediate, dimensions.hidden],
            Self::Down => [dimensions.hidden, dimensions.intermediate],
        }
    }
}

/// A tensor's two names and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorName {
    /// In a checkpoint.
    pub hf: String,
    /// In a GGUF file.
    pub gguf: String,
    /// `[rows, columns]`, or `[width]` for a norm.
    pub shape: Vec<usize>,
    /// Heads whose rows a GGUF file holds reordered (queries and keys), if any.
    pub permuted_heads: Option<usize>,
}

/// Every tensor of a policy, in the order in which files hold them.
#[must_use]
pub fn tensor_names(dimensions: &Dimensions) -> Vec<TensorName> {
    let plain = |hf: &str, gguf: &str, shape: Vec<usize>| TensorName {
        hf: hf.into(),
        gguf: gguf.into(),
        shape,
        permuted_heads: None,
    };
    let hidden = dimensions.hidden;
    let mut names = vec![plain("model.embed_tokens.weight", "token_embd.weight", vec![dimensions.vocab, hidden])];
    for layer in 0..dimensions.n_layers {
        let hf = |part: &str| format!("model.layers.{layer}.{part}.weight");
        names.push(plain(&hf("input_layernorm"), &format!("blk.{layer}.attn_norm.weight"), vec![hidden]));
        for linear in Linear::ALL {
            if linear == Linear::Gate {
                names.push(plain(
                    &hf("post_attention_layernorm"),
                    &format!("blk.{layer}.ffn_norm.weight"),
                    vec![hidden],
                ));
            }
            let permuted = dimensions.architecture.description().qk_permuted;
            let permuted_heads = match linear {
                Linear::Q if permuted => Some(dimensions.n_heads),
                Linear::K if permuted => Some(dimensions.n_kv_heads),
                _ => None,
            };
            names.push(TensorName {
                hf: format!("{}.weight", linear.hf_path(layer)),
                gguf: format!("{}.weight", linear.gguf_path(layer)),
                shape: linear.shape(dimensions).to_vec(),
                permuted_heads,
            });
        }
    }
    names.push(plain("model.norm.weight", "output_norm.weight", vec![hidden]));
    if !dimensions.tied {
        names.push(plain("lm_head.weight", "output.weight", vec![dimensions.vocab, hidden]));
    }
    names
}

/// Reorders the rows of a query or key matrix from Hugging Face's half-split rotary pairs to adjacent pairs.
///
/// `rows`: `[heads * head_dim, columns]`. Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`.
#[must_use]
pub fn permute_rotary_rows(rows: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let head_dim = rows.len() / columns / heads;
    let half = head_dim / 2;
    let mut permuted = Vec::with_capacity(rows.len());
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let row = head * head_dim + side * half + pair;
                permuted.extend_from_slice(&rows[row * columns..(row + 1) * columns]);
            }
        }
    }
    permuted
}
