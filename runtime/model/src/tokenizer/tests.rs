//! Round trips, added tokens, and the same vocabulary read from both kinds of files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use fsq_blocks::Format;
use fsq_gguf::Value;

use super::*;
use crate::fixtures::{TINY, gguf, tensors};

fn from_gguf() -> Tokenizer {
    Tokenizer::from_gguf(&gguf(&TINY, &tensors(&TINY), Format::F16)).unwrap()
}

const TEXTS: &[&str] = &[
    "",
    "the thing, the king",
    "  two  spaces\n\n\ttabs\r\n and 12345 don't",
    "<action>8 - 7</action><|end|>",
    "naïve Ünïcödé — 数学 🙂🙂 \u{0}\u{7f}",
];

#[test]
fn text_comes_back_whatever_it_is() {
    let tokenizer = from_gguf();
    for text in TEXTS {
        for special in [Special::Parse, Special::Escape] {
            let tokens = tokenizer.encode(text, special);
            assert_eq!(tokenizer.decode_with_special(&tokens), *text);
            let mut stream = TextStream::default();
            let mut pieces: String = tokens.iter().map(|it| stream.push(&tokenizer, *it)).collect();
            pieces.push_str(&stream.finish());
            assert_eq!(pieces, tokenizer.decode(&tokens));
        }
    }
}

#[test]
fn merges_apply_in_order() {
    let tokenizer = from_gguf();
    let pieces = |text: &str| -> Vec<String> {
        let tokens = tokenizer.encode(text, Special::Parse);
        tokens.iter().map(|it| tokenizer.decode_with_special(&[*it])).collect()
    };
    assert_eq!(pieces("the thing"), ["the", " ", "th", "ing"]);
    assert_eq!(pieces("in the"), ["in", " the"]);
    assert_eq!(pieces("<|bos|>x<action>"), ["<|bos|>", "x", "<action>"]);
}

#[test]
fn added_tokens_are_found_only_when_asked_for() {
    let tokenizer = from_gguf();
    let text = "a<action>b<|end|>";
    assert_eq!(tokenizer.encode(text, Special::Parse), [97, 261, 98, 263]);
    let escaped = tokenizer.encode(text, Special::Escape);
    assert!(escaped.iter().all(|it| *it < 261) && escaped.len() > 10);
    assert_eq!(tokenizer.decode(&[97, 261, 98, 263]), "a<action>b");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(262), Some(263)));
    assert!(tokenizer.is_end(263) && !tokenizer.is_end(262) && tokenizer.is_control(262) && !tokenizer.is_control(261));
    assert_eq!(tokenizer.token_id("<action>"), Some(261));
    assert_eq!(tokenizer.token_id(" the"), Some(258));
    assert_eq!(tokenizer.token_bytes(258), Some(b" the".as_slice()));
    assert_eq!(tokenizer.token_bytes(9999), None);
}

#[test]
fn half_a_character_waits_for_its_end() {
    let tokenizer = from_gguf();
    let mut stream = TextStream::default();
    let pushed: Vec<String> = [0xF0u32, 0x9F, 0x99, 0x82, 0x41].map(|it| stream.push(&tokenizer, it)).to_vec();
    assert_eq!(pushed, ["", "", "", "🙂", "A"]);
    assert_eq!(stream.push(&tokenizer, 0xE2), "");
    assert_eq!(stream.push(&tokenizer, 0x41), "\u{FFFD}A");
    stream.push(&tokenizer, 0xE2);
    assert_eq!(stream.finish(), "\u{FFFD}");
}

/// The same vocabulary as a `tokenizer.json`, with ids beyond the model's vocabulary for added tokens.
fn json() -> String {
    let vocab = |id: u32| {
        let text: String = match id {
            0..=255 => char_of_byte(id as u8).to_string(),
            _ => ["th", "the", "\u{120}the", "in", "ing"][id as usize - 256].into(),
        };
        (text, serde_json::Value::from(id))
    };
    let vocab: serde_json::Map<String, serde_json::Value> = (0..261).map(vocab).collect();
    let added = |id: u32, content: &str, special: bool| {
        serde_json::json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(261, "<action>", false), added(262, "<|bos|>", true), added(263, "<|end|>", true)],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e", "\u{120} the", "i n", "in g"]},
    })
    .to_string()
}

#[test]
fn both_files_give_the_same_tokens() {
    let json = Tokenizer::from_json(&json()).unwrap().with_bos(262).with_eos(263);
    let gguf = from_gguf();
    assert_eq!((json.bos(), json.eos(), json.vocab()), (gguf.bos(), gguf.eos(), gguf.vocab()));
    for text in TEXTS {
        for special in [Special::Parse, Special::Escape] {
            assert_eq!(json.encode(text, special), gguf.encode(text, special), "{text:?}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let change = |key: &str, value: Value| {
        let mut file = gguf(&TINY, &tensors(&TINY), Format::F16);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("changed.gguf");
        let mut metadata = file.metadata().clone();
        metadata.insert(key, value);
        fsq_gguf::rewrite_metadata(&file, &metadata, &path).unwrap().publish().unwrap();
        file = Gguf::open(&path).unwrap();
        Tokenizer::from_gguf(&file).unwrap_err().to_string()
    };
    let unknown = change("tokenizer.ggml.pre", Value::String("klingon".into()));
    assert!(unknown.contains("klingon") && unknown.contains("llama-bpe") && unknown.contains("qwen2"), "{unknown}");
    assert!(change("tokenizer.ggml.model", Value::String("bert".into())).contains("SentencePiece"));
    assert!(change("tokenizer.ggml.eos_token_id", Value::U32(9000)).contains("a token below 264"));
    assert!(change("tokenizer.ggml.token_type", Value::from(vec![1i32; 3])).contains("as many as tokens"));
    assert!(change("tokenizer.ggml.merges", Value::from(vec!["nospace".to_string()])).contains("merges[0]"));
    let missing = json().replace("\"t\":116,", "");
    assert!(Tokenizer::from_json(&missing).is_err());
    assert!(Tokenizer::from_json("{}").is_err());
}

/// Cuts that differ between the rules: digits, case of contractions, line ends.
#[test]
fn every_pre_tokenizer_cuts_as_its_tag_says() {
    let cut = |tag: &str, text: &str| -> Vec<String> {
        let merges = byte_merges(tag);
        let encoding = merges.words().encode(text, false).unwrap();
        let mut cuts: Vec<String> = Vec::new();
        let mut last = None;
        // Without merges every byte is a token, so words are told apart by their number.
        for (word, token) in encoding.get_word_ids().iter().zip(encoding.get_ids()) {
            if *word != last {
                cuts.push(String::new());
                last = *word;
            }
            cuts.last_mut().unwrap().push(char::from(*token as u8));
        }
        cuts
    };
    assert_eq!(cut("gpt-2", "I'm 12345 it'S\n\n x"), ["I", "'m", " 12345", " it", "'", "S", "\n\n", " x"]);
    assert_eq!(cut("llama-bpe", "I'm 12345 it'S\n\n x"), ["I", "'m", " ", "123", "45", " it", "'S", "\n\n", " x"]);
    assert_eq!(cut("qwen2", "a 123\n\n x"), ["a", " ", "1", "2", "3", "\n\n", " x"]);
    assert_eq!(cut("smollm", "a 123 b"), ["a", " ", "1", "2", "3", " b"]);
}

/// A vocabulary of single bytes, cut by the rule of a tag.
fn byte_merges(tag: &str) -> Merges {
    let pre = pre::find(tag).unwrap();
    let is_bytes = pre.words == pre::Words::Bytes;
    let text = |byte: u8| if is_bytes { char_of_byte(byte).to_string() } else { format!("<0x{byte:02X}>") };
    let texts: Vec<String> = (0..=255).map(text).collect();
    let (kind, alphabet) = if is_bytes { (Kind::Normal, Alphabet::Bytes) } else { (Kind::Byte, Alphabet::Characters) };
    let pieces: Vec<Piece> = texts.iter().map(|it| Piece::new(it, kind, alphabet)).collect();
    Merges::from_gguf(&texts, &pieces, &[], pre).unwrap()
}

#[test]
fn every_tag_of_the_table_compiles_and_loses_nothing() {
    for tag in Tokenizer::pre_tokenizers() {
        let merges = byte_merges(tag);
        for text in TEXTS {
            let mut tokens = Vec::new();
            merges.encode(text, &mut tokens);
            let bytes: Vec<u8> = tokens.iter().map(|it| *it as u8).collect();
            let text = if pre::find(tag).unwrap().words == pre::Words::Bytes {
                (*text).to_string()
            } else {
                text.replace(' ', "\u{2581}")
            };
            assert_eq!(String::from_utf8(bytes).unwrap(), text, "{tag}");
        }
    }
}
