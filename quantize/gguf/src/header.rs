//! A header as a file tells it: read within its bytes, but not yet believed. Knows nothing of the tensor data.

use std::path::Path;

use crate::cursor::Cursor;
use crate::{
    DIMENSIONS_MAX, ENTRIES_MAX, GgufError, KEY_BYTES_MAX, MAGIC, Metadata, TENSOR_NAME_BYTES_MAX, TENSORS_MAX,
};

/// What a file says of a tensor, before anything of it is checked but its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, row length first.
    pub shape: Vec<u64>,
    /// ggml's number of its format.
    pub format: u32,
    /// Where it begins, from the start of the tensor data.
    pub offset: u64,
}

/// Everything before the tensor data. After an error it holds what came before the fault.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) version: Option<u32>,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<ToldTensor>,
    /// Its length in bytes, the padding after it not counted.
    pub(crate) n_bytes: usize,
}

impl Header {
    /// Reads the header of a file.
    pub(crate) fn read(&mut self, path: &Path, file: &[u8]) -> Result<(), GgufError> {
        let mut cursor = Cursor::new(path, file);
        self.version = Some(version(&mut cursor)?);
        // A tensor is told in no less than 24 bytes, an entry of metadata in no less than 13.
        let n_tensors = cursor.count("number of tensors", 24, TENSORS_MAX)?;
        let n_entries = cursor.count("number of metadata entries", 13, ENTRIES_MAX)?;
        for index in 0..n_entries {
            self.read_entry(&mut cursor, index)?;
        }
        for _ in 0..n_tensors {
            self.tensors.push(tensor(&mut cursor)?);
        }
        self.n_bytes = cursor.offset();
        Ok(())
    }

    fn read_entry(&mut self, cursor: &mut Cursor<'_>, index: usize) -> Result<(), GgufError> {
        let key = cursor.string(&format!("metadata key {index}"), KEY_BYTES_MAX)?;
        let what = format!("metadata `{key}`");
        let type_id = cursor.u32(&what)?;
        let value = cursor.value(type_id, &what)?;
        if self.metadata.get(&key).is_some() {
            return Err(GgufError::DuplicateKey { path: cursor.path().into(), key });
        }
        self.metadata.insert(key, value);
        Ok(())
    }
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let path = cursor.path();
    let found = cursor.four_bytes("magic")?;
    if found != MAGIC {
        return Err(GgufError::Magic { path: path.into(), found });
    }
    let found = cursor.u32("version")?;
    if (2..=3).contains(&found) {
        return Ok(found);
    }
    let big_endian = (1..=3).contains(&found.swap_bytes());
    Err(GgufError::Version { path: path.into(), found, big_endian })
}

fn tensor(cursor: &mut Cursor<'_>) -> Result<ToldTensor, GgufError> {
    let name = cursor.string("tensor name", TENSOR_NAME_BYTES_MAX)?;
    let what = format!("tensor `{name}`");
    let n_dimensions = cursor.u32(&what)?;
    if n_dimensions == 0 {
        // Refused here and not with the other shapes: of zeros a large file could tell millions of such tensors.
        return Err(GgufError::Shape { path: cursor.path().into(), tensor: name, found: Vec::new() });
    }
    if n_dimensions > DIMENSIONS_MAX {
        return Err(GgufError::Limit {
            path: cursor.path().into(),
            what: format!("dimensions of {what}"),
            limit: DIMENSIONS_MAX.into(),
            found: n_dimensions.into(),
        });
    }
    let shape = (0..n_dimensions).map(|_| cursor.u64(&what)).collect::<Result<_, _>>()?;
    Ok(ToldTensor { name, shape, format: cursor.u32(&what)?, offset: cursor.u64(&what)? })
}
