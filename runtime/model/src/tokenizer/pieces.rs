//! What single tokens stand for, and the text of a stream of them. Knows no merges.

use crate::TokenId;

/// The character that stands for a space in vocabularies of SentencePiece.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of ordinary text.
    Normal,
    /// One byte, written `<0x0A>`.
    Byte,
    /// Steers, such as the end of a turn; not part of the text.
    Control,
    /// Added, and part of the text.
    UserDefined,
    /// Stands for nothing.
    Unused,
}

impl Kind {
    /// By `tokenizer.ggml.token_type` (llama.cpp `llama_token_type`); unknown tokens steer as control tokens do.
    pub(super) fn from_gguf(kind: i32) -> Self {
        match kind {
            1 => Self::Normal,
            2 | 3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }

    /// Whether the token stands in text by being put there, not by being merged.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Control | Self::UserDefined)
    }
}

/// How normal tokens of a vocabulary are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// A character for each byte; see [`char_of_byte`].
    Bytes,
    /// As they are, but for spaces; see [`SPACE_MARK`].
    Characters,
}

/// One token.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    pub(super) kind: Kind,
}

impl Piece {
    /// Normal tokens are written in the alphabet, added ones as they are.
    pub(super) fn new(text: &str, kind: Kind, alphabet: Alphabet) -> Self {
        let raw = || text.as_bytes().to_vec();
        let bytes = match (kind, alphabet) {
            (Kind::Normal, Alphabet::Bytes) => {
                text.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().unwrap_or_else(raw)
            }
            (Kind::Normal, Alphabet::Characters) => text.replace(SPACE_MARK, " ").into_bytes(),
            (Kind::Byte, _) => byte_of_code(text).map_or_else(raw, |it| vec![it]),
            (Kind::Control | Kind::UserDefined, _) => raw(),
            (Kind::Unused, _) => Vec::new(),
        };
        Self { bytes, kind }
    }
}

/// The byte that `<0x0A>` writes.
pub(super) fn byte_of_code(code: &str) -> Option<u8> {
    let digits = code.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|it| it.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The character that stands for a byte in byte-level vocabularies: printable ones for themselves, the others
/// moved up in order from `U+0100` (GPT-2 `encoder.py`, `bytes_to_unicode`).
pub(crate) fn char_of_byte(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|it| !is_printable(*it)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The inverse of [`char_of_byte`].
pub(super) fn byte_of_char(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|it| is_printable(*it)),
        code => (0..=u8::MAX).filter(|it| !is_printable(*it)).nth((code - 0x100) as usize),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Turns a stream of tokens into text as soon as characters are whole.
///
/// Where a tokenizer puts a space before a text, the space before the stream's text is that one and is left out.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The start of a character whose end has not come.
    pending: Vec<u8>,
    /// What the next token follows.
    follows: Follows,
}

/// What a token follows, on which the meaning of its leading space depends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Follows {
    /// Nothing: it begins a text.
    #[default]
    Nothing,
    /// An added token.
    Added,
    /// Ordinary text.
    Text,
}

impl TextStream {
    /// A stream that continues these tokens, so that a space after ordinary text is kept.
    pub fn after(tokenizer: &super::Tokenizer, tokens: &[TokenId]) -> Self {
        let kind = tokens.last().and_then(|it| tokenizer.pieces.get(*it as usize)).map(|it| it.kind);
        let follows = match kind {
            None => Follows::Nothing,
            Some(kind) if kind.is_added() => Follows::Added,
            Some(_) => Follows::Text,
        };
        Self { pending: Vec::new(), follows }
    }

    /// The text that a further token completes; empty while a character is incomplete. Control tokens are left out.
    pub fn push(&mut self, tokenizer: &super::Tokenizer, token: TokenId) -> String {
        let bytes = tokenizer.bytes_after(token, &mut self.follows);
        if !tokenizer.is_control(token) {
            self.pending.extend_from_slice(bytes);
        }
        self.take_whole(false)
    }

    /// What is left at the end: `U+FFFD` for a character that never became whole.
    pub fn finish(&mut self) -> String {
        self.take_whole(true)
    }

    fn take_whole(&mut self, at_end: bool) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                }
                Err(error) => {
                    let (whole, broken) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    rest = broken;
                    let Some(skipped) = error.error_len().or(at_end.then_some(broken.len())) else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[skipped..];
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        self.pending = rest.to_vec();
        text
    }
}
