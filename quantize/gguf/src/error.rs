//! Every way in which reading or writing a GGUF file can fail.

use std::path::{Path, PathBuf};

/// A metadata field that is absent or of another type than its reader needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata `{key}`: expected {expected}, found {found}")]
pub struct FieldError {
    /// The key.
    pub key: String,
    /// What would have been right.
    pub expected: &'static str,
    /// What stands there.
    pub found: String,
}

/// A fault in a GGUF file, or in what is to become one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder, a pipe or a device where a file should be.
    #[error("{}: expected a file, found {found}", path.display())]
    NotAFile {
        /// The place.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The first four bytes are not `GGUF`.
    #[error("{}: not a GGUF file: expected it to begin with `GGUF`, found {found:?}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: [u8; 4],
    },
    /// A version that is not read.
    #[error(
        "{}: expected GGUF version 2 or 3, found {found}{}",
        path.display(),
        if *big_endian { " (big endian)" } else { "" }
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Whether the number would be right with its bytes reversed.
        big_endian: bool,
    },
    /// The file ends before something does.
    #[error("{}: {what} at byte {offset}: expected {expected} more bytes, found {found}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is cut off.
        what: String,
        /// Where it begins.
        offset: usize,
        /// Bytes it says it has.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A count or length that no honest file has.
    #[error("{}: {what}: expected at most {limit}, found {found}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What is too many or too long.
        what: String,
        /// The largest that is accepted.
        limit: u64,
        /// What the file says.
        found: u64,
    },
    /// A string that is not UTF-8.
    #[error("{}: {what}: expected UTF-8, found other bytes", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// What holds it.
        what: String,
    },
    /// A value of a type that does not exist.
    #[error("{}: {what}: expected a value type from 0 to 12, found {found}", path.display())]
    ValueType {
        /// The file.
        path: PathBuf,
        /// What holds it.
        what: String,
        /// The number of the type.
        found: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("{}: {what}: expected a bool of 0 or 1, found {found}", path.display())]
    Bool {
        /// The file.
        path: PathBuf,
        /// What holds it.
        what: String,
        /// The byte.
        found: u8,
    },
    /// Two metadata entries of one key.
    #[error("{}: metadata `{key}` is there twice", path.display())]
    DuplicateKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// An alignment that is not usable.
    #[error("{}: `general.alignment`: expected {expected}, found {found}", path.display())]
    Alignment {
        /// The file.
        path: PathBuf,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// Two tensors of one name.
    #[error("{}: tensor `{tensor}` is there twice", path.display())]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// A shape that is no shape, or too large for this machine.
    #[error(
        "{}: tensor `{tensor}`: expected one to four dimensions from 1 whose bytes fit in memory, found \
         {found:?}",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dimensions, row length first.
        found: Vec<u64>,
    },
    /// A format that is not known.
    #[error("{}: tensor `{tensor}`: expected a known format, found number {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// ggml's number of the type.
        found: u32,
    },
    /// A row that is not whole blocks.
    #[error(
        "{}: tensor `{tensor}`: expected rows of a multiple of {expected} weights for {format}, found {found}",
        path.display()
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name of its format.
        format: &'static str,
        /// Weights per block.
        expected: usize,
        /// Weights per row.
        found: usize,
    },
    /// A tensor that does not begin on the alignment.
    #[error(
        "{}: tensor `{tensor}`: expected an offset that is a multiple of {expected}, found {found}",
        path.display()
    )]
    Misaligned {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The alignment.
        expected: u32,
        /// The offset.
        found: u64,
    },
    /// A tensor that ends beyond the file.
    #[error(
        "{}: tensor `{tensor}`: expected its end within {expected} bytes of tensor data, found {found}",
        path.display()
    )]
    OutOfFile {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes of tensor data in the file.
        expected: u64,
        /// Where the tensor would end.
        found: u128,
    },
    /// Two tensors that share bytes.
    #[error("{}: tensor `{tensor}` overlaps tensor `{other}`", path.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor that begins later.
        tensor: String,
        /// The one that it begins in.
        other: String,
    },
    /// A field of a split file that says nothing usable.
    #[error("{}: metadata `{key}`: expected {expected}, found {found}", path.display())]
    Split {
        /// The part.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A part under a name that is not its own.
    #[error("{}: part {number} of {count} by its metadata: expected a name that ends in `{expected}`", path.display())]
    PartName {
        /// The part.
        path: PathBuf,
        /// Its number, from 1.
        number: u64,
        /// How many there are.
        count: u64,
        /// How its name would end.
        expected: String,
    },
    /// A part that is not beside the others.
    #[error(
        "{}: part {number} of {count}: expected `{}` beside it, found no such file",
        path.display(),
        part.display()
    )]
    MissingPart {
        /// The part that was opened.
        path: PathBuf,
        /// The one that is missing.
        part: PathBuf,
        /// Its number, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A part that says something else than the first.
    #[error(
        "{}: metadata `{key}`: expected what {} says, found a part of another file",
        path.display(),
        first.display()
    )]
    ForeignPart {
        /// The part.
        path: PathBuf,
        /// The first part.
        first: PathBuf,
        /// The key in which they differ.
        key: String,
    },
    /// A split file where one whole file is needed.
    #[error("{}: expected one file, found one of {n_parts} parts: join them first", path.display())]
    NotOneFile {
        /// The first part.
        path: PathBuf,
        /// How many there are.
        n_parts: usize,
    },
    /// A tensor written out of its turn.
    #[error("{}: expected the bytes of tensor {expected}, found those of `{found}`", path.display())]
    Turn {
        /// The draft's final path.
        path: PathBuf,
        /// The tensor whose turn it is.
        expected: String,
        /// The one that came.
        found: String,
    },
    /// More bytes for a tensor than its shape has.
    #[error("{}: tensor `{tensor}`: expected {expected} bytes, found at least {found}", path.display())]
    TooManyBytes {
        /// The draft's final path.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes by its shape and format.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A draft finished before its last tensor.
    #[error("{}: the draft ends before tensor `{tensor}` is whole", path.display())]
    Unfinished {
        /// The draft's final path.
        path: PathBuf,
        /// The first tensor that lacks bytes.
        tensor: String,
    },
}

impl GgufError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }
}
