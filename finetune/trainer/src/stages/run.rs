//! A stage's folder: what is done, what can be resumed, and what came of it.
//!
//! `state.safetensors` holds weights, moments and the number of steps; `metrics.jsonl` one line a step; `adapter/` and
//! `merged/` the result. `merged/` is written last and whole, so a stage that has it is finished.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fsq_checkpoint::{Adapter, Checkpoint, StoredType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::events;
use crate::{AdamW, TrainError, TrainablePolicy};

/// How much work a kill may cost.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(10);

/// What a stage tells while it runs.
#[derive(Clone, Debug)]
pub struct Report {
    /// Steps done, and steps in all.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// What to show beside the bar.
    pub text: String,
}

/// Receives what a stage tells.
pub type Watch<'a> = dyn FnMut(&Report) + 'a;

/// A stage's folder.
pub struct StageRun {
    folder: PathBuf,
    saved: Instant,
    save_every: Duration,
    /// Metrics are written as TensorBoard's events, too.
    has_events: bool,
}

impl StageRun {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(|it| io(folder, it))?;
        Ok(Self { folder: folder.to_path_buf(), saved: Instant::now(), save_every: SAVE_EVERY, has_events: false })
    }

    /// Writes metrics as an event file for TensorBoard beside `metrics.jsonl`.
    pub fn write_events(&mut self) {
        self.has_events = true;
    }

    /// Lets so much time pass between two checkpoints.
    pub(super) fn save_every(&mut self, interval: Duration) {
        self.save_every = interval;
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the policy that the stage hands on lies.
    #[must_use]
    pub fn merged(&self) -> PathBuf {
        self.folder.join("merged")
    }

    /// Where the stage's adapter lies.
    #[must_use]
    pub fn adapter(&self) -> PathBuf {
        self.folder.join("adapter")
    }

    /// Whether the stage has finished.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.merged().join("model.safetensors").exists()
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state.safetensors")
    }

    /// Continues from the saved state, if there is one; returns the steps that are done.
    ///
    /// # Errors
    /// When the state is of another policy.
    pub fn resume(&self, policy: &TrainablePolicy, optimizer: &mut AdamW) -> Result<usize, TrainError> {
        if !self.state().exists() {
            self.cut_metrics(0)?;
            return Ok(0);
        }
        optimizer.load(&self.state(), policy.trained())?;
        self.cut_metrics(optimizer.steps())?;
        Ok(optimizer.steps())
    }

    /// Saves the state if the last time is long enough ago, or if `now`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&mut self, policy: &TrainablePolicy, optimizer: &AdamW, now: bool) -> Result<(), TrainError> {
        if now || self.saved.elapsed() >= self.save_every {
            optimizer.save(&self.state(), policy.trained())?;
            self.saved = Instant::now();
        }
        Ok(())
    }

    /// Appends a line to the metrics.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn log<T: Serialize>(&self, line: &T) -> Result<(), TrainError> {
        let path = self.folder.join("metrics.jsonl");
        let text = serde_json::to_string(line).map_err(|it| io(&path, it.into()))?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut it| writeln!(it, "{text}")).map_err(|it| io(&path, it))?;
        if self.has_events {
            let (path, line) = (self.folder.join(events::FILE), serde_json::to_value(line));
            line.map_err(std::io::Error::from).and_then(|it| events::append(&path, &it)).map_err(|it| io(&path, it))?;
        }
        Ok(())
    }

    /// The metrics so far.
    ///
    /// # Errors
    /// When a line does not parse.
    pub fn metrics<T: DeserializeOwned>(&self) -> Result<Vec<T>, TrainError> {
        let path = self.folder.join("metrics.jsonl");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = std::fs::read_to_string(&path).map_err(|it| io(&path, it))?;
        text.lines().map(|it| serde_json::from_str(it).map_err(|it| io(&path, it.into()))).collect()
    }

    /// Drops the lines of steps that the saved state has not made: a kill may have come between the two.
    fn cut_metrics(&self, steps: usize) -> Result<(), TrainError> {
        let path = self.folder.join("metrics.jsonl");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
        let kept: String = text.lines().take(steps).map(|it| format!("{it}\n")).collect();
        let draft = path.with_extension("draft");
        let written = std::fs::write(&draft, &kept).and_then(|()| std::fs::rename(&draft, &path));
        written.map_err(|it| io(&path, it))?;
        if self.has_events {
            // The events of steps that were not kept must go, too.
            let path = self.folder.join(events::FILE);
            let lines: Vec<Value> = kept.lines().filter_map(|it| serde_json::from_str(it).ok()).collect();
            events::rebuild(&path, &lines).map_err(|it| io(&path, it))?;
        }
        Ok(())
    }

    /// Writes the adapter, then the merged checkpoint in f32, and forgets the state.
    ///
    /// # Errors
    /// When either cannot be written.
    pub fn finish(&self, base: &Checkpoint, adapter: &Adapter) -> Result<(), TrainError> {
        self.finish_as(base, adapter, StoredType::F32)
    }

    /// The same with the merged weights stored otherwise.
    ///
    /// # Errors
    /// As [`StageRun::finish`].
    pub fn finish_as(&self, base: &Checkpoint, adapter: &Adapter, stored: StoredType) -> Result<(), TrainError> {
        adapter.write(&self.adapter(), &base.path.display().to_string())?;
        fsq_quantizer::merge_to_checkpoint(base, std::slice::from_ref(adapter), stored, &self.merged())?;
        self.forget_state()
    }

    /// Keeps what a state belongs to beside it.
    ///
    /// # Errors
    /// When there is a state of something else, or the file cannot be written.
    pub fn keep_identity(&self, identity: &str) -> Result<(), TrainError> {
        let path = self.folder.join("identity");
        if self.state().exists() {
            let found = std::fs::read_to_string(&path).map_err(|it| io(&path, it))?;
            if found != identity {
                return Err(TrainError::State {
                    path: self.state(),
                    field: "recipe, base and data".into(),
                    expected: "those that the stage began with".into(),
                    found: "others".into(),
                });
            }
        }
        std::fs::write(&path, identity).map_err(|it| io(&path, it))
    }

    /// Removes the state of a finished stage.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_state(&self) -> Result<(), TrainError> {
        match std::fs::remove_file(self.state()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&self.state(), error)),
            _ => Ok(()),
        }
    }
}

fn io(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Io { path: path.to_path_buf(), source }
}
