//! Added tokens: which there are, where text holds them, and which of them end a turn. Knows no merges.
//!
//! Source of names and attributes: llama.cpp `src/llama-vocab.cpp`, the end of `llama_vocab::impl::load`.

use super::Special;
use super::pieces::{Kind, SPACE_MARK};
use crate::TokenId;

/// Texts of tokens that end a text or a turn under whatever key a file names them, and whatever kind it says.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];
/// Tokens for filling in the middle of code. Of each list the first that a vocabulary has steers; those of the last
/// three also end a text.
const MIDDLE_TEXTS: &[&[&str]] = &[
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
        "<PRE>",
        "\u{2581}<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
        "<SUF>",
        "\u{2581}<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
        "<MID>",
        "\u{2581}<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];
/// How many of [`MIDDLE_TEXTS`] do not end a text.
const N_GOING_ON: usize = 3;
/// Marks of gpt-oss that are part of what it says.
const SHOWN_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Which tokens end a text or turn, by their texts; corrects kinds that converters got wrong.
///
/// `id_of` finds a token by its text as the file has it.
pub(super) fn ends(id_of: impl Fn(&str) -> Option<TokenId>, kinds: &mut [Kind]) -> Vec<TokenId> {
    let mut ends: Vec<TokenId> = Vec::new();
    let mut set = |id: TokenId, kind: Kind| kinds[id as usize] = kind;
    for (index, texts) in MIDDLE_TEXTS.iter().enumerate() {
        let Some(id) = texts.iter().find_map(|it| id_of(it)) else { continue };
        set(id, Kind::Control);
        if index >= N_GOING_ON {
            ends.push(id);
        }
    }
    for id in END_TEXTS.iter().filter_map(|it| id_of(it)) {
        set(id, Kind::Control);
        ends.push(id);
    }
    for id in SHOWN_TEXTS.iter().filter_map(|it| id_of(it)) {
        set(id, Kind::UserDefined);
    }
    let has = |text: &str| id_of(text).is_some();
    // Where a turn ends with other tokens, `<|end|>` only ends a part of it.
    let ends_otherwise = (has("<|return|>") && (has("<|call|>") || has("<|calls|>")))
        || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
    if let Some(id) = id_of("<|end|>").filter(|_| ends_otherwise) {
        ends.retain(|it| *it != id);
        set(id, Kind::UserDefined);
    }
    // Gemma 4 writes `</s>` as text.
    if let Some(id) = id_of("</s>").filter(|_| has("<|tool_response>")) {
        ends.retain(|it| *it != id);
        set(id, Kind::Normal);
    }
    ends
}

/// Which white space an added token takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strip {
    pub(super) left: bool,
    pub(super) right: bool,
}

/// What the file's names say about white space around added tokens: GGUF has no field for it.
pub(super) fn strip_by_name(name: &str, architecture: &str, pre: &str, text: &str, kind: Kind) -> Strip {
    let name = name.to_ascii_lowercase();
    let pre_masks = ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|it| pre.contains(it));
    if pre_masks || ["nomic-bert-moe", "jina-bert-v3"].iter().any(|it| architecture.contains(it)) {
        return Strip { left: text == "<mask>", right: false };
    }
    if name.contains("phi-3") || name.contains("phi3") {
        let right = kind.is_added() && !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
        return Strip { left: false, right };
    }
    Strip { left: name.contains("modern-bert") && text == "[MASK]", right: false }
}

/// White space as C's `isspace` has it.
pub(super) fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}

/// Whether an added token cannot steer, so that it is found in any text: white space, or a single character.
pub(super) fn is_mere_text(text: &str) -> bool {
    text.chars().nth(1).is_none() || text.chars().all(|it| it.is_whitespace() || it == SPACE_MARK)
}

/// One added token.
#[derive(Clone, Debug)]
pub(super) struct AddedToken {
    pub(super) text: String,
    pub(super) id: TokenId,
    pub(super) strip: Strip,
    is_mere_text: bool,
}

/// All added tokens, to be found in text.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// By first byte, longest text first.
    by_first: Vec<Vec<AddedToken>>,
}

impl AddedTokens {
    /// Texts must not be empty.
    pub(super) fn new(tokens: impl Iterator<Item = (String, TokenId, Kind, Strip)>) -> Self {
        let mut by_first: Vec<Vec<AddedToken>> = vec![Vec::new(); 256];
        for (text, id, kind, strip) in tokens {
            let Some(first) = text.bytes().next() else { continue };
            let is_mere_text = kind == Kind::UserDefined && is_mere_text(&text);
            by_first[usize::from(first)].push(AddedToken { text, id, strip, is_mere_text });
        }
        for tokens in &mut by_first {
            tokens.sort_by_key(|it| std::cmp::Reverse(it.text.len()));
        }
        Self { by_first }
    }

    /// The longest added token that a text begins with.
    pub(super) fn at(&self, text: &[u8], special: Special) -> Option<&AddedToken> {
        let tokens = &self.by_first[usize::from(*text.first()?)];
        let mut found = tokens.iter().filter(|it| special == Special::Parse || it.is_mere_text);
        found.find(|it| text.starts_with(it.text.as_bytes()))
    }

    /// The token with exactly this text.
    pub(super) fn id(&self, text: &str) -> Option<TokenId> {
        let tokens = &self.by_first[usize::from(*text.as_bytes().first()?)];
        tokens.iter().find(|it| it.text == text).map(|it| it.id)
    }
}
