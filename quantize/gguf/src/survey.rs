//! What a damaged file still says: for showing to a person, never for running.

use std::path::Path;

use crate::header::{Header, ToldTensor};
use crate::{GgufError, Metadata, memory};

/// A header as far as it can be read. Nothing in it is proved but that it lies within the file.
#[derive(Debug)]
pub struct Survey {
    /// The length of the file.
    pub n_bytes: usize,
    /// Its version; `None` when it is not a GGUF file of one that is read.
    pub version: Option<u32>,
    /// Metadata up to the first fault.
    pub metadata: Metadata,
    /// Tensors up to the first fault.
    pub tensors: Vec<ToldTensor>,
}

impl Survey {
    /// Reads the header of a file up to its first fault.
    ///
    /// # Errors
    /// When there is no file, or it cannot be mapped.
    pub fn of(path: &Path) -> Result<Self, GgufError> {
        let memory = memory::map(path)?;
        let mut header = Header::default();
        // The fault is what `Gguf::open` reports; here it only says where to end.
        let _ = header.read(path, memory.bytes());
        let Header { version, metadata, tensors, .. } = header;
        Ok(Self { n_bytes: memory.bytes().len(), version, metadata, tensors })
    }
}
