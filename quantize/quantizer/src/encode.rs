//! From weights to a file: tensor by tensor, rows in parallel; knows no recipe.

use std::path::Path;

use fsq_blocks::Format;
use fsq_checkpoint::architecture::permute_rotary_rows;
use fsq_checkpoint::{Adapter, Checkpoint};
use fsq_gguf::{Draft, FinishedDraft, TensorSpec};
use rayon::prelude::*;

use crate::merge::{check_adapters, check_f16, merged};
use crate::{Allocation, Importance, Plan, Provenance, QuantizeError, convert};

/// Weights encoded between two reports of progress: a few tenths of a second of one core in the slowest format.
const WEIGHTS_PER_STEP: usize = 1 << 22;
/// Weights that one task encodes: large enough to be worth handing out.
const WEIGHTS_PER_TASK: usize = 1 << 14;

/// A file encoded whole, not yet under its real name, and what became of each tensor.
#[derive(Debug)]
pub struct Encoded {
    /// The file.
    pub draft: FinishedDraft,
    /// Its tensors, in its order.
    pub tensors: Vec<EncodedTensor>,
}

/// What became of one tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EncodedTensor {
    /// Its name in the file.
    pub name: String,
    /// The name of its format.
    pub format: &'static str,
    /// The name of the format that the recipe wanted: another where the rows are not whole blocks of it.
    pub wanted: &'static str,
    /// Number of weights.
    pub n_weights: usize,
    /// Their length in the file.
    pub n_bytes: usize,
    /// √(Σ(decoded − weight)² / Σ weight²).
    pub relative_error: f64,
    /// Whether importance guided it.
    pub importance: bool,
}

/// Merges the adapters, converts and encodes a checkpoint to a GGUF file beside `final_path`.
///
/// `progress` is called with the number of weights done and of all weights.
///
/// # Errors
/// When an adapter, an override, the importance or the tokenizer does not fit the checkpoint, when a weight is not
/// finite or too large for its format, or when the file cannot be written. Nothing is left behind then.
pub fn quantize(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    plan: &Plan,
    importance: Option<&Importance>,
    provenance: &Provenance,
    final_path: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Encoded, QuantizeError> {
    check_adapters(&checkpoint.dimensions, adapters)?;
    let allocations = plan.allocate(&checkpoint.dimensions, importance.is_some())?;
    check_importance(importance, &allocations)?;
    let metadata = convert::metadata(checkpoint, plan, provenance)?;
    let factors = convert::rope_tensors(&checkpoint.dimensions.options.rope);
    let of_factors =
        |it: &(&str, &[f32])| TensorSpec { name: it.0.into(), format: Format::F32, shape: vec![it.1.len()] };
    let specs: Vec<TensorSpec> = factors.iter().map(of_factors).chain(specs(&allocations)).collect();
    let mut draft = Draft::create(final_path, &metadata, &specs)?;
    for (name, factors) in factors {
        draft.write(name, &factors.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let n_weights = checkpoint.dimensions.parameters();
    let mut n_done = 0;
    progress(n_done, n_weights);
    let mut tensors = Vec::with_capacity(allocations.len());
    for allocation in &allocations {
        let tensor = &allocation.tensor;
        let mut weights = merged(checkpoint, adapters, tensor)?;
        let columns = tensor.shape.last().copied().unwrap_or(1);
        if let Some(heads) = tensor.permuted_heads {
            let columns_of_a_row = weights.len() / tensor.shape[0];
            weights = permute_rotary_rows(&weights, heads, columns_of_a_row);
        }
        if tensor.offset != 0.0 {
            weights.iter_mut().for_each(|it| *it += tensor.offset);
        }
        if allocation.format == Format::F16 {
            check_f16(&tensor.gguf, &weights)?;
        }
        let columns_importance = importance.map(|it| it.of(allocation)).transpose()?.flatten();
        let mut sums = Sums::default();
        let rows_per_step = (WEIGHTS_PER_STEP / columns).max(1);
        for rows in weights.chunks(rows_per_step * columns) {
            let (bytes, step) = encode_rows(allocation, columns, rows, columns_importance)?;
            draft.write(&tensor.gguf, &bytes)?;
            sums = sums.plus(step);
            n_done += rows.len();
            progress(n_done, n_weights);
        }
        tell(&mut tensors, allocation, weights.len(), sums, columns_importance.is_some());
    }
    let tensors = tensors.into_iter().map(|it| it.0).collect();
    Ok(Encoded { draft: draft.finish()?, tensors })
}

/// Adds a part to what is told of the tensors; experts that one tensor of the file holds are told as one.
fn tell(
    tensors: &mut Vec<(EncodedTensor, Sums)>,
    allocation: &Allocation,
    n_weights: usize,
    sums: Sums,
    has_importance: bool,
) {
    let name = &allocation.tensor.gguf;
    let n_bytes = n_weights / allocation.format.block_weights() * allocation.format.block_bytes();
    if let Some((told, of_experts)) = tensors.last_mut().filter(|it| it.0.name == *name) {
        *of_experts = of_experts.plus(sums);
        told.n_weights += n_weights;
        told.n_bytes += n_bytes;
        told.relative_error = of_experts.relative();
        return;
    }
    let told = EncodedTensor {
        name: name.clone(),
        format: allocation.format.name(),
        wanted: allocation.wanted.name(),
        n_weights,
        n_bytes,
        relative_error: sums.relative(),
        importance: has_importance && allocation.format.uses_importance(),
    };
    tensors.push((told, sums));
}

fn check_importance(importance: Option<&Importance>, allocations: &[Allocation]) -> Result<(), QuantizeError> {
    let Some(importance) = importance else { return Ok(()) };
    allocations.iter().try_for_each(|it| importance.of(it).map(|_| ()))
}

/// Neighbours of one name, the experts of a block, become one tensor of three dimensions.
fn specs(allocations: &[Allocation]) -> impl Iterator<Item = TensorSpec> + '_ {
    allocations.chunk_by(|left, right| left.tensor.gguf == right.tensor.gguf).map(|same| {
        let mut shape: Vec<usize> = same[0].tensor.shape.iter().rev().copied().collect();
        if same.len() > 1 {
            shape.push(same.len());
        }
        TensorSpec { name: same[0].tensor.gguf.clone(), format: same[0].format, shape }
    })
}

/// Sums of squares of errors and of weights.
#[derive(Clone, Copy, Default)]
struct Sums {
    error: f64,
    weight: f64,
}

impl Sums {
    fn plus(self, other: Self) -> Self {
        Self { error: self.error + other.error, weight: self.weight + other.weight }
    }

    fn relative(self) -> f64 {
        if self.weight > 0.0 { (self.error / self.weight).sqrt() } else { 0.0 }
    }
}

/// Encodes whole rows (`[rows, columns]`) and decodes them again to see what was lost.
fn encode_rows(
    allocation: &Allocation,
    columns: usize,
    rows: &[f32],
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, Sums), QuantizeError> {
    let format = allocation.format;
    // The plan only gives a format whose blocks divide the rows.
    let row_bytes = columns / format.block_weights() * format.block_bytes();
    let rows_per_task = (WEIGHTS_PER_TASK / columns).max(1);
    let mut bytes = vec![0; rows.len() / columns * row_bytes];
    let tasks = rows.par_chunks(rows_per_task * columns).zip(bytes.par_chunks_mut(rows_per_task * row_bytes));
    let parts: Vec<Sums> = tasks
        .map(|(weights, bytes)| {
            format.encode(weights, importance, bytes);
            let mut decoded = vec![0.0; weights.len()];
            format.decode(bytes, &mut decoded);
            let mut sums = Sums::default();
            for (weight, decoded) in weights.iter().zip(&decoded) {
                let (weight, decoded) = (f64::from(*weight), f64::from(*decoded));
                sums.error += (decoded - weight) * (decoded - weight);
                sums.weight += weight * weight;
            }
            sums
        })
        .collect();
    // Summed in order, so that the same input gives the same report on any number of threads.
    let sums = parts.into_iter().fold(Sums::default(), Sums::plus);
    if !sums.error.is_finite() {
        return Err(QuantizeError::Overflow {
            tensor: allocation.tensor.gguf.clone(),
            format: format.name(),
            found: rows.iter().fold(0.0, |largest, it| largest.max(it.abs())),
        });
    }
    Ok((bytes, sums))
}
