//! What is found in files that open, and what a damaged one still tells.

use fsq_blocks::Format;
use fsq_gguf::{Flaw, Gguf, Metadata, Survey, TensorSpec, flaws};

use crate::{sample_metadata, sample_tensors, written};

fn found(bytes: &[u8]) -> Vec<String> {
    flaws(&Gguf::from_named_bytes("f.gguf", bytes).unwrap()).iter().map(Flaw::to_string).collect()
}

/// Tensors whose bytes are all zero.
fn zeros() -> Vec<(TensorSpec, Vec<u8>)> {
    sample_tensors().into_iter().map(|(spec, bytes)| (spec, vec![0; bytes.len()])).collect()
}

#[test]
fn a_sound_file_has_no_flaw() {
    assert_eq!(found(&written(&sample_metadata(), &zeros())), [""; 0]);
    assert_eq!(found(&written(&Metadata::new(), &[])), [""; 0]);
}

#[test]
fn every_format_shows_a_scale_that_is_no_number() {
    for &format in Format::ALL {
        let n = format.block_weights();
        let spec = TensorSpec { name: "t".into(), format, shape: vec![n, 3] };
        let mut bytes = vec![0; 3 * format.block_bytes()];
        assert_eq!(found(&written(&Metadata::new(), &[(spec.clone(), bytes.clone())])), [""; 0]);
        // All ones are no number as half and as single; levels of all ones are numbers.
        bytes[format.block_bytes()..2 * format.block_bytes()].fill(0xff);
        let found = found(&written(&Metadata::new(), &[(spec, bytes)]));
        let expected = if n == 1 { "tensor `t`: weight 1: expected a" } else { "tensor `t`: block 1: expected a" };
        assert!(found.len() == 1 && found[0].starts_with(expected), "{format:?}: {found:?}");
    }
}

#[test]
fn bytes_that_belong_to_no_tensor_are_told() {
    let whole = written(&sample_metadata(), &zeros());
    let n = whole.len();
    let longer = [&whole[..], &[0; 64]].concat();
    assert_eq!(found(&longer), [format!("f.gguf: 64 bytes at {n} belong to no tensor")]);
    let mut padded = whole;
    // The last tensor, of 16 bytes, is padded to 32.
    padded[n - 1] = 1;
    assert_eq!(found(&padded), [format!("f.gguf: the padding at byte {} is not zero", n - 16)]);
}

#[test]
fn names_without_a_visible_character_are_told() {
    let metadata: Metadata = [("", 1u32), ("a\u{1b}[2J", 2)].into_iter().collect();
    let expected = ["metadata key \"\"", "metadata key \"a\\u{1b}[2J\""];
    let found = found(&written(&metadata, &[]));
    assert!(found.iter().zip(expected).all(|(found, it)| found.starts_with(it)) && found.len() == 2, "{found:?}");
}

#[test]
fn a_damaged_file_still_tells_what_comes_before_the_fault() {
    let whole = written(&sample_metadata(), &sample_tensors());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let mut told = Vec::new();
    for length in (0..whole.len()).step_by(8) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let survey = Survey::of(&path).unwrap();
        assert_eq!(survey.version.is_some(), length >= 8);
        told.push(survey.metadata.len() + survey.tensors.len());
    }
    assert!(told.is_sorted() && told.first() == Some(&0));
    assert_eq!(told.last(), Some(&(sample_metadata().len() + sample_tensors().len())));
}
