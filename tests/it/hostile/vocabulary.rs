//! Hostile files: vocabularies that no tokenizer can be built from.

use super::raw::{Raw, Typed, array, i32, i32s, text, texts, u32};
use super::table::{
    Expected::{NotRun, NotTokenized},
    Made::One,
    Row, row,
};

fn with(key: &str, value: Typed) -> Raw {
    Raw::policy().set(&format!("tokenizer.ggml.{key}"), value)
}

fn without(key: &str) -> Raw {
    Raw::policy().without(&format!("tokenizer.ggml.{key}"))
}

/// The bytes' tokens of the policy are not all letters: so many letters, then `more`.
fn tokens(n: u32, more: &[&str]) -> Raw {
    let letters = (0..n).map(|it| char::from_u32(0x4e00 + it).unwrap().to_string());
    let all: Vec<String> = letters.chain(more.iter().map(ToString::to_string)).collect();
    with("tokens", texts(&all)).set("tokenizer.ggml.token_type", i32s(&vec![1; all.len()]))
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(183, "no kind of tokenizer", NotTokenized("metadata `tokenizer.ggml.model`: expected a string, found nothing"),
        One(|| without("model"))),
    row(184, "a kind of tokenizer that is a number",
        NotTokenized("metadata `tokenizer.ggml.model`: expected a string, found U32(2)"),
        One(|| with("model", u32(2)))),
    row(185, "a kind of tokenizer that is not known", NotTokenized("metadata `tokenizer.ggml.model`: expected"),
        One(|| with("model", text("mystery")))),
    row(186, "a way to split that is not known", NotTokenized("tokenizer.ggml.pre `mystery`"),
        One(|| with("pre", text("mystery")))),
    row(187, "no way to split", NotTokenized("metadata `tokenizer.ggml.pre`: expected a string, found nothing"),
        One(|| without("pre"))),
    row(188, "no tokens", NotTokenized("metadata `tokenizer.ggml.tokens`: expected an array of strings, found nothing"),
        One(|| without("tokens"))),
    row(189, "tokens that are numbers",
        NotTokenized("metadata `tokenizer.ggml.tokens`: expected an array of strings, found an array of 3"),
        One(|| with("tokens", i32s(&[1, 2, 3])))),
    row(190, "an empty vocabulary", NotTokenized("no token for the byte 0x09"),
        One(|| with("tokens", texts::<&str>(&[])).set("tokenizer.ggml.token_type", i32s(&[]))
            .set("tokenizer.ggml.merges", texts::<&str>(&[])))),
    row(191, "a vocabulary in which most bytes have no token", NotTokenized("no token for the byte"),
        One(|| tokens(200, &["t", "h", "e", "th", "the"]))),
    row(192, "less kinds than tokens",
        NotTokenized("metadata `tokenizer.ggml.token_type`: expected 260 entries, as many as tokens, found 259"),
        One(|| with("token_type", i32s(&[1; 259])))),
    row(193, "more kinds than tokens",
        NotTokenized("metadata `tokenizer.ggml.token_type`: expected 260 entries, as many as tokens, found 261"),
        One(|| with("token_type", i32s(&[1; 261])))),
    row(194, "kinds in words", NotTokenized("metadata `tokenizer.ggml.token_type`: expected an array of signed"),
        One(|| with("token_type", texts(&["normal"; 260])))),
    row(195, "more tokens than the embedding has rows",
        NotRun("metadata `tokenizer.ggml.tokens`: expected at most 260 entries"),
        One(|| tokens(255, &["t", "h", "e", "th", "the", "x"]))),
    row(196, "one text for two tokens", NotTokenized("metadata `tokenizer.ggml.tokens[4]`: expected a text of its own"),
        One(|| tokens(4, &["\u{4e01}"]))),
    row(197, "no merges", NotTokenized("metadata `tokenizer.ggml.merges`: expected an array of strings, found nothing"),
        One(|| without("merges"))),
    row(198, "a merge of a piece that is no token", NotTokenized("tokenizer: "),
        One(|| with("merges", texts(&["t h", "qu x"])))),
    row(199, "a merge into a piece that is no token", NotTokenized("tokenizer: "),
        One(|| with("merges", texts(&["q u"])))),
    row(200, "a merge of one piece",
        NotTokenized("metadata `tokenizer.ggml.merges[1]`: expected two pieces with a space between them, found `th`"),
        One(|| with("merges", texts(&["t h", "th"])))),
    row(201, "an empty merge", NotTokenized("metadata `tokenizer.ggml.merges[0]`: expected two pieces"),
        One(|| with("merges", texts(&[""])))),
    row(202, "merges that are numbers", NotTokenized("metadata `tokenizer.ggml.merges`: expected an array of strings"),
        One(|| with("merges", array(4, 2, vec![0; 8])))),
    row(203, "a first token beyond the vocabulary",
        NotTokenized("metadata `tokenizer.ggml.bos_token_id`: expected a token below 260, found 260"),
        One(|| with("bos_token_id", u32(260)))),
    row(204, "a last token of 2^32 - 1",
        NotTokenized("metadata `tokenizer.ggml.eos_token_id`: expected a token below 260, found 4294967295"),
        One(|| with("eos_token_id", u32(u32::MAX)))),
    row(205, "a last token below zero", NotTokenized("metadata `tokenizer.ggml.eos_token_id`: expected a whole number"),
        One(|| with("eos_token_id", i32(-1)))),
    row(206, "a last token in words", NotTokenized("metadata `tokenizer.ggml.eos_token_id`: expected a whole number"),
        One(|| with("eos_token_id", text("<|end|>")))),
    row(207, "an end of turn beyond the vocabulary",
        NotTokenized("metadata `tokenizer.ggml.eot_token_id`: expected a token below 260"),
        One(|| with("eot_token_id", u32(1000)))),
    row(208, "whether a text begins with a token, as a number",
        NotTokenized("metadata `tokenizer.ggml.add_bos_token`: expected a bool, found U32(1)"),
        One(|| with("add_bos_token", u32(1)))),
];
