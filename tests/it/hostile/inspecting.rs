//! What `fsq inspect` shows of files in parts, of damaged ones and of sound ones.

use super::places::parts;
use super::raw::Raw;
use crate::program::{BAD_INPUT, fsq, json, text};
use crate::tree::root;

#[test]
fn all_parts_are_shown_whichever_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = parts(folder.path(), 2, |_| ());
    let document = json(&["inspect", "--strict", "--json", text(&path)]);
    let shown = document["parts"].as_array().unwrap();
    let names: Vec<&str> = shown.iter().map(|it| it["file"].as_str().unwrap().rsplit('/').next().unwrap()).collect();
    assert_eq!(names, [1, 2, 3].map(|it| format!("policy-0000{it}-of-00003.gguf")));
    assert_eq!(shown.iter().map(|it| it["n_tensors"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 4, 3]);
    let n_bytes: u64 = shown.iter().map(|it| it["n_bytes"].as_u64().unwrap()).sum();
    assert_eq!(document["n_bytes"], n_bytes);
    assert_eq!(document["tensors"][10]["part"], 3);
    assert_eq!(document["metadata"]["general.architecture"], "llama");
    let plain = String::from_utf8(fsq(&["inspect", text(&path)]).stdout).unwrap();
    assert_eq!(plain.lines().filter(|it| it.starts_with("  part ")).count(), 3, "{plain}");
    let whole = folder.path().join("whole.gguf");
    std::fs::write(&whole, Raw::policy().bytes()).unwrap();
    assert!(json(&["inspect", "--json", text(&whole)]).get("parts").is_none());
}

#[test]
fn a_damaged_file_is_shown_up_to_its_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = Raw::policy().bytes();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let output = fsq(&["inspect", "--json", text(&path)]);
    assert_eq!(output.status.code(), BAD_INPUT);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["metadata"]["llama.embedding_length"], 32);
    assert_eq!(document["tensors"].as_array().unwrap().len(), 11);
    assert!(document["fault"].as_str().unwrap().contains("expected its end within"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("expected its end within") && errors.contains("hint: the file is not whole"), "{errors}");
    let shown = String::from_utf8(fsq(&["inspect", text(&path)]).stdout).unwrap();
    assert!(shown.contains("  damaged: ") && shown.contains("blk.0.ffn_up.weight"), "{shown}");
}

#[test]
fn every_fault_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.gguf");
    let raw = Raw::policy()
        .without("llama.rope.freq_base")
        .without_tensor("blk.0.attn_k.weight")
        .without("tokenizer.ggml.pre");
    std::fs::write(&path, raw.bytes()).unwrap();
    let errors = String::from_utf8(fsq(&["inspect", "--strict", text(&path)]).stderr).unwrap();
    let expected = [
        "f.gguf: 4 faults: ",
        "544 bytes at",
        "`llama.rope.freq_base`: not in the file",
        "`blk.0.attn_k.weight`: not in the file",
        "`tokenizer.ggml.pre`: expected a string, found nothing",
    ];
    assert!(expected.iter().all(|it| errors.contains(it)), "{errors}");
    assert_eq!(errors.lines().count(), 1);
}

/// A file that llama.cpp's converter wrote has no fault.
#[test]
fn a_file_of_another_program_is_sound() {
    let path = root().join("tests/fixtures/llama/tiny-f32.gguf");
    assert!(json(&["inspect", "--strict", "--json", text(&path)])["n_weights"].as_u64().unwrap() > 0);
}
