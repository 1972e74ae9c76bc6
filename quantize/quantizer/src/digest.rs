//! SHA-256 of things that are not files; knows nothing of what they are for.

use sha2::{Digest, Sha256};

/// A digest over several named parts. Each part is told with its length, so that no two lists of parts run together.
pub(crate) struct Parts(Sha256);

impl Parts {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub(crate) fn add_floats(&mut self, part: &[f32]) {
        self.0.update((part.len() as u64 * 4).to_le_bytes());
        for chunk in part.chunks(4096) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|it| it.to_le_bytes()).collect();
            self.0.update(&bytes);
        }
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|it| format!("{it:02x}")).collect()
}
