//! Writing: under a temporary name in the folder of the final one, synced, then renamed.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fsq_blocks::Format;
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempPath};

use crate::metadata::{Array, Value};
use crate::part::{alignment, checked_shape};
use crate::{Gguf, GgufError, KEY_BYTES_MAX, MAGIC, Metadata, NESTING_MAX, TENSOR_NAME_BYTES_MAX, VERSION};

/// What is to be written of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// How its weights are bytes.
    pub format: Format,
    /// Its dimensions, row length first.
    pub shape: Vec<usize>,
}

/// A tensor with its place in the file.
struct Placed {
    name: String,
    format: Format,
    shape: Vec<u64>,
    offset: u64,
    n_bytes: u64,
}

/// A file being written. Dropped, it removes what it wrote.
pub struct Draft {
    file: BufWriter<NamedTempFile>,
    final_path: PathBuf,
    tensors: Vec<Placed>,
    alignment: u32,
    /// The tensor whose turn it is, and how much of it is there.
    turn: usize,
    n_written: u64,
}

/// A file written whole and synced, not yet under its real name. Dropped, it removes itself.
#[derive(Debug)]
pub struct FinishedDraft {
    path: TempPath,
    final_path: PathBuf,
}

impl Draft {
    /// Begins a file with its header. The tensors' bytes follow in this order.
    ///
    /// # Errors
    /// When the folder cannot be written, or a key, name or shape cannot be in a file.
    pub fn create(final_path: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<Self, GgufError> {
        let (placed, alignment) = place(final_path, metadata, tensors)?;
        Self::begin(final_path, metadata, placed, alignment)
    }

    /// Goes on with the draft that a killed process left beside `final_path`, or begins it, under a name without chance
    /// in it: only one process may do so at a time.
    ///
    /// `whole` has the SHA-256 of the first tensors, as that process noted them. Those whose bytes still have it stay,
    /// and everything after them is cut off. Says how many stay.
    ///
    /// # Errors
    /// As [`Draft::create`].
    pub fn resume(
        final_path: &Path,
        metadata: &Metadata,
        tensors: &[TensorSpec],
        whole: &[[u8; 32]],
    ) -> Result<(Self, usize), GgufError> {
        let (placed, alignment) = place(final_path, metadata, tensors)?;
        check_names(final_path, metadata, &placed)?;
        let header = padded_header(metadata, &placed, alignment);
        let mut name = std::ffi::OsString::from(".");
        name.push(final_path.file_name().unwrap_or_default());
        name.push(".draft");
        let path = folder_of(final_path).join(name);
        let fault = |it| GgufError::io(&path, it);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(fault)?;
        let n_kept = whole_tensors(&mut file, &header, &placed, whole).map_err(fault)?;
        let data_end = match n_kept.map(|it| placed.get(it).map(|it| it.offset)) {
            // All of them: the last one's padding may be missing.
            Some(None) => placed.last().map_or(0, |it| (it.offset + it.n_bytes).next_multiple_of(alignment.into())),
            Some(Some(offset)) => offset,
            None => 0,
        };
        let end = n_kept.map_or(0, |_| header.len() as u64 + data_end);
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(fault)?;
        let temporary = NamedTempFile::from_parts(file, TempPath::try_from_path(&path).map_err(fault)?);
        let (file, turn) = (BufWriter::new(temporary), n_kept.unwrap_or(0));
        let mut draft = Self { file, final_path: final_path.into(), tensors: placed, alignment, turn, n_written: 0 };
        if n_kept.is_none() {
            draft.put(&header)?;
        }
        Ok((draft, turn))
    }

    fn begin(final_path: &Path, metadata: &Metadata, tensors: Vec<Placed>, alignment: u32) -> Result<Self, GgufError> {
        check_names(final_path, metadata, &tensors)?;
        let header = padded_header(metadata, &tensors, alignment);
        let file = temporary(final_path)?;
        let mut draft = Self {
            file: BufWriter::new(file),
            final_path: final_path.into(),
            tensors,
            alignment,
            turn: 0,
            n_written: 0,
        };
        draft.put(&header)?;
        Ok(draft)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        self.file.write_all(bytes).map_err(|it| GgufError::io(&self.final_path, it))
    }

    /// Appends bytes of the tensor whose turn it is: all of them, or some of its rows at a time.
    ///
    /// # Errors
    /// When it is another tensor's turn, when the bytes are more than the tensor has, or when they cannot be written.
    pub fn write(&mut self, tensor: &str, bytes: &[u8]) -> Result<(), GgufError> {
        let Some(placed) = self.tensors.get(self.turn).filter(|it| it.name == tensor) else {
            let expected = self.tensors.get(self.turn).map_or_else(|| "none".into(), |it| format!("`{}`", it.name));
            return Err(GgufError::Turn { path: self.final_path.clone(), expected, found: tensor.into() });
        };
        let (expected, found) = (placed.n_bytes, self.n_written + bytes.len() as u64);
        if found > expected {
            let (path, tensor) = (self.final_path.clone(), tensor.into());
            return Err(GgufError::TooManyBytes { path, tensor, expected, found });
        }
        self.put(bytes)?;
        self.n_written = found;
        if found == expected {
            let padding = expected.next_multiple_of(self.alignment.into()) - expected;
            self.put(&vec![0; padding as usize])?;
            (self.turn, self.n_written) = (self.turn + 1, 0);
        }
        Ok(())
    }

    /// Syncs the file.
    ///
    /// # Errors
    /// When a tensor is not whole, or the file cannot be synced.
    pub fn finish(self) -> Result<FinishedDraft, GgufError> {
        if let Some(placed) = self.tensors.get(self.turn) {
            return Err(GgufError::Unfinished { path: self.final_path, tensor: placed.name.clone() });
        }
        let fault = |it| GgufError::io(&self.final_path, it);
        let file = self.file.into_inner().map_err(|it| fault(it.into_error()))?;
        file.as_file().sync_all().map_err(fault)?;
        Ok(FinishedDraft { path: file.into_temp_path(), final_path: self.final_path })
    }
}

/// How long a file of this metadata and these tensors is, in bytes.
///
/// # Errors
/// When a shape cannot be in a file.
pub fn file_bytes(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<u64, GgufError> {
    let (placed, alignment) = place(Path::new(""), metadata, tensors)?;
    let header = padded_header(metadata, &placed, alignment).len() as u64;
    let data = placed.last().map_or(0, |it| (it.offset + it.n_bytes).next_multiple_of(alignment.into()));
    Ok(header + data)
}

/// Where each tensor begins, and what all are aligned to.
fn place(path: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<(Vec<Placed>, u32), GgufError> {
    let alignment = alignment(path, metadata)?;
    let mut placed = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let shape: Vec<u64> = tensor.shape.iter().map(|it| *it as u64).collect();
        let (_, n_bytes) = checked_shape(path, &tensor.name, tensor.format, &shape)?;
        let n_bytes = n_bytes as u64;
        placed.push(Placed { name: tensor.name.clone(), format: tensor.format, shape, offset, n_bytes });
        let end = offset.checked_add(n_bytes).and_then(|it| it.checked_next_multiple_of(alignment.into()));
        offset = end.ok_or_else(|| GgufError::Shape {
            path: path.into(),
            tensor: tensor.name.clone(),
            found: tensor.shape.iter().map(|it| *it as u64).collect(),
        })?;
    }
    Ok((placed, alignment))
}

impl FinishedDraft {
    /// Where the file lies until it is published: it can be opened, judged and measured there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it will lie.
    pub fn final_path(&self) -> &Path {
        &self.final_path
    }

    /// Gives the file its real name, over what may have that name now, and syncs the folder.
    ///
    /// # Errors
    /// When it cannot be renamed; the temporary file is then removed.
    pub fn publish(self) -> Result<PathBuf, GgufError> {
        let final_path = self.final_path;
        self.path.persist(&final_path).map_err(|it| GgufError::io(&final_path, it.error))?;
        let folder = folder_of(&final_path);
        // Windows cannot sync a folder and needs not: the rename is journaled.
        if cfg!(unix) {
            File::open(folder).and_then(|it| it.sync_all()).map_err(|it| GgufError::io(folder, it))?;
        }
        Ok(final_path)
    }
}

/// Copies a file with other metadata; its tensors and what pads them stay byte for byte.
///
/// # Errors
/// When the source is split, the metadata asks for another alignment than it has, or the copy cannot be written.
pub fn rewrite_metadata(source: &Gguf, metadata: &Metadata, final_path: &Path) -> Result<FinishedDraft, GgufError> {
    let [whole] = source.parts() else {
        return Err(GgufError::NotOneFile { path: source.path().into(), n_parts: source.parts().len() });
    };
    let asked = alignment(final_path, metadata)?;
    if asked != source.alignment() {
        return Err(GgufError::Alignment {
            path: final_path.into(),
            expected: format!("the {} of {}", source.alignment(), source.path().display()),
            found: asked.to_string(),
        });
    }
    let placed = source.tensors().iter().map(|it| Placed {
        name: it.name.clone(),
        format: it.format,
        shape: it.shape.iter().map(|it| *it as u64).collect(),
        offset: it.offset as u64,
        n_bytes: it.n_bytes as u64,
    });
    let mut draft = Draft::begin(final_path, metadata, placed.collect(), asked)?;
    draft.put(whole.data())?;
    draft.turn = draft.tensors.len();
    draft.finish()
}

/// How many of the first tensors a file still has as their digests say; `None` where it begins with another header.
fn whole_tensors(
    file: &mut File,
    header: &[u8],
    placed: &[Placed],
    digests: &[[u8; 32]],
) -> std::io::Result<Option<usize>> {
    let mut found = Vec::with_capacity(header.len());
    (&mut *file).take(header.len() as u64).read_to_end(&mut found)?;
    if found != header {
        return Ok(None);
    }
    for (index, (placed, expected)) in placed.iter().zip(digests).enumerate() {
        file.seek(SeekFrom::Start(header.len() as u64 + placed.offset))?;
        let mut digest = Sha256::new();
        let n_read = std::io::copy(&mut (&mut *file).take(placed.n_bytes), &mut digest)?;
        if n_read != placed.n_bytes || digest.finalize()[..] != expected[..] {
            return Ok(Some(index));
        }
    }
    Ok(Some(digests.len().min(placed.len())))
}

fn padded_header(metadata: &Metadata, tensors: &[Placed], alignment: u32) -> Vec<u8> {
    let mut header = header(metadata, tensors);
    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    header
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary(final_path: &Path) -> Result<NamedTempFile, GgufError> {
    let folder = folder_of(final_path);
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(final_path.file_name().unwrap_or_default());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".draft");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As an ordinary new file, less what the user's mask takes away; the default would be readable by one user
        // only.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(|it| GgufError::io(folder, it))
}

fn check_names(path: &Path, metadata: &Metadata, tensors: &[Placed]) -> Result<(), GgufError> {
    let limit = |what: String, limit: u64, found: u64| {
        if found <= limit { Ok(()) } else { Err(GgufError::Limit { path: path.into(), what, limit, found }) }
    };
    for (key, value) in metadata.iter() {
        limit(format!("bytes of metadata key `{key}`"), KEY_BYTES_MAX, key.len() as u64)?;
        if let Value::Array(array) = value {
            limit(format!("arrays in arrays of metadata `{key}`"), NESTING_MAX.into(), depth(array))?;
        }
    }
    let mut names = HashSet::new();
    for Placed { name, .. } in tensors {
        limit(format!("bytes of tensor name `{name}`"), TENSOR_NAME_BYTES_MAX, name.len() as u64)?;
        if !names.insert(name) {
            return Err(GgufError::DuplicateTensor { path: path.into(), tensor: name.clone() });
        }
    }
    Ok(())
}

fn depth(array: &Array) -> u64 {
    match array {
        Array::Array(arrays) => 1 + arrays.iter().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

fn header(metadata: &Metadata, tensors: &[Placed]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key);
        out.extend(value.type_id().to_le_bytes());
        put_value(&mut out, value);
    }
    for tensor in tensors {
        put_string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.shape.iter().flat_map(|it| it.to_le_bytes()));
        out.extend(tensor.format.id().to_le_bytes());
        out.extend(tensor.offset.to_le_bytes());
    }
    out
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(it) => out.push(*it),
        Value::I8(it) => out.extend(it.to_le_bytes()),
        Value::U16(it) => out.extend(it.to_le_bytes()),
        Value::I16(it) => out.extend(it.to_le_bytes()),
        Value::U32(it) => out.extend(it.to_le_bytes()),
        Value::I32(it) => out.extend(it.to_le_bytes()),
        Value::F32(it) => out.extend(it.to_le_bytes()),
        Value::Bool(it) => out.push(u8::from(*it)),
        Value::String(it) => put_string(out, it),
        Value::Array(it) => put_array(out, it),
        Value::U64(it) => out.extend(it.to_le_bytes()),
        Value::I64(it) => out.extend(it.to_le_bytes()),
        Value::F64(it) => out.extend(it.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(it) => out.extend(it),
        Array::I8(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::U16(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::I16(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::U32(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::I32(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::F32(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::Bool(it) => out.extend(it.iter().map(|it| u8::from(*it))),
        Array::String(it) => it.iter().for_each(|it| put_string(out, it)),
        Array::Array(it) => it.iter().for_each(|it| put_array(out, it)),
        Array::U64(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::I64(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
        Array::F64(it) => out.extend(it.iter().flat_map(|it| it.to_le_bytes())),
    }
}
