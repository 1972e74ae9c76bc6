//! The folder in which files grow before they get their names. Knows no format and no gate.
//!
//! A run that ends, well or not, removes it; after a kill it stays, and the next run with the same inputs goes on from
//! what is whole in it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Refusal;
use crate::output;

const FOLDER: &str = ".fsq-quantize";
const LOCK: &str = "lock";

/// Bytes that a killed run left in the work folder of `out`: they need no room again.
pub(super) fn held_bytes(out: &Path) -> u64 {
    let files = std::fs::read_dir(out.join(FOLDER)).into_iter().flatten().flatten();
    files.filter_map(|it| Some(it.metadata().ok()?.len())).sum()
}

/// A work folder that this run alone writes to.
pub(super) struct Work {
    folder: PathBuf,
    key: String,
    /// Whether the folder that the files will be in was made by this run.
    made: Option<PathBuf>,
    _lock: File,
}

impl Work {
    /// Opens the work folder inside `out` for the inputs that `key` stands for, and clears away what others left.
    pub(super) fn open(out: &Path, key: &str) -> anyhow::Result<Self> {
        let made = (!out.exists()).then(|| out.to_owned());
        let folder = out.join(FOLDER);
        output::make_folder(&folder)?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).with_context(|| path.display().to_string())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Refusal::new(format!("{}: another run is writing to this folder", out.display())).into());
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
        }
        let work = Self { folder, key: key.into(), made, _lock: lock };
        for entry in std::fs::read_dir(&work.folder).with_context(|| work.folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A draft that may be gone on with has a dot before its name.
            if name != LOCK && !name.trim_start_matches('.').starts_with(key) {
                std::fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
            }
        }
        Ok(work)
    }

    /// Where something of these inputs lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}-{name}", self.key))
    }

    /// What an earlier run kept under a name, if it did.
    pub(super) fn kept<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.path(name)).ok()?).ok()
    }

    /// Keeps something for a run that goes on after this one was killed.
    pub(super) fn keep(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        output::write_whole(&self.path(name), &serde_json::to_vec(value)?)
    }

    /// Gives a whole and synced file of this folder its name in the folder above.
    pub(super) fn release(&self, file: &Path, path: &Path) -> anyhow::Result<()> {
        let rename = || {
            std::fs::rename(file, path)?;
            let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // Windows cannot sync a folder and needs not: the rename is journaled.
            if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
        };
        rename().with_context(|| path.display().to_string())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What cannot be removed is cleared away by the next run.
        let _ = std::fs::remove_dir_all(&self.folder);
        // Only succeeds where the run wrote nothing.
        let _ = self.made.as_ref().map(std::fs::remove_dir);
    }
}
