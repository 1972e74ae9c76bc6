//! Split files: opened from any part, refused where the parts are not one another's.

use std::path::{Path, PathBuf};

use fsq_gguf::{Draft, Gguf, Metadata, TensorSpec, Value, rewrite_metadata};

use crate::{sample_metadata, sample_tensors};

/// The sample's tensors in three files, one each; the metadata is in the first.
fn written(folder: &Path) -> Vec<PathBuf> {
    let tensors = sample_tensors();
    let parts = tensors.iter().enumerate().map(|(index, tensor)| {
        let mut metadata = if index == 0 { sample_metadata() } else { Metadata::new() };
        metadata.insert("split.no", Value::U16(index as u16));
        metadata.insert("split.count", Value::U16(3));
        metadata.insert("split.tensors.count", 3i32);
        let path = folder.join(format!("a-0000{}-of-00003.gguf", index + 1));
        part(&path, &metadata, std::slice::from_ref(tensor));
        path
    });
    parts.collect()
}

fn part(path: &Path, metadata: &Metadata, tensors: &[(TensorSpec, Vec<u8>)]) {
    let specs: Vec<_> = tensors.iter().map(|it| it.0.clone()).collect();
    let mut draft = Draft::create(path, metadata, &specs).unwrap();
    tensors.iter().for_each(|(spec, bytes)| draft.write(&spec.name, bytes).unwrap());
    draft.finish().unwrap().publish().unwrap();
}

#[test]
fn any_part_opens_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let paths = written(folder.path());
    let mut digests = Vec::new();
    for path in &paths {
        let gguf = Gguf::open(path).unwrap();
        let found: Vec<_> = gguf.parts().iter().map(|it| it.path().to_path_buf()).collect();
        assert_eq!(found, paths);
        assert_eq!(gguf.path(), paths[0]);
        assert_eq!(gguf.metadata().str("general.architecture"), Some("llama"));
        for (index, (spec, bytes)) in sample_tensors().into_iter().enumerate() {
            assert_eq!(gguf.tensor(&spec.name).unwrap().bytes, bytes);
            assert_eq!(gguf.tensors()[index].part, index);
        }
        let n_bytes: usize = paths.iter().map(|it| std::fs::read(it).unwrap().len()).sum();
        assert_eq!(gguf.n_bytes(), n_bytes);
        digests.push((gguf.file_sha256(), gguf.data_sha256()));
    }
    assert!(digests.iter().all(|it| *it == digests[0]));
}

#[test]
fn one_of_one_and_a_merged_file_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any name.gguf");
    let mut metadata = sample_metadata();
    metadata.insert("split.no", Value::U16(0));
    // The last is stale where tensors were dropped since.
    metadata.insert("split.tensors.count", 4i32);
    for count in [0, 1] {
        metadata.insert("split.count", Value::U16(count));
        part(&path, &metadata, &sample_tensors());
        assert_eq!(Gguf::open(&path).unwrap().parts().len(), 1);
        assert!(Gguf::from_bytes(std::fs::read(&path).unwrap()).is_ok());
    }
}

#[test]
fn what_needs_one_file_refuses_several() {
    let folder = tempfile::tempdir().unwrap();
    let paths = written(folder.path());
    let gguf = Gguf::open(&paths[0]).unwrap();
    let error = rewrite_metadata(&gguf, gguf.metadata(), &folder.path().join("b.gguf")).unwrap_err().to_string();
    assert!(error.ends_with("expected one file, found one of 3 parts: join them first"), "{error}");
    let error = Gguf::from_bytes(std::fs::read(&paths[1]).unwrap()).err().unwrap().to_string();
    assert!(error.contains("bytes in memory have no other parts, found part 2 of 3"), "{error}");
}
