//! Importance on disk, as llama.cpp's `llama-imatrix` keeps it; knows no checkpoint.
//!
//! Two forms are read, and the first of them is written.
//!
//! A GGUF file of `general.type` `imatrix` has for each tensor `NAME` the sums of squares `NAME.in_sum2` (F32,
//! `[columns]` or `[columns, experts]`, row length first) and `NAME.counts` (F32, one for each expert); further tensors
//! of it are passed over. Ours may have `NAME.in_products`, the mean products of columns (F32, `[columns, columns]`),
//! and `NAME.in_products_held_out`, the same over other tokens; `fsq.imatrix.same`, an array of `NAME=OTHER`, names
//! tensors that read the same as another; `fsq.imatrix.weights` names those whose weight was measured, and
//! `fsq.imatrix.weight_values` has the weights. llama.cpp passes over all of those.
//!
//! The older form is bare numbers, little end first: how many tensors, and for each the length of its name, the name,
//! how many calls it was summed over, how many numbers, and the numbers, which are means times calls; after the last
//! there may be the number of the last call, and the length and name of the data set.
//!
//! Source: `tools/imatrix/imatrix.cpp` and `tools/quantize/quantize.cpp` of llama.cpp.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use fsq_blocks::Format;
use fsq_gguf::{Array, Draft, FinishedDraft, Gguf, Metadata, TensorSpec, TensorView, Value};

use super::{Importance, InputSquares};
use crate::QuantizeError;
use crate::moments::Moments;

/// `general.type` of the GGUF form.
const KIND: &str = "imatrix";
const SUM_SUFFIX: &str = ".in_sum2";
const COUNT_SUFFIX: &str = ".counts";
const PRODUCTS_SUFFIX: &str = ".in_products";
const HELD_OUT_SUFFIX: &str = ".in_products_held_out";
/// Tensors whose weight was measured, and beside each its weight.
const WEIGHTS_KEY: &str = "fsq.imatrix.weights";
const WEIGHT_VALUES_KEY: &str = "fsq.imatrix.weight_values";
/// Tensors that read the same, so that their products are told once.
const SAME_KEY: &str = "fsq.imatrix.same";
/// Bytes of a tensor's name in the older form: as many as GGUF allows.
const NAME_BYTES_MAX: usize = 63;
/// Bytes of a file of the older form: numbers of a thousand tensors of the widest matrices in use fill a tenth.
const LEGACY_BYTES_MAX: u64 = 1 << 30;

/// A tensor to be written: its name, its shape with the row length first, and its numbers.
type Told<'a> = (String, Vec<usize>, &'a [f32]);

/// What is wrong with an importance file.
fn fault(path: &Path, field: impl Into<String>, expected: &str, found: impl Display) -> QuantizeError {
    QuantizeError::ImportanceFile {
        path: path.into(),
        field: field.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

impl Importance {
    /// Writes it in llama.cpp's GGUF form, as one chunk of all tokens.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path, datasets: &[String]) -> Result<FinishedDraft, QuantizeError> {
        let (same, mut tensors) = self.distinct_moments();
        for (name, InputSquares { sums, counts }) in &self.tensors {
            let n = counts.len();
            tensors.push((format!("{name}{SUM_SUFFIX}"), vec![sums.len() / n.max(1), n], sums.as_slice()));
            tensors.push((format!("{name}{COUNT_SUFFIX}"), vec![1, n], counts.as_slice()));
        }
        let mut metadata = Metadata::new();
        metadata.insert("general.type", KIND);
        metadata.insert("imatrix.datasets", datasets.to_vec());
        metadata.insert("imatrix.chunk_count", 1u32);
        metadata.insert("imatrix.chunk_size", self.n_tokens());
        if !self.weights.is_empty() {
            metadata.insert(WEIGHTS_KEY, self.weights.keys().cloned().collect::<Vec<_>>());
            metadata.insert(WEIGHT_VALUES_KEY, self.weights.values().copied().collect::<Vec<f64>>());
        }
        if !same.is_empty() {
            metadata.insert(SAME_KEY, same);
        }
        let spec =
            |(name, shape, _): &Told<'_>| TensorSpec { name: name.clone(), format: Format::F32, shape: shape.clone() };
        let mut draft = Draft::create(path, &metadata, &tensors.iter().map(spec).collect::<Vec<_>>())?;
        for (name, _, numbers) in &tensors {
            let bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
            draft.write(name, &bytes)?;
        }
        Ok(draft.finish()?)
    }

    /// Which tensors have the moments of another, and the moments of all others by the names they have in a file.
    fn distinct_moments(&self) -> (Vec<String>, Vec<Told<'_>>) {
        let (mut same, mut tensors) = (Vec::new(), Vec::new());
        for (all, suffix) in [(&self.moments, PRODUCTS_SUFFIX), (&self.held_out, HELD_OUT_SUFFIX)] {
            for (name, moments) in all {
                let shared = |it: &(&String, &Moments)| Arc::ptr_eq(it.1.products(), moments.products());
                let (first, _) = all.iter().find(shared).unwrap_or((name, moments));
                if first == name {
                    let columns = moments.columns();
                    tensors.push((format!("{name}{suffix}"), vec![columns; 2], moments.products().as_slice()));
                } else {
                    same.push(format!("{name}{suffix}={first}{suffix}"));
                }
            }
        }
        (same, tensors)
    }

    /// Reads a file of either form, ours or llama.cpp's.
    ///
    /// # Errors
    /// When the file is damaged or holds something else, naming the field, what was expected and what was found.
    pub fn open(path: &Path) -> Result<Self, QuantizeError> {
        let mut start = [0; 4];
        let read = File::open(path).and_then(|mut it| it.read_exact(&mut start));
        if read.is_ok() && start != *b"GGUF" {
            return read_legacy(path);
        }
        // A file that cannot be read, too, has its error from here.
        read_gguf(&Gguf::open(path)?, path)
    }
}

fn read_gguf(gguf: &Gguf, path: &Path) -> Result<Importance, QuantizeError> {
    match gguf.metadata().str("general.type") {
        Some(KIND) => {}
        found => {
            let found = found.map_or_else(|| "nothing".into(), |it| format!("`{it}`"));
            return Err(fault(path, "general.type", "`imatrix`", found));
        }
    }
    let mut importance = Importance::default();
    for view in gguf.views() {
        if let Some(name) = view.name.strip_suffix(COUNT_SUFFIX) {
            let sums = format!("{name}{SUM_SUFFIX}");
            gguf.tensor(&sums).ok_or_else(|| fault(path, sums, "a tensor beside its counts", "nothing"))?;
        }
        let Some(name) = view.name.strip_suffix(SUM_SUFFIX) else { continue };
        let field = format!("{name}{COUNT_SUFFIX}");
        let counts =
            gguf.tensor(&field).ok_or_else(|| fault(path, field.clone(), "a tensor beside the sums", "nothing"))?;
        let (sums, counts) = (numbers(path, &view)?, numbers(path, &counts)?);
        if counts.len() != view.rows() {
            let expected = format!("{}, one for each row of sums", view.rows());
            return Err(fault(path, field, &expected, format!("{} counts", counts.len())));
        }
        importance.tensors.insert(name.into(), InputSquares { sums, counts });
    }
    read_moments(gguf, path, &mut importance)?;
    read_weights(gguf, path, &mut importance)?;
    if importance.tensors.is_empty() {
        return Err(fault(path, format!("*{SUM_SUFFIX}"), "tensors of this name", "none"));
    }
    Ok(importance)
}

fn read_weights(gguf: &Gguf, path: &Path, importance: &mut Importance) -> Result<(), QuantizeError> {
    let metadata = gguf.metadata();
    let Some(names) = metadata.str_array(WEIGHTS_KEY) else { return Ok(()) };
    let values = match metadata.get(WEIGHT_VALUES_KEY) {
        Some(Value::Array(Array::F64(values))) if values.len() == names.len() => values,
        _ => return Err(fault(path, WEIGHT_VALUES_KEY, &format!("{} doubles", names.len()), "something else")),
    };
    if let Some(bad) = values.iter().find(|it| !it.is_finite() || **it < 0.0) {
        return Err(fault(path, WEIGHT_VALUES_KEY, "numbers from 0", bad));
    }
    importance.weights = names.iter().cloned().zip(values.iter().copied()).collect();
    Ok(())
}

fn read_moments(gguf: &Gguf, path: &Path, importance: &mut Importance) -> Result<(), QuantizeError> {
    for (suffix, into) in [(PRODUCTS_SUFFIX, &mut importance.moments), (HELD_OUT_SUFFIX, &mut importance.held_out)] {
        for view in gguf.views() {
            let Some(name) = view.name.strip_suffix(suffix) else { continue };
            if view.format != Format::F32 {
                return Err(fault(path, view.name, "F32", view.format.name()));
            }
            into.insert(name.into(), Moments::new(view.name, view.cols(), Arc::new(view.to_f32()))?);
        }
        for pair in gguf.metadata().str_array(SAME_KEY).unwrap_or_default() {
            let names =
                pair.split_once('=').and_then(|it| Some((it.0.strip_suffix(suffix)?, it.1.strip_suffix(suffix)?)));
            let Some((name, first)) = names else { continue };
            let moments = into.get(first).cloned();
            let moments =
                moments.ok_or_else(|| fault(path, SAME_KEY, &format!("`{first}{suffix}`"), "no such tensor"))?;
            into.insert(name.into(), moments);
        }
    }
    Ok(())
}

/// The numbers of a tensor, none of which is negative or infinite.
fn numbers(path: &Path, view: &TensorView<'_>) -> Result<Vec<f32>, QuantizeError> {
    if view.format != Format::F32 {
        return Err(fault(path, view.name, "F32", view.format.name()));
    }
    let numbers = view.to_f32();
    check(path, view.name, &numbers)?;
    Ok(numbers)
}

fn check(path: &Path, field: &str, numbers: &[f32]) -> Result<(), QuantizeError> {
    match numbers.iter().position(|it| !it.is_finite() || *it < 0.0) {
        None => Ok(()),
        Some(place) => Err(fault(path, field, "numbers from 0", format!("{} at place {place}", numbers[place]))),
    }
}

/// What is left of a file of the older form.
struct Rest<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Rest<'_> {
    fn take(&mut self, field: &str, n_bytes: usize) -> Result<&[u8], QuantizeError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(n_bytes) else {
            let found = format!("the end after {}", self.bytes.len());
            return Err(fault(self.path, field, &format!("{n_bytes} bytes"), found));
        };
        self.bytes = rest;
        Ok(taken)
    }

    /// A number that says how many there are of something, from 1 to `most`.
    fn count(&mut self, field: &str, most: usize) -> Result<usize, QuantizeError> {
        let found = i32::from_le_bytes(self.take(field, 4)?.try_into().unwrap_or_default());
        match usize::try_from(found) {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => Err(fault(self.path, field, &format!("a number from 1 to {most}"), found)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of calls")]
fn read_legacy(path: &Path) -> Result<Importance, QuantizeError> {
    let io = |source| QuantizeError::ImportanceRead { path: path.into(), source };
    let n_bytes = std::fs::metadata(path).map_err(io)?.len();
    if n_bytes > LEGACY_BYTES_MAX {
        return Err(fault(path, "length", &format!("at most {LEGACY_BYTES_MAX} bytes"), n_bytes));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let mut rest = Rest { path, bytes: &bytes };
    // A tensor takes no less than 17 bytes: its three numbers, a letter and one mean.
    let n = rest.count("number of tensors", (bytes.len() / 17).max(1))?;
    let mut importance = Importance::default();
    for index in 0..n {
        let field = |what: &str| format!("{what} of tensor {index}");
        let name_bytes = rest.count(&field("length of the name"), NAME_BYTES_MAX)?;
        let name = String::from_utf8(rest.take(&field("name"), name_bytes)?.to_vec())
            .map_err(|_| fault(path, field("name"), "UTF-8", "other bytes"))?;
        let n_calls = rest.count(&format!("calls of `{name}`"), i32::MAX as usize)?;
        let n_values = rest.count(&format!("number of values of `{name}`"), bytes.len() / 4)?;
        let values = rest.take(&format!("values of `{name}`"), 4 * n_values)?;
        let sums: Vec<f32> = values.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
        check(path, &format!("values of `{name}`"), &sums)?;
        if importance.tensors.insert(name.clone(), InputSquares { sums, counts: vec![n_calls as f32] }).is_some() {
            return Err(fault(path, field("name"), "a name of its own", format!("`{name}` again")));
        }
    }
    Ok(importance)
}
