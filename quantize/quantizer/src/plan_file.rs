//! A plan as a file that a person can read, change and give back; knows no weights.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use fsq_blocks::Format;
use serde::Deserialize;

use crate::{Allocation, QuantizeError, Sensitivities};

/// What stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Format by tensor.
    tensors: BTreeMap<String, String>,
}

/// A plan as text: the format of each matrix and, beside it, what is known of what it loses.
pub fn plan_text(allocations: &[Allocation], sensitivities: Option<&Sensitivities>) -> String {
    let mut text =
        String::from("# The format of each matrix. Change what you like and give this file back with --plan.\n");
    text += "# bits: of each weight. loss: the share of the outputs' mean square that is off, by how much it counts.\n";
    text += "[tensors]\n";
    for same in allocations.chunk_by(|left, right| left.tensor.gguf == right.tensor.gguf) {
        let Allocation { tensor, format, .. } = &same[0];
        if tensor.shape.len() < 2 || tensor.precise {
            continue;
        }
        let known = sensitivities.and_then(|it| it.tensors.iter().find(|it| it.tensor == tensor.gguf));
        let loss = known.and_then(|it| Some((it.weight, it.losses.iter().find(|loss| loss.format == *format)?.error)));
        let loss = loss.map_or_else(String::new, |(weight, error)| format!(", loss {:.3e}", weight * error));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:?} = {:?} # bits {:.2}{loss}", tensor.gguf, format.name(), format.bits_per_weight());
    }
    text
}

/// Reads a file of [`plan_text`], changed or not: overrides for a plan. Whether the tensors are there, and their rows
/// whole blocks, is for [`crate::Plan::allocate`] to say.
///
/// # Errors
/// When the file cannot be read, is not of this form, or names a format that there is not.
pub fn read_plan(path: &Path) -> Result<Vec<(String, Format)>, QuantizeError> {
    let fault = |found: String| QuantizeError::PlanFile { path: path.into(), found };
    let text = std::fs::read_to_string(path).map_err(|it| fault(it.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|it| fault(it.to_string().trim_end().to_owned()))?;
    let format = |(tensor, name): (String, String)| match Format::from_name(&name) {
        Some(format) => Ok((tensor, format)),
        None => {
            let known: Vec<_> = Format::ALL.iter().map(|it| it.name()).collect();
            Err(fault(format!("tensor `{tensor}`: expected one of {}, found `{name}`", known.join(", "))))
        }
    };
    file.tensors.into_iter().map(format).collect()
}
