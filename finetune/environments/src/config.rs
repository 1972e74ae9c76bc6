//! `[environment]` of a run file: a user's own world, as a program or as a folder of texts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::AnyWorld;
use crate::process::{ProcessError, ProcessOptions, ProcessWorld};
use crate::search::{SearchError, SearchOptions, SearchWorld};

/// Longest time limit, in seconds: a day.
const TIMEOUT_S_MAX: f64 = 86_400.0;
/// Shortest longest line.
const LINE_BYTES_MIN: usize = 256;

/// A user's own world. Either `command` or `search` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentConfig {
    /// A program and its arguments; it runs in the run file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Seconds that it may take to answer.
    #[serde(default = "timeout_s")]
    pub timeout_s: f64,
    /// Seconds that it may take to start.
    #[serde(default = "start_timeout_s")]
    pub start_timeout_s: f64,
    /// How often it may be started again in a run.
    #[serde(default = "restarts")]
    pub restarts: u32,
    /// Longest line that it may write.
    #[serde(default = "line_bytes_max")]
    pub line_bytes_max: usize,
    /// A folder of texts and questions about them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchConfig>,
}

/// `[environment.search]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchConfig {
    /// Texts: every `.txt` and `.md` file in it and below.
    pub folder: PathBuf,
    /// JSON lines of `question` and `answers`.
    pub questions: PathBuf,
    /// Words of a passage, at most.
    #[serde(default = "passage_words")]
    pub passage_words: usize,
    /// Passages that a search returns.
    #[serde(default = "results")]
    pub results: usize,
    /// Searches of an episode.
    #[serde(default = "calls")]
    pub calls: u8,
}

fn timeout_s() -> f64 {
    10.0
}

fn start_timeout_s() -> f64 {
    30.0
}

fn restarts() -> u32 {
    2
}

fn line_bytes_max() -> usize {
    1 << 20
}

fn passage_words() -> usize {
    100
}

fn results() -> usize {
    3
}

fn calls() -> u8 {
    4
}

/// Why a user's world cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is at fault.
    #[error("environment.{field}: expected {expected}, found {found}")]
    Setting {
        /// Its key.
        field: &'static str,
        /// What can be used.
        expected: String,
        /// What is set.
        found: String,
    },
    /// The program is at fault.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Texts or questions are at fault.
    #[error(transparent)]
    Search(#[from] SearchError),
}

impl EnvironmentConfig {
    /// Opens the world; paths are relative to the folder of the run file.
    ///
    /// # Errors
    /// The setting, program, text or question that is at fault.
    pub fn open(&self, folder: &Path) -> Result<AnyWorld, OpenError> {
        match (&self.command, &self.search) {
            (Some(command), None) => {
                Ok(AnyWorld::Process(Box::new(ProcessWorld::start(self.process(command, folder)?)?)))
            }
            (None, Some(search)) => Ok(AnyWorld::Search(Box::new(SearchWorld::open(&search.options(folder)?)?))),
            (Some(_), Some(_)) => Err(setting("command", "a command or `search`", "both")),
            (None, None) => Err(setting("command", "a program and its arguments, or `search`", "nothing")),
        }
    }

    fn process(&self, command: &[String], folder: &Path) -> Result<ProcessOptions, OpenError> {
        if command.first().is_none_or(String::is_empty) {
            return Err(setting("command", "a program and its arguments", &format!("{command:?}")));
        }
        if self.line_bytes_max < LINE_BYTES_MIN {
            let expected = format!("at least {LINE_BYTES_MIN}");
            return Err(setting("line_bytes_max", &expected, &self.line_bytes_max.to_string()));
        }
        Ok(ProcessOptions {
            timeout: duration("timeout_s", self.timeout_s)?,
            start_timeout: duration("start_timeout_s", self.start_timeout_s)?,
            restarts: self.restarts,
            line_bytes_max: self.line_bytes_max,
            ..ProcessOptions::new(command.to_vec(), folder)
        })
    }
}

impl SearchConfig {
    fn options(&self, folder: &Path) -> Result<SearchOptions, OpenError> {
        for (field, found) in [
            ("search.passage_words", self.passage_words),
            ("search.results", self.results),
            ("search.calls", usize::from(self.calls)),
        ] {
            if found == 0 {
                return Err(setting(field, "at least 1", "0"));
            }
        }
        Ok(SearchOptions {
            folder: folder.join(&self.folder),
            questions: folder.join(&self.questions),
            passage_words: self.passage_words,
            results: self.results,
            calls: self.calls,
        })
    }
}

fn duration(field: &'static str, seconds: f64) -> Result<Duration, OpenError> {
    if seconds > 0.0 && seconds <= TIMEOUT_S_MAX {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(setting(field, &format!("seconds above 0 and at most {TIMEOUT_S_MAX}"), &seconds.to_string()))
}

fn setting(field: &'static str, expected: &str, found: &str) -> OpenError {
    OpenError::Setting { field, expected: expected.into(), found: found.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &EnvironmentConfig) -> String {
        config.open(Path::new("")).err().map_or_else(String::new, |it| it.to_string())
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        let none: EnvironmentConfig = serde_json::from_str("{}").unwrap();
        assert!(refused(&none).contains("environment.command: expected a program"), "{}", refused(&none));
        let command = EnvironmentConfig { command: Some(vec!["true".into()]), ..none };
        for (field, config) in [
            ("command", EnvironmentConfig { command: Some(Vec::new()), ..command.clone() }),
            ("timeout_s", EnvironmentConfig { timeout_s: 0.0, ..command.clone() }),
            ("timeout_s", EnvironmentConfig { timeout_s: f64::NAN, ..command.clone() }),
            ("start_timeout_s", EnvironmentConfig { start_timeout_s: 1e9, ..command.clone() }),
            ("line_bytes_max", EnvironmentConfig { line_bytes_max: 3, ..command.clone() }),
        ] {
            assert!(refused(&config).starts_with(&format!("environment.{field}: ")), "{}", refused(&config));
        }
        let absent = EnvironmentConfig { command: Some(vec!["no-such-program".into()]), ..command };
        assert!(refused(&absent).contains("expected a program that starts"), "{}", refused(&absent));
    }
}
