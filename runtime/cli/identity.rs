//! What a gate's verdict is about: the tensors, the recalibration map and the adapter that runs beside them, whatever
//! else a file says.
//!
//! See `docs/decisions/0002-gate-identity.md`.
#![cfg_attr(
    not(any(feature = "serve", feature = "train")),
    allow(dead_code, reason = "a build that neither serves nor judges only checks adapters")
)]

use fsq_checkpoint::Adapter;
use fsq_gguf::{Gguf, Metadata};
use fsq_quantizer::adapter_sha256;
use sha2::{Digest, Sha256};

use crate::failure::Refusal;
use crate::output::hex;

/// Where a file names what its verdict is about.
pub(crate) const KEY: &str = "fsq.gate.identity";
/// Where a file names the adapter beside which it was judged, by its digest.
pub(crate) const ADAPTER: &str = "fsq.gate.adapter";
/// The other metadata that belongs to the identity.
const MAP: &str = "fsq.recalibration.";

/// SHA-256 of the tensor section's digest, and of the recalibration map and the adapter in some metadata, in
/// hexadecimal.
pub(crate) fn of(gguf: &Gguf, metadata: &Metadata) -> String {
    let mut pairs: Vec<(&str, &str)> = metadata
        .iter()
        .filter(|it| it.0.starts_with(MAP) || it.0 == ADAPTER)
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

/// Refuses another adapter than the one beside which a file was judged, or none. Files that were judged alone, or
/// never, name none: they take any.
pub(crate) fn check_adapter(gguf: &Gguf, adapter: Option<&Adapter>) -> anyhow::Result<()> {
    let Some(named) = gguf.metadata().str(ADAPTER) else { return Ok(()) };
    let found = adapter.map(|it| hex(&adapter_sha256(it)));
    if found.as_deref() == Some(named) {
        return Ok(());
    }
    let (file, found) = (gguf.path().display(), found.as_deref().unwrap_or("none"));
    let message = format!("{file}: metadata `{ADAPTER}`: expected the adapter {named}, found {found}");
    let hint = "the gates judged the two together: `fsq run FILE --adapter NAME-LoRA.gguf` runs them so, and \
                `fsq quantize --deploy merged` makes one file of both";
    Err(Refusal::new(message).hint(hint).into())
}
