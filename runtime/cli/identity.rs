//! What a gate's verdict is about: the tensors and the recalibration map, whatever else a file says.
//!
//! See `docs/decisions/0002-gate-identity.md`.

use fsq_gguf::{Gguf, Metadata};
use sha2::{Digest, Sha256};

use crate::failure::Refusal;
use crate::output::hex;

/// Where a file names what its verdict is about.
pub(crate) const KEY: &str = "fsq.gate.identity";
/// The metadata that belongs to the identity.
const MAP: &str = "fsq.recalibration.";

/// SHA-256 of the tensor section's digest and of the recalibration map in some metadata, in hexadecimal.
pub(crate) fn of(gguf: &Gguf, metadata: &Metadata) -> String {
    let mut pairs: Vec<(&str, &str)> = metadata
        .iter()
        .filter(|it| it.0.starts_with(MAP))
        .filter_map(|(key, _)| Some((key, metadata.str(key)?)))
        .collect();
    pairs.sort_unstable();
    let mut digest = Sha256::new();
    digest.update(gguf.data_sha256());
    for (key, value) in pairs {
        for part in [key, value] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
    }
    hex(&digest.finalize())
}

/// Refuses a file whose verdict is about something else than what it holds.
pub(crate) fn check(gguf: &Gguf) -> anyhow::Result<()> {
    let metadata = gguf.metadata();
    let (Some(_), named) = (metadata.str("fsq.gate.verdict"), metadata.str(KEY)) else { return Ok(()) };
    let found = of(gguf, metadata);
    if named == Some(found.as_str()) {
        return Ok(());
    }
    let file = gguf.path().display();
    let message = format!("{file}: metadata `{KEY}`: expected {found}, found {}", named.unwrap_or("nothing"));
    Err(Refusal::new(message).hint("weights or recalibration map changed after the gates: judge the file again").into())
}
