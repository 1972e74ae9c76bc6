//! Codes and formats chosen with importance, from the command line: what they gain over stock llama.cpp at its bytes,
//! and what stock llama.cpp makes of the files that they come from.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::oracle::python;
use crate::program::{BAD_INPUT, fsq, json, refused, text};
use crate::tree::root;

/// llama.cpp's number of Q4_K_M.
const Q4_K_M: &str = "15";

/// The shipped base in 16 bits, and what it reads while it plays.
struct Observed {
    folder: tempfile::TempDir,
    reference: PathBuf,
    importance: PathBuf,
}

impl Observed {
    fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = root().join("finetune/base");
        let written = fsq(&["quantize", text(&base), "--to", "f16", "--out", text(folder.path())]);
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        let (reference, importance) = (folder.path().join("base-F16.gguf"), folder.path().join("imatrix.gguf"));
        let worlds = ["--environment", "countdown", "--environment", "dochop"];
        let out = ["-n", "100", "--json", "--out", text(&importance)];
        let told = json(&[&["importance", text(&reference), "--plain"][..], &worlds, &out, options].concat());
        assert_eq!(told["n_tensors"], 36);
        assert!(told["n_tokens"].as_u64().unwrap() > 3000, "{told}");
        Self { folder, reference, importance }
    }

    /// Quantizes with these options to a folder of that name.
    fn quantized(&self, name: &str, options: &[&str]) -> PathBuf {
        let (base, out) = (root().join("finetune/base"), self.folder.path().join(name));
        let to = ["quantize", text(&base), "--to", "q4_k_m", "--importance", text(&self.importance)];
        let written = fsq(&[&to[..], &["--out", text(&out)], options].concat());
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        out.join("base-Q4_K_M.gguf")
    }

    /// What llama.cpp makes of the same file with the same importance.
    fn of_llama_cpp(&self) -> PathBuf {
        let (script, out) = (root().join("tests/oracle/llama_quantize.py"), self.folder.path().join("llama.gguf"));
        let files = [text(&script), text(&self.reference), text(&out), Q4_K_M, text(&self.importance)];
        assert_eq!(python(&files, "").trim(), "36", "tensors with importance");
        out
    }

    /// Divergence on episodes that importance has not seen.
    fn divergence(&self, candidate: &Path) -> Value {
        let reading = ["--environment", "countdown", "-n", "120", "--seed", "77", "--plain", "--json"];
        json(&[&["compare", text(&self.reference), text(candidate)][..], &reading].concat())
    }
}

fn n_bytes(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
}

#[test]
fn fed_back_errors_and_chosen_formats_beat_llama_cpp_at_its_bytes() {
    let observed = Observed::new(&["--products", "--sensitivity"]);
    let theirs = observed.of_llama_cpp();
    let budget = n_bytes(&theirs).to_string();
    let ours = observed.quantized("ours", &["--codes", "error_feedback", "--target-size", &budget]);
    assert!(n_bytes(&ours) <= n_bytes(&theirs), "{} of {budget}", n_bytes(&ours));
    let (ours, theirs) = (observed.divergence(&ours), observed.divergence(&theirs));
    let both = |key: &str| [&ours, &theirs].map(|it| it[key].as_f64().unwrap());
    let ([mean, their_mean], [tail, their_tail]) = (both("kl_mean"), both("kl_p999"));
    println!("mean divergence {mean} of {their_mean}, 99.9 % {tail} of {their_tail}");
    assert!(mean <= 0.75 * their_mean, "{mean} {their_mean}");
    assert!(tail <= 0.8 * their_tail, "{tail} {their_tail}");
}

/// The stock encoders with importance are llama.cpp's, byte for byte.
#[test]
fn stock_codes_with_importance_are_those_of_llama_cpp() {
    let observed = Observed::new(&[]);
    let ours = fsq_gguf::Gguf::open(&observed.quantized("stock", &[])).unwrap();
    let theirs = fsq_gguf::Gguf::open(&observed.of_llama_cpp()).unwrap();
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for view in theirs.views() {
        let mine = ours.tensor(view.name).unwrap();
        assert_eq!(mine.format, view.format, "{}", view.name);
        assert!(mine.bytes == view.bytes, "{} differs", view.name);
    }
}

#[test]
fn a_plan_given_back_makes_the_same_tensors() {
    let observed = Observed::new(&[]);
    let chosen = observed.quantized("chosen", &["--codes", "descent", "--target-size", "q4_0"]);
    let plan = chosen.with_file_name("base-Q4_K_M.plan.toml");
    let again = observed.quantized("again", &["--codes", "descent", "--plan", text(&plan)]);
    let digest = |file: &Path| fsq_gguf::Gguf::open(file).unwrap().data_sha256();
    assert_eq!(digest(&again), digest(&chosen));
    let changed = observed.folder.path().join("changed.toml");
    let lines = std::fs::read_to_string(&plan).unwrap();
    std::fs::write(&changed, lines.replace("blk.0.attn_q.weight", "blk.9.attn_q.weight")).unwrap();
    let base = root().join("finetune/base");
    let out = observed.folder.path().join("none");
    let to = ["quantize", text(&base), "--to", "q4_k_m", "--out", text(&out)];
    refused(&[&to[..], &["--plan", text(&changed)]].concat(), "override `blk.9.attn_q.weight`: expected the name");
    // What each format loses is measured first, and said.
    let small = fsq(&[&to[..], &["--target-size", "100kB"]].concat());
    let said = String::from_utf8_lossy(&small.stderr).into_owned();
    assert_eq!(small.status.code(), BAD_INPUT, "{said}");
    assert!(said.contains("size of the file: expected at least "), "{said}");
    refused(&[&to[..], &["--codes", "error_feedback"]].concat(), "expected --importance with products");
}
