//! A file that grows tensor by tensor, and what a killed run left of one. Knows no weights.
//!
//! Beside a draft that may be gone on with lies a journal: a line for each whole tensor, with the digest of the tensors
//! up to there. What a line tells is believed only where the draft has those bytes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};

use fsq_gguf::{Draft, FinishedDraft, GgufError, Metadata, TensorSpec};
use serde::{Deserialize, Serialize};

use crate::{Allocation, Codes, EncodedTensor, QuantizeError};

/// Where a file is to grow.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    path: &'a Path,
    resumes: bool,
}

impl<'a> Target<'a> {
    /// Under a name of its own, from which a run goes on after one that was killed. Only one process may write to it.
    pub fn resumed(path: &'a Path) -> Self {
        Self { path, resumes: true }
    }
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Target<'a> {
    fn from(path: &'a P) -> Self {
        Self { path: path.as_ref(), resumes: false }
    }
}

/// One whole tensor.
#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    /// Of the tensor data up to its end.
    sha256: [u8; 32],
    told: Option<Told>,
}

/// What is told of it.
#[derive(Serialize, Deserialize)]
struct Told {
    n_weights: usize,
    n_bytes: usize,
    relative_error: f64,
    importance: bool,
    codes: String,
}

/// What goes into a file next.
pub(crate) enum Part {
    /// Rows of the tensor whose turn it is, in pieces.
    Rows { tensor: String, pieces: Vec<Vec<u8>>, n_weights: usize },
    /// That tensor is whole; what is told of it.
    Whole { tensor: String, told: Option<EncodedTensor> },
}

/// The tensors that a killed run left whole.
pub(crate) struct Kept(VecDeque<Line>);

impl Kept {
    /// Whether the tensor whose turn it is, one that nothing is told of, is whole already.
    pub(crate) fn has(&mut self, name: &str) -> bool {
        self.next(name).is_some()
    }

    /// What was told of the tensor whose turn it is, if it is whole already.
    pub(crate) fn told(&mut self, allocation: &Allocation) -> Option<EncodedTensor> {
        let told = self.next(&allocation.tensor.gguf)?.told?;
        Some(EncodedTensor {
            name: allocation.tensor.gguf.clone(),
            format: allocation.format.name(),
            wanted: allocation.wanted.name(),
            n_weights: told.n_weights,
            n_bytes: told.n_bytes,
            relative_error: told.relative_error,
            importance: told.importance,
            codes: Codes::ALL.into_iter().find(|it| it.name() == told.codes).unwrap_or_default(),
        })
    }

    fn next(&mut self, name: &str) -> Option<Line> {
        if self.0.front()?.name == name { self.0.pop_front() } else { None }
    }
}

/// A file being written.
pub(crate) struct Growing {
    draft: Draft,
    journal: Option<(PathBuf, File)>,
}

impl Growing {
    /// Begins a file, or goes on with it.
    pub(crate) fn begin(
        target: Target<'_>,
        metadata: &Metadata,
        specs: &[TensorSpec],
    ) -> Result<(Self, Kept), QuantizeError> {
        if !target.resumes {
            let draft = Draft::create(target.path, metadata, specs)?;
            return Ok((Self { draft, journal: None }, Kept(VecDeque::new())));
        }
        let path = target.path.with_extension("journal");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().map_while(|it| serde_json::from_str::<Line>(it).ok());
        let mut kept: VecDeque<Line> =
            lines.zip(specs).take_while(|(line, spec)| line.name == spec.name).map(|it| it.0).collect();
        let digests: Vec<[u8; 32]> = kept.iter().map(|it| it.sha256).collect();
        let (draft, n_kept) = Draft::resume(target.path, metadata, specs, &digests)?;
        kept.truncate(n_kept);
        let mut file = File::create(&path).map_err(|it| fault(&path, it))?;
        for line in &kept {
            put(&mut file, line).map_err(|it| fault(&path, it))?;
        }
        Ok((Self { draft, journal: Some((path, file)) }, Kept(kept)))
    }

    /// Writes what comes until nothing more does, tells how many weights were written each time, and syncs the file.
    pub(crate) fn follow(
        mut self,
        parts: &Receiver<Part>,
        written: &Sender<usize>,
    ) -> Result<FinishedDraft, QuantizeError> {
        for part in parts {
            match part {
                Part::Rows { tensor, pieces, n_weights } => {
                    pieces.iter().try_for_each(|it| self.draft.write(&tensor, it))?;
                    // Whoever encodes may have ended with a fault of its own.
                    let _ = written.send(n_weights);
                }
                Part::Whole { tensor, told } => self.note(tensor, told)?,
            }
        }
        self.finish()
    }

    /// Notes that a tensor is whole.
    fn note(&mut self, name: String, told: Option<EncodedTensor>) -> Result<(), QuantizeError> {
        let Some(((path, file), sha256)) = self.journal.as_mut().zip(self.draft.data_sha256()) else { return Ok(()) };
        let told = told.map(|it| Told {
            n_weights: it.n_weights,
            n_bytes: it.n_bytes,
            relative_error: it.relative_error,
            importance: it.importance,
            codes: it.codes.name().into(),
        });
        put(file, &Line { name, sha256, told }).map_err(|it| fault(path, it))
    }

    /// Syncs the file; the journal has done its work.
    fn finish(self) -> Result<FinishedDraft, QuantizeError> {
        let draft = self.draft.finish()?;
        if let Some((path, _)) = &self.journal {
            std::fs::remove_file(path).map_err(|it| fault(path, it))?;
        }
        Ok(draft)
    }
}

fn put(file: &mut File, line: &Line) -> std::io::Result<()> {
    // One call, so that a kill leaves whole lines and perhaps a beginning, which does not parse.
    file.write_all(&[serde_json::to_vec(line)?.as_slice(), b"\n"].concat())
}

fn fault(path: &Path, source: std::io::Error) -> QuantizeError {
    GgufError::Io { path: path.into(), source }.into()
}
