//! A policy's weights on a device, from a GGUF file. Knows no tokens and no sequences.

use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Architecture, Dimensions, Linear, LoraPair, architecture};
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
    /// In the order of [`Linear::ALL`].
    linears: Vec<B::Matrix>,
}

impl<B: Backend> Layer<B> {
    pub(crate) fn linear(&self, linear: Linear) -> &B::Matrix {
        &self.linears[index(linear)]
    }
}

impl<B: Backend> Weights<B> {
    pub(crate) fn load(backend: &B, gguf: &Gguf, dimensions: &Dimensions) -> Result<Self, ModelError> {
        let loader = Loader { backend, gguf };
        let Dimensions { vocab, hidden, n_layers, tied, .. } = *dimensions;
        let layer = |layer: usize| {
            let linear = |it: Linear| loader.matrix(&format!("{}.weight", it.gguf_path(layer)), it.shape(dimensions));
            Ok(Layer {
                attention_norm: loader.norm(&format!("blk.{layer}.attn_norm.weight"), hidden)?,
                feed_forward_norm: loader.norm(&format!("blk.{layer}.ffn_norm.weight"), hidden)?,
                linears: Linear::ALL.into_iter().map(linear).collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            embedding: loader.matrix("token_embd.weight", [vocab, hidden])?,
            output: if tied { None } else { Some(loader.matrix("output.weight", [vocab, hidden])?) },
            output_norm: loader.norm("output_norm.weight", hidden)?,
            layers: (0..n_layers).map(layer).collect::<Result<_, ModelError>>()?,
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
    fn view(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, ModelError> {
        let view = self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.into() })?;
        // GGUF writes the row length first.
        let found: Vec<usize> = view.shape.iter().rev().copied().collect();
        if found != shape {
            return Err(ModelError::TensorShape { name: name.into(), expected: shape.to_vec(), found });
        }
        Ok(view)
    }

    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<B::Matrix, ModelError> {
        let view = self.view(name, &[rows, cols])?;
        if self.backend.reads(view.format) {
            return Ok(self.backend.load(WeightView { name, format: view.format, rows, cols, bytes: view.bytes })?);
        }
        Ok(load_floats(self.backend, name, Format::F16, &view.to_f32(), [rows, cols])?)
    }

    fn norm(&self, name: &str, width: usize) -> Result<B::Buffer, ModelError> {
        let values = self.view(name, &[width])?.to_f32();
        let mut buffer = self.backend.buffer(width)?;
        self.backend.write(&values, &mut buffer);
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
        for (module, pair) in &adapter.pairs {
            let (layer, linear) = find_module(module, dimensions)?;
            check_shape(module, pair, linear.shape(dimensions))?;
            let permuted = dimensions.architecture.description().qk_permuted;
            let heads = match linear {
                Linear::Q if permuted => Some(dimensions.n_heads),
                Linear::K if permuted => Some(dimensions.n_kv_heads),
                _ => None,
            };
            let reordered = heads.map(|it| architecture::permute_rotary_rows(&pair.b, it, pair.rank));
            let b = reordered.as_deref().unwrap_or(&pair.b);
            updates[layer][index(linear)] = Some(LowRank {
                a: load_floats(backend, module, Format::F32, &pair.a, [pair.rank, pair.inputs])?,
                b: load_floats(backend, module, Format::F32, b, [pair.outputs, pair.rank])?,
                scale: adapter.scale(),
            });
        }
        Ok(Self { updates })
    }

    pub(crate) fn update(&self, layer: usize, linear: Linear) -> Option<&LowRank<B::Matrix>> {
        self.updates[layer][index(linear)].as_ref()
    }
}

fn find_module(module: &str, dimensions: &Dimensions) -> Result<(usize, Linear), ModelError> {
    let all = (0..dimensions.n_layers).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear)));
    let mut found = all.filter(|(layer, linear)| linear.hf_path(*layer) == module);
    found.next().ok_or_else(|| ModelError::Adapter {
        module: module.into(),
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
