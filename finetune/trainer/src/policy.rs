//! The trainable forward: a policy whose weights, or whose adapter, get gradients.
//!
//! Equal to transformers' Llama in f32. Knows nothing of data, stages or sampling.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use fsq_checkpoint::{Adapter, Checkpoint, Dimensions, Linear as Place, LoraPair, NamedTensor, tensor_names};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::autograd::{Block, Embedding, FrozenHead, Group, Head, Heads, Plan, RmsNorm, SpanLoss, Turns, apply};
use crate::autograd::{log_softmax_at, with_values};
use crate::{Batch, TrainError};

/// Standard deviation of fresh weights, as in GPT-2 and Llama.
const INIT_STD: f32 = 0.02;

/// The shape of an adapter to be trained.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every pair.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f32,
}

/// A block: its trained parameters, and its weights where those are frozen.
struct Layer {
    parameters: Var,
    frozen: Option<Arc<Vec<f32>>>,
}

/// The tied embedding: trained, or frozen.
enum Embedded {
    Trained(Var),
    Frozen(Arc<Vec<f32>>, Tensor),
}

/// A policy in training.
pub struct TrainablePolicy {
    /// Its sizes.
    pub dimensions: Dimensions,
    lora: Option<LoraConfig>,
    plan: Arc<Plan>,
    embedding: Embedded,
    output_norm: Tensor,
    layers: Vec<Layer>,
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
        check(&dimensions)?;
        let plan = Arc::new(plan_of(&dimensions, None, threads));
        let mut trained = BTreeMap::new();
        let mut layers = Vec::new();
        for layer in 0..dimensions.n_layers {
            let values = whole_block(layer, &dimensions, read)?;
            let parameters = Var::from_vec(values, plan.parameters(), &Device::Cpu)?;
            trained.insert(format!("block.{layer}"), parameters.clone());
            layers.push(Layer { parameters, frozen: None });
        }
        let shape = (dimensions.vocab, dimensions.hidden);
        let embedding = Var::from_vec(read(EMBEDDING)?, shape, &Device::Cpu)?;
        let norm = Var::from_vec(read(OUTPUT_NORM)?, dimensions.hidden, &Device::Cpu)?;
        trained.insert(EMBEDDING.into(), embedding.clone());
        trained.insert(OUTPUT_NORM.into(), norm.clone());
        let (embedding, output_norm) = (Embedded::Trained(embedding), norm.as_tensor().clone());
        Ok(Self { dimensions, lora: None, plan, embedding, output_norm, layers, trained, threads })
    }

    /// A checkpoint, frozen, with a fresh adapter on every linear layer: `A` uniform, `B` zero.
    ///
    /// # Errors
    /// When a tensor is absent or cannot be made.
    pub fn adapted(
        checkpoint: &Checkpoint,
        lora: LoraConfig,
        rng: &mut ChaCha8Rng,
        threads: usize,
    ) -> Result<Self, TrainError> {
        // PEFT's default: Kaiming uniform with a = √5, which is ±1/√in.
        let fresh = |_: &str, [outputs, inputs]: [usize; 2]| {
            let bound = 1.0 / to_f32(inputs).sqrt();
            let a = (0..lora.rank * inputs).map(|_| rng.random_range(-bound..bound)).collect();
            Ok((a, vec![0.0; outputs * lora.rank]))
        };
        Self::with_pairs(checkpoint, lora, fresh, threads)
    }

    /// A checkpoint, frozen, with an adapter that goes on being trained.
    ///
    /// # Errors
    /// When a tensor is absent, or the adapter lacks a module.
    pub fn resumed(checkpoint: &Checkpoint, adapter: &Adapter, threads: usize) -> Result<Self, TrainError> {
        let lora = LoraConfig { rank: adapter.rank, alpha: adapter.alpha };
        let read = |path: &str, _: [usize; 2]| {
            let pair = adapter.pairs.get(path).ok_or_else(|| TrainError::MissingModule(path.into()))?;
            Ok((pair.a.clone(), pair.b.clone()))
        };
        Self::with_pairs(checkpoint, lora, read, threads)
    }

    fn with_pairs(
        checkpoint: &Checkpoint,
        lora: LoraConfig,
        mut pair: impl FnMut(&str, [usize; 2]) -> Result<(Vec<f32>, Vec<f32>), TrainError>,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let dimensions = checkpoint.dimensions.clone();
        check(&dimensions)?;
        let scale = lora.alpha / to_f32(lora.rank);
        let plan = Arc::new(plan_of(&dimensions, Some((lora.rank, scale)), threads));
        let mut read = |name: &str| -> Result<Vec<f32>, TrainError> { Ok(checkpoint.tensor_f32(name)?) };
        let mut trained = BTreeMap::new();
        let mut layers = Vec::new();
        for layer in 0..dimensions.n_layers {
            let mut values = vec![0.0; plan.parameters()];
            for place in Place::ALL {
                let (a, b) = pair(&place.hf_path(layer), place.shape(&dimensions))?;
                let [of_a, of_b] = pair_places(&plan, place, lora.rank);
                values[of_a].copy_from_slice(&a);
                values[of_b].copy_from_slice(&b);
            }
            let parameters = Var::from_vec(values, plan.parameters(), &Device::Cpu)?;
            trained.insert(format!("block.{layer}"), parameters.clone());
            layers.push(Layer { parameters, frozen: Some(Arc::new(whole_block(layer, &dimensions, &mut read)?)) });
        }
        let shape = (dimensions.vocab, dimensions.hidden);
        let table = read(EMBEDDING)?;
        let head = if dimensions.tied { table.clone() } else { read("lm_head.weight")? };
        let embedding = Embedded::Frozen(Arc::new(head), Tensor::from_vec(table, shape, &Device::Cpu)?);
        let output_norm = Tensor::from_vec(read(OUTPUT_NORM)?, dimensions.hidden, &Device::Cpu)?;
        Ok(Self { dimensions, lora: Some(lora), plan, embedding, output_norm, layers, trained, threads })
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
        let logits = self.logits(batch, rows)?;
        Ok(apply(SpanLoss { losses, vocab: self.dimensions.vocab }, &[&logits])?)
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

    /// Logits of some rows: `[rows, vocab]`.
    ///
    /// # Errors
    /// When the graph refuses an operation.
    pub fn logits(&self, batch: &Batch, rows: Vec<usize>) -> Result<Tensor, TrainError> {
        let sizes = &self.dimensions;
        let turns = Turns::new(&batch.positions(), sizes.head_dim, sizes.rope_theta);
        let sequences = Arc::new(batch.sequences.clone());
        let table = match &self.embedding {
            Embedded::Trained(table) => table.as_tensor(),
            Embedded::Frozen(_, table) => table,
        };
        let mut x = apply(Embedding { tokens: batch.tokens.clone(), width: sizes.hidden }, &[table])?;
        for layer in &self.layers {
            let block = Block {
                plan: Arc::clone(&self.plan),
                frozen: layer.frozen.clone(),
                turns: Arc::clone(&turns),
                sequences: Arc::clone(&sequences),
                saved: Mutex::new(None),
            };
            x = apply(block, &[&x, layer.parameters.as_tensor()])?;
        }
        let asked: Vec<u32> = rows.into_iter().map(|it| u32::try_from(it).unwrap_or(u32::MAX)).collect();
        let x = apply(Embedding { tokens: asked, width: sizes.hidden }, &[&x])?;
        let x = apply(RmsNorm { eps: sizes.rms_eps }, &[&x, &self.output_norm])?;
        let (group, threads) = (Group { inputs: sizes.hidden, outputs: vec![sizes.vocab] }, self.threads);
        Ok(match &self.embedding {
            Embedded::Trained(table) => apply(Head { group, threads }, &[&x, table.as_tensor()])?,
            Embedded::Frozen(weight, _) => apply(FrozenHead { weight: Arc::clone(weight), group, threads }, &[&x])?,
        })
    }

    /// The adapter as it stands, or nothing when the policy is trained whole.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn adapter(&self) -> Result<Option<Adapter>, TrainError> {
        self.by_matrix(|layer| values(&layer.parameters))
    }

    /// The gradient of each adapter matrix, laid out as the adapter itself; nothing when the policy is trained whole.
    ///
    /// # Errors
    /// When a block has no gradient, which means that the graph was cut.
    pub fn adapter_gradients(&self, grads: &GradStore) -> Result<Option<Adapter>, TrainError> {
        self.by_matrix(|layer| {
            let missing = || TrainError::NoGradient("a block's adapter".into());
            let grad = grads.get(layer.parameters.as_tensor()).ok_or_else(missing)?;
            Ok(with_values(&grad.contiguous()?, <[f32]>::to_vec)?)
        })
    }

    /// Cuts what is read for each block into matrices.
    fn by_matrix(&self, read: impl Fn(&Layer) -> Result<Vec<f32>, TrainError>) -> Result<Option<Adapter>, TrainError> {
        let Some(lora) = self.lora else { return Ok(None) };
        let mut pairs = BTreeMap::new();
        for (layer, held) in self.layers.iter().enumerate() {
            let held = read(held)?;
            for place in Place::ALL {
                let [outputs, inputs] = place.shape(&self.dimensions);
                let [a, b] = pair_places(&self.plan, place, lora.rank).map(|it| held[it].to_vec());
                pairs.insert(place.hf_path(layer), LoraPair { a, b, rank: lora.rank, inputs, outputs });
            }
        }
        Ok(Some(Adapter { rank: lora.rank, alpha: lora.alpha, rslora: false, pairs }))
    }

    /// Every weight of a policy that is trained whole, for a checkpoint.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn tensors(&self) -> Result<Vec<NamedTensor<'static>>, TrainError> {
        let mut by_name: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (layer, held) in self.layers.iter().enumerate() {
            let held = values(&held.parameters)?;
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

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT_NORM: &str = "model.norm.weight";

/// The trainable forward knows plain Llama only; what it would silently leave out is refused.
fn check(dimensions: &Dimensions) -> Result<(), TrainError> {
    let architecture = dimensions.architecture.description().hf_model_type;
    dimensions.beyond_plain().map_or(Ok(()), |found| Err(TrainError::Architecture { architecture, found }))
}

fn plan_of(dimensions: &Dimensions, adapter: Option<(usize, f32)>, threads: usize) -> Plan {
    Plan {
        heads: Heads { queries: dimensions.n_heads, keys: dimensions.n_kv_heads, dim: dimensions.head_dim },
        hidden: dimensions.hidden,
        intermediate: dimensions.intermediate,
        eps: dimensions.rms_eps,
        adapter,
        threads,
    }
}

/// A block's tensors in the order in which [`Plan::whole`] lays them out, with their sizes.
fn block_order(layer: usize, dimensions: &Dimensions) -> Vec<(String, usize)> {
    let norm = |name: &str| (format!("model.layers.{layer}.{name}.weight"), dimensions.hidden);
    let mut order = vec![norm("input_layernorm"), norm("post_attention_layernorm")];
    for place in Place::ALL {
        order.push((format!("{}.weight", place.hf_path(layer)), place.shape(dimensions).iter().product()));
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

/// Where `A` and `B` of a linear lie among its block's adapter parameters.
fn pair_places(plan: &Plan, place: Place, rank: usize) -> [Range<usize>; 2] {
    let (group, index) = match place {
        Place::Q => (0, 0),
        Place::K => (0, 1),
        Place::V => (0, 2),
        Place::O => (1, 0),
        Place::Gate => (2, 0),
        Place::Up => (2, 1),
        Place::Down => (3, 0),
    };
    let start = plan.pairs(rank)[group].start;
    let group = &plan.groups()[group];
    [group.place_of_a(index, rank), group.place_of_b(index, rank)].map(|it| start + it.start..start + it.end)
}

/// The values of a variable.
pub(crate) fn values(var: &Var) -> Result<Vec<f32>, TrainError> {
    Ok(with_values(var.as_tensor(), <[f32]>::to_vec)?)
}

#[expect(clippy::cast_precision_loss, reason = "widths and counts are far below 2^24")]
fn to_f32(count: usize) -> f32 {
    count as f32
}
