//! One safetensors file: its header proved against its length, its tensors read one at a time.
//!
//! Reads by position, so the memory used is that of one tensor and nothing is mapped.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::CheckpointError;

/// Largest header that is read; the reference reader's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Bytes that are widened at a time; a multiple of every float's length.
const PIECE_BYTES: usize = 1 << 20;
const TOO_LARGE: &str = "a tensor too large for this machine";

/// Where the bytes are.
enum Source {
    File(File),
    Bytes(std::borrow::Cow<'static, [u8]>),
}

/// An open safetensors file.
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    source: Source,
    metadata: Metadata,
    data_start: u64,
}

impl SafetensorsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = File::open(path).map_err(|it| CheckpointError::io(path, it))?;
        let length = file.metadata().map_err(|it| CheckpointError::io(path, it))?.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(|_| damaged(path, format!("only {length} bytes long")))?;
        let header_bytes = checked_header(path, u64::from_le_bytes(prefix), length)?;
        let mut header = vec![0; header_bytes];
        file.read_exact(&mut header).map_err(|it| CheckpointError::io(path, it))?;
        Self::proved(path, Source::File(file), &header, length)
    }

    pub(crate) fn from_bytes(path: &Path, bytes: std::borrow::Cow<'static, [u8]>) -> Result<Self, CheckpointError> {
        let length = bytes.len() as u64;
        let prefix = bytes.first_chunk::<8>().ok_or_else(|| damaged(path, format!("only {length} bytes long")))?;
        let header_bytes = checked_header(path, u64::from_le_bytes(*prefix), length)?;
        let header = bytes[8..8 + header_bytes].to_vec();
        Self::proved(path, Source::Bytes(bytes), &header, length)
    }

    fn proved(path: &Path, source: Source, header: &[u8], length: u64) -> Result<Self, CheckpointError> {
        let metadata: Metadata = serde_json::from_slice(header).map_err(|it| damaged(path, format!("header: {it}")))?;
        let data_start = 8 + header.len() as u64;
        let end = metadata.tensors().values().map(|it| it.data_offsets.1).max().unwrap_or(0) as u64;
        if data_start.checked_add(end) != Some(length) {
            return Err(damaged(path, format!("header tells of {end} data bytes, found {}", length - data_start)));
        }
        Ok(Self { path: path.to_path_buf(), source, metadata, data_start })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.metadata.tensors().into_keys().collect();
        names.sort();
        names
    }

    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.metadata.info(name).map(|it| it.shape.clone())
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.metadata.info(name).map(|it| it.dtype)
    }

    /// The stored bytes of a tensor.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let range = self.range(name)?;
        let n_bytes = usize::try_from(range.end - range.start).map_err(|_| damaged(&self.path, TOO_LARGE.into()))?;
        let mut bytes = vec![0; n_bytes];
        self.read(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// A tensor's values, widened to f32 as they are read: its stored bytes are never there as a whole.
    pub(crate) fn f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let n_rows = self.shape(name).and_then(|it| it.first().copied()).unwrap_or(1);
        self.rows_f32(name, &(0..n_rows))
    }

    /// The same of some rows. Those that the tensor does not have are not read.
    pub(crate) fn rows_f32(&self, name: &str, rows: &Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let whole = self.range(name)?;
        let n_rows = self.shape(name).and_then(|it| it.first().copied()).unwrap_or(1).max(1) as u64;
        let row_bytes = (whole.end - whole.start) / n_rows;
        let [start, end] = [rows.start, rows.end].map(|it| whole.start + row_bytes * n_rows.min(it as u64));
        let range = start..end;
        match self.dtype(name) {
            Some(Dtype::F32) => self.widened(&range, |words, into| widen(words, into, f32::from_le_bytes)),
            Some(Dtype::F16) => self.widened(&range, widen_f16),
            Some(Dtype::BF16) => {
                self.widened(&range, |words, into| widen(words, into, |it| bf16::from_le_bytes(it).to_f32()))
            }
            other => Err(CheckpointError::field(&self.path, name, "F32, F16 or BF16", format!("{other:?}"))),
        }
    }

    fn widened<const N: usize>(
        &self,
        range: &Range<u64>,
        widen: impl Fn(&[[u8; N]], &mut [f32]),
    ) -> Result<Vec<f32>, CheckpointError> {
        let n_values = usize::try_from((range.end - range.start) / N as u64);
        let mut values = vec![0.0; n_values.map_err(|_| damaged(&self.path, TOO_LARGE.into()))?];
        let mut rest = &mut values[..];
        self.pieces(range, &mut |piece| {
            let words = piece.as_chunks::<N>().0;
            let (into, after) = std::mem::take(&mut rest).split_at_mut(words.len());
            widen(words, into);
            rest = after;
        })?;
        Ok(values)
    }

    /// The stored bytes of a tensor, some at a time.
    pub(crate) fn for_each_piece(&self, name: &str, each: &mut dyn FnMut(&[u8])) -> Result<(), CheckpointError> {
        self.pieces(&self.range(name)?, each)
    }

    fn pieces(&self, range: &Range<u64>, each: &mut dyn FnMut(&[u8])) -> Result<(), CheckpointError> {
        let n_bytes = |at: u64| usize::try_from(range.end - at).map_or(PIECE_BYTES, |it| it.min(PIECE_BYTES));
        let mut piece = vec![0; n_bytes(range.start)];
        let mut at = range.start;
        while at < range.end {
            let piece = &mut piece[..n_bytes(at)];
            self.read(piece, at)?;
            each(piece);
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Where a tensor's bytes lie in the file.
    fn range(&self, name: &str) -> Result<Range<u64>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { path: self.path.clone(), name: name.into() };
        let (start, end) = self.metadata.info(name).ok_or_else(missing)?.data_offsets;
        Ok(self.data_start + start as u64..self.data_start + end as u64)
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<(), CheckpointError> {
        match &self.source {
            Source::Bytes(bytes) => {
                let offset = usize::try_from(offset).map_err(|_| damaged(&self.path, TOO_LARGE.into()))?;
                into.copy_from_slice(&bytes[offset..offset + into.len()]);
                Ok(())
            }
            Source::File(file) => file.read_exact_at(into, offset).map_err(|it| CheckpointError::io(&self.path, it)),
        }
    }
}

fn widen<const N: usize>(words: &[[u8; N]], into: &mut [f32], of_word: impl Fn([u8; N]) -> f32) {
    into.iter_mut().zip(words).for_each(|(into, word)| *into = of_word(*word));
}

/// Many at once: processors widen 16-bit floats in vectors, and a float alone costs more than all the rest.
fn widen_f16(words: &[[u8; 2]], into: &mut [f32]) {
    let mut halves = [f16::ZERO; 1024];
    for (into, words) in into.chunks_mut(halves.len()).zip(words.chunks(halves.len())) {
        let halves = &mut halves[..words.len()];
        halves.iter_mut().zip(words).for_each(|(half, word)| *half = f16::from_le_bytes(*word));
        halves.convert_to_f32_slice(into);
    }
}

fn checked_header(path: &Path, header: u64, length: u64) -> Result<usize, CheckpointError> {
    if header > HEADER_BYTES_MAX || header.checked_add(8).is_none_or(|it| it > length) {
        return Err(damaged(path, format!("a header of {header} bytes in a file of {length}")));
    }
    usize::try_from(header).map_err(|_| damaged(path, "header too large".into()))
}

fn damaged(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Safetensors { path: path.to_path_buf(), reason }
}
