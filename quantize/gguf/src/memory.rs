//! The bytes of a file, mapped or held; knows nothing of what they mean.

use std::fs::File;
use std::path::Path;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;

use crate::GgufError;

/// What tensors are aligned to in memory when they are in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(crate) struct Line([u8; 32]);

/// Bytes whose first lies on a multiple of 32.
pub(crate) enum Memory {
    Mapped(Mmap),
    Held { lines: Vec<Line>, len: usize },
}

impl Memory {
    /// Copies bytes to where the first lies on a multiple of 32.
    pub(crate) fn held(bytes: &[u8]) -> Self {
        let mut lines = vec![Line::zeroed(); bytes.len().div_ceil(size_of::<Line>())];
        bytemuck::cast_slice_mut::<Line, u8>(&mut lines)[..bytes.len()].copy_from_slice(bytes);
        Self::Held { lines, len: bytes.len() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held { lines, len } => &bytemuck::cast_slice::<Line, u8>(lines)[..*len],
        }
    }
}

impl Memory {
    /// Lets the system take the memory of a range back that will hardly be read again; read again it is the same.
    #[cfg(unix)]
    #[allow(unsafe_code, reason = "advice about a map")]
    pub(crate) fn release(&self, range: std::ops::Range<usize>) {
        if let Self::Mapped(map) = self {
            // SAFETY: the map is of a file and only read: pages that are dropped are read from the file again, so that
            // nobody who holds a reference sees a difference. Advice that is refused changes nothing.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn release(&self, _range: std::ops::Range<usize>) {}
}

/// Maps a file for reading.
#[allow(unsafe_code, reason = "the one place where a file is mapped")]
pub(crate) fn map(path: &Path) -> Result<Memory, GgufError> {
    // Asked before opening, since opening a pipe waits for its writer; and after, since the place may have changed.
    check_kind(path, std::fs::metadata(path))?;
    let file = File::open(path).map_err(|it| GgufError::io(path, it))?;
    check_kind(path, file.metadata())?;
    // SAFETY: the map is private to this process and never written. Another process may change the file meanwhile:
    // every offset was proved against the length of the map, never read from it again, so changed bytes change weights
    // only; a file cut short ends the process (SIGBUS) rather than reading memory that is not its own.
    // Drafts are never written to under the name of a file that can be open: they are renamed over it.
    let map = unsafe { Mmap::map(&file) }.map_err(|it| GgufError::io(path, it))?;
    Ok(Memory::Mapped(map))
}

/// Refuses what has no length: a folder, a pipe, a device.
fn check_kind(path: &Path, asked: std::io::Result<std::fs::Metadata>) -> Result<(), GgufError> {
    let kind = asked.map_err(|it| GgufError::io(path, it))?.file_type();
    let found = match kind {
        it if it.is_file() => return Ok(()),
        it if it.is_dir() => "a folder",
        it => special(it),
    };
    Err(GgufError::NotAFile { path: path.into(), found })
}

#[cfg(unix)]
fn special(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        it if it.is_fifo() => "a pipe",
        it if it.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(not(unix))]
fn special(_kind: std::fs::FileType) -> &'static str {
    "something else"
}
