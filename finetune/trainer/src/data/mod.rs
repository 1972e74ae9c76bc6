//! A user's own data: files of one JSON record a line, as token sequences with a weight for each token.
//!
//! Whatever cannot be read is a [`Reject`] that names file, line, field, expected and found; every line of a file ends
//! either in the set or among the rejects. Text inside a record never becomes a control token.

mod chat;
mod encoder;
mod lines;
mod record;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use encoder::{Encoder, EncoderConfig, Example, TooLong, Turns};
pub use lines::{LINE_BYTES_MAX, Line, Lines};
pub use record::{Kind, Record};

use crate::TrainError;

/// What in a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as a path such as `messages[2].role`; empty for the line as a whole.
    pub field: String,
    /// What can be read.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// Characters of what was found that are told.
const FOUND_CHARACTERS_MAX: usize = 80;

impl Fault {
    pub(crate) fn new(field: impl Into<String>, expected: impl Into<String>, found: impl AsRef<str>) -> Self {
        let found = found.as_ref();
        let mut told: String = found.chars().take(FOUND_CHARACTERS_MAX).collect();
        if told.len() < found.len() {
            told.push('…');
        }
        Self { field: field.into(), expected: expected.into(), found: told }
    }
}

/// A line that is not in the set, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reject {
    /// Its file.
    pub file: PathBuf,
    /// Its number in the file, from 1.
    pub line: usize,
    /// Where it begins in the file, in bytes.
    pub start_byte: u64,
    /// Its length in bytes, without the line feed.
    pub bytes: u64,
    /// The field; empty for the line as a whole.
    pub field: String,
    /// What can be read.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// The line itself where it is text and not too long to be held.
    pub text: Option<String>,
}

impl std::fmt::Display for Reject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.field.is_empty() {
            write!(f, "field `{}`: ", self.field)?;
        }
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

/// What was read of some files.
#[derive(Debug, Default)]
pub struct DataSet {
    /// The sequences, in the order of their lines.
    pub examples: Vec<Example>,
    /// Lines of each kind that are in the set.
    pub kinds: BTreeMap<Kind, usize>,
    /// Lines that are not.
    pub rejects: Vec<Reject>,
    /// Lines that hold nothing but white space.
    pub n_empty: usize,
}

impl DataSet {
    /// Reads files, one after another.
    ///
    /// # Errors
    /// When a file cannot be read at all; a line that cannot be used is a reject.
    pub fn read(files: &[PathBuf], encoder: &Encoder) -> Result<Self, TrainError> {
        let mut set = Self::default();
        for path in files {
            set.add(path, encoder)?;
        }
        Ok(set)
    }

    fn add(&mut self, path: &Path, encoder: &Encoder) -> Result<(), TrainError> {
        let fault = |source| TrainError::Io { path: path.to_path_buf(), source };
        let mut lines = Lines::open(path).map_err(fault)?;
        while let Some(line) = lines.next_line().map_err(fault)? {
            let Line { number, start_byte, bytes, text } = line;
            let read = text.as_ref().map_err(Clone::clone).and_then(|text| match text.trim() {
                "" => Ok(None),
                text => Record::parse(text).and_then(|it| Ok(Some((it.kind(), encoder.encode(&it)?)))),
            });
            match read {
                Ok(None) => self.n_empty += 1,
                Ok(Some((kind, mut example))) => {
                    (example.file, example.line) = (path.to_path_buf(), number);
                    *self.kinds.entry(kind).or_default() += 1;
                    self.examples.push(example);
                }
                Err(Fault { field, expected, found }) => {
                    let (file, text) = (path.to_path_buf(), text.ok());
                    self.rejects.push(Reject { file, line: number, start_byte, bytes, field, expected, found, text });
                }
            }
        }
        Ok(())
    }

    /// Tokens of all sequences, and those of them that are learnt.
    #[must_use]
    pub fn tokens(&self) -> (usize, usize) {
        let learnt = |it: &Example| it.sequence.weights.iter().skip(1).filter(|it| **it != 0.0).count();
        let count = |(all, some): (usize, usize), it: &Example| (all + it.sequence.tokens.len(), some + learnt(it));
        self.examples.iter().fold((0, 0), count)
    }
}
