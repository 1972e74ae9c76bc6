//! Reading: the whole header is proved, then tensors are views into the file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fsq_blocks::Format;
use sha2::{Digest, Sha256};

use crate::cursor::Cursor;
use crate::memory::{self, Memory};
use crate::{
    ALIGNMENT_DEFAULT, ALIGNMENT_KEY, ALIGNMENT_MAX, DIMENSIONS_MAX, GgufError, KEY_BYTES_MAX, MAGIC, Metadata,
    TENSOR_NAME_BYTES_MAX,
};

/// An open file, proved whole.
pub struct Gguf {
    path: PathBuf,
    memory: Memory,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    places: HashMap<String, usize>,
    alignment: u32,
    data_start: usize,
}

/// What a file says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its weights are bytes.
    pub format: Format,
    /// Its dimensions, row length first.
    pub shape: Vec<usize>,
    /// Where it begins, from the start of the tensor data.
    pub offset: usize,
    /// Its length.
    pub n_bytes: usize,
}

/// One tensor's bytes. They begin on a multiple of 32 in memory, or of the file's alignment where that is less.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its weights are bytes.
    pub format: Format,
    /// Its dimensions, row length first.
    pub shape: &'a [usize],
    /// Its bytes: as many as shape and format need.
    pub bytes: &'a [u8],
}

impl TensorInfo {
    /// Weights per row.
    pub fn cols(&self) -> usize {
        cols(&self.shape)
    }

    /// Rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        rows(&self.shape)
    }
}

impl TensorView<'_> {
    /// Weights per row.
    pub fn cols(&self) -> usize {
        cols(self.shape)
    }

    /// Rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        rows(self.shape)
    }

    /// The weights, `[rows, cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows() * self.cols()];
        self.format.decode(self.bytes, &mut weights);
        weights
    }
}

fn cols(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(0)
}

fn rows(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

impl Gguf {
    /// Maps a file and proves all of it.
    ///
    /// # Errors
    /// The first fault of the file, naming what was expected and what was found.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::prove(path, memory::map(path)?)
    }

    /// The same for bytes in memory, which are copied; `name` stands in for a path in error messages.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_named_bytes(name: &str, bytes: &[u8]) -> Result<Self, GgufError> {
        Self::prove(Path::new(name), Memory::held(bytes))
    }

    /// The same for bytes without a name.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Result<Self, GgufError> {
        Self::from_named_bytes("bytes in memory", bytes.as_ref())
    }

    fn prove(path: &Path, memory: Memory) -> Result<Self, GgufError> {
        let bytes = memory.bytes();
        let mut cursor = Cursor::new(path, bytes);
        check_start(&mut cursor)?;
        // A tensor is told in no less than 24 bytes, an entry of metadata in no less than 13.
        let n_tensors = cursor.count("number of tensors", 24)?;
        let n_entries = cursor.count("number of metadata entries", 13)?;
        let metadata = read_metadata(&mut cursor, n_entries)?;
        let alignment = alignment(path, &metadata)?;
        let told: Vec<Told> = (0..n_tensors).map(|_| read_tensor(&mut cursor)).collect::<Result<_, _>>()?;
        // Without tensors the padding after the header may be missing, so the end of the file is the start of no data.
        let data_start = cursor.offset().next_multiple_of(alignment as usize).min(bytes.len());
        let n_data_bytes = bytes.len() - data_start;
        let mut tensors = Vec::with_capacity(told.len());
        let mut places = HashMap::with_capacity(told.len());
        for told in told {
            let tensor = check_tensor(path, told, alignment, n_data_bytes)?;
            if places.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(GgufError::DuplicateTensor { path: path.into(), tensor: tensor.name });
            }
            tensors.push(tensor);
        }
        check_overlap(path, &tensors)?;
        Ok(Self { path: path.into(), memory, metadata, tensors, places, alignment, data_start })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What it says of its tensors, in its order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor, if it is there.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.places.get(name).map(|it| self.view(&self.tensors[*it]))
    }

    /// Every tensor, in the order of the file.
    pub fn views(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|it| self.view(it))
    }

    fn view<'a>(&'a self, info: &'a TensorInfo) -> TensorView<'a> {
        let bytes = &self.data()[info.offset..info.offset + info.n_bytes];
        TensorView { name: &info.name, format: info.format, shape: &info.shape, bytes }
    }

    /// What tensors are aligned to in the file.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// The length of the whole file, in bytes.
    pub fn n_bytes(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Everything after the header: tensors and what pads them.
    pub fn data(&self) -> &[u8] {
        &self.memory.bytes()[self.data_start..]
    }

    /// SHA-256 of [`Gguf::data`]: equal for files that differ in metadata only.
    pub fn data_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.data()).into()
    }

    /// SHA-256 of the whole file.
    pub fn file_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.memory.bytes()).into()
    }
}

/// A tensor as the file tells it, not yet believed.
struct Told {
    name: String,
    shape: Vec<u64>,
    format: u32,
    offset: u64,
}

fn check_start(cursor: &mut Cursor<'_>) -> Result<(), GgufError> {
    let path = cursor.path();
    let found = cursor.four_bytes("magic")?;
    if found != MAGIC {
        return Err(GgufError::Magic { path: path.into(), found });
    }
    let found = cursor.u32("version")?;
    if !(2..=3).contains(&found) {
        let big_endian = (1..=3).contains(&found.swap_bytes());
        return Err(GgufError::Version { path: path.into(), found, big_endian });
    }
    Ok(())
}

fn read_metadata(cursor: &mut Cursor<'_>, n_entries: usize) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::new();
    for index in 0..n_entries {
        let key = cursor.string(&format!("metadata key {index}"), KEY_BYTES_MAX)?;
        let what = format!("metadata `{key}`");
        let type_id = cursor.u32(&what)?;
        let value = cursor.value(type_id, &what)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufError::DuplicateKey { path: cursor.path().into(), key });
        }
    }
    Ok(metadata)
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
        found: format!("{value:?}").chars().take(60).collect(),
    })
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<Told, GgufError> {
    let name = cursor.string("tensor name", TENSOR_NAME_BYTES_MAX)?;
    let what = format!("tensor `{name}`");
    let n_dimensions = cursor.u32(&what)?;
    if n_dimensions > DIMENSIONS_MAX {
        return Err(GgufError::Limit {
            path: cursor.path().into(),
            what: format!("dimensions of {what}"),
            limit: DIMENSIONS_MAX.into(),
            found: n_dimensions.into(),
        });
    }
    let shape = (0..n_dimensions).map(|_| cursor.u64(&what)).collect::<Result<_, _>>()?;
    Ok(Told { name, shape, format: cursor.u32(&what)?, offset: cursor.u64(&what)? })
}

fn check_tensor(path: &Path, told: Told, alignment: u32, n_data_bytes: usize) -> Result<TensorInfo, GgufError> {
    let Told { name, shape, format, offset } = told;
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
        Ok(offset) if end <= n_data_bytes as u128 => Ok(TensorInfo { name, format, shape, offset, n_bytes }),
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
