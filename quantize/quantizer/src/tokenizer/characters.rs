//! BPE over characters with byte fallback, as Llama 2, Gemma and Phi-3 have it in `tokenizer.json`: scores for GGUF,
//! which orders merges by the token that they make.

use std::collections::HashMap;

use serde_json::Value;

use super::{SPACE_MARK, Token, TokenType, fault, shown};
use crate::QuantizeError;

/// Gives every token its score: minus the rank of the merges that make it.
///
/// SentencePiece merges any two neighbours that make a token, the token of the highest score first. Merges say the
/// same only if they hold every pair that makes a token, and the pairs of one token next to each other; files that
/// were made from SentencePiece's do.
pub(super) fn score(json: &Value, tokens: &mut [Option<Token>]) -> Result<(), QuantizeError> {
    if json.pointer("/model/byte_fallback").and_then(Value::as_bool) != Some(true) {
        return Err(fault("model.byte_fallback", "true", shown(json.pointer("/model/byte_fallback"))));
    }
    let merges = json.pointer("/model/merges");
    let merges = merges.and_then(Value::as_array).ok_or_else(|| fault("model.merges", "an array", shown(merges)))?;
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    let mut last = String::new();
    let mut n_tokens = 0;
    for (index, merge) in merges.iter().enumerate() {
        let (left, right) = pair(merge).ok_or_else(|| fault("model.merges", "pairs of tokens", shown(Some(merge))))?;
        let whole = format!("{left}{right}");
        if whole != last {
            let place = places.insert(whole.clone(), (n_tokens, 0));
            if place.is_some() {
                let expected = "the merges that make a token next to each other";
                return Err(fault(&format!("model.merges[{index}]"), expected, format!("`{whole}` again")));
            }
            n_tokens += 1;
            last = whole;
        }
        if let Some(place) = places.get_mut(&last) {
            place.1 += 1;
        }
    }
    let texts: std::collections::HashSet<String> = tokens.iter().flatten().map(|it| it.text.clone()).collect();
    for token in tokens.iter_mut().flatten() {
        let code = token.text.strip_prefix("<0x").and_then(|it| it.strip_suffix('>'));
        if token.kind == TokenType::Normal && code.is_some_and(|it| it.len() == 2 && u8::from_str_radix(it, 16).is_ok())
        {
            token.kind = TokenType::Byte;
            token.score = 0.0;
        }
        if token.kind != TokenType::Normal {
            continue;
        }
        let cuts = token.text.char_indices().skip(1).map(|it| token.text.split_at(it.0));
        let n_pairs = cuts.filter(|(left, right)| texts.contains(*left) && texts.contains(*right)).count();
        let (rank, n_merges) = places.get(&token.text).copied().unwrap_or((n_tokens, 0));
        if n_merges != n_pairs {
            let expected = format!("all {n_pairs} pairs of tokens that make `{}`", token.text);
            return Err(fault("model.merges", expected, n_merges.to_string()));
        }
        token.score = -(rank as f32);
    }
    Ok(())
}

fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) if pair.len() == 2 => Some((pair[0].as_str()?, pair[1].as_str()?)),
        _ => None,
    }
}

/// Whether a space is put before a text (`tokenizer.ggml.add_space_prefix`).
pub(super) fn space_prefix(json: &Value) -> Result<bool, QuantizeError> {
    let mark = SPACE_MARK.to_string();
    let mut prefix = false;
    let unknown =
        |field: &str, step: &Value| fault(field, "spaces that become `\u{2581}` and nothing else", shown(Some(step)));
    let mut has_replacement = false;
    for step in steps(json, "normalizer", "normalizers") {
        match step.get("type").and_then(Value::as_str) {
            Some("Prepend") if step["prepend"] == mark.as_str() => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == mark.as_str() => {
                has_replacement = true;
            }
            _ => return Err(unknown("normalizer", step)),
        }
    }
    for step in steps(json, "pre_tokenizer", "pretokenizers") {
        match step.get("type").and_then(Value::as_str) {
            // A cut before each space changes nothing in vocabularies whose tokens have spaces in front only, but
            // GGUF files cannot say it.
            Some("Metaspace") if step["replacement"] == mark.as_str() && step["split"] == false => {
                has_replacement = true;
                prefix |= step["prepend_scheme"].as_str() != Some("never");
            }
            // After spaces have become marks there is nothing left to cut at.
            Some("Split") if step["pattern"]["String"] == " " && has_replacement => {}
            _ => return Err(unknown("pre_tokenizer", step)),
        }
    }
    if has_replacement { Ok(prefix) } else { Err(fault("normalizer", "spaces that become `\u{2581}`", "none")) }
}

/// The steps of a sequence, or the one that there is.
fn steps<'a>(json: &'a Value, field: &str, several: &str) -> Vec<&'a Value> {
    let value = json.get(field).filter(|it| !it.is_null());
    match value.and_then(|it| it.get(several)).and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => value.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use serde_json::json;

    use super::*;
    use crate::tokenizer::vocabulary;

    fn sample() -> Value {
        json!({
            "added_tokens": [{"id": 0, "content": "<s>", "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            ]},
            "model": {"type": "BPE", "byte_fallback": true,
                "vocab": {"<s>": 0, "<0x0A>": 1, "a": 2, "b": 3, "c": 4, "bc": 5, "ab": 6, "abc": 7},
                "merges": ["b c", ["a", "b"], "a bc", "ab c"]},
        })
    }

    fn scored(json: &Value) -> Result<Vec<f32>, QuantizeError> {
        let mut tokens = vocabulary(json, 8)?;
        score(json, &mut tokens)?;
        assert_eq!(tokens[1].as_ref().unwrap().kind, TokenType::Byte);
        Ok(tokens.into_iter().flatten().map(|it| it.score).collect())
    }

    #[test]
    fn tokens_that_are_made_earlier_score_higher() {
        assert_eq!(scored(&sample()).unwrap(), [-1000.0, 0.0, -3.0, -3.0, -3.0, 0.0, -1.0, -2.0]);
    }

    #[test]
    fn merges_that_scores_cannot_say_are_refused() {
        let mut json = sample();
        json["model"]["merges"] = json!(["b c", "a b", "a bc"]);
        assert!(scored(&json).unwrap_err().to_string().contains("all 2 pairs of tokens that make `abc`"));
        json["model"]["merges"] = json!(["a bc", "b c", "a b", "ab c"]);
        assert!(scored(&json).unwrap_err().to_string().contains("`abc` again"));
        json["model"]["merges"] = json!([1]);
        assert!(scored(&json).is_err());
        json["model"]["byte_fallback"] = json!(false);
        assert!(scored(&json).is_err());
    }

    #[test]
    fn rules_for_spaces_are_read_or_refused() {
        let mut json = sample();
        assert!(space_prefix(&json).unwrap());
        json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"});
        assert!(!space_prefix(&json).unwrap());
        json["normalizer"] = json!(null);
        assert!(space_prefix(&json).is_err());
        json["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
        assert!(space_prefix(&json).unwrap());
        json["normalizer"] = json!({"type": "NFKC"});
        assert!(space_prefix(&json).unwrap_err().to_string().contains("NFKC"));
    }
}
