//! From weights to a file: tensor by tensor, rows in parallel; knows no recipe.
//!
//! What is encoded is digested and written by a thread of its own while the next rows are being encoded.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use fsq_blocks::Format;
use fsq_checkpoint::architecture::permute_rotary_rows;
use fsq_checkpoint::{Adapter, Checkpoint, TensorName};
use fsq_gguf::{FinishedDraft, Metadata, TensorSpec};
use rayon::prelude::*;

use crate::codes::{Encoder, WEIGHTS_PER_TASK};
use crate::growing::{Growing, Kept, Part, Target};
use crate::merge::{check_adapters, check_f16, merged};
use crate::{Allocation, Codes, Importance, Plan, Provenance, QuantizeError, convert};

/// Weights encoded between two reports of progress: enough for many cores.
const WEIGHTS_PER_STEP: usize = 1 << 21;
/// Steps that may wait to be written: few, since each takes memory.
const STEPS_WAITING: usize = 2;
/// Weights that one task reads, widens, encodes and decodes again: few enough to stay in a core's cache.
const WEIGHTS_PER_PIECE: usize = 1 << 15;

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
    /// How its codes were chosen; of experts, those of the first.
    pub codes: Codes,
}

/// Merges the adapters, converts and encodes a checkpoint to a GGUF file: beside a path, or from where a killed run
/// left it, as the target says.
///
/// `progress` is called with the number of weights done and of all weights.
///
/// # Errors
/// When an adapter, an override, the importance or the tokenizer does not fit the checkpoint, when a weight is not
/// finite or too large for its format, or when the file cannot be written. Nothing is left behind then.
pub fn quantize<'a>(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    plan: &Plan,
    importance: Option<&Importance>,
    provenance: &Provenance,
    target: impl Into<Target<'a>>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Encoded, QuantizeError> {
    check_adapters(&checkpoint.dimensions, adapters)?;
    let allocations = plan.allocate(&checkpoint.dimensions, importance.is_some())?;
    check_importance(importance, &allocations)?;
    let (metadata, specs) = head(checkpoint, plan, &allocations, provenance)?;
    let (growing, kept) = Growing::begin(target.into(), &metadata, &specs)?;
    let source = Source { checkpoint, adapters, codes: plan.codes, importance };
    std::thread::scope(|scope| {
        let (parts, to_write) = sync_channel(STEPS_WAITING);
        let (tell_written, written) = channel();
        let writer = scope.spawn(move || growing.follow(&to_write, &tell_written));
        let n_weights = checkpoint.dimensions.parameters();
        let mut outgoing = Outgoing { parts, written, n_done: 0, n_weights, progress };
        let told = encode_tensors(&source, &allocations, kept, &mut outgoing);
        outgoing.end();
        let draft = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (told, draft) {
            (Err(Some(fault)), _) | (_, Err(fault)) => Err(fault),
            (Ok(tensors), Ok(draft)) => Ok(Encoded { draft, tensors }),
            (Err(None), Ok(_)) => unreachable!("a writer ends early only with a fault"),
        }
    })
}

/// What is encoded, and how.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    adapters: &'a [Adapter],
    codes: Codes,
    importance: Option<&'a Importance>,
}

/// Why no more is encoded: a fault, or nothing where the writer has ended, who then has one.
type Halt = Option<QuantizeError>;

/// The way to the file.
struct Outgoing<'a> {
    parts: SyncSender<Part>,
    written: Receiver<usize>,
    n_done: usize,
    n_weights: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Outgoing<'_> {
    /// Hands something on, and tells of what was written meanwhile.
    fn send(&mut self, part: Part) -> Result<(), Halt> {
        self.parts.send(part).map_err(|_| None)?;
        while let Ok(n_weights) = self.written.try_recv() {
            self.tell(n_weights);
        }
        Ok(())
    }

    fn tell(&mut self, n_weights: usize) {
        self.n_done += n_weights;
        (self.progress)(self.n_done, self.n_weights);
    }

    /// Lets the writer end, and tells of what it still writes.
    fn end(self) {
        let Self { parts, written, mut n_done, n_weights, progress } = self;
        drop(parts);
        for more in written {
            n_done += more;
            progress(n_done, n_weights);
        }
    }
}

/// Encodes all that is not kept; says what became of each tensor.
fn encode_tensors(
    source: &Source<'_>,
    allocations: &[Allocation],
    mut kept: Kept,
    outgoing: &mut Outgoing<'_>,
) -> Result<Vec<EncodedTensor>, Halt> {
    for (name, factors) in convert::rope_tensors(&source.checkpoint.dimensions.options.rope) {
        if !kept.has(name) {
            let (tensor, pieces) = (name.to_owned(), vec![factors.iter().flat_map(|it| it.to_le_bytes()).collect()]);
            outgoing.send(Part::Rows { tensor, pieces, n_weights: 0 })?;
            outgoing.send(Part::Whole { tensor: name.into(), told: None })?;
        }
    }
    outgoing.tell(0);
    let mut tensors: Vec<(EncodedTensor, Sums)> = Vec::with_capacity(allocations.len());
    let mut is_kept = false;
    for (allocation, place) in allocations.iter().zip(matrix_places(allocations)) {
        let name = &allocation.tensor.gguf;
        if place.0 == 0 {
            let told = kept.told(allocation);
            is_kept = told.is_some();
            outgoing.n_done += told.as_ref().map_or(0, |it| it.n_weights);
            tensors.extend(told.map(|it| (it, Sums::default())));
        }
        if is_kept {
            continue;
        }
        let columns = allocation.tensor.shape.last().copied().unwrap_or(1);
        let inputs = source.importance.map(|it| it.inputs((name, columns), place)).transpose()?.unwrap_or_default();
        let encoder = Encoder::new(allocation.format, columns, source.codes, &inputs);
        let mut told = encode_matrix(outgoing, (source.checkpoint, source.adapters), allocation, &encoder)?;
        told.importance = inputs.squares.is_some();
        tell(&mut tensors, allocation, allocation.tensor.shape.iter().product(), told);
        if place.0 + 1 == place.1 {
            outgoing.send(Part::Whole { tensor: name.clone(), told: tensors.last().map(|it| it.0.clone()) })?;
        }
    }
    Ok(tensors.into_iter().map(|it| it.0).collect())
}

/// Encodes the rows of one matrix, or a vector, some at a time.
fn encode_matrix(
    outgoing: &mut Outgoing<'_>,
    source: (&Checkpoint, &[Adapter]),
    allocation: &Allocation,
    encoder: &Encoder<'_>,
) -> Result<Told, Halt> {
    let tensor = &allocation.tensor;
    let (n_rows, columns) = (tensor.shape[0], tensor.shape.last().copied().unwrap_or(1));
    // Encoders that look at all rows get them together. Rotary rows change places within their head.
    let is_whole = tensor.shape.len() == 1 || encoder.needs_all_rows();
    let rows_together = if is_whole { n_rows } else { tensor.permuted_heads.map_or(1, |it| n_rows / it) };
    let rows_of = |weights: usize| (weights / columns).max(1).next_multiple_of(rows_together.max(1));
    let (rows_per_step, rows_per_piece) = (rows_of(WEIGHTS_PER_STEP), rows_of(WEIGHTS_PER_PIECE));
    let mut told = Told::default();
    for start in (0..n_rows).step_by(rows_per_step) {
        let end = n_rows.min(start + rows_per_step);
        let starts = (start..end).into_par_iter().step_by(rows_per_piece);
        let piece = |it: usize| encode_piece(source, allocation, encoder, it..end.min(it + rows_per_piece));
        let encoded: Vec<Result<Piece, QuantizeError>> = starts.map(piece).collect();
        let (mut pieces, mut n_weights) = (Vec::with_capacity(encoded.len()), 0);
        // In their order, which also decides whose fault is told.
        for piece in encoded {
            let piece = piece?;
            told.sums = told.sums.plus(piece.sums);
            told.codes = piece.codes;
            n_weights += piece.n_weights;
            pieces.push(piece.bytes);
        }
        outgoing.send(Part::Rows { tensor: tensor.gguf.clone(), pieces, n_weights })?;
    }
    Ok(told)
}

/// Some rows, encoded.
struct Piece {
    n_weights: usize,
    bytes: Vec<u8>,
    codes: Codes,
    sums: Sums,
}

fn encode_piece(
    (checkpoint, adapters): (&Checkpoint, &[Adapter]),
    allocation: &Allocation,
    encoder: &Encoder<'_>,
    rows: Range<usize>,
) -> Result<Piece, QuantizeError> {
    let tensor = &allocation.tensor;
    let weights = stored(checkpoint, adapters, tensor, &rows)?;
    if allocation.format == Format::F16 {
        check_f16(&tensor.gguf, &weights)?;
    }
    let (bytes, codes) = encoder.encode(&weights);
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let sums = sums_of(allocation, columns, &weights, &bytes)?;
    Ok(Piece { n_weights: weights.len(), bytes, codes, sums })
}

/// Metadata and tensors of the file to be.
fn head(
    checkpoint: &Checkpoint,
    plan: &Plan,
    allocations: &[Allocation],
    provenance: &Provenance,
) -> Result<(Metadata, Vec<TensorSpec>), QuantizeError> {
    let factors = convert::rope_tensors(&checkpoint.dimensions.options.rope);
    let of_factors =
        |it: &(&str, &[f32])| TensorSpec { name: it.0.into(), format: Format::F32, shape: vec![it.1.len()] };
    let specs = factors.iter().map(of_factors).chain(specs(allocations)).collect();
    Ok((convert::metadata(checkpoint, plan, provenance)?, specs))
}

/// How long the file of a plan will be, in bytes. Some recipes choose otherwise when they are `weighted`.
///
/// # Errors
/// As [`quantize`], but for what is wrong with weights.
pub fn file_bytes(
    checkpoint: &Checkpoint,
    plan: &Plan,
    weighted: bool,
    provenance: &Provenance,
) -> Result<u64, QuantizeError> {
    let allocations = plan.allocate(&checkpoint.dimensions, weighted)?;
    let (metadata, specs) = head(checkpoint, plan, &allocations, provenance)?;
    Ok(fsq_gguf::file_bytes(&metadata, &specs)?)
}

/// Rows of a tensor as the file is to hold them: merged, in the file's order. Where that is another than the
/// checkpoint's, they must be those of whole heads.
pub(crate) fn stored(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    tensor: &TensorName,
    rows: &Range<usize>,
) -> Result<Vec<f32>, QuantizeError> {
    let mut weights = merged(checkpoint, adapters, tensor, rows)?;
    if let Some(heads) = tensor.permuted_heads {
        let columns = weights.len() / rows.len();
        weights = permute_rotary_rows(&weights, heads * rows.len() / tensor.shape[0], columns);
    }
    if tensor.offset != 0.0 {
        weights.iter_mut().for_each(|it| *it += tensor.offset);
    }
    Ok(weights)
}

/// Of each allocation: which matrix of its tensor it is, and of how many. Only experts share a tensor.
pub(crate) fn matrix_places(allocations: &[Allocation]) -> Vec<(usize, usize)> {
    let same = allocations.chunk_by(|left, right| left.tensor.gguf == right.tensor.gguf);
    same.flat_map(|it| (0..it.len()).map(|index| (index, it.len()))).collect()
}

/// What became of one matrix.
#[derive(Clone, Copy, Default)]
struct Told {
    sums: Sums,
    importance: bool,
    codes: Codes,
}

/// Adds a part to what is told of the tensors; experts that one tensor of the file holds are told as one.
fn tell(tensors: &mut Vec<(EncodedTensor, Sums)>, allocation: &Allocation, n_weights: usize, part: Told) {
    let name = &allocation.tensor.gguf;
    let n_bytes = n_weights / allocation.format.block_weights() * allocation.format.block_bytes();
    if let Some((told, of_experts)) = tensors.last_mut().filter(|it| it.0.name == *name) {
        *of_experts = of_experts.plus(part.sums);
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
        relative_error: part.sums.relative(),
        importance: part.importance && (allocation.format.uses_importance() || part.codes != Codes::Stock),
        codes: part.codes,
    };
    tensors.push((told, part.sums));
}

fn check_importance(importance: Option<&Importance>, allocations: &[Allocation]) -> Result<(), QuantizeError> {
    let Some(importance) = importance else { return Ok(()) };
    let places = matrix_places(allocations);
    allocations.iter().zip(places).try_for_each(|(it, place)| {
        importance.inputs((&it.tensor.gguf, it.tensor.shape.last().copied().unwrap_or(0)), place).map(|_| ())
    })
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
    /// Of some weights and what they became, in lanes that compilers make vectors of.
    fn of(weights: &[f32], decoded: &[f32]) -> Self {
        let (mut errors, mut squares) = ([0.0f64; 8], [0.0f64; 8]);
        for (weights, decoded) in weights.chunks(8).zip(decoded.chunks(8)) {
            for (lane, (weight, decoded)) in weights.iter().zip(decoded).enumerate() {
                let (weight, off) = (f64::from(*weight), f64::from(*decoded) - f64::from(*weight));
                errors[lane] += off * off;
                squares[lane] += weight * weight;
            }
        }
        Self { error: errors.iter().sum(), weight: squares.iter().sum() }
    }

    fn plus(self, other: Self) -> Self {
        Self { error: self.error + other.error, weight: self.weight + other.weight }
    }

    fn relative(self) -> f64 {
        if self.weight > 0.0 { (self.error / self.weight).sqrt() } else { 0.0 }
    }
}

/// Decodes what whole rows (`[rows, columns]`) were encoded to, to see what was lost.
fn sums_of(allocation: &Allocation, columns: usize, rows: &[f32], bytes: &[u8]) -> Result<Sums, QuantizeError> {
    let format = allocation.format;
    // The plan only gives a format whose blocks divide the rows.
    let row_bytes = columns / format.block_weights() * format.block_bytes();
    let rows_per_task = (WEIGHTS_PER_TASK / columns).max(1);
    let tasks = rows.par_chunks(rows_per_task * columns).zip(bytes.par_chunks(rows_per_task * row_bytes));
    let parts: Vec<Sums> = tasks
        .map(|(weights, bytes)| {
            let mut decoded = vec![0.0; weights.len()];
            format.decode(bytes, &mut decoded);
            Sums::of(weights, &decoded)
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
    Ok(sums)
}
