//! The name that GGUF files have for a byte-level `pre_tokenizer`. Knows no tokens.
//!
//! Source of the patterns: llama.cpp `src/llama-vocab.cpp`, which quotes them from the files of their policies.

use serde_json::Value;

use super::{fault, shown};
use crate::QuantizeError;

/// One way to split, and its name by whether words of the vocabulary skip the merges.
struct Split {
    /// Regular expressions of `Split` steps, in order.
    patterns: &'static [&'static str],
    merging: Option<&'static str>,
    ignoring_merges: Option<&'static str>,
}

macro_rules! contractions {
    () => {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}
macro_rules! cased {
    () => {
        concat!(
            "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+",
            contractions!(),
            "?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*",
            contractions!(),
            "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    };
}
macro_rules! words {
    ($numbers:literal) => {
        concat!(
            contractions!(),
            "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|",
            $numbers,
            "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    };
}

const LLAMA_3: &str = words!("\\p{N}{1,3}");
const QWEN_2: &str = words!("\\p{N}");
const QWEN_35: &str = concat!(
    contractions!(),
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
);
const JAIS_2: &str = concat!(
    contractions!(),
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s{512}(?!\\S)",
    "|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)",
    "|\\s{1,2}(?!\\S)|\\s{1}"
);
const TEKKEN: &str = concat!(
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+",
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*",
    "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
);
const BAILING: &str = concat!(
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*",
    "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
);
const EXAONE_MOE: &str = concat!(
    contractions!(),
    "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?",
    "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
);
const SEED_CODER: &str = concat!(
    contractions!(),
    "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
);
const DEEPSEEK_3: &[&str] = &[
    "\\p{N}{1,3}",
    "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    concat!(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    ),
];

const SPLITS: &[Split] = &[
    Split { patterns: &[LLAMA_3], merging: Some("dbrx"), ignoring_merges: Some("llama-bpe") },
    Split { patterns: &[QWEN_2], merging: Some("qwen2"), ignoring_merges: None },
    Split { patterns: &[QWEN_35], merging: Some("qwen35"), ignoring_merges: None },
    Split { patterns: &[JAIS_2], merging: Some("jais-2"), ignoring_merges: None },
    Split { patterns: &[TEKKEN], merging: None, ignoring_merges: Some("tekken") },
    Split { patterns: &[cased!()], merging: Some("gpt-4o"), ignoring_merges: None },
    Split { patterns: &["\\d{1,3}(?=(?:\\d{3})*\\b)", cased!()], merging: Some("tiny_aya"), ignoring_merges: None },
    Split { patterns: DEEPSEEK_3, merging: Some("deepseek-v3"), ignoring_merges: None },
    Split { patterns: &["\\p{N}{1,3}", words!("\\p{N}+")], merging: None, ignoring_merges: Some("minicpm5") },
    Split { patterns: &[BAILING], merging: Some("bailingmoe"), ignoring_merges: None },
    Split { patterns: &[EXAONE_MOE], merging: Some("exaone-moe"), ignoring_merges: None },
    Split { patterns: &[SEED_CODER], merging: Some("seed-coder"), ignoring_merges: None },
];

/// llama.cpp's name of the way text is split before merges apply.
pub(super) fn name(json: &Value) -> Result<&'static str, QuantizeError> {
    let name = split(json)?;
    check_normalizer(json, name)?;
    Ok(name)
}

fn split(json: &Value) -> Result<&'static str, QuantizeError> {
    let whole = json.get("pre_tokenizer");
    let expected = "a byte-level split that GGUF files have a name for";
    let unknown = || fault("pre_tokenizer", expected, shown(whole));
    let flag = |it: &Value, key: &str| it.get(key).and_then(Value::as_bool).unwrap_or(true);
    let pre = whole.ok_or_else(unknown)?;
    let steps: Vec<&Value> = match pre.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let (last, before) = steps.split_last().ok_or_else(unknown)?;
    if kind(last) != "ByteLevel" {
        return Err(unknown());
    }
    if flag(last, "add_prefix_space") {
        return Err(fault("pre_tokenizer.add_prefix_space", "false", "true"));
    }
    let ignores_merges = json.pointer("/model/ignore_merges").and_then(Value::as_bool) == Some(true);
    let (merging, ignoring_merges) = match (before, flag(last, "use_regex")) {
        ([], true) => (Some("gpt-2"), None),
        ([digits], true) if kind(digits) == "Digits" && flag(digits, "individual_digits") => (Some("smollm"), None),
        (splits, false) => {
            let patterns: Option<Vec<&str>> = splits.iter().map(|it| pattern(it)).collect();
            let patterns = patterns.ok_or_else(unknown)?;
            let found = SPLITS.iter().find(|it| it.patterns == patterns).ok_or_else(unknown)?;
            (found.merging, found.ignoring_merges)
        }
        _ => return Err(unknown()),
    };
    let (name, other) = if ignores_merges { (ignoring_merges, merging) } else { (merging, ignoring_merges) };
    name.ok_or_else(|| {
        let expected = format!("{} as the split `{}` implies", !ignores_merges, other.unwrap_or_default());
        fault("model.ignore_merges", expected, ignores_merges.to_string())
    })
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The regular expression whose matches become pieces of their own, if the step is of that kind.
fn pattern(step: &Value) -> Option<&str> {
    let isolates = kind(step) == "Split" && step.get("behavior").and_then(Value::as_str) == Some("Isolated");
    let is_inverted = step.get("invert").and_then(Value::as_bool) == Some(true);
    step.pointer("/pattern/Regex").and_then(Value::as_str).filter(|_| isolates && !is_inverted)
}

/// Nothing may change the text before it is split, but for NFC where the name of the split implies it.
fn check_normalizer(json: &Value, name: &str) -> Result<(), QuantizeError> {
    match json.get("normalizer").filter(|it| !it.is_null()) {
        None => Ok(()),
        Some(it) if name.starts_with("qwen") && it.get("type").and_then(Value::as_str) == Some("NFC") => Ok(()),
        found => Err(fault("normalizer", "none", shown(found))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use serde_json::json;

    use super::*;

    fn bytes(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex})
    }

    fn file(before: &[Value], use_regex: bool, ignore_merges: bool) -> Value {
        let steps: Vec<Value> = before.iter().cloned().chain([bytes(use_regex)]).collect();
        let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": steps});
        json!({"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignore_merges}})
    }

    fn splits(patterns: &[&str]) -> Vec<Value> {
        let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        patterns.iter().map(split).collect()
    }

    #[test]
    fn splits_have_their_name_or_are_refused() {
        assert_eq!(name(&json!({"pre_tokenizer": bytes(true)})).unwrap(), "gpt-2");
        assert_eq!(name(&file(&splits(&[LLAMA_3]), false, true)).unwrap(), "llama-bpe");
        assert_eq!(name(&file(&splits(&[LLAMA_3]), false, false)).unwrap(), "dbrx");
        assert_eq!(name(&file(&splits(&[QWEN_2]), false, false)).unwrap(), "qwen2");
        assert_eq!(name(&file(&splits(DEEPSEEK_3), false, false)).unwrap(), "deepseek-v3");
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(name(&file(&[digits], true, false)).unwrap(), "smollm");
        assert!(name(&file(&splits(&["."]), false, false)).is_err());
        assert!(name(&json!({"pre_tokenizer": bytes(false)})).is_err());
        assert!(name(&json!({"pre_tokenizer": {"type": "Metaspace"}})).is_err());
        assert!(name(&json!({})).is_err());
        let prefixed = name(&json!({"pre_tokenizer": {"type": "ByteLevel"}})).unwrap_err().to_string();
        assert_eq!(prefixed, "tokenizer.json: `pre_tokenizer.add_prefix_space`: expected false, found true");
        let mut inverted = splits(&[QWEN_2]);
        inverted[0]["invert"] = json!(true);
        assert!(name(&file(&inverted, false, false)).is_err());
    }

    #[test]
    fn names_that_imply_otherwise_are_refused() {
        let error = name(&file(&splits(&[QWEN_2]), false, true)).unwrap_err().to_string();
        let expected = "`model.ignore_merges`: expected false as the split `qwen2` implies, found true";
        assert!(error.ends_with(expected), "{error}");
        assert!(name(&file(&splits(&[TEKKEN]), false, false)).is_err());
        let mut file = file(&splits(&[QWEN_2]), false, false);
        file["normalizer"] = json!({"type": "NFC"});
        assert_eq!(name(&file).unwrap(), "qwen2");
        file["normalizer"] = json!({"type": "Lowercase"});
        assert!(name(&file).is_err());
    }

    #[test]
    fn no_split_has_two_names() {
        for (index, split) in SPLITS.iter().enumerate() {
            assert!(SPLITS[..index].iter().all(|it| it.patterns != split.patterns));
            assert!(split.merging.is_some() || split.ignoring_merges.is_some());
        }
    }
}
