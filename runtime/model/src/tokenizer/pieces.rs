//! What single tokens stand for, and the text of a stream of them. Knows no merges.

use crate::TokenId;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of ordinary text.
    Normal,
    /// Steers, such as the end of a turn; not part of the text.
    Control,
    /// Added, and part of the text.
    UserDefined,
    /// Stands for nothing.
    Unused,
}

impl Kind {
    /// By `tokenizer.ggml.token_type` (llama.cpp `llama_token_type`).
    pub(super) fn from_gguf(kind: i32) -> Self {
        match kind {
            1 | 6 => Self::Normal,
            2 | 3 => Self::Control,
            4 => Self::UserDefined,
            _ => Self::Unused,
        }
    }
}

/// One token.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    pub(super) kind: Kind,
}

impl Piece {
    /// Normal tokens are written in the byte alphabet, added ones as they are.
    pub(super) fn new(text: &str, kind: Kind) -> Self {
        let coded: Option<Vec<u8>> = text.chars().map(byte_of_char).collect();
        let bytes = match (kind, coded) {
            (Kind::Normal, Some(bytes)) => bytes,
            _ => text.as_bytes().to_vec(),
        };
        Self { bytes, kind }
    }
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
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The start of a character whose end has not come.
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that a further token completes; empty while a character is incomplete. Control tokens are left out.
    pub fn push(&mut self, tokenizer: &super::Tokenizer, token: TokenId) -> String {
        if !tokenizer.is_control(token) {
            self.pending.extend_from_slice(tokenizer.token_bytes(token).unwrap_or_default());
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
