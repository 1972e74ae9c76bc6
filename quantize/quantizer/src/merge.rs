//! Merging adapters into a checkpoint's weights, in f32; knows no format.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use fsq_checkpoint::{Adapter, Checkpoint, CheckpointFiles, Dimensions, StoredType, TensorName, modules};
use rayon::prelude::*;

use crate::QuantizeError;

/// The largest finite 16-bit IEEE float.
pub(crate) const F16_MAX: f32 = 65_504.0;

/// Opens what is to be merged and quantized, and refuses a GGUF file.
///
/// Merging into weights that already lie on a quantization grid and rounding to that grid again brings almost every
/// weight back to where it was: of an update of 0.1 to 1 % of the weights' norm, 4 bits keep about a hundredth.
///
/// # Errors
/// [`QuantizeError::QuantizedBase`] for a GGUF file; else as [`Checkpoint::open`].
pub fn open_base(path: &Path) -> Result<Checkpoint, QuantizeError> {
    let mut start = [0; 4];
    let is_gguf =
        path.is_file() && File::open(path).and_then(|mut it| it.read_exact(&mut start)).is_ok() && start == *b"GGUF";
    if is_gguf {
        return Err(QuantizeError::QuantizedBase { path: path.into() });
    }
    Ok(Checkpoint::open(path)?)
}

/// Checks that every module of every adapter is in the checkpoint, with the shape of its update.
///
/// # Errors
/// The first module that is not, with the number of its adapter.
pub fn check_adapters(dimensions: &Dimensions, adapters: &[Adapter]) -> Result<(), QuantizeError> {
    let modules: std::collections::HashMap<String, [usize; 2]> =
        (0..dimensions.n_layers).flat_map(|layer| modules(dimensions, layer)).map(|it| (it.hf, it.shape)).collect();
    for (index, adapter) in adapters.iter().enumerate() {
        for (module, pair) in &adapter.pairs {
            let adapter = index + 1;
            let expected =
                *modules.get(module).ok_or_else(|| QuantizeError::UnknownModule { adapter, module: module.clone() })?;
            let found = [pair.outputs, pair.inputs];
            let whole = pair.a.len() == pair.rank * pair.inputs && pair.b.len() == pair.outputs * pair.rank;
            if found != expected || !whole {
                return Err(QuantizeError::AdapterShape { adapter, module: module.clone(), expected, found });
            }
        }
    }
    Ok(())
}

/// One tensor of a checkpoint with the adapters merged, row-major: `W + scale · B · A` for each adapter in order, in
/// f32.
///
/// # Errors
/// When an adapter does not fit the checkpoint, the tensor cannot be read, or a merged weight is not finite.
pub fn merged_tensor(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    tensor: &TensorName,
) -> Result<Vec<f32>, QuantizeError> {
    check_adapters(&checkpoint.dimensions, adapters)?;
    merged(checkpoint, adapters, tensor, &(0..tensor.shape[0]))
}

/// Some rows of it, for adapters that were checked.
pub(crate) fn merged(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    tensor: &TensorName,
    of: &Range<usize>,
) -> Result<Vec<f32>, QuantizeError> {
    let mut weights = checkpoint.rows_f32(&tensor.hf, of)?;
    let module = tensor.hf.strip_suffix(".weight").unwrap_or(&tensor.hf);
    for adapter in adapters {
        if let Some(pair) = adapter.pairs.get(module) {
            let scale = adapter.scale();
            let b = &pair.b[of.start * pair.rank..of.end * pair.rank];
            let rows = weights.par_chunks_exact_mut(pair.inputs).zip(b.par_chunks_exact(pair.rank));
            rows.for_each_init(
                || vec![0.0f32; pair.inputs],
                |update, (weights, b)| {
                    update.fill(0.0);
                    for (b, a) in b.iter().zip(pair.a.chunks_exact(pair.inputs)) {
                        update.iter_mut().zip(a).for_each(|(update, a)| *update += b * a);
                    }
                    weights.iter_mut().zip(update.iter()).for_each(|(weight, update)| *weight += scale * update);
                },
            );
        }
    }
    check_finite(tensor, &weights, of.start)?;
    Ok(weights)
}

/// Looks at rows that begin with row `start`; a vector is one row.
fn check_finite(tensor: &TensorName, weights: &[f32], start: usize) -> Result<(), QuantizeError> {
    let Some(place) = weights.iter().position(|it| !it.is_finite()) else { return Ok(()) };
    let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
    let (tensor, found) = (tensor.gguf.clone(), weights[place]);
    Err(QuantizeError::NotFinite { tensor, found, row: start + place / columns, column: place % columns })
}

/// The largest magnitude, refused when a 16-bit IEEE float cannot hold it.
pub(crate) fn check_f16(tensor: &str, weights: &[f32]) -> Result<(), QuantizeError> {
    let largest = weights.iter().fold(0.0f32, |largest, it| largest.max(it.abs()));
    if largest > F16_MAX {
        return Err(QuantizeError::Overflow { tensor: tensor.into(), format: "F16", found: largest });
    }
    Ok(())
}

/// Writes a checkpoint with the adapters merged, in Hugging Face layout.
///
/// # Errors
/// When an adapter does not fit, a weight does not fit the stored type, or the folder cannot be written.
pub fn merge_to_checkpoint(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    stored: StoredType,
    out: &Path,
) -> Result<(), QuantizeError> {
    check_adapters(&checkpoint.dimensions, adapters)?;
    let special =
        |field, id: Option<u32>| id.ok_or_else(|| QuantizeError::SpecialToken { path: checkpoint.path.clone(), field });
    let eos = special("eos_token_id", checkpoint.eos.first().copied())?;
    let bos = special("bos_token_id", checkpoint.bos)?;
    let like = CheckpointFiles {
        config: checkpoint.config.to_string().into(),
        weights: Cow::Borrowed(&[]),
        tokenizer: checkpoint.tokenizer_json.clone().into(),
        chat_template: checkpoint.chat_template.clone().map(Cow::Owned),
    };
    Checkpoint::write_each(out, &like, &checkpoint.dimensions, (bos, eos), stored, &|tensor| {
        let values = merged(checkpoint, adapters, tensor, &(0..tensor.shape[0]))?;
        if stored == StoredType::F16 {
            check_f16(&tensor.hf, &values)?;
        }
        Ok(values)
    })
}
