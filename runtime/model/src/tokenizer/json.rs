//! A tokenizer from a Hugging Face `tokenizer.json`: byte-level BPE, or BPE over characters with byte fallback as
//! Llama 2, Gemma and Phi-3 ship it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::added::{Strip, is_mere_text};
use super::merges::Merges;
use super::pieces::{Alphabet, Kind, Piece, SPACE_MARK, byte_of_code};
use super::pre::Words;
use super::{Contents, Model, Prefix, SpacePrefix, Tokenizer};
use crate::{ModelError, TokenId};

/// Reads the file's text.
pub(super) fn read(json: &str) -> Result<Tokenizer, ModelError> {
    let mut file: Value = serde_json::from_str(json).map_err(|it| broken(it.to_string()))?;
    let added = added_tokens(&file)?;
    file["added_tokens"] = json!([]);
    file["post_processor"] = Value::Null;
    if file["model"]["type"].as_str().is_some_and(|it| it != "BPE") {
        return Err(broken(format!("tokenizer.json: `model.type`: expected \"BPE\", found {}", file["model"]["type"])));
    }
    let byte_level = file["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
    let mut prefix = SpacePrefix::default();
    if !byte_level {
        if file["model"]["byte_fallback"].as_bool() != Some(true) {
            let reason = "tokenizer.json: expected byte-level BPE or BPE with `byte_fallback`, found neither";
            return Err(broken(reason.into()));
        }
        prefix = take_spaces(&mut file)?;
    }
    let steering = added.iter().map(|it| it.text.as_str()).filter(|it| !is_mere_text(it));
    withhold(&mut file["model"], &steering.collect());
    let words: tokenizers::Tokenizer =
        file.to_string().parse().map_err(|it: tokenizers::Error| broken(it.to_string()))?;
    let alphabet = if byte_level { Alphabet::Bytes } else { Alphabet::Characters };
    let (texts, pieces, strips) = pieces(&words, &added, alphabet)?;
    let style = if byte_level { Words::Bytes } else { Words::Characters };
    let model = Model::Merges(Box::new(Merges::new(words, style)?));
    Tokenizer::assemble(Contents { model, texts, pieces, strips, prefix, alphabet })
}

fn broken(reason: String) -> ModelError {
    ModelError::Tokenizer { reason }
}

struct Added {
    text: String,
    id: TokenId,
    kind: Kind,
    strip: Strip,
}

fn added_tokens(file: &Value) -> Result<Vec<Added>, ModelError> {
    let read = |token: &Value| {
        let flag = |key: &str| token[key].as_bool() == Some(true);
        let id = token["id"].as_u64().and_then(|it| u32::try_from(it).ok());
        let (Some(id), Some(text)) = (id, token["content"].as_str()) else {
            return Err(broken(format!("added token without id or content: {token}")));
        };
        if flag("single_word") {
            return Err(broken(format!("added token `{text}`: `single_word` is not supported")));
        }
        let kind = if flag("special") { Kind::Control } else { Kind::UserDefined };
        let strip = Strip { left: flag("lstrip"), right: flag("rstrip") };
        Ok(Added { text: text.into(), id, kind, strip })
    };
    file["added_tokens"].as_array().into_iter().flatten().map(read).collect()
}

/// Takes the rules for spaces out of the file, because a text that added tokens take apart is still one text.
fn take_spaces(file: &mut Value) -> Result<SpacePrefix, ModelError> {
    let mark = SPACE_MARK.to_string();
    let unknown = |field: &str, found: &Value| broken(format!("tokenizer.json: `{field}`: cannot follow {found}"));
    let mut prefix = SpacePrefix::default();
    let normalizer = file["normalizer"].take();
    for step in steps(&normalizer, "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == mark.as_str() => prefix.when = Prefix::AfterAdded,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == mark.as_str() => {}
            _ => return Err(unknown("normalizer", step)),
        }
    }
    let cut = file["pre_tokenizer"].take();
    for step in steps(&cut, "pretokenizers") {
        match step["type"].as_str() {
            Some("Metaspace") if step["replacement"] == mark.as_str() => {
                let old = if step["add_prefix_space"].as_bool() == Some(false) { "never" } else { "always" };
                prefix.when = match step["prepend_scheme"].as_str().unwrap_or(old) {
                    "always" => Prefix::AfterAdded,
                    "first" => Prefix::First,
                    _ => prefix.when,
                };
                prefix.unless_space = true;
                if step["split"].as_bool() != Some(false) {
                    let pattern = json!({"String": mark});
                    let behavior = "MergedWithNext";
                    file["pre_tokenizer"] =
                        json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false});
                }
            }
            // After spaces have become marks there is nothing left to cut at.
            Some("Split") if step["pattern"]["String"] == " " => {}
            _ => return Err(unknown("pre_tokenizer", step)),
        }
    }
    Ok(prefix)
}

/// The steps of a sequence, or the one that there is.
fn steps<'a>(value: &'a Value, several: &str) -> Vec<&'a Value> {
    match value[several].as_array() {
        Some(steps) => steps.iter().collect(),
        None => Some(value).filter(|it| !it.is_null()).into_iter().collect(),
    }
}

/// Takes tokens out of a model, so that no merge makes them.
fn withhold(model: &mut Value, texts: &HashSet<&str>) {
    model["unk_token"] = Value::Null;
    if let Some(vocab) = model["vocab"].as_object_mut() {
        vocab.retain(|text, _| !texts.contains(text.as_str()));
    }
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|merge| {
            let pair = match merge {
                Value::String(text) => text.split_once(' '),
                _ => merge[0].as_str().zip(merge[1].as_str()),
            };
            pair.is_none_or(|(a, b)| {
                !texts.contains(a) && !texts.contains(b) && !texts.contains(format!("{a}{b}").as_str())
            })
        });
    }
}

/// Text, piece and white space of each token, by id.
type Tokens = (Vec<String>, Vec<Piece>, Vec<Strip>);

fn pieces(words: &tokenizers::Tokenizer, added: &[Added], alphabet: Alphabet) -> Result<Tokens, ModelError> {
    let kind = |text: &str| match alphabet {
        Alphabet::Characters if byte_of_code(text).is_some() => Kind::Byte,
        _ => Kind::Normal,
    };
    let plain = words.get_vocab(false).into_iter();
    let mut by_id: HashMap<u32, (String, Kind, Strip)> =
        plain.map(|(text, id)| (id, (text.clone(), kind(&text), Strip::default()))).collect();
    for token in added {
        by_id.insert(token.id, (token.text.clone(), token.kind, token.strip));
    }
    let n_ids = by_id.keys().max().map_or(0, |it| *it as usize + 1);
    if n_ids > by_id.len().saturating_mul(2).saturating_add(1024) {
        return Err(broken(format!("token ids reach {n_ids} with {} tokens", by_id.len())));
    }
    let mut tokens = (Vec::new(), Vec::new(), Vec::new());
    for id in 0..n_ids as u32 {
        let unused = || (String::new(), Kind::Unused, Strip::default());
        let (text, kind, strip) = by_id.remove(&id).unwrap_or_else(unused);
        tokens.1.push(Piece::new(&text, kind, alphabet));
        tokens.0.push(text);
        tokens.2.push(strip);
    }
    Ok(tokens)
}
