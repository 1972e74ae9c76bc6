//! The sizes and options of one policy, whatever file they come from.

use serde_json::{Value, json};

use crate::{Activation, Architecture, RopeScaling, tensor_names};

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
    /// What this policy does otherwise than a plain Llama.
    pub options: Options,
}

/// What policies of one architecture may differ in besides their sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How rotary positions reach further.
    pub rope: RopeScaling,
    /// How many numbers of a head rotary positions turn, from the first; all when `None`.
    pub rotary_dim: Option<usize>,
    /// Layers that attend over a window.
    pub sliding: Option<Sliding>,
    /// Which linears add a bias.
    pub biases: Biases,
    /// What products of queries and keys are multiplied by; `1 / √head_dim` when `None`.
    pub attention_scale: Option<f32>,
    /// What no logit exceeds: they become `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// The experts of each feed-forward part.
    pub experts: Option<Experts>,
}

/// Feed-forward parts of which a router picks some for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub n: usize,
    /// How many each token takes.
    pub n_used: usize,
    /// Width inside each.
    pub intermediate: usize,
    /// The weights of those taken are made to add up to one.
    pub normalized: bool,
}

/// Layers that attend over a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliding {
    /// A token attends to itself and to the tokens before it, so many in all.
    pub window: usize,
    /// `[n_layers]`: which layers.
    pub layers: Vec<bool>,
    /// The rotary base of these layers, unscaled; as in the others when `None`.
    pub rope_theta: Option<f32>,
}

/// Which linears add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// From the heads back to the residual stream.
    pub output: bool,
    /// Gate, up and down.
    pub feed_forward: bool,
}

impl Options {
    /// None of them: a plain Llama.
    pub const PLAIN: Self = Self {
        rope: RopeScaling::None,
        rotary_dim: None,
        sliding: None,
        biases: Biases { qkv: false, output: false, feed_forward: false },
        attention_scale: None,
        logit_cap: None,
        experts: None,
    };
}

impl Dimensions {
    /// How many numbers of a head rotary positions turn.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        self.options.rotary_dim.unwrap_or(self.head_dim)
    }

    /// What products of queries and keys are multiplied by.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a head's width is far below 2^24")]
    pub fn attention_scale(&self) -> f32 {
        self.options.attention_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
    }

    /// The window of a layer, if it has one.
    #[must_use]
    pub fn window(&self, layer: usize) -> Option<usize> {
        let sliding = self.options.sliding.as_ref()?;
        sliding.layers.get(layer).copied().unwrap_or(false).then_some(sliding.window)
    }

    /// The first thing that a plain Llama does not have, in words; `None` for one that computes as Llama does.
    #[must_use]
    pub fn beyond_plain(&self) -> Option<&'static str> {
        let Options { rope, rotary_dim, sliding, biases, attention_scale, logit_cap, experts } = &self.options;
        let description = self.architecture.description();
        let found = [
            (description.fused, "several linears in one matrix"),
            (description.head_norms, "norms of heads"),
            (description.post_norms, "norms behind each part of a block"),
            (description.norm_offset != 0.0, "norms around one"),
            (description.embedding_scaled, "scaled embeddings"),
            (description.activation != Activation::Silu, "another activation than SiLU"),
            (experts.is_some(), "experts"),
            (attention_scale.is_some(), "attention scaled otherwise"),
            (logit_cap.is_some(), "capped logits"),
            (*rope != RopeScaling::None, "scaled rotary positions"),
            (rotary_dim.is_some_and(|it| it != self.head_dim), "rotary positions on a part of each head"),
            (sliding.is_some(), "attention over a window"),
            (*biases != Biases::default(), "biases"),
        ];
        found.into_iter().find(|it| it.0).map(|it| it.1)
    }

    /// The `config.json` that transformers reads back to the same sizes, for a policy made from scratch: options are
    /// not written.
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
