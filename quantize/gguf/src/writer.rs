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
use crate::write_back::WriteBack;
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
    /// There if what is written is digested.
    running: Option<Running>,
    write_back: WriteBack,
}

/// A file written whole and synced, not yet under its real name. Dropped, it removes itself.
#[derive(Debug)]
pub struct FinishedDraft {
    path: TempPath,
    final_path: PathBuf,
    digests: Option<Digests>,
}

/// SHA-256 of a file that was digested while it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of the whole file.
    pub file: [u8; 32],
    /// Of everything after the header.
    pub data: [u8; 32],
}

/// Both digests of a file that is being written.
#[derive(Clone)]
struct Running {
    file: Sha256,
    data: Sha256,
}

impl Running {
    /// Of a file that has its header so far.
    fn of_header(header: &[u8]) -> Self {
        Self { file: Sha256::new_with_prefix(header), data: Sha256::new() }
    }
}

impl Write for Running {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.update(bytes);
        self.data.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
    /// `whole` has what [`Draft::data_sha256`] was after each of the first tensors, as that process noted it. As many
    /// tensors as still have it stay, and everything after them is cut off. Says how many stay.
    ///
    /// Such a draft digests what it holds.
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
        let has_header = begins_with(&mut file, &header).map_err(fault)?;
        let ends: Vec<u64> = placed.iter().map(|it| padded_end(it, alignment)).collect();
        let whole = if has_header { whole } else { &[] };
        let (turn, running) = whole_tensors(&mut file, Running::of_header(&header), &ends, whole).map_err(fault)?;
        let data_end = turn.checked_sub(1).map_or(0, |it| ends[it]);
        let end = if has_header { header.len() as u64 + data_end } else { 0 };
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(fault)?;
        let temporary = NamedTempFile::from_parts(file, TempPath::try_from_path(&path).map_err(fault)?);
        let mut draft = Self::over(temporary, final_path, placed, alignment);
        if !has_header {
            draft.put(&header)?;
        }
        (draft.turn, draft.running) = (turn, Some(running));
        Ok((draft, turn))
    }

    fn begin(final_path: &Path, metadata: &Metadata, tensors: Vec<Placed>, alignment: u32) -> Result<Self, GgufError> {
        check_names(final_path, metadata, &tensors)?;
        let header = padded_header(metadata, &tensors, alignment);
        let mut draft = Self::over(temporary(final_path)?, final_path, tensors, alignment);
        draft.put(&header)?;
        Ok(draft)
    }

    /// A draft that holds nothing, or what is before the file's place.
    fn over(file: NamedTempFile, final_path: &Path, tensors: Vec<Placed>, alignment: u32) -> Self {
        Self {
            file: BufWriter::new(file),
            final_path: final_path.into(),
            tensors,
            alignment,
            turn: 0,
            n_written: 0,
            running: None,
            write_back: WriteBack::default(),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        let mut put = || {
            self.file.write_all(bytes)?;
            self.running.as_mut().map_or(Ok(()), |it| it.write_all(bytes))?;
            self.write_back.wrote(self.file.get_ref().as_file(), bytes.len())
        };
        put().map_err(|it| GgufError::io(&self.final_path, it))
    }

    /// SHA-256 of all tensors so far with what pads them, where they are digested.
    pub fn data_sha256(&self) -> Option<[u8; 32]> {
        self.running.as_ref().map(|it| it.data.clone().finalize().into())
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
        // A fault of the disk is told once, to whoever synced first.
        self.write_back.finish().and_then(|()| file.as_file().sync_all()).map_err(fault)?;
        let digests =
            self.running.map(|it| Digests { file: it.file.finalize().into(), data: it.data.finalize().into() });
        Ok(FinishedDraft { path: file.into_temp_path(), final_path: self.final_path, digests })
    }
}

/// How long a file of this metadata and these tensors is, in bytes.
///
/// # Errors
/// When a shape cannot be in a file.
pub fn file_bytes(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<u64, GgufError> {
    let (placed, alignment) = place(Path::new(""), metadata, tensors)?;
    let header = padded_header(metadata, &placed, alignment).len() as u64;
    Ok(header + placed.last().map_or(0, |it| padded_end(it, alignment)))
}

/// Where the padding after a tensor ends, from the start of the tensor data.
fn padded_end(tensor: &Placed, alignment: u32) -> u64 {
    (tensor.offset + tensor.n_bytes).next_multiple_of(alignment.into())
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

    /// What was digested while it was written, if it was.
    pub fn digests(&self) -> Option<Digests> {
        self.digests
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

/// Whether a file begins with a header; it is then read up to there.
fn begins_with(file: &mut File, header: &[u8]) -> std::io::Result<bool> {
    let mut found = Vec::with_capacity(header.len());
    file.take(header.len() as u64).read_to_end(&mut found)?;
    Ok(found == header)
}

/// How many of the first tensors a file, read up to them, still has as the digests say; and the digests up to there.
/// `ends` has where each ends, padding included.
fn whole_tensors(
    file: &mut File,
    mut running: Running,
    ends: &[u64],
    digests: &[[u8; 32]],
) -> std::io::Result<(usize, Running)> {
    let mut start = 0;
    for (index, (end, expected)) in ends.iter().zip(digests).enumerate() {
        let mut with_next = running.clone();
        let n_read = std::io::copy(&mut (&mut *file).take(end - start), &mut with_next)?;
        if n_read != end - start || with_next.data.clone().finalize()[..] != expected[..] {
            return Ok((index, running));
        }
        (running, start) = (with_next, *end);
    }
    Ok((digests.len().min(ends.len()), running))
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
