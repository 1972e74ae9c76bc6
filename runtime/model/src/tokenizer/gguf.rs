//! A tokenizer from the metadata of a GGUF file (`tokenizer.ggml.*`).
//!
//! Source of keys and defaults: llama.cpp `src/llama-vocab.cpp`, `llama_vocab::impl::load`.

use std::collections::HashMap;

use fsq_gguf::{Array, Metadata, Value};

use super::added::strip_by_name;
use super::merges::Merges;
use super::pieces::{Alphabet, Kind, Piece};
use super::pre::{self, Words};
use super::sentencepiece::SentencePiece;
use super::unigram::{Spaces, Unigram};
use super::{Contents, Model, Prefix, SpacePrefix, Tokenizer};
use crate::{ModelError, TokenId};

/// What a vocabulary's model implies where the file is silent.
struct Defaults {
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    adds_bos: bool,
}

pub(super) fn read(fields: &Metadata) -> Result<Tokenizer, ModelError> {
    let texts: &[String] = fields.need("tokenizer.ggml.tokens")?;
    // An empty text would be found everywhere; llama.cpp names such tokens, and so nobody writes them.
    let texts = texts.iter().enumerate();
    let texts: Vec<String> =
        texts.map(|(id, it)| if it.is_empty() { format!("[EMPTY_{id}]") } else { it.clone() }).collect();
    let kinds: Vec<i32> = match fields.get("tokenizer.ggml.token_type") {
        Some(_) => fields.need("tokenizer.ggml.token_type")?,
        None => vec![1; texts.len()],
    };
    as_many("tokenizer.ggml.token_type", kinds.len(), texts.len())?;
    let kinds: Vec<Kind> = kinds.into_iter().map(Kind::from_gguf).collect();
    one_each(&texts, &kinds)?;
    let (contents, defaults) = match fields.need("tokenizer.ggml.model")? {
        "gpt2" => by_rank(fields, fields.need("tokenizer.ggml.pre")?, texts, &kinds)?,
        "gemma4" => by_rank(fields, "gemma4", texts, &kinds)?,
        "llama" => by_score(fields, texts, &kinds)?,
        "t5" => by_likelihood(fields, texts, &kinds)?,
        other => {
            return Err(ModelError::Metadata {
                field: "tokenizer.ggml.model".into(),
                expected: "`gpt2` or `gemma4` (BPE), `llama` (SentencePiece) or `t5` (unigram)".into(),
                found: format!("`{other}`"),
            });
        }
    };
    let n_tokens = contents.pieces.len();
    let known = |id: Option<TokenId>| id.filter(|it| (*it as usize) < n_tokens);
    let mut tokenizer = Tokenizer::assemble(contents)?;
    tokenizer.bos = token_field(fields, "bos", n_tokens)?.or(known(defaults.bos));
    if let Some(eos) = token_field(fields, "eos", n_tokens)?.or(known(defaults.eos)) {
        tokenizer = tokenizer.with_eos(eos);
    }
    for key in ["eot", "eom"] {
        if let Some(id) = token_field(fields, key, n_tokens)?.filter(|it| !tokenizer.ends.contains(it)) {
            tokenizer.ends.push(id);
        }
    }
    let adds_bos = flag(fields, "add_bos_token", defaults.adds_bos)?;
    tokenizer.adds_bos = tokenizer.bos.is_some() && adds_bos;
    Ok(tokenizer)
}

fn by_rank(
    fields: &Metadata,
    tag: &str,
    texts: Vec<String>,
    kinds: &[Kind],
) -> Result<(Contents, Defaults), ModelError> {
    let pre = pre::find(tag)?;
    let alphabet = if pre.words == Words::Bytes { Alphabet::Bytes } else { Alphabet::Characters };
    let pieces = pieces(&texts, kinds, alphabet);
    let merges: &[String] = fields.need("tokenizer.ggml.merges")?;
    let model = Model::Merges(Box::new(Merges::from_gguf(&texts, &pieces, merges, pre)?));
    let contents = contents(fields, tag, model, texts, pieces, SpacePrefix::default(), alphabet);
    Ok((contents, Defaults { bos: None, eos: None, adds_bos: pre.adds_bos }))
}

fn by_score(fields: &Metadata, texts: Vec<String>, kinds: &[Kind]) -> Result<(Contents, Defaults), ModelError> {
    let alphabet = Alphabet::Characters;
    let pieces = pieces(&texts, kinds, alphabet);
    let model = Model::SentencePiece(SentencePiece::new(&texts, &pieces, &scores(fields, texts.len())?)?);
    let prefix = space_prefix(fields, true, false)?;
    let contents = contents(fields, "", model, texts, pieces, prefix, alphabet);
    Ok((contents, Defaults { bos: Some(1), eos: Some(2), adds_bos: true }))
}

fn by_likelihood(fields: &Metadata, texts: Vec<String>, kinds: &[Kind]) -> Result<(Contents, Defaults), ModelError> {
    let alphabet = Alphabet::Characters;
    let pieces = pieces(&texts, kinds, alphabet);
    let prefix = space_prefix(fields, false, true)?;
    let merge = flag(fields, "remove_extra_whitespaces", false)?;
    let spaces = Spaces { prefix: prefix.when != Prefix::Never, merge };
    let charsmap: Option<Vec<u8>> = match fields.get("tokenizer.ggml.precompiled_charsmap") {
        None => None,
        Some(Value::Array(Array::U8(bytes))) => Some(bytes.clone()),
        Some(Value::Array(Array::I8(bytes))) => Some(bytes.iter().map(|it| it.cast_unsigned()).collect()),
        Some(_) => {
            return Err(ModelError::Metadata {
                field: "tokenizer.ggml.precompiled_charsmap".into(),
                expected: "an array of bytes".into(),
                found: "another type".into(),
            });
        }
    };
    let unknown = token_field(fields, "unknown", texts.len())?.unwrap_or(2);
    let scores = scores(fields, texts.len())?;
    let model = Unigram::new(&texts, &pieces, &scores, unknown, spaces, charsmap.as_deref())?;
    let contents = contents(fields, "", Model::Unigram(model), texts, pieces, prefix, alphabet);
    Ok((contents, Defaults { bos: None, eos: Some(1), adds_bos: false }))
}

fn pieces(texts: &[String], kinds: &[Kind], alphabet: Alphabet) -> Vec<Piece> {
    texts.iter().zip(kinds).map(|(text, kind)| Piece::new(text, *kind, alphabet)).collect()
}

fn contents(
    fields: &Metadata,
    pre: &str,
    model: Model,
    texts: Vec<String>,
    pieces: Vec<Piece>,
    prefix: SpacePrefix,
    alphabet: Alphabet,
) -> Contents {
    let name = fields.str("general.name").unwrap_or_default();
    let architecture = fields.str("general.architecture").unwrap_or_default();
    let tokens = texts.iter().zip(&pieces);
    let strips = tokens.map(|(text, piece)| strip_by_name(name, architecture, pre, text, piece.kind)).collect();
    Contents { model, texts, pieces, strips, prefix, alphabet }
}

fn space_prefix(fields: &Metadata, default: bool, by_model: bool) -> Result<SpacePrefix, ModelError> {
    let adds = flag(fields, "add_space_prefix", default)?;
    Ok(SpacePrefix { when: if adds { Prefix::AfterAdded } else { Prefix::Never }, unless_space: false, by_model })
}

/// By token id. Files may hold them as whole numbers.
fn scores(fields: &Metadata, n_tokens: usize) -> Result<Vec<f32>, ModelError> {
    let key = "tokenizer.ggml.scores";
    let scores: Vec<f32> = match fields.get(key) {
        Some(Value::Array(Array::I32(scores))) => scores.iter().map(|it| *it as f32).collect(),
        _ => fields.need::<&[f32]>(key)?.to_vec(),
    };
    as_many(key, scores.len(), n_tokens)?;
    Ok(scores)
}

fn as_many(field: &str, found: usize, n_tokens: usize) -> Result<(), ModelError> {
    if found == n_tokens {
        return Ok(());
    }
    Err(ModelError::Metadata {
        field: field.into(),
        expected: format!("{n_tokens} entries, as many as tokens"),
        found: found.to_string(),
    })
}

/// Whether each word of the vocabulary is there once: which of two ids is meant could not be told.
fn one_each(texts: &[String], kinds: &[Kind]) -> Result<(), ModelError> {
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(texts.len());
    for (id, (text, kind)) in texts.iter().zip(kinds).enumerate() {
        if let Some(other) = ids.insert(text, id).filter(|_| *kind == Kind::Normal) {
            return Err(ModelError::Metadata {
                field: format!("tokenizer.ggml.tokens[{id}]"),
                expected: "a text of its own".into(),
                found: format!("`{text}`, the text of token {other}"),
            });
        }
    }
    Ok(())
}

/// A switch that a file may leave out.
fn flag(fields: &Metadata, name: &str, default: bool) -> Result<bool, ModelError> {
    let key = format!("tokenizer.ggml.{name}");
    Ok(fields.get(&key).map_or(Ok(default), |_| fields.need(&key))?)
}

/// The token that a field names, if the file has the field.
fn token_field(fields: &Metadata, name: &str, n_tokens: usize) -> Result<Option<TokenId>, ModelError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(token) = fields.get(&key).map(|_| fields.need::<u32>(&key)).transpose()? else { return Ok(None) };
    if (token as usize) < n_tokens {
        return Ok(Some(token));
    }
    let expected = format!("a token below {n_tokens}");
    Err(ModelError::Metadata { field: key, expected, found: token.to_string() })
}
