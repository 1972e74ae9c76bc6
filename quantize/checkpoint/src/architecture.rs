//! One description of each architecture: tensor names, shapes and options.
//!
//! Adding an architecture is one [`Description`] row. Knows nothing of weights or of how they are multiplied.

use std::ops::Range;

use crate::{Dimensions, Experts};

/// Hugging Face's names of the two parts of a block.
const ATTENTION: &str = "self_attn";
const FEED_FORWARD: &str = "mlp";

/// A family of policies that share names, shapes and options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and later: RMS norm, rotary positions, gated SiLU, grouped queries.
    Llama,
    /// Llama with a window over which tokens attend; a GGUF file calls it Llama.
    Mistral,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: a norm on each head's queries and keys.
    Qwen3,
    /// Qwen 3 whose feed-forward parts are experts, of which each token takes a few.
    Qwen3Moe,
    /// Phi-3 and Phi-4: several linears in one matrix.
    Phi3,
    /// The text part of Gemma 3: norms on both sides of each part of a block, and mostly windows.
    Gemma3,
}

/// What the gate of the feed-forward part goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// The approximation of GELU by a hyperbolic tangent.
    GeluTanh,
}

/// Which layers attend over a window where `config.json` or the file does not list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None, whatever else is said.
    Never,
    /// All, if there is a window.
    All,
    /// With `use_sliding_window`, all.
    AllIfAsked,
    /// With `use_sliding_window`, those from `max_window_layers` on.
    UpperIfAsked,
    /// All but every so many.
    AllBut {
        /// The last of so many attends to everything.
        every: usize,
    },
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
    /// Which layers attend over a window.
    pub windows: Windows,
    /// What transformers takes for an absent `sliding_window`.
    pub window_absent: Option<usize>,
    /// Base of the rotary frequencies where `config.json` names none.
    pub rope_theta: f32,
    /// The same for layers with a window, where that is their own.
    pub sliding_theta: Option<f32>,
    /// What the gate goes through.
    pub activation: Activation,
    /// Whether the embedding is used again where `config.json` does not say.
    pub tied: bool,
    /// Queries, keys and values add a bias, whatever `config.json` says.
    pub qkv_biased: bool,
    /// Queries, keys and values lie in one matrix, gate and up in another.
    pub fused: bool,
    /// Each head's queries and keys are normed.
    pub head_norms: bool,
    /// What a part of a block adds to the residual stream is normed.
    pub post_norms: bool,
    /// What checkpoints leave off the weights of norms, and GGUF files have.
    pub norm_offset: f32,
    /// Embeddings are multiplied by the root of their width.
    pub embedding_scaled: bool,
    /// The feed-forward part is experts.
    pub experts: bool,
    /// GGUF files do not say how attention is scaled; of so many layers it is by the stream's share of a head.
    pub scaled_by_stream: Option<usize>,
}

/// A Llama of the second generation; the others are told by what they change.
const LLAMA: Description = Description {
    hf_model_type: "llama",
    hf_class: "LlamaForCausalLM",
    gguf_name: "llama",
    qk_permuted: true,
    windows: Windows::Never,
    window_absent: None,
    rope_theta: 10_000.0,
    sliding_theta: None,
    activation: Activation::Silu,
    tied: false,
    qkv_biased: false,
    fused: false,
    head_norms: false,
    post_norms: false,
    norm_offset: 0.0,
    embedding_scaled: false,
    experts: false,
    scaled_by_stream: None,
};

const MISTRAL: Description = Description {
    hf_model_type: "mistral",
    hf_class: "MistralForCausalLM",
    windows: Windows::All,
    window_absent: Some(4096),
    ..LLAMA
};

const QWEN_2: Description = Description {
    hf_model_type: "qwen2",
    hf_class: "Qwen2ForCausalLM",
    gguf_name: "qwen2",
    qk_permuted: false,
    windows: Windows::UpperIfAsked,
    window_absent: Some(4096),
    qkv_biased: true,
    ..LLAMA
};

const QWEN_3: Description = Description {
    hf_model_type: "qwen3",
    hf_class: "Qwen3ForCausalLM",
    gguf_name: "qwen3",
    qkv_biased: false,
    head_norms: true,
    ..QWEN_2
};

const QWEN_3_MOE: Description = Description {
    hf_model_type: "qwen3_moe",
    hf_class: "Qwen3MoeForCausalLM",
    gguf_name: "qwen3moe",
    windows: Windows::AllIfAsked,
    experts: true,
    ..QWEN_3
};

const PHI_3: Description = Description {
    hf_model_type: "phi3",
    hf_class: "Phi3ForCausalLM",
    gguf_name: "phi3",
    qk_permuted: false,
    windows: Windows::All,
    fused: true,
    ..LLAMA
};

const GEMMA_3: Description = Description {
    hf_model_type: "gemma3_text",
    hf_class: "Gemma3ForCausalLM",
    gguf_name: "gemma3",
    qk_permuted: false,
    windows: Windows::AllBut { every: 6 },
    window_absent: Some(4096),
    rope_theta: 1_000_000.0,
    sliding_theta: Some(10_000.0),
    activation: Activation::GeluTanh,
    tied: true,
    head_norms: true,
    post_norms: true,
    norm_offset: 1.0,
    embedding_scaled: true,
    // Of 27 billion weights; llama.cpp tells it by this too (`src/models/gemma3.cpp`).
    scaled_by_stream: Some(62),
    ..LLAMA
};

impl Architecture {
    /// Every architecture, in the order in which error messages list them.
    pub const ALL: &'static [Self] =
        &[Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Qwen3Moe, Self::Phi3, Self::Gemma3];

    /// The row of this architecture.
    #[must_use]
    pub fn description(self) -> &'static Description {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN_2,
            Self::Qwen3 => &QWEN_3,
            Self::Qwen3Moe => &QWEN_3_MOE,
            Self::Phi3 => &PHI_3,
            Self::Gemma3 => &GEMMA_3,
        }
    }

    /// By `model_type` of a `config.json`.
    #[must_use]
    pub fn from_hf(model_type: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.description().hf_model_type == model_type)
    }

    /// By `general.architecture` of a GGUF file; of several that share a name there, the first.
    #[must_use]
    pub fn from_gguf(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.description().gguf_name == name)
    }
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

    /// Hugging Face's name of the part of a block that it belongs to.
    fn part(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => ATTENTION,
            Self::Gate | Self::Up | Self::Down => FEED_FORWARD,
        }
    }

    /// Hugging Face's path of the module, without `.weight`, where it has one of its own.
    #[must_use]
    pub fn hf_path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.part(), self.module())
    }

    /// llama.cpp's name of the tensor, without `.weight`, where it has one of its own.
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

/// A module of a block as files hold it: one linear, or several whose rows lie under each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Hugging Face's path, without `.weight`.
    pub hf: String,
    /// llama.cpp's name, without `.weight`.
    pub gguf: String,
    /// The linears, in the order of their rows.
    pub linears: Vec<Linear>,
    /// `[out, in]` of all of them together.
    pub shape: [usize; 2],
    /// Whether there is a bias, `[out]`, beside the weight.
    pub biased: bool,
}

impl Module {
    fn of(dimensions: &Dimensions, layer: usize, linears: &[Linear], names: Option<(&str, &str)>) -> Self {
        let first = linears[0];
        let (hf, gguf) = match names {
            Some((hf, gguf)) => (format!("model.layers.{layer}.{}.{hf}", first.part()), format!("blk.{layer}.{gguf}")),
            None => (first.hf_path(layer), first.gguf_path(layer)),
        };
        let biases = dimensions.options.biases;
        let biased = match first {
            Linear::Q | Linear::K | Linear::V => biases.qkv,
            Linear::O => biases.output,
            Linear::Gate | Linear::Up | Linear::Down => biases.feed_forward,
        };
        let rows = linears.iter().map(|it| it.shape(dimensions)[0]).sum();
        Self { hf, gguf, linears: linears.to_vec(), shape: [rows, first.shape(dimensions)[1]], biased }
    }

    /// The linears and the rows that each has.
    pub fn rows<'a>(&'a self, dimensions: &'a Dimensions) -> impl Iterator<Item = (Linear, Range<usize>)> + 'a {
        let mut start = 0;
        self.linears.iter().map(move |linear| {
            let rows = start..start + linear.shape(dimensions)[0];
            start = rows.end;
            (*linear, rows)
        })
    }
}

/// The modules of a block, in the order in which it applies them; experts are not among them.
#[must_use]
pub fn modules(dimensions: &Dimensions, layer: usize) -> Vec<Module> {
    let own = |it: Linear| Module::of(dimensions, layer, &[it], None);
    let fused = |linears: &[Linear], names| Module::of(dimensions, layer, linears, Some(names));
    if dimensions.architecture.description().fused {
        return vec![
            fused(&[Linear::Q, Linear::K, Linear::V], ("qkv_proj", "attn_qkv")),
            own(Linear::O),
            fused(&[Linear::Gate, Linear::Up], ("gate_up_proj", "ffn_up")),
            own(Linear::Down),
        ];
    }
    let has = |it: &Linear| dimensions.options.experts.is_none() || it.part() == ATTENTION;
    Linear::ALL.into_iter().filter(has).map(own).collect()
}

/// The matrices of each expert: Hugging Face's name and llama.cpp's, of all experts in one, and `[out, in]`.
#[must_use]
pub fn expert_matrices(dimensions: &Dimensions, experts: &Experts) -> [(&'static str, &'static str, [usize; 2]); 3] {
    let (hidden, inner) = (dimensions.hidden, experts.intermediate);
    [
        ("gate_proj", "ffn_gate_exps", [inner, hidden]),
        ("up_proj", "ffn_up_exps", [inner, hidden]),
        ("down_proj", "ffn_down_exps", [hidden, inner]),
    ]
}

/// A tensor's two names and its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorName {
    /// In a checkpoint.
    pub hf: String,
    /// In a GGUF file, where neighbours of the same name are one tensor of three dimensions.
    pub gguf: String,
    /// `[rows, columns]`, or `[width]` for a norm or a bias.
    pub shape: Vec<usize>,
    /// Heads whose rows a GGUF file holds reordered (queries and keys), if any.
    pub permuted_heads: Option<usize>,
    /// What a GGUF file has on top of a checkpoint's values.
    pub offset: f32,
    /// Small and decisive: kept in F32 whatever the recipe says.
    pub precise: bool,
}

impl TensorName {
    fn new(hf: impl Into<String>, gguf: impl Into<String>, shape: Vec<usize>) -> Self {
        Self { hf: hf.into(), gguf: gguf.into(), shape, permuted_heads: None, offset: 0.0, precise: false }
    }
}

/// Every tensor of a policy, in the order in which files hold them.
#[must_use]
pub fn tensor_names(dimensions: &Dimensions) -> Vec<TensorName> {
    let (hidden, vocab) = (dimensions.hidden, dimensions.vocab);
    let mut names = vec![TensorName::new("model.embed_tokens.weight", "token_embd.weight", vec![vocab, hidden])];
    for layer in 0..dimensions.n_layers {
        push_block(dimensions, layer, &mut names);
    }
    let norm = TensorName::new("model.norm.weight", "output_norm.weight", vec![hidden]);
    names.push(TensorName { offset: dimensions.architecture.description().norm_offset, ..norm });
    if !dimensions.tied {
        names.push(TensorName::new("lm_head.weight", "output.weight", vec![vocab, hidden]));
    }
    names
}

fn push_block(dimensions: &Dimensions, layer: usize, names: &mut Vec<TensorName>) {
    let description = dimensions.architecture.description();
    let norm = |hf: &str, gguf: &str, width: usize| {
        let (hf, gguf) = (format!("model.layers.{layer}.{hf}.weight"), format!("blk.{layer}.{gguf}.weight"));
        TensorName { offset: description.norm_offset, ..TensorName::new(hf, gguf, vec![width]) }
    };
    let (hidden, head_dim) = (dimensions.hidden, dimensions.head_dim);
    let (attention, feed_forward): (Vec<_>, Vec<_>) =
        modules(dimensions, layer).into_iter().partition(|it| it.linears[0].part() == ATTENTION);
    names.push(norm("input_layernorm", "attn_norm", hidden));
    attention.iter().for_each(|it| push_module(dimensions, it, names));
    if description.head_norms {
        names.push(norm("self_attn.q_norm", "attn_q_norm", head_dim));
        names.push(norm("self_attn.k_norm", "attn_k_norm", head_dim));
    }
    if description.post_norms {
        names.push(norm("post_attention_layernorm", "post_attention_norm", hidden));
        names.push(norm("pre_feedforward_layernorm", "ffn_norm", hidden));
    } else {
        names.push(norm("post_attention_layernorm", "ffn_norm", hidden));
    }
    feed_forward.iter().for_each(|it| push_module(dimensions, it, names));
    if let Some(experts) = &dimensions.options.experts {
        push_experts(dimensions, experts, layer, names);
    }
    if description.post_norms {
        names.push(norm("post_feedforward_layernorm", "post_ffw_norm", hidden));
    }
}

fn push_experts(dimensions: &Dimensions, experts: &Experts, layer: usize, names: &mut Vec<TensorName>) {
    let (hf, gguf) = (format!("model.layers.{layer}.mlp"), format!("blk.{layer}"));
    let shape = vec![experts.n, dimensions.hidden];
    let router = TensorName::new(format!("{hf}.gate.weight"), format!("{gguf}.ffn_gate_inp.weight"), shape);
    names.push(TensorName { precise: true, ..router });
    for (of_expert, of_all, shape) in expert_matrices(dimensions, experts) {
        for expert in 0..experts.n {
            let hf = format!("{hf}.experts.{expert}.{of_expert}.weight");
            names.push(TensorName::new(hf, format!("{gguf}.{of_all}.weight"), shape.to_vec()));
        }
    }
}

fn push_module(dimensions: &Dimensions, module: &Module, names: &mut Vec<TensorName>) {
    let permuted_heads = match module.linears[..] {
        [linear] => permuted_heads(dimensions, linear),
        _ => None,
    };
    let mut push = |kind: &str, shape: Vec<usize>| {
        let name = TensorName::new(format!("{}.{kind}", module.hf), format!("{}.{kind}", module.gguf), shape);
        names.push(TensorName { permuted_heads, ..name });
    };
    push("weight", module.shape.to_vec());
    if module.biased {
        push("bias", vec![module.shape[0]]);
    }
}

/// Reorders the rows of a query or key matrix from Hugging Face's half-split rotary pairs to adjacent pairs.
///
/// `rows`: `[heads * head_dim, columns]`; a bias has one column. Source: llama.cpp `convert_hf_to_gguf.py`,
/// `LlamaModel.permute`.
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

/// The inverse of [`permute_rotary_rows`], for rows of weights or of the bytes that code them.
#[must_use]
pub fn unpermute_rotary_rows<T: Copy>(rows: &[T], heads: usize, columns: usize) -> Vec<T> {
    let head_dim = rows.len() / columns / heads;
    let half = head_dim / 2;
    let mut unpermuted = Vec::with_capacity(rows.len());
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..half {
                let row = head * head_dim + 2 * pair + side;
                unpermuted.extend_from_slice(&rows[row * columns..(row + 1) * columns]);
            }
        }
    }
    unpermuted
}

/// Heads of a linear whose rows GGUF files hold in the order of [`permute_rotary_rows`]; `None` for all others.
#[must_use]
pub fn permuted_heads(dimensions: &Dimensions, linear: Linear) -> Option<usize> {
    let permuted = dimensions.architecture.description().qk_permuted;
    match linear {
        Linear::Q if permuted => Some(dimensions.n_heads),
        Linear::K if permuted => Some(dimensions.n_kv_heads),
        _ => None,
    }
}
