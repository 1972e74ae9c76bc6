//! What a row of the table of hostile files is.

use std::path::{Path, PathBuf};

use super::raw::Raw;

/// One idea of how a file can be wrong.
pub(super) struct Row {
    /// Its number, here and in `tests/hostile/README.md`.
    pub(super) number: u32,
    /// What is wrong.
    pub(super) idea: &'static str,
    pub(super) expected: Expected,
    pub(super) made: Made,
}

/// Who names the fault, and with which words among others.
#[derive(Clone, Copy)]
pub(super) enum Expected {
    /// Opening.
    Refused(&'static str),
    /// Loading as a policy.
    NotRun(&'static str),
    /// Building the tokenizer.
    NotTokenized(&'static str),
    /// `fsq inspect --strict` alone: the file opens and would run.
    Strict(&'static str),
    /// Nobody: it is unusual, but sound.
    Sound,
}

/// How the files of a row are made.
#[derive(Clone, Copy)]
pub(super) enum Made {
    One(fn() -> Raw),
    Bytes(fn() -> Vec<u8>),
    /// Each with the same outcome.
    Each(fn() -> Vec<Vec<u8>>),
    /// In a folder of their own; the one that is opened comes back.
    Files(fn(&Path) -> PathBuf),
}

pub(super) const fn row(number: u32, idea: &'static str, expected: Expected, made: Made) -> Row {
    Row { number, idea, expected, made }
}

impl Row {
    /// The row of the README.
    pub(super) fn line(&self) -> String {
        let (who, words) = match self.expected {
            Expected::Refused(words) => ("refused", words),
            Expected::NotRun(words) => ("not run", words),
            Expected::NotTokenized(words) => ("not tokenized", words),
            Expected::Strict(words) => ("strict", words),
            Expected::Sound => ("sound", ""),
        };
        let words = if words.is_empty() { String::new() } else { format!(": {words}") };
        format!("| {} | {} | {who}{words} |", self.number, self.idea)
    }

    /// Writes the files into a folder and says which are to be opened.
    pub(super) fn write(&self, folder: &Path) -> Vec<PathBuf> {
        let write = |bytes: Vec<u8>, index: usize| {
            let path = folder.join(format!("{}-{index}.gguf", self.number));
            std::fs::write(&path, bytes).unwrap();
            path
        };
        match self.made {
            Made::One(make) => vec![write(make().bytes(), 0)],
            Made::Bytes(make) => vec![write(make(), 0)],
            Made::Each(make) => make().into_iter().enumerate().map(|(index, it)| write(it, index)).collect(),
            Made::Files(make) => vec![make(folder)],
        }
    }
}
