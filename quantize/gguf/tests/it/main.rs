//! One binary: files that must not be read, files that must come back as they were written, and files in parts.
#![allow(clippy::unwrap_used, reason = "a test that cannot write its file has failed")]

mod flaws;
mod hostile;
mod journey;
mod split;

use fsq_blocks::Format;
use fsq_gguf::{Array, Draft, Metadata, TensorSpec, Value};

/// A file with every type of value and three tensors.
pub fn sample_metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama");
    metadata.insert("a.u8", Value::U8(200));
    metadata.insert("a.i8", Value::I8(-3));
    metadata.insert("a.u16", Value::U16(60_000));
    metadata.insert("a.i16", Value::I16(-300));
    metadata.insert("a.u32", 7u32);
    metadata.insert("a.i32", -7i32);
    metadata.insert("a.f32", 1.5f32);
    metadata.insert("a.bool", true);
    metadata.insert("a.u64", u64::MAX);
    metadata.insert("a.i64", Value::I64(i64::MIN));
    metadata.insert("a.f64", 0.1f64);
    metadata.insert("a.tokens", vec!["<|bos|>".to_string(), "Ġ".to_string(), String::new()]);
    metadata.insert("a.types", vec![3i32, 1, 1]);
    metadata.insert("a.nested", Value::Array(Array::Array(vec![Array::U8(vec![1, 2]), Array::Bool(vec![])])));
    metadata
}

/// Their specs and bytes.
pub fn sample_tensors() -> Vec<(TensorSpec, Vec<u8>)> {
    let tensor = |name: &str, format: Format, shape: &[usize]| {
        let n_bytes = format.row_bytes(shape[0]).unwrap() * shape[1..].iter().product::<usize>();
        let bytes = (0..n_bytes).map(|it| (it * 7 + name.len()) as u8).collect();
        (TensorSpec { name: name.into(), format, shape: shape.to_vec() }, bytes)
    };
    vec![
        tensor("norm.weight", Format::F32, &[3]),
        tensor("matrix.weight", Format::Q8_0, &[32, 2]),
        tensor("half.weight", Format::F16, &[2, 2, 2]),
    ]
}

/// Writes a file and gives its bytes.
pub fn written(metadata: &Metadata, tensors: &[(TensorSpec, Vec<u8>)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.gguf");
    let specs: Vec<_> = tensors.iter().map(|it| it.0.clone()).collect();
    let mut draft = Draft::create(&path, metadata, &specs).unwrap();
    for (spec, bytes) in tensors {
        draft.write(&spec.name, bytes).unwrap();
    }
    std::fs::read(draft.finish().unwrap().publish().unwrap()).unwrap()
}
