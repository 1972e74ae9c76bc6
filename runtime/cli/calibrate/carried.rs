//! Where to act, put into a copy of a policy's file, beside the map whose estimates it is about. Judges nothing.

use std::path::{Path, PathBuf};

use anyhow::Context;
use fsq_calibrate::recalibration::{RecalibrationMap, RecalibrationMaps};
use fsq_calibrate::stored::StoredThreshold;
use fsq_gguf::{Gguf, rewrite_metadata};

/// A policy's file that is to carry a threshold.
pub(super) struct Carrier {
    source: Gguf,
    environment: Option<String>,
    /// What makes its estimates there.
    pub(super) map: RecalibrationMap,
}

impl Carrier {
    /// Reads a file and its map over everything, or of one environment.
    pub(super) fn open(path: &Path, environment: Option<&str>) -> anyhow::Result<Self> {
        let source = crate::policy::open(path)?;
        let fields = source.metadata();
        let pairs = fields.iter().filter_map(|(key, _)| Some((key, fields.str(key)?)));
        let maps = RecalibrationMaps::from_pairs(pairs).with_context(|| path.display().to_string())?;
        let map = maps.map_or_else(RecalibrationMap::identity, |it| it.of(environment).clone());
        Ok(Self { environment: environment.map(str::to_owned), map, source })
    }

    /// Writes the copy: the tensors byte for byte, and the threshold beside whatever else the file says.
    pub(super) fn write(&self, threshold: &StoredThreshold, path: &Path) -> anyhow::Result<PathBuf> {
        let mut metadata = self.source.metadata().clone();
        for (key, value) in threshold.to_pairs(self.environment.as_deref()) {
            metadata.insert(key, value);
        }
        Ok(rewrite_metadata(&self.source, &metadata, path)?.publish()?)
    }
}
