//! The trainable forward: a policy whose weights, or whose adapter, get gradients.
//!
//! Equal to transformers' forward in f32, for every architecture that [`TRAINABLE`] names. Knows nothing of data,
//! stages or sampling.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use fsq_checkpoint::{Adapter, Checkpoint, Dimensions, Linear, LoraPair, Module, NamedTensor, RopeScaling};
use fsq_checkpoint::{modules, tensor_names};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::autograd::{Block, Embedding, FrozenLoss, GROUPS, Group, Head, Heads, Plan, RmsNorm, SpanLoss, Turns};
use crate::autograd::{apply, log_softmax_at, with_values};
use crate::frozen::{FrozenPolicy, Output};
use crate::grid::Grid;
use crate::lora::LoraConfig;
use crate::{Batch, TrainError};

/// Standard deviation of fresh weights, as in GPT-2 and Llama.
const INIT_STD: f32 = 0.02;

/// What a policy's adapters can be trained on, by `model_type` of its `config.json`.
pub const TRAINABLE: &str = "llama, mistral, qwen2, qwen3, phi3 or gemma3_text";

/// The weights under the trained parameters.
enum Under {
    /// None: the parameters are the weights. The tied embedding, and the norm before the output matrix.
    Nothing { embedding: Var, output_norm: Var },
    /// A checkpoint.
    Frozen(FrozenPolicy),
}

/// A policy in training.
pub struct TrainablePolicy {
    /// Its sizes.
    pub dimensions: Dimensions,
    lora: Option<LoraConfig>,
    plan: Arc<Plan>,
    under: Under,
    /// The trained parameters of each block.
    layers: Vec<Var>,
    /// Everything that gets a gradient, by name.
    trained: BTreeMap<String, Var>,
    threads: usize,
}

impl TrainablePolicy {
    /// A policy of fresh random weights, all of them trained. Only tied policies are made from scratch.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn fresh(dimensions: Dimensions, rng: &mut ChaCha8Rng, threads: usize) -> Result<Self, TrainError> {
        let residual_std = INIT_STD / (2.0 * to_f32(dimensions.n_layers)).sqrt();
        let mut values = BTreeMap::new();
        for tensor in tensor_names(&dimensions) {
            let count = tensor.shape.iter().product();
            let back = tensor.hf.contains("o_proj") || tensor.hf.contains("down_proj");
            let spread = Spread { std: if back { residual_std } else { INIT_STD } };
            let drawn = if tensor.shape.len() == 1 {
                vec![1.0; count]
            } else {
                (0..count).map(|_| spread.sample(rng)).collect()
            };
            values.insert(tensor.hf, drawn);
        }
        Self::trained_whole(dimensions, &mut |name| Ok(values.remove(name).unwrap_or_default()), threads)
    }

    /// A policy whose weights, read by Hugging Face name, are all trained.
    ///
    /// # Errors
    /// When a tensor cannot be read or made.
    pub fn trained_whole(
        dimensions: Dimensions,
        read: &mut ReadTensor<'_>,
        threads: usize,
    ) -> Result<Self, TrainError> {
        check_whole(&dimensions)?;
        let plan = Arc::new(plan_of(&dimensions, None, threads)?);
        let mut trained = BTreeMap::new();
        let mut layers = Vec::new();
        for layer in 0..dimensions.n_layers {
            let values = whole_block(layer, &dimensions, read)?;
            let parameters = Var::from_vec(values, plan.parameters(), &Device::Cpu)?;
            trained.insert(format!("block.{layer}"), parameters.clone());
            layers.push(parameters);
        }
        let shape = (dimensions.vocab, dimensions.hidden);
        let embedding = Var::from_vec(read(EMBEDDING)?, shape, &Device::Cpu)?;
        let output_norm = Var::from_vec(read(OUTPUT_NORM)?, dimensions.hidden, &Device::Cpu)?;
        trained.insert(EMBEDDING.into(), embedding.clone());
        trained.insert(OUTPUT_NORM.into(), output_norm.clone());
        let under = Under::Nothing { embedding, output_norm };
        Ok(Self { dimensions, lora: None, plan, under, layers, trained, threads })
    }

    /// A checkpoint, frozen, with a fresh adapter on the linear layers that the configuration names: `A` uniform,
    /// `B` zero.
    ///
    /// # Errors
    /// When the architecture or the configuration cannot be trained, or a tensor is absent.
    pub fn adapted(
        checkpoint: &Checkpoint,
        lora: &LoraConfig,
        rng: &mut ChaCha8Rng,
        threads: usize,
    ) -> Result<Self, TrainError> {
        Self::adapted_over(checkpoint, None, lora, rng, threads)
    }

    /// The same over a quantized file's matrices where there is one.
    ///
    /// # Errors
    /// As [`TrainablePolicy::adapted`].
    pub fn adapted_over(
        checkpoint: &Checkpoint,
        grid: Option<&Grid>,
        lora: &LoraConfig,
        rng: &mut ChaCha8Rng,
        threads: usize,
    ) -> Result<Self, TrainError> {
        // PEFT's default: Kaiming uniform with a = √5, which is ±1/√in.
        let fresh = |_: &str, [outputs, inputs]: [usize; 2]| {
            let bound = 1.0 / to_f32(inputs).sqrt();
            let a = (0..lora.rank * inputs).map(|_| rng.random_range(-bound..bound)).collect();
            Ok((a, vec![0.0; outputs * lora.rank]))
        };
        Self::with_pairs(checkpoint, grid, lora.clone(), fresh, threads)
    }

    /// A checkpoint, frozen, with an adapter that goes on being trained: ours or PEFT's.
    ///
    /// # Errors
    /// When a tensor is absent, or the adapter lacks a module in some layer that it has in others.
    pub fn resumed(checkpoint: &Checkpoint, adapter: &Adapter, threads: usize) -> Result<Self, TrainError> {
        fsq_quantizer::check_adapters(&checkpoint.dimensions, std::slice::from_ref(adapter))?;
        let read = |path: &str, _: [usize; 2]| {
            let pair = adapter.pairs.get(path).ok_or_else(|| TrainError::MissingModule(path.into()))?;
            Ok((pair.a.clone(), pair.b.clone()))
        };
        Self::with_pairs(checkpoint, None, LoraConfig::of(adapter), read, threads)
    }

    fn with_pairs(
        checkpoint: &Checkpoint,
        grid: Option<&Grid>,
        lora: LoraConfig,
        mut pair: impl FnMut(&str, [usize; 2]) -> Result<(Vec<f32>, Vec<f32>), TrainError>,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let dimensions = checkpoint.dimensions.clone();
        check_adapted(&dimensions)?;
        let plan = Arc::new(plan_of(&dimensions, Some(&lora), threads)?);
        let mut trained = BTreeMap::new();
        let mut layers = Vec::new();
        for layer in 0..dimensions.n_layers {
            let mut values = vec![0.0; plan.parameters()];
            for (module, [of_a, of_b]) in adapted_modules(&plan, &dimensions, layer, lora.rank) {
                let (a, b) = pair(&module.hf, module.shape)?;
                values[of_a].copy_from_slice(&a);
                values[of_b].copy_from_slice(&b);
            }
            let parameters = Var::from_vec(values, plan.parameters(), &Device::Cpu)?;
            trained.insert(format!("block.{layer}"), parameters.clone());
            layers.push(parameters);
        }
        let under = Under::Frozen(FrozenPolicy::read(checkpoint, grid)?);
        Ok(Self { dimensions, lora: Some(lora), plan, under, layers, trained, threads })
    }

    /// Whether the backward computes the blocks' activations again instead of keeping them: a third more work, and
    /// memory that hardly grows with the batch.
    #[must_use]
    pub fn recomputing(mut self, recomputes: bool) -> Self {
        self.plan = Arc::new(Plan { recomputes, ..(*self.plan).clone() });
        self
    }

    /// Everything that gets a gradient, by name.
    #[must_use]
    pub fn trained(&self) -> &BTreeMap<String, Var> {
        &self.trained
    }

    /// The sum of a batch's losses, `[1]`.
    ///
    /// # Errors
    /// When the graph refuses an operation.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let rows = batch.losses.iter().map(|it| it.0).collect();
        let losses = batch.losses.iter().map(|it| it.1.clone()).collect();
        let span = SpanLoss { losses, vocab: self.dimensions.vocab };
        let x = self.hidden(batch, rows)?;
        match &self.under {
            Under::Nothing { embedding, .. } => Ok(apply(span, &[&self.tied_logits(&x, embedding)?])?),
            Under::Frozen(frozen) => {
                let Output { weight, cap } = frozen.output.clone();
                let (width, threads) = (self.dimensions.hidden, self.threads);
                Ok(apply(FrozenLoss { weight, width, cap, span, threads, saved: Mutex::new(None) }, &[&x])?)
            }
        }
    }

    /// Log-probabilities of given tokens at given rows; nothing is kept for a backward.
    ///
    /// # Errors
    /// When the graph refuses an operation.
    pub fn log_probabilities(&self, batch: &Batch, asked: &[(usize, u32)]) -> Result<Vec<f32>, TrainError> {
        let logits = self.logits(batch, asked.iter().map(|it| it.0).collect())?.detach();
        let vocab = self.dimensions.vocab;
        Ok(with_values(&logits, |values| {
            asked.iter().zip(values.chunks_exact(vocab)).map(|(it, row)| log_softmax_at(row, it.1)).collect()
        })?)
    }

    /// Logits of some rows: `[rows, vocab]`. Under adapters they are no part of the graph: see
    /// [`TrainablePolicy::loss`].
    ///
    /// # Errors
    /// When the graph refuses an operation.
    pub fn logits(&self, batch: &Batch, rows: Vec<usize>) -> Result<Tensor, TrainError> {
        let x = self.hidden(batch, rows)?;
        match &self.under {
            Under::Nothing { embedding, .. } => self.tied_logits(&x, embedding),
            Under::Frozen(frozen) => {
                let vocab = self.dimensions.vocab;
                let logits = with_values(&x, |x| frozen.output.logits(x, vocab, self.threads))?;
                Ok(Tensor::from_vec(logits, (x.dim(0)?, vocab), &Device::Cpu)?)
            }
        }
    }

    fn tied_logits(&self, x: &Tensor, embedding: &Var) -> Result<Tensor, TrainError> {
        let sizes = &self.dimensions;
        let group = Group { inputs: sizes.hidden, outputs: vec![sizes.vocab], adapted: Vec::new() };
        Ok(apply(Head { group, threads: self.threads }, &[x, embedding.as_tensor()])?)
    }

    /// What the output matrix reads at some rows, `[rows, hidden]`.
    fn hidden(&self, batch: &Batch, rows: Vec<usize>) -> Result<Tensor, TrainError> {
        let sizes = &self.dimensions;
        let turns = turns(sizes, batch);
        let sequences = Arc::new(batch.sequences.clone());
        let (mut x, output_norm) = match &self.under {
            Under::Nothing { embedding, output_norm } => {
                let rows = Embedding { tokens: batch.tokens.clone(), width: sizes.hidden };
                (apply(rows, &[embedding.as_tensor()])?, output_norm.as_tensor())
            }
            Under::Frozen(frozen) => {
                let shape = (batch.tokens.len(), sizes.hidden);
                (Tensor::from_vec(frozen.embedded(&batch.tokens), shape, &Device::Cpu)?, &frozen.output_norm)
            }
        };
        for (layer, parameters) in self.layers.iter().enumerate() {
            let frozen = match &self.under {
                Under::Nothing { .. } => None,
                Under::Frozen(frozen) => Some(Arc::clone(&frozen.blocks[layer])),
            };
            let block = Block {
                plan: Arc::clone(&self.plan),
                frozen,
                // Layers with a window take the second table where there is one.
                turns: Arc::clone(&turns[if sizes.window(layer).is_some() { turns.len() - 1 } else { 0 }]),
                sequences: Arc::clone(&sequences),
                saved: Mutex::new(None),
            };
            x = apply(block, &[&x, parameters.as_tensor()])?;
        }
        let asked: Vec<u32> = rows.into_iter().map(|it| u32::try_from(it).unwrap_or(u32::MAX)).collect();
        let x = apply(Embedding { tokens: asked, width: sizes.hidden }, &[&x])?;
        Ok(apply(RmsNorm { eps: sizes.rms_eps }, &[&x, output_norm])?)
    }

    /// The adapter as it stands, or nothing when the policy is trained whole.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn adapter(&self) -> Result<Option<Adapter>, TrainError> {
        self.by_matrix(values)
    }

    /// The gradient of each adapter matrix, laid out as the adapter itself; nothing when the policy is trained whole.
    ///
    /// # Errors
    /// When a block has no gradient, which means that the graph was cut.
    pub fn adapter_gradients(&self, grads: &GradStore) -> Result<Option<Adapter>, TrainError> {
        self.by_matrix(|layer| {
            let missing = || TrainError::NoGradient("a block's adapter".into());
            let grad = grads.get(layer.as_tensor()).ok_or_else(missing)?;
            Ok(with_values(&grad.contiguous()?, <[f32]>::to_vec)?)
        })
    }

    /// Cuts what is read for each block into matrices.
    fn by_matrix(&self, read: impl Fn(&Var) -> Result<Vec<f32>, TrainError>) -> Result<Option<Adapter>, TrainError> {
        let Some(lora) = &self.lora else { return Ok(None) };
        let mut pairs = BTreeMap::new();
        for (layer, held) in self.layers.iter().enumerate() {
            let held = read(held)?;
            for (module, places) in adapted_modules(&self.plan, &self.dimensions, layer, lora.rank) {
                let [outputs, inputs] = module.shape;
                let [a, b] = places.map(|it| held[it].to_vec());
                pairs.insert(module.hf, LoraPair { a, b, rank: lora.rank, inputs, outputs });
            }
        }
        Ok(Some(Adapter { rank: lora.rank, alpha: lora.alpha, rslora: lora.rslora, pairs }))
    }

    /// Every weight of a policy that is trained whole, for a checkpoint.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn tensors(&self) -> Result<Vec<NamedTensor<'static>>, TrainError> {
        let mut by_name: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (layer, held) in self.layers.iter().enumerate() {
            let held = values(held)?;
            let mut rest = held.as_slice();
            for (name, size) in block_order(layer, &self.dimensions) {
                let (own, after) = rest.split_at(size);
                by_name.insert(name, own.to_vec());
                rest = after;
            }
        }
        for name in [EMBEDDING, OUTPUT_NORM] {
            if let Some(var) = self.trained.get(name) {
                by_name.insert(name.into(), values(var)?);
            }
        }
        let named = tensor_names(&self.dimensions).into_iter().map(|it| NamedTensor {
            values: Cow::Owned(by_name.remove(&it.hf).unwrap_or_default()),
            name: it.hf,
            shape: it.shape,
        });
        Ok(named.collect())
    }
}

/// Reads a tensor by its Hugging Face name.
pub type ReadTensor<'a> = dyn FnMut(&str) -> Result<Vec<f32>, TrainError> + 'a;

/// A normal spread around zero.
struct Spread {
    std: f32,
}

impl Spread {
    fn sample(&self, rng: &mut ChaCha8Rng) -> f32 {
        let drawn: f32 = StandardNormal.sample(rng);
        drawn * self.std
    }
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const OUTPUT_NORM: &str = "model.norm.weight";

/// Only plain, tied Llamas are trained whole; what would silently be left out is refused.
fn check_whole(dimensions: &Dimensions) -> Result<(), TrainError> {
    let untied = (!dimensions.tied).then_some("an output matrix of its own");
    let architecture = dimensions.architecture.description().hf_model_type;
    let expected = "a plain Llama with a tied embedding, which alone is trained from scratch";
    let found = dimensions.beyond_plain().or(untied);
    found.map_or(Ok(()), |found| Err(TrainError::Architecture { architecture, expected, found }))
}

fn check_adapted(dimensions: &Dimensions) -> Result<(), TrainError> {
    let (architecture, expected) = (dimensions.architecture.description().hf_model_type, TRAINABLE);
    match dimensions.options.experts {
        Some(_) => Err(TrainError::Architecture { architecture, expected, found: "experts" }),
        None => Ok(()),
    }
}

/// The angles of a batch's tokens: of layers that attend to everything and, where they turn otherwise, of those with
/// a window.
fn turns(sizes: &Dimensions, batch: &Batch) -> Vec<Arc<Turns>> {
    let positions = batch.positions();
    let longest = batch.sequences.iter().map(Range::len).max().unwrap_or(0);
    let table = |theta: f32, scaling: &RopeScaling| {
        let turning = scaling.turning(theta, sizes.rotary_dim(), longest);
        Turns::new(&positions, sizes.head_dim, theta, &turning)
    };
    let sliding = sizes.options.sliding.as_ref().and_then(|it| it.rope_theta);
    let everywhere = table(sizes.rope_theta, &sizes.options.rope);
    std::iter::once(everywhere).chain(sliding.map(|theta| table(theta, &RopeScaling::None))).collect()
}

fn plan_of(dimensions: &Dimensions, lora: Option<&LoraConfig>, threads: usize) -> Result<Plan, TrainError> {
    let heads = Heads {
        queries: dimensions.n_heads,
        keys: dimensions.n_kv_heads,
        dim: dimensions.head_dim,
        scale: dimensions.attention_scale(),
    };
    let modules = modules(dimensions, 0);
    if let Some(lora) = lora {
        lora.check(&modules)?;
    }
    let mut groups = [(); GROUPS].map(|()| Group { inputs: 0, outputs: Vec::new(), adapted: Vec::new() });
    for module in &modules {
        let group = &mut groups[group_of(module)];
        if lora.is_some_and(|it| it.adapts(module)) {
            group.adapted.push(group.outputs.len());
        }
        group.inputs = module.shape[1];
        group.outputs.push(module.shape[0]);
    }
    Ok(Plan {
        heads,
        hidden: dimensions.hidden,
        intermediate: dimensions.intermediate,
        eps: dimensions.rms_eps,
        activation: dimensions.architecture.description().activation,
        groups,
        adapter: lora.map(|it| (it.rank, it.scale())),
        threads,
        recomputes: false,
    })
}

/// The group of a block's linears that a module belongs to.
pub(crate) fn group_of(module: &Module) -> usize {
    match module.linears[0] {
        Linear::Q | Linear::K | Linear::V => 0,
        Linear::O => 1,
        Linear::Gate | Linear::Up => 2,
        Linear::Down => 3,
    }
}

/// A block's adapted modules, and where `A` and `B` of each lie among its parameters.
fn adapted_modules(
    plan: &Plan,
    dimensions: &Dimensions,
    layer: usize,
    rank: usize,
) -> Vec<(Module, [Range<usize>; 2])> {
    let mut n_seen = [0; GROUPS];
    let mut found = Vec::new();
    for module in modules(dimensions, layer) {
        let index = group_of(&module);
        let (group, start) = (&plan.groups[index], plan.pairs(rank)[index].start);
        if let Some(place) = group.adapted.iter().position(|it| *it == n_seen[index]) {
            let places = [group.place_of_a(place, rank), group.place_of_b(place, rank)];
            found.push((module, places.map(|it| start + it.start..start + it.end)));
        }
        n_seen[index] += 1;
    }
    found
}

/// A block's tensors in the order in which [`Plan::whole`] lays them out, with their sizes.
fn block_order(layer: usize, dimensions: &Dimensions) -> Vec<(String, usize)> {
    let norm = |name: &str| (format!("model.layers.{layer}.{name}.weight"), dimensions.hidden);
    let mut order = vec![norm("input_layernorm"), norm("post_attention_layernorm")];
    for module in modules(dimensions, layer) {
        order.push((format!("{}.weight", module.hf), module.shape.iter().product()));
    }
    order
}

/// A block's weights, laid out as [`Plan::whole`] says.
fn whole_block(layer: usize, dimensions: &Dimensions, read: &mut ReadTensor<'_>) -> Result<Vec<f32>, TrainError> {
    let mut values = Vec::new();
    for (name, _) in block_order(layer, dimensions) {
        values.extend(read(&name)?);
    }
    Ok(values)
}

/// The values of a variable.
pub(crate) fn values(var: &Var) -> Result<Vec<f32>, TrainError> {
    Ok(with_values(var.as_tensor(), <[f32]>::to_vec)?)
}

#[expect(clippy::cast_precision_loss, reason = "widths and counts are far below 2^24")]
pub(crate) fn to_f32(count: usize) -> f32 {
    count as f32
}
