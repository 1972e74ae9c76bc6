//! A PEFT adapter as a GGUF file of its own, in the layout of llama.cpp's `convert_lora_to_gguf.py`; merges nothing.

use std::path::Path;

use fsq_blocks::Format;
use fsq_checkpoint::architecture::permuted_heads;
use fsq_checkpoint::{Adapter, Dimensions, architecture, modules};
use fsq_gguf::{Draft, FinishedDraft, Metadata, TensorSpec};

use crate::merge::check_adapters;
use crate::{Provenance, QuantizeError};

/// Writes an adapter of a policy of these dimensions beside `final_path`: matrices in f32, `NAME.weight.lora_a`
/// `[rank, in]` and `NAME.weight.lora_b` `[out, rank]`, rows of queries and keys in the order of the base's file. Where
/// it came from, its base included, is in the file if it is given.
///
/// # Errors
/// When the adapter does not fit the policy, or the file cannot be written. Nothing is left behind then.
pub fn write_adapter(
    adapter: &Adapter,
    dimensions: &Dimensions,
    name: &str,
    provenance: Option<&Provenance>,
    final_path: &Path,
) -> Result<FinishedDraft, QuantizeError> {
    check_adapters(dimensions, std::slice::from_ref(adapter))?;
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", dimensions.architecture.description().gguf_name);
    metadata.insert("general.type", "adapter");
    metadata.insert("general.name", name);
    metadata.insert("adapter.type", "lora");
    provenance.inspect(|it| it.write(&mut metadata));
    // Readers divide by the rank, whatever the adapter says.
    #[expect(clippy::cast_precision_loss, reason = "a rank has four digits")]
    let alpha = if adapter.rslora { adapter.scale() * adapter.rank as f32 } else { adapter.alpha };
    metadata.insert("adapter.lora.alpha", alpha);
    let mut tensors: Vec<(TensorSpec, Vec<f32>)> = Vec::new();
    for module in (0..dimensions.n_layers).flat_map(|layer| modules(dimensions, layer)) {
        let Some(pair) = adapter.pairs.get(&module.hf) else { continue };
        let mut b = Vec::with_capacity(pair.b.len());
        for (linear, rows) in module.rows(dimensions) {
            let rows = &pair.b[rows.start * pair.rank..rows.end * pair.rank];
            match permuted_heads(dimensions, linear) {
                Some(heads) => b.extend(architecture::permute_rotary_rows(rows, heads, pair.rank)),
                None => b.extend_from_slice(rows),
            }
        }
        let spec = |side: &str, [rows, columns]: [usize; 2]| TensorSpec {
            name: format!("{}.weight.lora_{side}", module.gguf),
            format: Format::F32,
            shape: vec![columns, rows],
        };
        tensors.push((spec("a", [pair.rank, pair.inputs]), pair.a.clone()));
        tensors.push((spec("b", [pair.outputs, pair.rank]), b));
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|it| it.0.clone()).collect();
    let mut draft = Draft::create(final_path, &metadata, &specs)?;
    for (spec, values) in tensors {
        draft.write(&spec.name, &values.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(draft.finish()?)
}
