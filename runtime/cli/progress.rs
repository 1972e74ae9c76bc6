//! How far a long command has come: a bar on a terminal, plain lines when piped. Knows nothing of what is done.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Shortest time between two plain lines of one stage.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Progress on standard error, so that standard output stays the result's. Can be shared between threads.
pub(crate) struct Progress {
    is_terminal: bool,
    stage: Mutex<Option<Stage>>,
}

struct Stage {
    name: String,
    total: u64,
    done: u64,
    note: String,
    bar: Option<ProgressBar>,
    started: Instant,
    /// When the last plain line was written.
    told: Instant,
    has_told: bool,
}

impl Progress {
    /// On standard error, as a bar where that is a terminal.
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), stage: Mutex::new(None) }
    }

    /// Begins a stage of `total` units and ends the one before.
    pub(crate) fn stage(&self, name: impl Into<String>, total: u64) {
        self.finish();
        let name = name.into();
        let bar = self.is_terminal.then(|| bar(&name, total));
        let now = Instant::now();
        *self.lock() =
            Some(Stage { name, total, done: 0, note: String::new(), bar, started: now, told: now, has_told: false });
    }

    /// So many units of the stage are done.
    pub(crate) fn set(&self, done: u64) {
        if let Some(stage) = &mut *self.lock() {
            stage.done = done;
            match &stage.bar {
                Some(bar) => bar.set_position(done),
                None => stage.tell_in_turn(),
            }
        }
    }

    /// What there is to say of the stage at this moment; the next note replaces it.
    #[cfg_attr(not(any(feature = "train", test)), expect(dead_code, reason = "only training has something to say"))]
    pub(crate) fn note(&self, text: impl Into<String>) {
        if let Some(stage) = &mut *self.lock() {
            stage.note = text.into();
            match &stage.bar {
                Some(bar) => bar.set_message(stage.note.clone()),
                None => stage.tell_in_turn(),
            }
        }
    }

    /// A line of its own, beside what is going on.
    pub(crate) fn say(&self, line: &str) {
        match &*self.lock() {
            Some(Stage { bar: Some(bar), .. }) => bar.println(line),
            _ => tell(line),
        }
    }

    /// Ends the stage: what it did and how long it took stays as a line.
    pub(crate) fn finish(&self) {
        let Some(stage) = self.lock().take() else { return };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
        }
        let mut line = format!("{}: done in {}", stage.name, duration_text(stage.started.elapsed()));
        if !stage.note.is_empty() {
            let _ = write!(line, " ({})", stage.note);
        }
        tell(&line);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stage>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // A stage that was not finished failed: its bar must not stay on the screen.
        if let Some(Stage { bar: Some(bar), .. }) = self.lock().take() {
            bar.finish_and_clear();
        }
    }
}

impl Stage {
    fn tell_in_turn(&mut self) {
        if self.has_told && self.told.elapsed() < LINE_INTERVAL {
            return;
        }
        (self.told, self.has_told) = (Instant::now(), true);
        tell(&self.line());
    }

    #[expect(clippy::cast_precision_loss, reason = "a share in whole percent")]
    fn line(&self) -> String {
        let mut line = format!("{}: ", self.name);
        if self.total > 0 {
            let percent = 100.0 * self.done as f64 / self.total as f64;
            let _ = write!(line, "{percent:.0} % ({} of {})", self.done, self.total);
        } else {
            let _ = write!(line, "{}", self.done);
        }
        if !self.note.is_empty() {
            let _ = write!(line, ", {}", self.note);
        }
        line
    }
}

fn bar(name: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template = "{prefix:<22} {bar:28} {percent:>3} %  {elapsed}  {wide_msg}";
    // The template is ours; were it wrong, the plain bar would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Standard error may be gone; the work goes on.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A duration such as `3.2 s` or `2 min 05 s`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let seconds = duration.as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    #[test]
    fn a_plain_line_says_all() {
        let progress = Progress { is_terminal: false, stage: Mutex::new(None) };
        progress.stage("FE-SFT", 400);
        progress.set(100);
        progress.note("loss 0.41");
        let line = progress.lock().as_ref().unwrap().line();
        assert_eq!(line, "FE-SFT: 25 % (100 of 400), loss 0.41");
    }

    #[test]
    fn durations_are_short() {
        let shown = [3.24, 59.94, 125.0].map(|it| duration_text(Duration::from_secs_f64(it)));
        assert_eq!(shown, ["3.2 s", "59.9 s", "2 min 05 s"]);
    }
}
