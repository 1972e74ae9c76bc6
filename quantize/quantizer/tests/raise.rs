//! Which tensors get more bits: those that lose most for their bytes, within what may be added.
#![allow(clippy::unwrap_used, reason = "a test that cannot write its files has failed")]

use std::path::Path;

use fsq_blocks::Format;
use fsq_gguf::{Draft, Gguf, Metadata, TensorSpec};
use fsq_quantizer::raise;

const COLUMNS: usize = 256;
const ROWS: usize = 8;

/// Two matrices of the same weights, `rough` and `fine`, each in its format.
fn write(path: &Path, formats: [Format; 2]) -> Gguf {
    let names = ["rough.weight", "fine.weight"];
    let spec = |(name, format): (&str, Format)| TensorSpec { name: name.into(), format, shape: vec![COLUMNS, ROWS] };
    let specs: Vec<TensorSpec> = names.into_iter().zip(formats).map(spec).collect();
    let weights: Vec<f32> = (0..COLUMNS * ROWS).map(|it| ((it * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5).collect();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama");
    let mut draft = Draft::create(path, &metadata, &specs).unwrap();
    for spec in &specs {
        let mut bytes = vec![0; weights.len() / spec.format.block_weights() * spec.format.block_bytes()];
        spec.format.encode(&weights, None, &mut bytes);
        draft.write(&spec.name, &bytes).unwrap();
    }
    Gguf::open(&draft.finish().unwrap().publish().unwrap()).unwrap()
}

#[test]
fn bits_go_where_they_help_most_and_cost_no_more_than_given() {
    let folder = tempfile::tempdir().unwrap();
    let reference = write(&folder.path().join("reference.gguf"), [Format::F16; 2]);
    let candidate = write(&folder.path().join("candidate.gguf"), [Format::Q2_K, Format::Q6_K]);
    let alike = |_: &str| None;
    let bytes = |format: Format| format.row_bytes(COLUMNS).unwrap() * ROWS;
    let step = bytes(Format::Q3_K) - bytes(Format::Q2_K);
    assert_eq!(raise(&reference, &candidate, &alike, step - 1), []);
    assert_eq!(raise(&reference, &candidate, &alike, step), [("rough.weight".to_owned(), Format::Q3_K)]);
    let both = raise(&reference, &candidate, &alike, usize::MAX);
    assert_eq!(both.iter().map(|it| it.1).collect::<Vec<_>>(), [Format::F16; 2]);
    // Inputs that are zero make an error harmless, however large it is.
    let zero = |name: &str| Some(vec![if name == "rough.weight" { 1e-20 } else { 1.0 }; COLUMNS]);
    let step = bytes(Format::Q8_0) - bytes(Format::Q6_K);
    assert_eq!(raise(&reference, &candidate, &zero, step).len(), 1, "relative to its own outputs, it still counts");
    assert_eq!(raise(&reference, &reference, &alike, usize::MAX), [], "nothing is above 16 bits");
}
