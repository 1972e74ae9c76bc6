//! A file that grows tensor by tensor, and what a killed run left of one. Knows no weights.
//!
//! Beside a draft that may be gone on with lies a journal: a line for each whole tensor, with the digest of its bytes.
//! What a line tells is believed only where the draft has those bytes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use fsq_gguf::{Draft, FinishedDraft, GgufError, Metadata, TensorSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

/// A file being written.
pub(crate) struct Growing {
    draft: Draft,
    kept: VecDeque<Line>,
    journal: Option<(PathBuf, File)>,
    digest: Sha256,
}

impl Growing {
    /// Begins a file, or goes on with it.
    pub(crate) fn begin(target: Target<'_>, metadata: &Metadata, specs: &[TensorSpec]) -> Result<Self, QuantizeError> {
        if !target.resumes {
            let draft = Draft::create(target.path, metadata, specs)?;
            return Ok(Self { draft, kept: VecDeque::new(), journal: None, digest: Sha256::new() });
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
        Ok(Self { draft, kept, journal: Some((path, file)), digest: Sha256::new() })
    }

    /// Whether the tensor whose turn it is, one that nothing is told of, is whole already.
    pub(crate) fn has(&mut self, name: &str) -> bool {
        self.next(name).is_some()
    }

    /// What was told of the tensor whose turn it is, if it is whole already.
    pub(crate) fn kept(&mut self, allocation: &Allocation) -> Option<EncodedTensor> {
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
        if self.kept.front()?.name == name { self.kept.pop_front() } else { None }
    }

    /// Appends bytes of a tensor.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), QuantizeError> {
        if self.journal.is_some() {
            self.digest.update(bytes);
        }
        Ok(self.draft.write(name, bytes)?)
    }

    /// Notes that a tensor is whole.
    pub(crate) fn note(&mut self, name: &str, told: Option<&EncodedTensor>) -> Result<(), QuantizeError> {
        let Some((path, file)) = &mut self.journal else { return Ok(()) };
        let told = told.map(|it| Told {
            n_weights: it.n_weights,
            n_bytes: it.n_bytes,
            relative_error: it.relative_error,
            importance: it.importance,
            codes: it.codes.name().into(),
        });
        let line = Line { name: name.into(), sha256: self.digest.finalize_reset().into(), told };
        put(file, &line).map_err(|it| fault(path, it))
    }

    /// Syncs the file; the journal has done its work.
    pub(crate) fn finish(self) -> Result<FinishedDraft, QuantizeError> {
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
