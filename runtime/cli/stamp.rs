//! Verdicts put into a file: the one place where the gates' [`Passed`] tokens are spent. Judges nothing.

use std::path::{Path, PathBuf};

use fsq_calibrate::gates::Passed;
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_checkpoint::Adapter;
use fsq_gguf::{Gguf, rewrite_metadata};
use fsq_quantizer::adapter_sha256;

use crate::identity;
use crate::output::hex;

/// Writes a judged file with its maps and verdicts inside to `path`, one verdict for each environment.
///
/// The tensors are copied byte for byte: what was judged is what is written. See
/// `docs/decisions/0002-gate-identity.md`.
pub(crate) fn stamp(
    judged: &Path,
    maps: Option<&RecalibrationMaps>,
    passes: &[(String, Passed)],
    path: &Path,
) -> anyhow::Result<PathBuf> {
    stamp_beside(None, judged, maps, passes, path)
}

/// The same for a file that was judged beside an adapter, if it was: the verdict is about both, so it names that.
pub(crate) fn stamp_beside(
    adapter: Option<&Adapter>,
    judged: &Path,
    maps: Option<&RecalibrationMaps>,
    passes: &[(String, Passed)],
    path: &Path,
) -> anyhow::Result<PathBuf> {
    let source = Gguf::open(judged)?;
    let mut metadata = source.metadata().clone();
    for (key, value) in maps.map(RecalibrationMaps::to_pairs).unwrap_or_default() {
        metadata.insert(key.as_str(), value.as_str());
    }
    if let Some(adapter) = adapter {
        metadata.insert(identity::ADAPTER, hex(&adapter_sha256(adapter)));
    }
    let identity = identity::of(&source, &metadata);
    metadata.insert(identity::KEY, identity);
    let mut usable = true;
    let environments: Vec<&str> = passes.iter().map(|it| it.0.as_str()).collect();
    metadata.insert("fsq.gate.environments", environments.join(", "));
    for (environment, passed) in passes {
        for (key, value) in passed.to_pairs() {
            usable &= key != "fsq.gate.confidence" || value == "usable";
            let own = key.replacen("fsq.gate.", &format!("fsq.gate.{environment}."), 1);
            metadata.insert(own.as_str(), value.as_str());
            metadata.insert(key, value);
        }
    }
    metadata.insert("fsq.gate.confidence", if usable { "usable" } else { "unusable" });
    // Overridden, the environment that is told last must not speak for one that did not pass.
    let verdicts = || passes.iter().map(|it| it.1.report().verdict().name());
    if let Some(worst) = verdicts().find(|it| *it == "fail").or_else(|| verdicts().find(|it| *it != "pass")) {
        metadata.insert("fsq.gate.verdict", worst);
    }
    Ok(rewrite_metadata(&source, &metadata, path)?.publish()?)
}
