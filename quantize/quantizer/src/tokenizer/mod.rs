//! A Hugging Face `tokenizer.json`, or SentencePiece's `tokenizer.model` beside it, as GGUF metadata; does not
//! tokenize.
//!
//! Follows `get_vocab_base`, `_create_vocab_sentencepiece` and `SpecialVocab` of llama.cpp's converter. What could
//! not be said in a GGUF file, and would silently tokenize otherwise, is refused by name.

mod characters;
mod pre;
mod sentencepiece;

use fsq_checkpoint::Checkpoint;
use fsq_gguf::Metadata;
use serde_json::Value;

use crate::QuantizeError;
use sentencepiece::SentencePieceModel;

/// What a token is, by llama.cpp's numbers (`llama_token_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The character that stands for a space in vocabularies of SentencePiece.
const SPACE_MARK: char = '\u{2581}';
/// The score of padding, and of tokens that are found before anything is merged.
const SCORE_OF_PADDING: f32 = -10_000.0;
const SCORE_OF_ADDED: f32 = -1000.0;

/// One token.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    kind: TokenType,
    /// Only SentencePiece's models have one.
    score: f32,
}

/// What a file says about words, apart from its tokens.
struct Words {
    /// `tokenizer.ggml.model`.
    model: &'static str,
    /// `tokenizer.ggml.pre`.
    pre: &'static str,
    /// `a b` each; only for models that merge by rank.
    merges: Option<Vec<String>>,
    /// Further keys under `tokenizer.ggml`.
    more: Vec<(&'static str, fsq_gguf::Value)>,
    adds_bos: bool,
}

/// Sets the keys under `tokenizer`.
pub(crate) fn write(checkpoint: &Checkpoint, metadata: &mut Metadata) -> Result<(), QuantizeError> {
    let json: Value =
        serde_json::from_str(&checkpoint.tokenizer_json).map_err(|it| fault("", "JSON", it.to_string()))?;
    let n_rows = checkpoint.dimensions.vocab;
    let (mut tokens, words) = if is_byte_level(&json) {
        let pre = pre::name(&json)?;
        let merges = Some(merges(&json)?);
        let words = Words { model: "gpt2", pre, merges, more: Vec::new(), adds_bos: adds_bos(&json) };
        (vocabulary(&json, n_rows)?, words)
    } else {
        by_characters(checkpoint, &json)?
    };
    let tokens = pad(&mut tokens, n_rows);
    metadata.insert("tokenizer.ggml.model", words.model);
    metadata.insert("tokenizer.ggml.pre", words.pre);
    metadata.insert("tokenizer.ggml.token_type", tokens.iter().map(|it| it.kind as i32).collect::<Vec<i32>>());
    match words.merges {
        Some(merges) => metadata.insert("tokenizer.ggml.merges", merges),
        None => metadata.insert("tokenizer.ggml.scores", tokens.iter().map(|it| it.score).collect::<Vec<f32>>()),
    };
    metadata.insert("tokenizer.ggml.tokens", tokens.into_iter().map(|it| it.text).collect::<Vec<String>>());
    for (key, value) in words.more {
        metadata.insert(format!("tokenizer.ggml.{key}"), value);
    }
    write_special(checkpoint, words.adds_bos, metadata)
}

/// The keys that name tokens, and the chat template.
fn write_special(checkpoint: &Checkpoint, adds_bos: bool, metadata: &mut Metadata) -> Result<(), QuantizeError> {
    let n_tokens = checkpoint.dimensions.vocab;
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

fn is_byte_level(json: &Value) -> bool {
    json.get("pre_tokenizer").is_some_and(|it| it.to_string().contains("\"ByteLevel\""))
}

/// Tokens and words of a vocabulary of characters: by SentencePiece's own file where it is there, since that has the
/// scores, and otherwise by the merges that Hugging Face made of them.
fn by_characters(checkpoint: &Checkpoint, json: &Value) -> Result<(Vec<Option<Token>>, Words), QuantizeError> {
    let n_rows = checkpoint.dimensions.vocab;
    let path = checkpoint.path.join("tokenizer.model");
    if path.is_file() {
        let bytes =
            std::fs::read(&path).map_err(|source| QuantizeError::TokenizerFile { path: path.clone(), source })?;
        let model = SentencePieceModel::parse(&bytes).map_err(|it| it.into_error(&path))?;
        let (mut tokens, mut words) = model.into_words(n_rows).map_err(|it| it.into_error(&path))?;
        put_added(json, &mut tokens, true)?;
        words.adds_bos = adds_bos(json);
        return Ok((tokens, words));
    }
    let mut tokens = vocabulary(json, n_rows)?;
    let space_prefix = characters::space_prefix(json)?;
    characters::score(json, &mut tokens)?;
    let mut more = vec![("add_space_prefix", space_prefix.into())];
    let unknown = json.pointer("/model/unk_token").and_then(Value::as_str);
    let unknown = tokens.iter().position(|it| it.as_ref().is_some_and(|it| Some(it.text.as_str()) == unknown));
    more.extend(unknown.and_then(|it| u32::try_from(it).ok()).map(|it| ("unknown_token_id", it.into())));
    Ok((tokens, Words { model: "llama", pre: "default", merges: None, more, adds_bos: adds_bos(json) }))
}

fn fault(field: &str, expected: impl Into<String>, found: impl Into<String>) -> QuantizeError {
    QuantizeError::Tokenizer { field: field.into(), expected: expected.into(), found: found.into() }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".into(), |it| it.to_string().chars().take(80).collect())
}

/// Every token by id, as many as the embedding has rows.
fn vocabulary(json: &Value, n_rows: usize) -> Result<Vec<Option<Token>>, QuantizeError> {
    let kind = json.pointer("/model/type");
    if kind.and_then(Value::as_str) != Some("BPE") {
        return Err(fault("model.type", "\"BPE\"", shown(kind)));
    }
    let vocab = json.pointer("/model/vocab");
    let vocab = vocab.and_then(Value::as_object).ok_or_else(|| fault("model.vocab", "an object", shown(vocab)))?;
    let mut tokens: Vec<Option<Token>> = vec![None; n_rows];
    for (text, id) in vocab {
        let token = Token { text: text.clone(), kind: TokenType::Normal, score: SCORE_OF_ADDED };
        put("model.vocab", token, Some(id), &mut tokens, false)?;
    }
    put_added(json, &mut tokens, false)?;
    Ok(tokens)
}

fn put_added(json: &Value, tokens: &mut [Option<Token>], replaces: bool) -> Result<(), QuantizeError> {
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let text = token.get("content");
        let text = text.and_then(Value::as_str).ok_or_else(|| fault("added_tokens", "a `content`", shown(text)))?;
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let kind = if special || looks_special(text) { TokenType::Control } else { TokenType::UserDefined };
        let token_text = Token { text: text.into(), kind, score: SCORE_OF_ADDED };
        put("added_tokens", token_text, token.get("id"), tokens, replaces)?;
    }
    // Spaces of tokens that are found before anything else stand there as spaces, as the converter writes them.
    for token in tokens.iter_mut().flatten().filter(|it| it.kind == TokenType::UserDefined && !is_byte_level(json)) {
        token.text = token.text.replace(SPACE_MARK, " ");
    }
    Ok(())
}

fn put(
    field: &str,
    token: Token,
    id: Option<&Value>,
    tokens: &mut [Option<Token>],
    replaces: bool,
) -> Result<(), QuantizeError> {
    let n_rows = tokens.len();
    let field = format!("{field} `{}`", token.text);
    let row = id.and_then(Value::as_u64).and_then(|it| usize::try_from(it).ok()).filter(|it| *it < n_rows);
    let row = row.ok_or_else(|| fault(&field, format!("an id below the {n_rows} rows of the embedding"), shown(id)))?;
    match &tokens[row] {
        Some(other) if other.text != token.text && !replaces => {
            Err(fault(&field, "an id of its own", format!("{row}, that of `{}`", other.text)))
        }
        _ => {
            tokens[row] = Some(token);
            Ok(())
        }
    }
}

/// Fills rows that no token has.
fn pad(tokens: &mut [Option<Token>], n_rows: usize) -> Vec<Token> {
    let padded = tokens.iter_mut().enumerate().take(n_rows);
    let padding = |id| Token { text: format!("[PAD{id}]"), kind: TokenType::Unused, score: SCORE_OF_PADDING };
    padded.map(|(id, it)| it.take().unwrap_or_else(|| padding(id))).collect()
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
        let tokens = pad(&mut vocabulary(&sample(), 7).unwrap(), 7);
        let tokens: Vec<(String, TokenType)> = tokens.into_iter().map(|it| (it.text, it.kind)).collect();
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
    fn a_leading_special_token_is_seen() {
        let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]});
        assert!(adds_bos(&json!({"post_processor": template})));
        assert!(adds_bos(&json!({"post_processor": {"type": "Sequence", "processors": [template]}})));
        assert!(!adds_bos(&json!({"post_processor": {"type": "ByteLevel"}})));
        assert!(!adds_bos(&json!({})));
    }
}
