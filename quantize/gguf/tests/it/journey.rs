//! What is written comes back: values, order, bytes, digests; drafts leave nothing behind.

use fsq_blocks::Format;
use fsq_gguf::{Array, Draft, Gguf, Metadata, TensorSpec, Value, rewrite_metadata};
use proptest::prelude::*;

use crate::{sample_metadata, sample_tensors, written};

#[test]
fn a_file_comes_back_as_it_was_written() {
    let (metadata, tensors) = (sample_metadata(), sample_tensors());
    let gguf = Gguf::from_bytes(written(&metadata, &tensors)).unwrap();
    assert_eq!(gguf.metadata(), &metadata);
    assert_eq!(gguf.tensors().len(), tensors.len());
    for (info, (spec, bytes)) in gguf.tensors().iter().zip(&tensors) {
        assert_eq!((&info.name, info.format, &info.shape), (&spec.name, spec.format, &spec.shape));
        let view = gguf.tensor(&spec.name).unwrap();
        assert_eq!(view.bytes, bytes);
        assert_eq!(view.bytes.as_ptr().align_offset(32), 0);
    }
    assert!(gguf.tensor("no such").is_none());
}

#[test]
fn the_bytes_of_a_small_file_are_those_of_the_specification() {
    let metadata: Metadata = [("k", Value::from("v"))].into_iter().collect();
    let spec = TensorSpec { name: "t".into(), format: Format::F32, shape: vec![2] };
    let bytes = written(&metadata, &[(spec, vec![1, 2, 3, 4, 5, 6, 7, 8])]);
    let mut expect = b"GGUF\x03\0\0\0".to_vec();
    expect.extend(b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    expect.extend(b"\x01\0\0\0\0\0\0\0k\x08\0\0\0\x01\0\0\0\0\0\0\0v");
    expect.extend(b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    expect.resize(96, 0);
    expect.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    expect.resize(128, 0);
    assert_eq!(bytes, expect);
}

#[test]
fn version_2_is_read_and_other_alignments_are_kept() {
    let mut metadata = sample_metadata();
    metadata.insert("general.alignment", 64u32);
    let mut bytes = written(&metadata, &sample_tensors());
    bytes[4] = 2;
    let gguf = Gguf::from_bytes(&bytes).unwrap();
    assert_eq!(gguf.alignment(), 64);
    assert!(gguf.tensors().iter().all(|it| it.offset.is_multiple_of(64)));
    assert_eq!(gguf.parts()[0].data().len() % 64, 0);
}

#[test]
fn a_file_without_tensors_needs_no_padding() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0; 16]);
    let gguf = Gguf::from_bytes(&bytes).unwrap();
    assert!(gguf.tensors().is_empty() && gguf.metadata().is_empty() && gguf.parts()[0].data().is_empty());
}

#[test]
fn fields_are_read_by_type_and_refused_by_name() {
    let metadata = sample_metadata();
    assert_eq!(metadata.str("general.architecture"), Some("llama"));
    assert_eq!((metadata.u32("a.u8"), metadata.u32("a.u16"), metadata.u32("a.i32")), (Some(200), Some(60_000), None));
    assert_eq!((metadata.u64("a.u64"), metadata.u32("a.u64")), (Some(u64::MAX), None));
    assert_eq!((metadata.f32("a.f32"), metadata.bool("a.bool")), (Some(1.5), Some(true)));
    assert_eq!(metadata.str_array("a.tokens").unwrap().len(), 3);
    assert_eq!(metadata.u32_array("a.types"), Some(vec![3, 1, 1]));
    let message = |it: Result<u32, fsq_gguf::FieldError>| it.unwrap_err().to_string();
    assert_eq!(
        message(metadata.need("a.none")),
        "metadata `a.none`: expected a whole number of 32 bits, found nothing"
    );
    assert_eq!(
        message(metadata.need("a.tokens")),
        "metadata `a.tokens`: expected a whole number of 32 bits, found an array of 3"
    );
}

#[test]
fn metadata_keeps_its_order() {
    let mut metadata: Metadata = [("a", 1u32), ("b", 2), ("c", 3)].into_iter().collect();
    assert_eq!(metadata.insert("b", 9u32), Some(Value::U32(2)));
    assert_eq!(metadata.remove("a"), Some(Value::U32(1)));
    assert_eq!(metadata.remove("a"), None);
    metadata.insert("d", 4u32);
    let keys: Vec<_> = metadata.iter().map(|it| it.0).collect();
    assert_eq!(keys, ["b", "c", "d"]);
    assert_eq!((metadata.u32("b"), metadata.u32("c"), metadata.u32("d")), (Some(9), Some(3), Some(4)));
}

#[test]
fn rewritten_metadata_leaves_the_tensors_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, written(&sample_metadata(), &sample_tensors())).unwrap();
    let before = Gguf::open(&path).unwrap();
    let mut metadata = before.metadata().clone();
    metadata.insert("fsq.gate.verdict", "pass");
    // Over the very file that is open.
    rewrite_metadata(&before, &metadata, &path).unwrap().publish().unwrap();
    let after = Gguf::open(&path).unwrap();
    assert_eq!(after.metadata().str("fsq.gate.verdict"), Some("pass"));
    assert_eq!((after.data_sha256(), after.parts()[0].data()), (before.data_sha256(), before.parts()[0].data()));
    assert_eq!(after.tensors(), before.tensors());
    assert_ne!(after.file_sha256(), before.file_sha256());
    metadata.insert("general.alignment", 64u32);
    let error = rewrite_metadata(&after, &metadata, &path).unwrap_err().to_string();
    assert!(error.contains("`general.alignment`: expected the 32 of"), "{error}");
}

#[test]
fn a_draft_is_not_there_until_it_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let n_files = || std::fs::read_dir(folder.path()).unwrap().count();
    let (spec, bytes) = sample_tensors().swap_remove(1);
    let begin = || Draft::create(&path, &sample_metadata(), std::slice::from_ref(&spec)).unwrap();

    drop(begin());
    assert_eq!(n_files(), 0);

    let mut draft = begin();
    draft.write(&spec.name, &bytes[..34]).unwrap();
    draft.write(&spec.name, &bytes[34..]).unwrap();
    let finished = draft.finish().unwrap();
    assert!(!path.exists() && finished.final_path() == path);
    assert_eq!(Gguf::open(finished.path()).unwrap().tensor(&spec.name).unwrap().bytes, bytes);
    drop(finished);
    assert_eq!(n_files(), 0);

    let mut draft = begin();
    draft.write(&spec.name, &bytes).unwrap();
    assert_eq!(draft.finish().unwrap().publish().unwrap(), path);
    assert_eq!(n_files(), 1);
}

#[test]
fn a_draft_refuses_bytes_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let tensors = sample_tensors();
    let specs: Vec<_> = tensors.iter().map(|it| it.0.clone()).collect();
    let mut draft = Draft::create(&path, &sample_metadata(), &specs).unwrap();
    let message = |it: Result<(), fsq_gguf::GgufError>| it.unwrap_err().to_string();
    let turn = message(draft.write("half.weight", &[]));
    assert!(turn.ends_with("expected the bytes of tensor `norm.weight`, found those of `half.weight`"), "{turn}");
    let many = message(draft.write("norm.weight", &[0; 13]));
    assert!(many.ends_with("tensor `norm.weight`: expected 12 bytes, found at least 13"), "{many}");
    draft.write("norm.weight", &[0; 12]).unwrap();
    let unfinished = draft.finish().unwrap_err().to_string();
    assert!(unfinished.ends_with("the draft ends before tensor `matrix.weight` is whole"), "{unfinished}");
}

#[test]
fn a_draft_refuses_what_could_not_be_read() {
    let path = std::env::temp_dir().join("never.gguf");
    let refused = |metadata: &Metadata, specs: &[TensorSpec]| match Draft::create(&path, metadata, specs) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let spec = |name: &str, format, shape: &[usize]| TensorSpec { name: name.into(), format, shape: shape.to_vec() };
    let none = Metadata::new();
    assert!(refused(&none, &[spec(&"n".repeat(64), Format::F32, &[1])]).contains("found 64"));
    assert!(refused(&none, &[spec("t", Format::F32, &[1]), spec("t", Format::F32, &[1])]).contains("twice"));
    assert!(refused(&none, &[spec("t", Format::F32, &[])]).contains("found []"));
    assert!(refused(&none, &[spec("t", Format::Q4_K, &[100])]).contains("multiple of 256"));
    assert!(refused(&[("k".repeat(70_000), 1u32)].into_iter().collect(), &[]).contains("at most 65535"));
    let deep = (0..4).fold(Array::U8(vec![]), |it, _| Array::Array(vec![it]));
    assert!(refused(&[("k", Value::Array(deep))].into_iter().collect(), &[]).contains("arrays in arrays"));
    assert!(refused(&[("general.alignment", 3u32)].into_iter().collect(), &[]).contains("power of two"));
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300f64..1e300).prop_map(Value::F64),
        any_array().prop_map(Value::Array),
    ]
}

fn any_array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Array::U8),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Array::I32),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Array::U64),
        prop::collection::vec(-1.0f64..1.0, 0..9).prop_map(Array::F64),
        prop::collection::vec(".{0,9}", 0..9).prop_map(Array::String),
    ];
    flat.prop_recursive(2, 16, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Array::Array))
}

fn any_tensor() -> impl Strategy<Value = (TensorSpec, Vec<u8>)> {
    let shape = (1usize..4, prop::collection::vec(1usize..4, 0..4));
    (prop::sample::select(Format::ALL), shape, "[a-z.]{1,8}").prop_flat_map(|(format, (n_blocks, rest), name)| {
        let mut shape = vec![n_blocks * format.block_weights()];
        shape.extend(rest.iter().take(3));
        let n_bytes = format.row_bytes(shape[0]).unwrap_or(0) * shape[1..].iter().product::<usize>();
        let spec = TensorSpec { name, format, shape };
        prop::collection::vec(any::<u8>(), n_bytes).prop_map(move |bytes| (spec.clone(), bytes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_comes_back(
        entries in prop::collection::vec(("[a-z.]{1,12}", any_value()), 0..8),
        tensors in prop::collection::vec(any_tensor(), 0..4),
        alignment in prop::option::of(prop::sample::select(vec![1u32, 8, 32, 4096])),
    ) {
        let mut metadata: Metadata = entries.into_iter().collect();
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", alignment);
        }
        let mut tensors = tensors;
        for (index, (spec, _)) in tensors.iter_mut().enumerate() {
            spec.name.push_str(&index.to_string());
        }
        let gguf = Gguf::from_bytes(written(&metadata, &tensors)).unwrap();
        prop_assert_eq!(gguf.metadata(), &metadata);
        for (view, (spec, bytes)) in gguf.views().zip(&tensors) {
            prop_assert_eq!((view.name, view.format, view.shape), (spec.name.as_str(), spec.format, &spec.shape[..]));
            prop_assert_eq!(view.bytes, bytes);
        }
    }

    #[test]
    fn bytes_of_any_kind_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Gguf::from_bytes(&bytes);
        bytes.splice(0..0, *b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        let _ = Gguf::from_bytes(&bytes);
    }
}
