//! How text is cut into words before byte pairs are merged, by the tag that GGUF files carry. Knows no vocabulary.
//!
//! Source of tags and patterns: llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_bpe`.

use crate::ModelError;

/// One row: how text is cut, and whether a word that is itself in the vocabulary skips the merges.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    tags: &'static [&'static str],
    /// Applied one after the other; each match becomes a piece of its own.
    pub(super) patterns: &'static [&'static str],
    pub(super) ignore_merges: bool,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN_2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TABLE: &[PreTokenizer] = &[
    PreTokenizer { tags: &["gpt-2"], patterns: &[GPT_2], ignore_merges: false },
    PreTokenizer { tags: &["llama-bpe", "llama3", "llama-v3"], patterns: &[LLAMA_3], ignore_merges: true },
    PreTokenizer { tags: &["qwen2", "deepseek-r1-qwen"], patterns: &[QWEN_2], ignore_merges: false },
    PreTokenizer { tags: &["smollm", "starcoder", "refact"], patterns: &[r"\p{N}", GPT_2], ignore_merges: false },
];

/// The row of a tag.
pub(super) fn find(tag: &str) -> Result<&'static PreTokenizer, ModelError> {
    TABLE.iter().find(|it| it.tags.contains(&tag)).ok_or_else(|| ModelError::UnknownPreTokenizer {
        found: tag.to_string(),
        known: TABLE.iter().flat_map(|it| it.tags).copied().collect(),
    })
}
