//! A policy's weights on a device, from a GGUF file. Knows no tokens and no sequences.

use std::ops::Range;

use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Architecture, Dimensions, Experts, Linear, LoraPair, Module};
use fsq_checkpoint::{architecture, expert_matrices, modules};
use fsq_gguf::{Gguf, TensorView};
use fsq_kernels::{Backend, KernelError, LowRank, RotaryPairs, WeightView};

use crate::ModelError;

/// All matrices and norms.
pub(crate) struct Weights<B: Backend> {
    /// `[vocab, hidden]`
    pub(crate) embedding: B::Matrix,
    /// `[vocab, hidden]`; `None` when the embedding is used again.
    output: Option<B::Matrix>,
    /// `[hidden]`
    pub(crate) output_norm: B::Buffer,
    pub(crate) layers: Vec<Layer<B>>,
}

/// One transformer block.
pub(crate) struct Layer<B: Backend> {
    /// `[hidden]`
    pub(crate) attention_norm: B::Buffer,
    /// `[hidden]`
    pub(crate) feed_forward_norm: B::Buffer,
    /// `[head_dim]`, of queries and of keys.
    pub(crate) head_norms: Option<[B::Buffer; 2]>,
    /// `[hidden]`, behind attention and behind the feed-forward part.
    pub(crate) post_norms: Option<[B::Buffer; 2]>,
    pub(crate) experts: Option<ExpertWeights<B>>,
    /// At [`index`].
    linears: [Option<Projection<B>>; 7],
}

/// The feed-forward part of a block with experts.
pub(crate) struct ExpertWeights<B: Backend> {
    /// `[experts, hidden]`
    pub(crate) router: B::Matrix,
    /// Gate, up and down of each.
    pub(crate) matrices: Vec<[B::Matrix; 3]>,
}

/// A matrix and what is added to its products.
pub(crate) struct Projection<B: Backend> {
    /// `[out, in]`
    pub(crate) weight: B::Matrix,
    /// `[out]`
    pub(crate) bias: Option<B::Buffer>,
}

impl<B: Backend> Layer<B> {
    /// # Panics
    /// When the block has no such linear.
    pub(crate) fn linear(&self, linear: Linear) -> &Projection<B> {
        match &self.linears[index(linear)] {
            Some(projection) => projection,
            None => panic!("a block without {}", linear.module()),
        }
    }
}

impl<B: Backend> Weights<B> {
    pub(crate) fn load(backend: &B, gguf: &Gguf, dimensions: &Dimensions) -> Result<Self, ModelError> {
        let loader = Loader { backend, gguf };
        let Dimensions { vocab, hidden, n_layers, tied, .. } = *dimensions;
        Ok(Self {
            embedding: loader.matrix("token_embd.weight", [vocab, hidden])?,
            output: if tied { None } else { Some(loader.matrix("output.weight", [vocab, hidden])?) },
            output_norm: loader.vector("output_norm.weight", hidden)?,
            layers: (0..n_layers).map(|it| loader.layer(dimensions, it)).collect::<Result<_, _>>()?,
        })
    }

    /// The matrix that gives logits.
    pub(crate) fn output(&self) -> &B::Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

struct Loader<'a, B> {
    backend: &'a B,
    gguf: &'a Gguf,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, dimensions: &Dimensions, layer: usize) -> Result<Layer<B>, ModelError> {
        let (hidden, head_dim) = (dimensions.hidden, dimensions.head_dim);
        let norm = |name: &str, width: usize| self.vector(&format!("blk.{layer}.{name}.weight"), width);
        let pair = |present: bool, [first, second]: [&str; 2], width: usize| {
            present.then(|| Ok::<_, ModelError>([norm(first, width)?, norm(second, width)?])).transpose()
        };
        let description = dimensions.architecture.description();
        let experts = dimensions.options.experts;
        let mut loaded = Layer {
            attention_norm: norm("attn_norm", hidden)?,
            feed_forward_norm: norm("ffn_norm", hidden)?,
            head_norms: pair(description.head_norms, ["attn_q_norm", "attn_k_norm"], head_dim)?,
            post_norms: pair(description.post_norms, ["post_attention_norm", "post_ffw_norm"], hidden)?,
            experts: experts.map(|it| self.experts(dimensions, &it, layer)).transpose()?,
            linears: Default::default(),
        };
        for module in modules(dimensions, layer) {
            self.module(&module, dimensions, &mut loaded)?;
        }
        Ok(loaded)
    }

    /// The rows of each linear of a module, as matrices of their own.
    fn module(&self, module: &Module, dimensions: &Dimensions, layer: &mut Layer<B>) -> Result<(), ModelError> {
        let name = format!("{}.weight", module.gguf);
        let weight = self.view(&name, &module.shape)?;
        let bias = format!("{}.bias", module.gguf);
        let bias = if module.biased { Some(self.view(&bias, &module.shape[..1])?.to_f32()) } else { None };
        for (linear, rows) in module.rows(dimensions) {
            layer.linears[index(linear)] = Some(Projection {
                weight: self.rows(&weight, rows.clone())?,
                bias: bias.as_ref().map(|it| self.buffer(&it[rows])).transpose()?,
            });
        }
        // The device has its own copy: two would not fit where one does.
        self.gguf.release(&name);
        Ok(())
    }

    fn experts(
        &self,
        dimensions: &Dimensions,
        experts: &Experts,
        layer: usize,
    ) -> Result<ExpertWeights<B>, ModelError> {
        let router = self.matrix(&format!("blk.{layer}.ffn_gate_inp.weight"), [experts.n, dimensions.hidden])?;
        let [gate, up, down] = expert_matrices(dimensions, experts)
            .map(|(_, name, [rows, cols])| self.view(&format!("blk.{layer}.{name}.weight"), &[experts.n, rows, cols]));
        let views = [gate?, up?, down?];
        let one = |view: &TensorView<'_>, expert: usize| {
            let n = view.rows() / experts.n;
            self.rows(view, expert * n..(expert + 1) * n)
        };
        let [gate, up, down] = &views;
        let matrices = (0..experts.n).map(|it| Ok([one(gate, it)?, one(up, it)?, one(down, it)?]));
        let matrices = matrices.collect::<Result<_, ModelError>>()?;
        views.iter().for_each(|it| self.gguf.release(it.name));
        Ok(ExpertWeights { router, matrices })
    }

    fn view(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, ModelError> {
        let view = self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.into() })?;
        // GGUF writes the row length first.
        let found: Vec<usize> = view.shape.iter().rev().copied().collect();
        if found != shape {
            return Err(ModelError::TensorShape { name: name.into(), expected: shape.to_vec(), found });
        }
        Ok(view)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<B::Matrix, ModelError> {
        let matrix = self.rows(&self.view(name, &shape)?, 0..shape[0])?;
        self.gguf.release(name);
        Ok(matrix)
    }

    /// Some rows of a tensor; whole blocks, since each row is.
    fn rows(&self, view: &TensorView<'_>, rows: Range<usize>) -> Result<B::Matrix, ModelError> {
        let (name, cols, row_bytes) = (view.name, view.cols(), view.bytes.len() / view.rows());
        let bytes = &view.bytes[rows.start * row_bytes..rows.end * row_bytes];
        if self.backend.reads(view.format) {
            let format = view.format;
            return Ok(self.backend.load(WeightView { name, format, rows: rows.len(), cols, bytes })?);
        }
        let mut values = vec![0.0; rows.len() * cols];
        view.format.decode(bytes, &mut values);
        Ok(load_floats(self.backend, name, Format::F16, &values, [rows.len(), cols])?)
    }

    fn vector(&self, name: &str, width: usize) -> Result<B::Buffer, ModelError> {
        self.buffer(&self.view(name, &[width])?.to_f32())
    }

    fn buffer(&self, values: &[f32]) -> Result<B::Buffer, ModelError> {
        let mut buffer = self.backend.buffer(values.len())?;
        self.backend.write(values, &mut buffer);
        Ok(buffer)
    }
}

fn load_floats<B: Backend>(
    backend: &B,
    name: &str,
    format: Format,
    values: &[f32],
    [rows, cols]: [usize; 2],
) -> Result<B::Matrix, KernelError> {
    let mut bytes = vec![0; values.len() * format.block_bytes()];
    format.encode(values, None, &mut bytes);
    backend.load(WeightView { name, format, rows, cols, bytes: &bytes })
}

/// The place of a matrix in its layer.
fn index(linear: Linear) -> usize {
    match linear {
        Linear::Q => 0,
        Linear::K => 1,
        Linear::V => 2,
        Linear::O => 3,
        Linear::Gate => 4,
        Linear::Up => 5,
        Linear::Down => 6,
    }
}

/// Which numbers of a head rotary positions turn together, in this architecture's GGUF files.
pub(crate) fn rotary_pairs(architecture: Architecture) -> RotaryPairs {
    if architecture.description().qk_permuted { RotaryPairs::Adjacent } else { RotaryPairs::Halves }
}

/// An adapter on the device, its rows in the order of the GGUF file's.
pub(crate) struct LoadedAdapter<B: Backend> {
    /// `[layer][linear]`
    updates: Vec<[Option<LowRank<B::Matrix>>; 7]>,
}

impl<B: Backend> LoadedAdapter<B> {
    pub(crate) fn load(backend: &B, adapter: &Adapter, dimensions: &Dimensions) -> Result<Self, ModelError> {
        let mut updates: Vec<[_; 7]> = std::iter::repeat_with(Default::default).take(dimensions.n_layers).collect();
        for (path, pair) in &adapter.pairs {
            let (layer, module) = find_module(path, dimensions)?;
            check_shape(path, pair, module.shape)?;
            for (linear, rows) in module.rows(dimensions) {
                let heads = architecture::permuted_heads(dimensions, linear);
                let shape = [rows.len(), pair.rank];
                let b = &pair.b[rows.start * pair.rank..rows.end * pair.rank];
                let reordered = heads.map(|it| architecture::permute_rotary_rows(b, it, pair.rank));
                updates[layer][index(linear)] = Some(LowRank {
                    a: load_floats(backend, path, Format::F32, &pair.a, [pair.rank, pair.inputs])?,
                    b: load_floats(backend, path, Format::F32, reordered.as_deref().unwrap_or(b), shape)?,
                    scale: adapter.scale(),
                });
            }
        }
        Ok(Self { updates })
    }

    pub(crate) fn update(&self, layer: usize, linear: Linear) -> Option<&LowRank<B::Matrix>> {
        self.updates[layer][index(linear)].as_ref()
    }
}

fn find_module(path: &str, dimensions: &Dimensions) -> Result<(usize, Module), ModelError> {
    let layers = 0..dimensions.n_layers;
    let mut all = layers.flat_map(|layer| modules(dimensions, layer).into_iter().map(move |it| (layer, it)));
    all.find(|it| it.1.hf == path).ok_or_else(|| ModelError::Adapter {
        module: path.into(),
        expected: format!("a linear module of one of {} layers", dimensions.n_layers),
        found: "a module that this policy does not have".into(),
    })
}

fn check_shape(module: &str, pair: &LoraPair, [outputs, inputs]: [usize; 2]) -> Result<(), ModelError> {
    let lengths_fit = pair.a.len() == pair.rank * pair.inputs && pair.b.len() == pair.outputs * pair.rank;
    if lengths_fit && (pair.outputs, pair.inputs) == (outputs, inputs) && pair.rank > 0 {
        return Ok(());
    }
    Err(ModelError::Adapter {
        module: module.into(),
        expected: format!("{inputs} inputs and {outputs} outputs"),
        found: format!("{} inputs, {} outputs, rank {}", pair.inputs, pair.outputs, pair.rank),
    })
}
