//! The command as a user meets it: what it prints, what it says of bad input, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fsq_checkpoint::{
    Architecture, Checkpoint, CheckpointFiles, Dimensions, NamedTensor, Options, StoredType, tensor_names,
};
use serde_json::Value;

use crate::program::{BAD_INPUT, command, fsq, json, refused, text};
use crate::tree::root;

fn fixture() -> PathBuf {
    root().join("tests/fixtures/llama")
}

fn file() -> String {
    fixture().join("tiny-f32.gguf").to_str().unwrap().to_owned()
}

/// Roles in plain letters, since the tokenizer has no tokens for them.
pub(crate) const CHAT_TEMPLATE: &str = "{% for message in messages %}<|bos|>{{ message.role }}: \
     {{ message.content }}<|end|>{% endfor %}<|bos|>assistant: ";

/// A `tokenizer.json` with a token for each byte, `<|bos|>` as 256 and `<|end|>` as 257.
pub(crate) fn byte_tokenizer() -> String {
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(fixture().join("tokenizer.json")).unwrap()).unwrap();
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others: Vec<u8> = (0..=255).filter(|it| !is_printable(*it)).collect();
    // The alphabet of byte-level tokenizers: printable bytes for themselves, the others from U+0100 on.
    let letter = |byte: u8| others.iter().position(|it| *it == byte).map_or(u32::from(byte), |it| 0x100 + it as u32);
    let words = (0..=255u8).map(|byte| (char::from_u32(letter(byte)).unwrap().to_string(), byte.into()));
    tokenizer["model"]["vocab"] = words.collect::<serde_json::Map<String, Value>>().into();
    tokenizer["model"]["merges"] = Value::Array(Vec::new());
    let mut added = tokenizer["added_tokens"][0].clone();
    let named = [("<|bos|>", 256), ("<|end|>", 257)].map(|(content, id)| {
        (added["content"], added["id"]) = (content.into(), id.into());
        added.clone()
    });
    tokenizer["added_tokens"] = named.into();
    tokenizer.to_string()
}

/// A small random policy whose tokenizer has a token for each byte, so that it can write any text.
fn write_checkpoint(path: &Path) {
    let dimensions = Dimensions {
        architecture: Architecture::Llama,
        n_layers: 2,
        hidden: 64,
        intermediate: 128,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        vocab: 258,
        context: 1 << 16,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied: true,
        options: Options::PLAIN,
    };
    let like = CheckpointFiles {
        config: "".into(),
        weights: (&[] as &[u8]).into(),
        tokenizer: byte_tokenizer().into(),
        chat_template: Some(CHAT_TEMPLATE.into()),
    };
    let tensors: Vec<NamedTensor<'_>> = tensor_names(&dimensions)
        .into_iter()
        .map(|it| {
            let n: usize = it.shape.iter().product();
            let values: Vec<f32> = (0..n).map(|index| ((index * 7919 + n) % 1009) as f32 / 1009.0 - 0.5).collect();
            NamedTensor { name: it.hf, shape: it.shape, values: values.into() }
        })
        .collect();
    Checkpoint::write(path, &like, &dimensions, (256, 257), StoredType::F32, &tensors).unwrap();
}

/// Quantizes a small policy to files named `tiny-...`, and returns the report.
pub(crate) fn write_files(folder: &Path, formats: &str) -> Value {
    let checkpoint = folder.join("checkpoint");
    write_checkpoint(&checkpoint);
    let out = folder.join("out");
    json(&["quantize", text(&checkpoint), "--to", formats, "--out", text(&out), "--name", "tiny", "--json"])
}

#[test]
fn every_command_explains_itself() {
    let help = fsq(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let listed = help.lines().skip_while(|it| *it != "Commands:").skip(1).take_while(|it| !it.is_empty());
    // What does not fit beside a command stands below its explanation, further in.
    let of_commands = listed.filter_map(|it| it.strip_prefix("  ").filter(|it| !it.starts_with(' ')));
    let mut commands: Vec<&str> = of_commands.filter_map(|it| it.split(' ').next()).collect();
    commands.retain(|it| *it != "help");
    commands.sort_unstable();
    let expected = "bench calibrate chat compare data demo devices environment eval gate importance inspect logits \
                    quantize report run serve study train";
    assert_eq!(commands.join(" "), expected, "{help}");
    for command in commands {
        let own = fsq(&[command, "--help"]);
        assert!(own.status.success() && !own.stdout.is_empty(), "{command}");
    }
    assert!(fsq(&["--version"]).status.success());
}

#[test]
fn arguments_that_do_not_parse_are_bad_input() {
    for arguments in [&["nothing"][..], &["run"], &["run", "x.gguf", "--prompt", "a", "-n", "0"], &[]] {
        assert_eq!(fsq(arguments).status.code(), BAD_INPUT, "{arguments:?}");
    }
    let output = fsq(&["quantize", text(&fixture()), "--to", "q9_z", "--out", "unused"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), BAD_INPUT);
    assert!(errors.contains("unknown format; known are") && errors.contains("q4_k_m"), "{errors}");
}

#[test]
fn a_file_that_is_absent_or_damaged_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.gguf");
    refused(&["inspect", text(&absent)], "absent.gguf: ");
    let whole = std::fs::read(fixture().join("tiny-f32.gguf")).unwrap();
    for length in [0, 3, 24, 1000, whole.len() / 2, whole.len() - 1] {
        let cut = folder.path().join("cut.gguf");
        std::fs::write(&cut, &whole[..length]).unwrap();
        refused(&["run", text(&cut), "--prompt", "a"], "cut.gguf: ");
    }
    refused(&["inspect", text(&fixture().join("model.safetensors"))], "not a GGUF file");
    refused(&["inspect", text(folder.path())], "expected a GGUF file, found a folder");
    refused(
        &["quantize", &file(), "--to", "q8_0", "--out", text(folder.path())],
        "expected a checkpoint, found a GGUF",
    );
    refused(&["quantize", text(folder.path()), "--to", "q8_0", "--out", text(folder.path())], "config.json: ");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("blocked");
    std::fs::write(&blocked, "a file, not a folder").unwrap();
    refused(&["quantize", text(&fixture()), "--to", "f16", "--out", text(&blocked.join("x"))], "blocked");
    refused(&["logits", &file(), "--tokens", "1", "--out", text(&blocked.join("l.safetensors"))], "blocked");
}

#[test]
fn what_this_build_lacks_is_said() {
    refused(&["--device", "cuda", "devices"], "--device cuda: not in this build");
    refused(
        &["quantize", text(&fixture()), "--to", "f16", "--out", "unused", "--gate", "2-bit"],
        "gate profile `2-bit`",
    );
}

#[test]
fn run_prints_the_promised_shape() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "f32");
    let file = folder.path().join("out/tiny-F32.gguf");
    let file = text(&file);
    let arguments = ["run", file, "--prompt", "hello", "-n", "8", "--temperature", "0", "--ignore-eos", "--json"];
    let document = json(&arguments);
    let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["text", "token_ids", "prompt_token_ids", "finish_reason"]);
    assert_eq!(document["token_ids"].as_array().unwrap().len(), 8);
    assert_eq!(document["finish_reason"], "length");
    assert_eq!(document, json(&arguments));
    let shown = fsq(&["run", file, "--prompt", "hello", "-n", "8", "--ignore-eos"]);
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), format!("{}\n", document["text"].as_str().unwrap()));
}

#[test]
fn bench_has_the_promised_shape_and_a_row_for_each_context() {
    let file = file();
    let sizes = ["bench", &file, "-p", "8", "-n", "2", "-r", "1", "--context"];
    let rows = json(&[&sizes[..], &["24,8", "--json"]].concat());
    let contexts: Vec<u64> = rows.as_array().unwrap().iter().map(|it| it["context"].as_u64().unwrap()).collect();
    assert_eq!(contexts, [8, 24]);
    for row in rows.as_array().unwrap() {
        let texts = ["file", "format", "device", "backend", "path"];
        assert!(texts.iter().all(|it| row[it].is_string()), "{row}");
        let counts = ["threads", "n_prompt", "n_gen", "batch", "context"];
        assert!(counts.iter().all(|it| row[it].is_u64()), "{row}");
        assert!(row["load_s"].is_f64() && (row["rss_bytes_max"].is_u64() || row["rss_bytes_max"].is_null()), "{row}");
        for speed in ["prefill_tokens_per_s", "decode_tokens_per_s"] {
            assert!(["median", "min", "max"].iter().all(|it| row[speed][it].as_f64().unwrap() > 0.0), "{row}");
        }
        assert!(["read_bytes_per_s", "share"].iter().all(|it| row["roofline"][it].as_f64().unwrap() > 0.0), "{row}");
    }
    // More keys and values are read behind the longer context.
    assert!(rows[1]["roofline"]["step_bytes"].as_u64() > rows[0]["roofline"]["step_bytes"].as_u64(), "{rows}");
    refused(&[&sizes[..], &["4"]].concat(), "--context: expected at least the prompt's 8 tokens, found 4");
}

#[test]
fn logits_have_the_promised_shape() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("l.safetensors");
    for (all, rows) in [(false, 1), (true, 3)] {
        let file = file();
        let mut arguments = vec!["logits", &file, "--tokens", "1,2,3", "--out", text(&out), "--json"];
        arguments.extend(all.then_some("--all"));
        let document = json(&arguments);
        let bytes = std::fs::read(&out).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        assert_eq!((&header["logits"]["dtype"], &header["logits"]["shape"]), (&"F32".into(), &document["shape"]));
        assert_eq!(document["shape"][0], rows);
    }
    refused(&["logits", &file(), "--tokens", "999999", "--out", text(&out)], "token 999999");
}

#[test]
fn quantize_writes_files_that_run_and_says_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let report = write_files(folder.path(), "f16,q8_0,f16");
    let names: Vec<&str> = report["files"].as_array().unwrap().iter().map(|it| it["file"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny-F16.gguf", "tiny-Q8_0.gguf"]);
    let mut found: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|it| text(&it.unwrap().path()).to_owned()).collect();
    found.sort();
    // Two files, two reports and a card.
    assert_eq!(found.len(), 5, "{found:?}");
    let written: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(written, report);
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("not judged"));
    for (name, file) in names.iter().zip(report["files"].as_array().unwrap()) {
        let inspected = json(&["inspect", "--strict", text(&out.join(name)), "--json"]);
        assert_eq!(inspected["sha256"], file["sha256"]);
        let again = json(&["run", text(&out.join(name)), "--prompt", "hello", "-n", "4", "--ignore-eos", "--json"]);
        assert_eq!(again["token_ids"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child =
        command(&["inspect", "--all", &file()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_environment_chooses_the_kernels_and_the_choice_is_told() {
    let devices = |path: &str| command(&["devices", "--json"]).env("FSQ_CPU", path).output().unwrap();
    let run = |path: &str| {
        let run = ["run", &file(), "--prompt", "hello", "-n", "8", "--json"];
        let output = command(&run).env("FSQ_CPU", path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["token_ids"].clone()
    };
    let widest = json(&["devices", "--json"])["processor"]["path"].as_str().unwrap().to_owned();
    for path in ["scalar", &widest] {
        let output = devices(path);
        assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("FSQ_CPU: kernels run on {path}")));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["processor"]["path"], path);
    }
    assert_eq!(run("scalar"), run(&widest));
    let refused = devices("sse9");
    assert_eq!(refused.status.code(), BAD_INPUT);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(errors.starts_with("error: FSQ_CPU: expected one of scalar") && errors.contains("`sse9`"), "{errors}");
}

#[test]
fn devices_and_report_answer() {
    let document = json(&["devices", "--json"]);
    assert!(document["memory"]["total_bytes"].as_u64().unwrap() > 0);
    assert!(!document["processor"]["path"].as_str().unwrap().is_empty());
    refused(&["report", text(&fixture().join("config.json"))], "expected the report.json of a demo");
}
