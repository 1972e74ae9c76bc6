//! `fsq compare`: two files on the same tokens, held to llama.cpp's logits and to what must hold of any comparison.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::oracle::python;
use crate::program::{fsq, json, refused, text};
use crate::tree::root;

/// How far the statistics may be from those of llama.cpp's logits: both round what goes into a product to 8 bits, each
/// in its own way. Relative; percentiles far out hang on few tokens. Where llama.cpp with flash attention is further
/// than that from itself without, that distance counts; and over all statistics ours must be the smaller one.
const DISTANCE_MAX: f64 = 0.03;
const DISTANCE_IN_TAILS_MAX: f64 = 0.15;
/// Below this a statistic is as good as zero: distances from it are absolute.
const NEAR_ZERO: f64 = 1e-2;

fn quantized(folder: &Path, formats: &str) -> Vec<PathBuf> {
    let base = root().join("finetune/base");
    let written = fsq(&["quantize", text(&base), "--to", formats, "--out", text(folder)]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    formats.split(',').map(|it| folder.join(format!("base-{}.gguf", it.to_uppercase()))).collect()
}

/// Any text.
fn page() -> PathBuf {
    root().join("docs/architecture.md")
}

/// A text in the words of the tasks that the base was made for.
fn tasks(folder: &Path) -> PathBuf {
    let line = |it: u32| {
        let [a, b, c] = [it * 7 % 23 + 2, it * 5 % 19 + 3, it * 11 % 17 + 1];
        format!("numbers {a} {b} {c} goal {}\nuse {a} + {b} numbers {c} {} goal {0}\n", a + b + c, a + b)
    };
    let file = folder.join("tasks.txt");
    std::fs::write(&file, (0..1920).map(line).collect::<String>()).unwrap();
    file
}

/// The numbers of a document by name, those of `delta_p` too.
fn numbers(document: &Value, names: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for (name, like) in names.as_object().unwrap() {
        match (like.is_object(), document[name].as_f64()) {
            (true, _) => {
                let inner = numbers(&document[name], like);
                found.extend(inner.into_iter().map(|(own, number)| (format!("{name} {own}"), number)));
            }
            (false, Some(number)) => found.push((name.clone(), number)),
            (false, None) => panic!("{name}: {}", document[name]),
        }
    }
    found
}

#[test]
fn statistics_are_those_of_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let files = quantized(folder.path(), "q8_0,q4_k_m");
    let [reference, candidate] = [&files[0], &files[1]].map(|it| text(it));
    let tasks = tasks(folder.path());
    let ours = json(&["compare", reference, candidate, "--text", text(&tasks), "--context", "256", "--json"]);
    let script = root().join("tests/oracle/llama_compare.py");
    let read = std::fs::read_to_string(tasks).unwrap();
    let [expected, with_flash] = [false, true].map(|flash| {
        let request =
            json!({"reference": reference, "candidate": candidate, "text": read, "context": 256, "flash": flash});
        serde_json::from_str::<Value>(&python(&[text(&script)], &request.to_string())).unwrap()
    });
    assert!(expected["n_tokens"].as_u64().unwrap() > 5000, "{expected}");
    let [ours, with_flash, stock] = [&ours, &with_flash, &expected].map(|it| numbers(it, &expected));
    let (mut far, mut sums) = (Vec::new(), [0.0; 2]);
    for (((name, expected), (_, ours)), (_, with_flash)) in stock.iter().zip(&ours).zip(&with_flash) {
        let apart = |it: &f64| (it - expected).abs() / expected.abs().max(NEAR_ZERO);
        let is_tail = ["max", "min", "p999", "p001", "p99", "p01"].iter().any(|it| name.ends_with(it));
        let limit = if is_tail { DISTANCE_IN_TAILS_MAX } else { DISTANCE_MAX };
        let line = format!("{name}: {ours:.6}, llama.cpp {expected:.6} and {with_flash:.6}");
        println!("  {line}, {:.1e} and {:.1e} apart", apart(ours), apart(with_flash));
        if apart(ours) > limit.max(apart(with_flash)) {
            far.push(line);
        }
        sums = [sums[0] + apart(ours), sums[1] + apart(with_flash)];
    }
    println!("  over all {} statistics: {:.3} and {:.3} apart", stock.len(), sums[0], sums[1]);
    assert!(far.is_empty(), "{far:#?}");
    assert!(sums[0] < sums[1], "further from llama.cpp than it is from itself: {sums:?}");
}

#[test]
fn a_policy_is_not_apart_from_itself_and_the_shape_is_the_promised_one() {
    let folder = tempfile::tempdir().unwrap();
    let files = quantized(folder.path(), "q4_0");
    let file = text(&files[0]);
    let found = json(&["compare", file, file, "--text", text(&page()), "--chunks", "2", "--json"]);
    for key in ["kl_mean", "kl_median", "kl_p90", "kl_p95", "kl_p99", "kl_p999", "kl_max"] {
        assert_eq!(found[key], 0.0, "{key}");
    }
    assert_eq!((&found["top1_agreement"], &found["perplexity_ratio"]), (&json!(1.0), &json!(1.0)));
    assert_eq!(found["perplexity_reference"], found["perplexity_candidate"]);
    assert_eq!((&found["n_tokens"], &found["foresight_shift"]), (&json!(2 * 255), &Value::Null));
    assert_eq!(found["text"], json!({"file": text(&page()), "context": 512, "windows": 2}));
    let shown = fsq(&["compare", file, file, "--text", text(&page()), "--chunks", "1"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("1 windows of 512 tokens: 255 tokens judged"), "{shown}");
    assert!(shown.contains("same most probable token (%)"), "{shown}");
}

#[test]
fn saved_logits_give_what_both_files_give() {
    let folder = tempfile::tempdir().unwrap();
    let files = quantized(folder.path(), "q8_0,q4_0");
    let (saved, page) = (folder.path().join("reference.safetensors"), page());
    let read = ["--text", text(&page), "--context", "128", "--chunks", "3", "--json"];
    let with = |head: &[&str]| json(&[head, &read].concat());
    let written = with(&["compare", text(&files[0]), "--save-logits", text(&saved)]);
    assert_eq!(written["n_tokens"], 3 * 63);
    let bytes = std::fs::metadata(&saved).unwrap().len();
    assert!(bytes > written["bytes"].as_u64().unwrap() && bytes < written["bytes"].as_u64().unwrap() + 10_000);
    let expected = with(&["compare", text(&files[0]), text(&files[1])]);
    let found = json(&["compare", text(&files[1]), "--reference-logits", text(&saved), "--json"]);
    assert_eq!(found, expected);

    let whole = std::fs::read(&saved).unwrap();
    let refuse = |bytes: &[u8], expected: &str| {
        std::fs::write(&saved, bytes).unwrap();
        refused(&["compare", text(&files[1]), "--reference-logits", text(&saved)], expected);
    };
    refuse(&whole[..whole.len() - 1], "reference.safetensors: expected");
    refuse(&whole[..100], "expected logits that `fsq compare --save-logits` wrote");
    refuse(b"", "expected logits that `fsq compare --save-logits` wrote");
    // One window more than there are tokens for: the first length in `passages`, behind three windows of tokens.
    let header = usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    let mut damaged = whole.clone();
    damaged[8 + header + 3 * 128 * 4] = 200;
    refuse(&damaged, "its tensors contradict each other");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let files = quantized(folder.path(), "q4_0");
    let (file, other) = (text(&files[0]), root().join("tests/fixtures/llama/tiny-f32.gguf"));
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "").unwrap();
    refused(&["compare", file, file, "--text", text(&short)], "short.txt: expected some text, found none");
    std::fs::write(&short, "a").unwrap();
    refused(&["compare", file, file, "--text", text(&short)], "expected a text of at least 3 tokens");
    std::fs::write(&short, b"\xff\xfe\xfd").unwrap();
    refused(&["compare", file, file, "--text", text(&short)], "short.txt: ");
    refused(&["compare", file, file, "--text", text(&folder.path().join("absent"))], "absent: ");
    refused(&["compare", file, file], "expected --text");
    refused(&["compare", file, "--text", text(&page())], "expected REFERENCE and CANDIDATE, or one file");
    refused(&["compare", file, text(&other), "--text", text(&page())], "the vocabularies differ: ");
    let page = page();
    let asked = ["compare", file, file, "--text", text(&page), "--context", "1000000"];
    refused(&asked, "reads at most 1024 tokens");
}

/// Both read what the reference wrote; where it states a probability, the candidate is asked for its own.
#[cfg(feature = "train")]
#[test]
fn episodes_are_compared_where_the_reference_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let files = quantized(folder.path(), "q8_0,q4_0");
    let arguments = ["--environment", "countdown", "-n", "6", "--json"];
    let with = |head: &[&str]| json(&[head, &arguments].concat());
    let found = with(&["compare", text(&files[0]), text(&files[1])]);
    assert_eq!(found["environment"], json!({"name": "countdown", "episodes": 6, "seed": 1}));
    assert!(found["n_tokens"].as_u64().unwrap() >= 6 && found["kl_mean"].as_f64().unwrap() > 0.0, "{found}");
    let same = with(&["compare", text(&files[0]), text(&files[0])]);
    assert_eq!((&same["kl_max"], &same["n_tokens"]), (&json!(0.0), &found["n_tokens"]));
    let saved = folder.path().join("reference.safetensors");
    with(&["compare", text(&files[0]), "--save-logits", text(&saved)]);
    let again = json(&["compare", text(&files[1]), "--reference-logits", text(&saved), "--json"]);
    assert_eq!(again["kl_mean"], found["kl_mean"]);
}

/// A safetensors file in parts: header, and the bytes of each tensor in the order of the file.
#[cfg(feature = "train")]
fn taken_apart(path: &Path) -> (Value, Vec<(String, Vec<u8>)>) {
    let bytes = std::fs::read(path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let names = ["tokens", "passages", "judged", "stated_at", "logits", "stated"];
    let tensor = |name: &str| {
        let at = |index: usize| usize::try_from(header[name]["data_offsets"][index].as_u64().unwrap()).unwrap();
        (name.to_owned(), bytes[8 + length..][at(0)..at(1)].to_vec())
    };
    let tensors = names.map(tensor).into();
    (header, tensors)
}

#[cfg(feature = "train")]
fn put_together(path: &Path, mut header: Value, tensors: &[(String, Vec<u8>)]) {
    let mut data = Vec::new();
    for (name, bytes) in tensors {
        header[name]["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        data.extend_from_slice(bytes);
    }
    let header = header.to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

#[cfg(feature = "train")]
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect()
}

/// A reference that holds all grid answers equally probable at one place; what the candidate states there is worked
/// out from its logits.
#[cfg(feature = "train")]
#[test]
fn stated_probabilities_are_compared_where_the_reference_states_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = quantized(folder.path(), "q8_0").remove(0);
    let (page, saved, logits) = (page(), folder.path().join("saved"), folder.path().join("logits"));
    let asked = ["--context", "16", "--chunks", "1"];
    let arguments = ["compare", text(&file), "--text", text(&page), "--save-logits", text(&saved)];
    assert!(fsq(&[&arguments[..], &asked].concat()).status.success());
    let (mut header, mut tensors) = taken_apart(&saved);
    let place = 12usize;
    header["stated_at"]["shape"] = json!([1]);
    header["stated"]["shape"] = json!([1, 21]);
    tensors[1].1 = [16u64, 7, 1, 99].iter().flat_map(|it| it.to_le_bytes()).collect();
    tensors[3].1 = u32::try_from(place).unwrap().to_le_bytes().to_vec();
    tensors[5].1 = vec![0; 21 * 4];
    put_together(&saved, header, &tensors);
    let found = json(&["compare", text(&file), "--reference-logits", text(&saved), "--json"]);
    let shift = &found["foresight_shift"];
    assert_eq!(
        (&shift["n_places"], &shift["stated_reference"], &found["kl_max"]),
        (&json!(1), &json!(0.5), &json!(0.0))
    );

    let prefix: Vec<String> = words(&tensors[0].1)[..place].iter().map(u32::to_string).collect();
    json(&["logits", text(&file), "--tokens", &prefix.join(","), "--out", text(&logits), "--json"]);
    let bytes = std::fs::read(&logits).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let row: Vec<f32> = words(&bytes[8 + length..]).into_iter().map(f32::from_bits).collect();
    let vocabulary: Value =
        serde_json::from_slice(&std::fs::read(root().join("finetune/base/tokenizer.json")).unwrap()).unwrap();
    let of_level = |it: usize| {
        let token = usize::try_from(vocabulary["model"]["vocab"][(5 * it).to_string()].as_u64().unwrap()).unwrap();
        f64::from(row[token]).exp()
    };
    let mass: f64 = (0..21).map(of_level).sum();
    let expected: f64 = (0..21).map(|it| of_level(it) * it as f64 / 20.0).sum::<f64>() / mass;
    let stated = shift["stated_candidate"].as_f64().unwrap();
    assert!((stated - expected).abs() < 1e-4, "expected {expected}, found {stated}");
    assert!((shift["mean"].as_f64().unwrap() - (expected - 0.5)).abs() < 1e-4, "{shift}");
}
