//! Importance as files: what other programs wrote, what comes back of ours, and how damaged ones are told.
#![allow(clippy::unwrap_used, reason = "a test that cannot write its files has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fsq_gguf::{Gguf, Metadata, TensorSpec};
use fsq_quantizer::{Importance, InputSquares, Moments};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/importance").join(name)
}

/// What the fixtures hold: means by tensor and matrix.
fn expected() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap()
}

fn means(squares: &InputSquares) -> Vec<f32> {
    let columns = squares.sums.len() / squares.counts.len();
    let mean = |(index, sum): (usize, &f32)| sum / squares.counts[index / columns].max(1.0);
    squares.sums.iter().enumerate().map(mean).collect()
}

fn assert_near(found: &[f32], expected: &serde_json::Value) {
    let expected: Vec<Vec<f32>> = serde_json::from_value(expected.clone()).unwrap();
    let expected = expected.concat();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * expected, "{found} {expected}");
    }
}

#[test]
fn a_file_of_the_gguf_package_is_read() {
    let importance = Importance::open(&fixture("imatrix.gguf")).unwrap();
    let expected = expected();
    assert_eq!(importance.tensors.len(), 2);
    for (name, squares) in &importance.tensors {
        assert_near(&means(squares), &expected["means"][name]);
        assert_eq!(serde_json::json!(squares.counts), expected["counts"][name], "{name}");
    }
    assert_eq!(importance.n_tokens(), 96);
    // Experts have no one row of means.
    assert!(importance.means("blk.0.attn_q.weight").is_some());
    assert!(importance.means("blk.0.ffn_up_exps.weight").is_none());
}

#[test]
fn the_older_form_is_read() {
    let importance = Importance::open(&fixture("imatrix.dat")).unwrap();
    assert_eq!(importance.tensors.len(), 1);
    let name = "blk.0.attn_q.weight";
    assert_near(&means(&importance.tensors[name]), &expected()["means"][name]);
}

fn written(importance: &Importance, folder: &Path) -> PathBuf {
    let path = folder.join("imatrix.gguf");
    importance.write(&path, &["data.jsonl".into()]).unwrap().publish().unwrap()
}

#[test]
fn what_is_written_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = Importance::open(&fixture("imatrix.gguf")).unwrap();
    assert_eq!(Importance::open(&written(&theirs, folder.path())).unwrap(), theirs);

    let moments = |scale: f32| {
        let products = [[4.0, 1.0, 0.5], [1.0, 2.0, 0.25], [0.5, 0.25, 1.0]].concat();
        Moments::new("m", 3, Arc::new(products.iter().map(|it| scale * it).collect())).unwrap()
    };
    let squares = InputSquares { sums: vec![4.0, 2.0, 1.0], counts: vec![1.0] };
    let names = ["blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight"].map(str::to_owned);
    let shared = moments(1.0);
    let importance = Importance {
        tensors: names.iter().map(|it| (it.clone(), squares.clone())).collect(),
        moments: names.iter().map(|it| (it.clone(), shared.clone())).collect(),
        held_out: [(names[1].clone(), moments(2.0))].into(),
        weights: [(names[2].clone(), 0.25)].into(),
    };
    let path = written(&importance, folder.path());
    let again = Importance::open(&path).unwrap();
    assert_eq!(again, importance);
    assert_eq!(again.sha256(), importance.sha256());
    // What several tensors read is there once, and shared again.
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.tensors().iter().filter(|it| it.name.contains("products")).count(), 2);
    assert!(Arc::ptr_eq(again.moments[&names[0]].products(), again.moments[&names[2]].products()));
}

#[test]
fn files_have_what_llama_quantize_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let squares = InputSquares { sums: vec![4.0, 2.0, 1.0, 8.0], counts: vec![16.0, 8.0] };
    let importance = Importance { tensors: [("t".into(), squares)].into(), ..Importance::default() };
    let gguf = Gguf::open(&written(&importance, folder.path())).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.str("general.type"), Some("imatrix"));
    assert_eq!(metadata.str_array("imatrix.datasets"), Some(&["data.jsonl".to_owned()][..]));
    assert_eq!((metadata.u32("imatrix.chunk_count"), metadata.u32("imatrix.chunk_size")), (Some(1), Some(16)));
    let (sums, counts) = (gguf.tensor("t.in_sum2").unwrap(), gguf.tensor("t.counts").unwrap());
    assert_eq!((sums.shape, counts.shape), (&[2, 2][..], &[1, 2][..]));
    assert_eq!((sums.to_f32(), counts.to_f32()), (vec![4.0, 2.0, 1.0, 8.0], vec![16.0, 8.0]));
}

fn fault(path: &Path) -> String {
    let error = Importance::open(path).unwrap_err().to_string();
    error.strip_prefix(&path.display().to_string()).unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// A file of F32 tensors `[columns, rows]`.
fn gguf_file(folder: &Path, kind: &str, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> PathBuf {
    let metadata: Metadata = [("general.type", kind)].into_iter().collect();
    let spec = |it: &(&str, Vec<usize>, Vec<f32>)| TensorSpec {
        name: it.0.into(),
        format: fsq_blocks::Format::F32,
        shape: it.1.clone(),
    };
    let path = folder.join("bad.gguf");
    let specs: Vec<_> = tensors.iter().map(spec).collect();
    let mut draft = fsq_gguf::Draft::create(&path, &metadata, &specs).unwrap();
    for (name, _, numbers) in tensors {
        draft.write(name, &numbers.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    }
    draft.finish().unwrap().publish().unwrap()
}

#[test]
fn damaged_gguf_files_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let of = |kind: &str, tensors: &[(&str, Vec<usize>, Vec<f32>)]| fault(&gguf_file(folder.path(), kind, tensors));
    let sums = ("a.in_sum2", vec![2, 1], vec![1.0, 2.0]);
    let count = ("a.counts", vec![1, 1], vec![3.0]);
    assert_eq!(of("model", &[sums.clone(), count.clone()]), ": `general.type`: expected `imatrix`, found `model`");
    assert_eq!(of("imatrix", &[]), ": `*.in_sum2`: expected tensors of this name, found none");
    assert_eq!(
        of("imatrix", std::slice::from_ref(&sums)),
        ": `a.counts`: expected a tensor beside the sums, found nothing"
    );
    assert_eq!(
        of("imatrix", std::slice::from_ref(&count)),
        ": `a.in_sum2`: expected a tensor beside its counts, found nothing"
    );
    let two = ("a.counts", vec![1, 2], vec![3.0, 3.0]);
    assert_eq!(
        of("imatrix", &[sums.clone(), two]),
        ": `a.counts`: expected 1, one for each row of sums, found 2 counts"
    );
    let negative = ("a.in_sum2", vec![2, 1], vec![1.0, -2.0]);
    assert_eq!(
        of("imatrix", &[negative, count.clone()]),
        ": `a.in_sum2`: expected numbers from 0, found -2 at place 1"
    );
    let products = ("a.in_products", vec![2, 2], vec![1.0, 0.5, 0.25, 1.0]);
    let error = Importance::open(&gguf_file(folder.path(), "imatrix", &[sums, count, products])).unwrap_err();
    assert!(error.to_string().starts_with("moments of `a.in_products`: expected products that are finite"), "{error}");
}

#[test]
fn damaged_files_of_the_older_form_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("imatrix.dat")).unwrap();
    let of = |bytes: &[u8]| {
        let path = folder.path().join("bad.dat");
        std::fs::write(&path, bytes).unwrap();
        fault(&path)
    };
    let with = |place: usize, number: i32| {
        let mut bytes = whole.clone();
        bytes[place..place + 4].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    assert_eq!(of(&with(0, -1)), ": `number of tensors`: expected a number from 1 to 5, found -1");
    let name = "length of the name of tensor 0";
    assert_eq!(of(&with(4, 1 << 30)), format!(": `{name}`: expected a number from 1 to 63, found 1073741824"));
    assert_eq!(of(&with(27, 0)), ": `calls of `blk.0.attn_q.weight``: expected a number from 1 to 2147483647, found 0");
    let values = "values of `blk.0.attn_q.weight`";
    let found = of(&with(31, 15));
    assert_eq!(found, format!(": `{values}`: expected 60 bytes, found the end after 52"));
    let nan = with(35, f32::NAN.to_bits() as i32);
    assert_eq!(of(&nan), format!(": `{values}`: expected numbers from 0, found NaN at place 0"));
    // Wherever a file ends too early there is an error and no panic; what comes after the tensors may be missing.
    for end in 4..35 + 4 * 8 {
        assert!(
            Importance::open(&{
                let path = folder.path().join("short.dat");
                std::fs::write(&path, &whole[..end]).unwrap();
                path
            })
            .is_err()
        );
    }
    std::fs::write(folder.path().join("end.dat"), &whole[..35 + 4 * 8]).unwrap();
    assert!(Importance::open(&folder.path().join("end.dat")).is_ok());
    assert!(Importance::open(&folder.path().join("none")).is_err());
}
