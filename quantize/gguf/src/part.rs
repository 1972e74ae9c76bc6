//! One file on disk, proved: a whole GGUF file or a part of a split one. Knows nothing of the other parts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use fsq_blocks::Format;
use sha2::{Digest, Sha256};

use crate::header::{Header, ToldTensor};
use crate::memory::Memory;
use crate::{ALIGNMENT_DEFAULT, ALIGNMENT_KEY, ALIGNMENT_MAX, DIMENSIONS_MAX, GgufError, Metadata, TensorInfo};

/// Bytes of a file that are resident at a time while it is digested.
const DIGEST_BYTES: usize = 4 << 20;

/// One file of a policy: the only one, or one of several.
pub struct Part {
    path: PathBuf,
    memory: Memory,
    alignment: u32,
    header_bytes: usize,
    data_start: usize,
}

/// A part, what it says, and its tensors.
pub(crate) struct Proved {
    pub(crate) part: Part,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
}

impl Part {
    /// Proves all of a file that is the part of that index.
    pub(crate) fn prove(path: &Path, memory: Memory, index: usize) -> Result<Proved, GgufError> {
        let bytes = memory.bytes();
        let mut header = Header::default();
        header.read(path, bytes)?;
        let alignment = alignment(path, &header.metadata)?;
        // Without tensors the padding after the header may be missing, so the end of the file is the start of no data.
        let data_start = header.n_bytes.next_multiple_of(alignment as usize).min(bytes.len());
        check_names(path, &header.tensors)?;
        let n_data_bytes = bytes.len() - data_start;
        let tensors = header.tensors.into_iter().map(|it| check_tensor(path, it, alignment, n_data_bytes, index));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        check_overlap(path, &tensors)?;
        let part = Self { path: path.into(), memory, alignment, header_bytes: header.n_bytes, data_start };
        Ok(Proved { part, metadata: header.metadata, tensors })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tensors are aligned to in the file.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Everything after the header: tensors and what pads them.
    pub fn data(&self) -> &[u8] {
        &self.memory.bytes()[self.data_start..]
    }

    /// Lets go of the memory of a range of the data.
    pub(crate) fn release(&self, data: std::ops::Range<usize>) {
        self.memory.release(self.data_start + data.start..self.data_start + data.end);
    }

    /// What pads the header.
    pub(crate) fn header_padding(&self) -> &[u8] {
        &self.memory.bytes()[self.header_bytes..self.data_start]
    }

    /// SHA-256 of the whole file.
    pub fn sha256(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        self.add_to(&mut digest);
        digest.finalize().into()
    }

    /// Adds the whole file to a digest.
    pub(crate) fn add_to(&self, digest: &mut Sha256) {
        self.add_range_to(digest, 0..self.bytes().len());
    }

    /// Adds everything after the header.
    pub(crate) fn add_data_to(&self, digest: &mut Sha256) {
        self.add_range_to(digest, self.data_start..self.bytes().len());
    }

    /// Adds some bytes, and lets go of their memory on the way: a file is not to be resident twice because someone
    /// checked it before its weights were loaded.
    fn add_range_to(&self, digest: &mut Sha256, range: std::ops::Range<usize>) {
        for start in range.clone().step_by(DIGEST_BYTES) {
            let part = start..(start + DIGEST_BYTES).min(range.end);
            digest.update(&self.bytes()[part.clone()]);
            self.memory.release(part);
        }
    }
}

/// The alignment a file names, or the usual one.
pub(crate) fn alignment(path: &Path, metadata: &Metadata) -> Result<u32, GgufError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    let usable = |it: &u32| it.is_power_of_two() && *it <= ALIGNMENT_MAX;
    metadata.u32(ALIGNMENT_KEY).filter(usable).ok_or_else(|| GgufError::Alignment {
        path: path.into(),
        expected: format!("a power of two up to {ALIGNMENT_MAX}"),
        found: value.shown(),
    })
}

fn check_names(path: &Path, tensors: &[ToldTensor]) -> Result<(), GgufError> {
    let mut names = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|it| !names.insert(it.name.as_str())) {
        Some(twice) => Err(GgufError::DuplicateTensor { path: path.into(), tensor: twice.name.clone() }),
        None => Ok(()),
    }
}

fn check_tensor(
    path: &Path,
    told: ToldTensor,
    alignment: u32,
    n_data_bytes: usize,
    part: usize,
) -> Result<TensorInfo, GgufError> {
    let ToldTensor { name, shape, format, offset } = told;
    let format = Format::from_id(format).ok_or_else(|| GgufError::Format {
        path: path.into(),
        tensor: name.clone(),
        found: format,
    })?;
    let (shape, n_bytes) = checked_shape(path, &name, format, &shape)?;
    if !offset.is_multiple_of(alignment.into()) {
        return Err(GgufError::Misaligned { path: path.into(), tensor: name, expected: alignment, found: offset });
    }
    let end = u128::from(offset) + n_bytes as u128;
    match usize::try_from(offset) {
        Ok(offset) if end <= n_data_bytes as u128 => Ok(TensorInfo { name, format, shape, part, offset, n_bytes }),
        _ => {
            let expected = n_data_bytes as u64;
            Err(GgufError::OutOfFile { path: path.into(), tensor: name, expected, found: end })
        }
    }
}

/// A shape whose every product fits, and the bytes of a tensor of that shape.
pub(crate) fn checked_shape(
    path: &Path,
    name: &str,
    format: Format,
    shape: &[u64],
) -> Result<(Vec<usize>, usize), GgufError> {
    let fault = || GgufError::Shape { path: path.into(), tensor: name.into(), found: shape.to_vec() };
    let sizes: Option<Vec<usize>> = shape.iter().map(|it| usize::try_from(*it).ok().filter(|it| *it > 0)).collect();
    let sizes = sizes.filter(|it| (1..=DIMENSIONS_MAX as usize).contains(&it.len())).ok_or_else(fault)?;
    let row = sizes[0];
    if !row.is_multiple_of(format.block_weights()) {
        return Err(GgufError::Row {
            path: path.into(),
            tensor: name.into(),
            format: format.name(),
            expected: format.block_weights(),
            found: row,
        });
    }
    let product = |first: Option<usize>| sizes[1..].iter().fold(first, |product, it| product?.checked_mul(*it));
    // The weights are counted too: decoded to 32 bits they must still fit.
    product(row.checked_mul(size_of::<f32>())).filter(|it| *it <= isize::MAX as usize).ok_or_else(fault)?;
    let n_bytes = product(format.row_bytes(row)).filter(|it| *it <= isize::MAX as usize).ok_or_else(fault)?;
    Ok((sizes, n_bytes))
}

fn check_overlap(path: &Path, tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|it| it.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].n_bytes > pair[1].offset {
            return Err(GgufError::Overlap {
                path: path.into(),
                tensor: pair[1].name.clone(),
                other: pair[0].name.clone(),
            });
        }
    }
    Ok(())
}
