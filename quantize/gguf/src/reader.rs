//! Reading: every part is proved, then tensors are views into them.

use std::collections::HashMap;
use std::path::Path;

use fsq_blocks::Format;
use sha2::{Digest, Sha256};

use crate::memory::{self, Memory};
use crate::part::{Part, Proved};
use crate::{GgufError, Metadata, split};

/// An open policy, proved whole: one file, or all parts of a split one.
///
/// # Files that change while they are open
/// A file that is to change is replaced: written under another name and renamed, as [`crate::Draft`] does. Who holds
/// the old one keeps it whole. A file that another program overwrites in place changes weights under the reader's hands
/// and nothing else: lengths and offsets were copied out of it and are never read again. One that is cut in place keeps
/// the lengths proved at opening; reading a page that is gone ends the process (SIGBUS), and never reads other memory.
pub struct Gguf {
    /// At least one, in order.
    parts: Vec<Part>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    places: HashMap<String, usize>,
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
    /// The part it lies in; 0 where there is one file.
    pub part: usize,
    /// Where it begins, from the start of the part's tensor data.
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
    /// Maps a file and proves all of it. Any part of a split file stands for all of them, which must lie beside it.
    ///
    /// # Errors
    /// The first fault of the file, naming what was expected and what was found.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::assemble(split::prove_all(path, memory::map(path)?)?)
    }

    /// The same for bytes in memory, which are copied; `name` stands in for a path in error messages. No other part is
    /// looked for.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_named_bytes(name: &str, bytes: &[u8]) -> Result<Self, GgufError> {
        let path = Path::new(name);
        let proved = Part::prove(path, Memory::held(bytes), 0)?;
        split::check_alone(path, &proved)?;
        Self::assemble(vec![proved])
    }

    /// The same for bytes without a name.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Result<Self, GgufError> {
        Self::from_named_bytes("bytes in memory", bytes.as_ref())
    }

    /// Joins parts that are proved and belong together.
    fn assemble(proved: Vec<Proved>) -> Result<Self, GgufError> {
        let n_tensors = proved.iter().map(|it| it.tensors.len()).sum();
        let (mut metadata, mut parts) = (None, Vec::with_capacity(proved.len()));
        let mut tensors: Vec<TensorInfo> = Vec::with_capacity(n_tensors);
        let mut places = HashMap::with_capacity(n_tensors);
        for proved in proved {
            for tensor in proved.tensors {
                if places.insert(tensor.name.clone(), tensors.len()).is_some() {
                    return Err(GgufError::DuplicateTensor { path: proved.part.path().into(), tensor: tensor.name });
                }
                tensors.push(tensor);
            }
            metadata.get_or_insert(proved.metadata);
            parts.push(proved.part);
        }
        Ok(Self { parts, metadata: metadata.unwrap_or_default(), tensors, places })
    }

    /// Where the file lies: the first one, of several.
    pub fn path(&self) -> &Path {
        self.first().path()
    }

    fn first(&self) -> &Part {
        &self.parts[0]
    }

    /// Its files, in order: one, unless it is split.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Its metadata: the first part's, of several.
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
        let bytes = &self.parts[info.part].data()[info.offset..info.offset + info.n_bytes];
        TensorView { name: &info.name, format: info.format, shape: &info.shape, bytes }
    }

    /// Lets the system take the memory of a tensor's bytes back: for whoever has copied them. They can still be read.
    pub fn release(&self, name: &str) {
        if let Some(info) = self.places.get(name).map(|it| &self.tensors[*it]) {
            self.parts[info.part].release(info.offset..info.offset + info.n_bytes);
        }
    }

    /// What tensors are aligned to in the file, or in its first part.
    pub fn alignment(&self) -> u32 {
        self.first().alignment()
    }

    /// The length of the whole file, or of all parts, in bytes.
    pub fn n_bytes(&self) -> usize {
        self.parts.iter().map(|it| it.bytes().len()).sum()
    }

    /// SHA-256 of everything after the header, part after part: equal for files that differ in metadata only.
    pub fn data_sha256(&self) -> [u8; 32] {
        self.digest(Part::add_data_to)
    }

    /// SHA-256 of the whole file, or of its parts one after another.
    pub fn file_sha256(&self) -> [u8; 32] {
        self.digest(Part::add_to)
    }

    fn digest(&self, add: impl Fn(&Part, &mut Sha256)) -> [u8; 32] {
        let mut digest = Sha256::new();
        self.parts.iter().for_each(|it| add(it, &mut digest));
        digest.finalize().into()
    }
}
