//! Whether the files will fit on the disk, asked before anything is read. Knows no contents.

use std::path::Path;

use anyhow::Context;
use fsq_checkpoint::Dimensions;
use fsq_quantizer::{Plan, QuantizeError};

use crate::failure::Refusal;
use crate::output::bytes_text;

/// Room for headers and reports: a large vocabulary with its merges takes some 10 MB in each file.
const BESIDE_TENSORS: u64 = 16 << 20;

/// Bytes of the file that a plan makes of a policy, its header estimated.
pub(super) fn file_bytes(plan: &Plan, dimensions: &Dimensions, weighted: bool) -> Result<u64, QuantizeError> {
    let bytes = |it: &fsq_quantizer::Allocation| {
        let n_weights: usize = it.tensor.shape.iter().product();
        (n_weights / it.format.block_weights() * it.format.block_bytes()) as u64
    };
    Ok(plan.allocate(dimensions, weighted)?.iter().map(bytes).sum::<u64>() + BESIDE_TENSORS)
}

/// Refuses a folder whose disk has less room than `n_bytes`.
pub(super) fn check(out: &Path, n_bytes: u64) -> anyhow::Result<()> {
    let place = out.ancestors().find(|it| it.exists()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(place).map_err(std::io::Error::from);
    let disk = disk.with_context(|| place.display().to_string())?;
    refuse(out, n_bytes, disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn refuse(out: &Path, n_bytes: u64, free: u64) -> anyhow::Result<()> {
    if n_bytes <= free {
        return Ok(());
    }
    let (needed, free) = (bytes_text(n_bytes), bytes_text(free));
    let refusal = Refusal::new(format!("{}: expected {needed} free on this disk, found {free}", out.display()));
    Err(refusal.hint("choose another disk with --out, or fewer formats with --to").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_both_figures() {
        assert!(refuse(Path::new("out"), 5, 5).is_ok());
        let error = refuse(Path::new("out"), 2_000_000, 1_000_000).map_err(|it| it.to_string());
        assert_eq!(error, Err("out: expected 2.0 MB free on this disk, found 1.0 MB".into()));
    }
}
