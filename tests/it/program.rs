//! The built command, run as a user runs it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Exit code of a gate that failed.
#[cfg(feature = "train")]
pub(crate) const GATE_FAILED: Option<i32> = Some(2);
/// Exit code of a gate that had too little to judge by.
#[cfg(feature = "train")]
pub(crate) const INCONCLUSIVE: Option<i32> = Some(3);
/// Exit code of input that cannot be used.
pub(crate) const BAD_INPUT: Option<i32> = Some(4);

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fsq"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub(crate) fn fsq(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// What a command that succeeds prints with `--json`.
#[track_caller]
pub(crate) fn json(arguments: &[&str]) -> Value {
    let output = fsq(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Bad input ends with 4, says nothing on standard output and one line beginning with `error: ` elsewhere.
#[track_caller]
pub(crate) fn refused(arguments: &[&str], expected: &str) {
    let output = fsq(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), BAD_INPUT, "{errors}");
    assert!(output.stdout.is_empty());
    assert_eq!(errors.lines().filter(|it| it.starts_with("error: ")).count(), 1, "{errors}");
    let line = errors.lines().find(|it| it.starts_with("error: ")).unwrap_or_else(|| panic!("{errors}"));
    assert!(line.contains(expected), "expected `{expected}` in: {errors}");
    assert!(errors.lines().all(|it| it.starts_with("error: ") || it.starts_with("hint: ")), "{errors}");
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
