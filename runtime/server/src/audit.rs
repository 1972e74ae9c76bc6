//! The audit log: one JSON object a line, each with the hash of the line before, so that nothing can be changed, taken
//! out or put in unnoticed. Holds who did what and when, never what was asked or answered. Knows no HTTP.
//!
//! `prev` is the SHA-256 of the line before without its line end, and 64 zeros in the first line. What a log cannot
//! show by itself is that lines are missing from its end: for that, keep the last hash elsewhere from time to time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ServerError;

/// Longest line; a request's takes some hundred bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What is known of a log that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSummary {
    /// Whole lines.
    pub n_lines: u64,
    /// Hash of the last of them, which the next one will repeat.
    pub last: String,
    /// Bytes behind it, which a crash left of a line that was never whole.
    pub n_torn_bytes: u64,
}

/// Reads a log and follows its chain.
///
/// # Errors
/// [`ServerError::AuditFile`]; [`ServerError::AuditLine`] names the first line that does not follow from the last one.
pub fn verify_audit(path: &Path) -> Result<AuditSummary, ServerError> {
    let file = File::open(path).map_err(|source| ServerError::AuditFile { path: path.into(), source })?;
    verify(path, &file)
}

fn verify(path: &Path, file: &File) -> Result<AuditSummary, ServerError> {
    let failed = |source| ServerError::AuditFile { path: path.into(), source };
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    let mut summary = AuditSummary { n_lines: 0, last: "0".repeat(64), n_torn_bytes: 0 };
    loop {
        line.clear();
        let room = LINE_BYTES_MAX as u64 + 1;
        let n_bytes = std::io::Read::take(&mut reader, room).read_until(b'\n', &mut line).map_err(failed)?;
        let broken = |reason: String| {
            let line = summary.n_lines + 1;
            Err(ServerError::AuditLine { path: path.into(), line, reason })
        };
        if n_bytes > LINE_BYTES_MAX {
            return broken(format!("expected at most {LINE_BYTES_MAX} bytes, found more"));
        }
        if line.pop() != Some(b'\n') {
            summary.n_torn_bytes = n_bytes as u64;
            return Ok(summary);
        }
        let found = serde_json::from_slice::<Value>(&line).ok();
        let found = found.as_ref().and_then(|it| it["prev"].as_str()).unwrap_or("nothing");
        if found != summary.last {
            return broken(format!("`prev`: expected {}, found {}", summary.last, crate::refusal::quoted(found)));
        }
        summary.n_lines += 1;
        summary.last = hash(&line);
    }
}

fn hash(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|it| format!("{it:02x}")).collect()
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    n_bytes: u64,
    last: String,
}

impl Audit {
    /// Goes on with a log that holds together, or begins one.
    ///
    /// # Errors
    /// As [`verify_audit`]; [`ServerError::AuditFile`] where another server writes to it.
    pub(crate) fn open(path: &Path) -> Result<Self, ServerError> {
        let failed = |source| ServerError::AuditFile { path: path.into(), source };
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(failed(std::io::Error::other("in use by another server")));
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let AuditSummary { last, n_torn_bytes, .. } = verify(path, &file)?;
        let n_bytes = file.metadata().map_err(failed)?.len() - n_torn_bytes;
        file.set_len(n_bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        Ok(Self { path: path.into(), inner: Mutex::new(Inner { file, n_bytes, last }) })
    }

    /// Appends what happened. `is_synced`: not before it is on the disk.
    ///
    /// # Errors
    /// [`ServerError::AuditFile`]; the log is as it was then.
    pub(crate) fn add(&self, event: &str, mut details: Value, is_synced: bool) -> Result<(), ServerError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let time_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |it| it.as_secs_f64());
        let mut record = json!({"prev": inner.last, "time_s": (time_s * 1000.0).round() / 1000.0, "event": event});
        if let (Some(record), Some(details)) = (record.as_object_mut(), details.as_object_mut()) {
            record.append(details);
        }
        let mut line = record.to_string().into_bytes();
        let last = hash(&line);
        line.push(b'\n');
        let Inner { file, n_bytes, .. } = &mut *inner;
        let written = file.write_all(&line).and_then(|()| if is_synced { file.sync_data() } else { Ok(()) });
        let written = written.inspect_err(|_| drop(file.set_len(*n_bytes)));
        written.map_err(|source| ServerError::AuditFile { path: self.path.clone(), source })?;
        inner.n_bytes += line.len() as u64;
        inner.last = last;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_chain_goes_on_after_a_crash_and_shows_what_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::open(&path).unwrap();
        for n in 0..3 {
            audit.add("request", json!({"key": "agent", "n": n}), n == 2).unwrap();
        }
        assert!(Audit::open(&path).is_err(), "two writers would break the chain");
        drop(audit);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"prev\": \"0").unwrap();
        assert_eq!(verify_audit(&path).unwrap().n_torn_bytes, 11);
        Audit::open(&path).unwrap().add("stop", json!({}), true).unwrap();
        let summary = verify_audit(&path).unwrap();
        assert_eq!((summary.n_lines, summary.n_torn_bytes), (4, 0));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let cases = [
            (text.replace("\"n\":1", "\"n\":7"), 3),
            ([lines[0], lines[2], lines[3], ""].join("\n"), 2),
            ([lines[1], lines[2], ""].join("\n"), 1),
            ([lines[0], lines[0], lines[1], ""].join("\n"), 2),
            ([lines[0], "not JSON", ""].join("\n"), 2),
        ];
        for (changed, at) in cases {
            std::fs::write(&path, &changed).unwrap();
            let error = verify_audit(&path).unwrap_err();
            assert!(matches!(error, ServerError::AuditLine { line, .. } if line == at), "{error}");
            assert!(Audit::open(&path).is_err(), "nothing is added to a broken log");
        }
    }
}
