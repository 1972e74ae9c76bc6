//! A Hugging Face `tokenizer.json` as GGUF metadata: byte-level BPE only; does not tokenize.
//!
//! Follows `get_vocab_base` and `SpecialVocab` of llama.cpp's converter. What could not be said in a GGUF file, and
//! would silently tokenize otherwise, is refused by name.

use fsq_checkpoint::Checkpoint;
use fsq_gguf::Metadata;
use serde_json::Value;

use crate::QuantizeError;

/// What a token is, by llama.cpp's numbers (`llama_token_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
enum TokenType {
    Normal = 1,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
}

/// The split of Llama 3.
const LLAMA_3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}\
    | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// The split of Qwen 2.
const QWEN_2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}\
    | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// Sets the keys under `tokenizer`.
pub(crate) fn write(checkpoint: &Checkpoint, metadata: &mut Metadata) -> Result<(), QuantizeError> {
    let json: Value =
        serde_json::from_str(&checkpoint.tokenizer_json).map_err(|it| fault("", "JSON", it.to_string()))?;
    let vocabulary = vocabulary(&json, checkpoint.dimensions.vocab)?;
    let pre = pre_tokenizer(&json)?;
    check_normalizer(&json, pre)?;
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    let types: Vec<i32> = vocabulary.iter().map(|it| it.1 as i32).collect();
    let tokens: Vec<String> = vocabulary.into_iter().map(|it| it.0).collect();
    let n_tokens = tokens.len();
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges(&json)?);
    let adds_bos = adds_bos(&json);
    if adds_bos && checkpoint.bos.is_none() {
        return Err(QuantizeError::SpecialToken { path: checkpoint.path.clone(), field: "bos_token_id" });
    }
    let Some(&eos) = checkpoint.eos.first() else {
        return Err(QuantizeError::SpecialToken { path: checkpoint.path.clone(), field: "eos_token_id" });
    };
    // Where several tokens end a turn, the last is the one that chats end with; llama.cpp finds others by their text.
    let turn_end = checkpoint.eos.last().copied().filter(|it| *it != eos);
    for (key, id) in [("bos", checkpoint.bos), ("eos", Some(eos)), ("eot", turn_end)] {
        if let Some(id) = id {
            if id as usize >= n_tokens {
                return Err(fault(&format!("{key}_token_id"), format!("an id below {n_tokens}"), id.to_string()));
            }
            metadata.insert(format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    metadata.insert("tokenizer.ggml.add_bos_token", adds_bos);
    metadata.insert("tokenizer.ggml.add_eos_token", false);
    if let Some(template) = &checkpoint.chat_template {
        metadata.insert("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

fn fault(field: &str, expected: impl Into<String>, found: impl Into<String>) -> QuantizeError {
    QuantizeError::Tokenizer { field: field.into(), expected: expected.into(), found: found.into() }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".into(), |it| it.to_string().chars().take(80).collect())
}

/// Every token by id, as many as the embedding has rows.
fn vocabulary(json: &Value, n_rows: usize) -> Result<Vec<(String, TokenType)>, QuantizeError> {
    let kind = json.pointer("/model/type");
    if kind.and_then(Value::as_str) != Some("BPE") {
        return Err(fault("model.type", "\"BPE\"", shown(kind)));
    }
    let vocab = json.pointer("/model/vocab");
    let vocab = vocab.and_then(Value::as_object).ok_or_else(|| fault("model.vocab", "an object", shown(vocab)))?;
    let mut tokens: Vec<Option<(String, TokenType)>> = vec![None; n_rows];
    let mut put = |field: &str, text: &str, id: Option<&Value>, kind: TokenType| {
        let row = id.and_then(Value::as_u64).and_then(|it| usize::try_from(it).ok()).filter(|it| *it < n_rows);
        let row = row.ok_or_else(|| {
            fault(&format!("{field} `{text}`"), format!("an id below the {n_rows} rows of the embedding"), shown(id))
        })?;
        match &tokens[row] {
            Some((other, _)) if other != text => {
                Err(fault(&format!("{field} `{text}`"), "an id of its own", format!("{row}, that of `{other}`")))
            }
            _ => {
                tokens[row] = Some((text.into(), kind));
                Ok(())
            }
        }
    };
    for (text, id) in vocab {
        put("model.vocab", text, Some(id), TokenType::Normal)?;
    }
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let text = token.get("content");
        let text = text.and_then(Value::as_str).ok_or_else(|| fault("added_tokens", "a `content`", shown(text)))?;
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let kind = if special || looks_special(text) { TokenType::Control } else { TokenType::UserDefined };
        put("added_tokens", text, token.get("id"), kind)?;
    }
    let padded = tokens.into_iter().enumerate();
    Ok(padded.map(|(id, it)| it.unwrap_or_else(|| (format!("[PAD{id}]"), TokenType::Unused))).collect())
}

/// Added tokens that ought to be control tokens although nothing marks them so (`does_token_look_special`).
fn looks_special(text: &str) -> bool {
    let between = |start, end| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// The merges, each as two tokens with a space between, in either of the two ways that files have them.
fn merges(json: &Value) -> Result<Vec<String>, QuantizeError> {
    let merges = json.pointer("/model/merges");
    let merges = merges.and_then(Value::as_array).ok_or_else(|| fault("model.merges", "an array", shown(merges)))?;
    let one = |merge: &Value| match merge {
        Value::String(text) if text.split(' ').count() == 2 => Some(text.clone()),
        Value::Array(pair) => match &pair[..] {
            // A space inside a token would read as the one between two; `Ġ` is the space of byte-level tokens.
            [Value::String(a), Value::String(b)] => {
                Some(format!("{} {}", a.replace(' ', "\u{120}"), b.replace(' ', "\u{120}")))
            }
            _ => None,
        },
        _ => None,
    };
    merges.iter().map(|it| one(it).ok_or_else(|| fault("model.merges", "pairs of tokens", shown(Some(it))))).collect()
}

/// llama.cpp's name of the way text is split before merges apply.
fn pre_tokenizer(json: &Value) -> Result<&'static str, QuantizeError> {
    let whole = json.get("pre_tokenizer");
    let expected = "a byte-level split that GGUF files have a name for";
    let unknown = || fault("pre_tokenizer", expected, shown(whole));
    let kind = |it: &Value| it.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
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
    match (before, flag(last, "use_regex")) {
        ([], true) => Ok("gpt-2"),
        ([digits], true) if kind(digits) == "Digits" && flag(digits, "individual_digits") => Ok("smollm"),
        ([split], false) if kind(split) == "Split" => match split.pointer("/pattern/Regex").and_then(Value::as_str) {
            Some(LLAMA_3) => Ok("llama-bpe"),
            Some(QWEN_2) => Ok("qwen2"),
            _ => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

/// Nothing may change the text before it is split, but for NFC where the name of the split implies it.
fn check_normalizer(json: &Value, pre: &str) -> Result<(), QuantizeError> {
    match json.get("normalizer").filter(|it| !it.is_null()) {
        None => Ok(()),
        Some(it) if pre == "qwen2" && it.get("type").and_then(Value::as_str) == Some("NFC") => Ok(()),
        found => Err(fault("normalizer", "none", shown(found))),
    }
}

/// Whether the tokenizer puts a token before every text.
fn adds_bos(json: &Value) -> bool {
    let Some(processor) = json.get("post_processor") else { return false };
    let several = processor.get("processors").and_then(Value::as_array);
    let mut steps = several.map_or_else(|| std::slice::from_ref(processor).iter(), |it| it.iter());
    steps.any(|it| {
        it.get("type").and_then(Value::as_str) == Some("TemplateProcessing")
            && it.pointer("/single/0/SpecialToken").is_some()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use serde_json::json;

    use super::*;

    fn sample() -> Value {
        json!({
            "added_tokens": [
                {"id": 3, "content": "<|bos|>", "special": true},
                {"id": 4, "content": "<imaginary>", "special": false},
                {"id": 5, "content": "<|odd|>", "special": false},
            ],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        })
    }

    #[test]
    fn tokens_have_their_kind_and_gaps_are_padded() {
        use TokenType::{Control, Normal, Unused, UserDefined};
        let tokens = vocabulary(&sample(), 7).unwrap();
        let expected = [
            ("a", Normal),
            ("b", Normal),
            ("ab", Normal),
            ("<|bos|>", Control),
            ("<imaginary>", UserDefined),
            ("<|odd|>", Control),
            ("[PAD6]", Unused),
        ];
        assert_eq!(tokens, expected.map(|(text, kind)| (text.to_string(), kind)));
    }

    #[test]
    fn tokens_beyond_the_embedding_are_refused() {
        let message = vocabulary(&sample(), 5).unwrap_err().to_string();
        assert_eq!(
            message,
            "tokenizer.json: `added_tokens `<|odd|>``: expected an id below the 5 rows of the embedding, found 5"
        );
        let mut twice = sample();
        twice["added_tokens"][1]["id"] = json!(0);
        let message = vocabulary(&twice, 7).unwrap_err().to_string();
        assert!(message.ends_with("expected an id of its own, found 0, that of `a`"), "{message}");
    }

    #[test]
    fn merges_are_read_in_both_ways() {
        assert_eq!(merges(&sample()).unwrap(), ["a b"]);
        assert_eq!(merges(&json!({"model": {"merges": ["a b", "ab c"]}})).unwrap(), ["a b", "ab c"]);
        assert_eq!(merges(&json!({"model": {"merges": [["a ", "b"]]}})).unwrap(), ["a\u{120} b"]);
        assert!(merges(&json!({"model": {"merges": ["a b c"]}})).is_err());
        assert!(merges(&json!({"model": {"merges": [["a"]]}})).is_err());
        assert!(merges(&json!({"model": {}})).is_err());
    }

    #[test]
    fn splits_have_their_name_or_are_refused() {
        let pre = |it: Value| pre_tokenizer(&json!({"pre_tokenizer": it}));
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
        let sequence =
            |first: Value, use_regex| json!({"type": "Sequence", "pretokenizers": [first, bytes(use_regex)]});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        assert_eq!(pre(bytes(true)).unwrap(), "gpt-2");
        assert_eq!(pre(sequence(split(LLAMA_3), false)).unwrap(), "llama-bpe");
        assert_eq!(pre(sequence(split(QWEN_2), false)).unwrap(), "qwen2");
        assert_eq!(pre(sequence(json!({"type": "Digits", "individual_digits": true}), true)).unwrap(), "smollm");
        assert!(pre(sequence(split("."), false)).is_err());
        assert!(pre(bytes(false)).is_err());
        assert!(pre(json!({"type": "Metaspace"})).is_err());
        let prefixed = pre(json!({"type": "ByteLevel"})).unwrap_err().to_string();
        assert_eq!(prefixed, "tokenizer.json: `pre_tokenizer.add_prefix_space`: expected false, found true");
        assert!(pre_tokenizer(&json!({})).is_err());
        assert!(check_normalizer(&json!({"normalizer": {"type": "Lowercase"}}), "gpt-2").is_err());
        assert!(check_normalizer(&json!({"normalizer": {"type": "NFC"}}), "qwen2").is_ok());
        assert!(check_normalizer(&json!({"normalizer": null}), "gpt-2").is_ok());
    }

    #[test]
    fn a_leading_special_token_is_seen() {
        let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]});
        assert!(adds_bos(&json!({"post_processor": template})));
        assert!(adds_bos(&json!({"post_processor": {"type": "Sequence", "processors": [template]}})));
        assert!(!adds_bos(&json!({"post_processor": {"type": "ByteLevel"}})));
        assert!(!adds_bos(&json!({})));
    }
}
