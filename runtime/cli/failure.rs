//! How a command ends: exit codes, and errors as one line with hints. Decided here and nowhere else.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use fsq_calibrate::gates::GateError;
use fsq_calibrate::recalibration::RecalibrationError;
use fsq_checkpoint::CheckpointError;
use fsq_gguf::GgufError;
use fsq_model::ModelError;
use fsq_profiles::ProfileError;
use fsq_quantizer::QuantizeError;

/// How a command ended that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what it was asked, and what it judged passed.
    Done,
    /// A gate failed.
    #[cfg_attr(not(feature = "train"), expect(dead_code, reason = "gates need episodes"))]
    Failed,
    /// What there was to judge by was too little.
    #[cfg_attr(not(feature = "train"), expect(dead_code, reason = "gates need episodes"))]
    Inconclusive,
}

const UNEXPECTED: u8 = 1;
const GATE_FAILED: u8 = 2;
const INCONCLUSIVE: u8 = 3;
const BAD_INPUT: u8 = 4;

/// Characters of an error: names in a file may have 65,535.
const LINE_CHARACTERS_MAX: usize = 4000;

/// What the user gave cannot be used.
#[derive(Debug)]
pub(crate) struct Refusal {
    message: String,
    hints: Vec<String>,
}

impl Refusal {
    /// A refusal without hints; the message is one line.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new() }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Refusal {}

/// The exit code of a command, with its error, if any, on standard error.
pub(crate) fn exit(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(GATE_FAILED),
        Ok(Outcome::Inconclusive) => ExitCode::from(INCONCLUSIVE),
        // Whoever reads the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone there is nobody left to tell.
            let _ = write!(io::stderr(), "{}", written(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// The exit code of arguments that do not parse, or that only ask for help.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(BAD_INPUT) } else { ExitCode::SUCCESS }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|it| it.downcast_ref::<io::Error>()).any(|it| it.kind() == io::ErrorKind::BrokenPipe)
}

/// `error: ` and the causes in one line, then the hints.
fn written(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Many errors already end with their cause.
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    // What comes from a file must not steer the terminal, nor fill it.
    let line: String = line.chars().take(LINE_CHARACTERS_MAX).flat_map(visible).collect();
    // Errors of the server end with their hint, since it also writes them to clients.
    let (line, told) = line.split_once("; hint: ").map_or((&*line, None), |it| (it.0, Some(it.1.to_owned())));
    let mut text = format!("error: {line}\n");
    for hint in told.into_iter().chain(error.chain().flat_map(hints)) {
        text += &format!("hint: {hint}\n");
    }
    text
}

fn visible(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_debug());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

fn hints(cause: &(dyn Error + 'static)) -> Vec<String> {
    if let Some(refusal) = cause.downcast_ref::<Refusal>() {
        return refusal.hints.clone();
    }
    match cause.downcast_ref() {
        Some(GgufError::Magic { .. }) => vec!["`fsq quantize` makes GGUF files from checkpoints".into()],
        Some(GgufError::Truncated { .. } | GgufError::OutOfFile { .. }) => {
            vec!["the file is not whole: copy it again and compare its length".into()]
        }
        _ => Vec::new(),
    }
}

/// Bad input is what the user can put right: a file, a field, an argument, a place that cannot be written.
fn code(error: &anyhow::Error) -> u8 {
    use io::ErrorKind as Kind;
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            let is_input = matches!(
                error.kind(),
                Kind::NotFound
                    | Kind::PermissionDenied
                    | Kind::AlreadyExists
                    | Kind::IsADirectory
                    | Kind::NotADirectory
                    | Kind::InvalidInput
                    | Kind::InvalidData
                    | Kind::InvalidFilename
                    | Kind::ReadOnlyFilesystem
                    | Kind::AddrInUse
                    | Kind::AddrNotAvailable
            );
            return if is_input { BAD_INPUT } else { UNEXPECTED };
        }
        if let Some(ModelError::Device(_)) = cause.downcast_ref() {
            return UNEXPECTED;
        }
    }
    if error.chain().any(is_input_error) { BAD_INPUT } else { UNEXPECTED }
}

fn is_input_error(cause: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "serve")]
    {
        use fsq_server::ServerError;
        match cause.downcast_ref() {
            Some(ServerError::Engine { .. } | ServerError::Threads { .. }) | None => {}
            Some(_) => return true,
        }
    }
    #[cfg(feature = "train")]
    {
        use fsq_environments::{OpenError, ProcessError};
        use fsq_trainer::{RecipeError, TrainError};
        if cause.is::<OpenError>() || cause.is::<ProcessError>() || cause.is::<RecipeError>() {
            return true;
        }
        match cause.downcast_ref() {
            Some(TrainError::Graph(_) | TrainError::NotFinite { .. } | TrainError::NoGradient(_)) | None => {}
            Some(_) => return true,
        }
    }
    cause.is::<Refusal>()
        || cause.is::<GgufError>()
        || cause.is::<CheckpointError>()
        || cause.is::<QuantizeError>()
        || cause.is::<ModelError>()
        || cause.is::<ProfileError>()
        || cause.is::<GateError>()
        || cause.is::<RecalibrationError>()
        || cause.is::<serde_json::Error>()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_is_one_line_and_its_hints() {
        let refused = Refusal::new("no such\nthing").hint("look elsewhere");
        let error = anyhow::Error::from(refused).context("file.toml");
        assert_eq!(written(&error), "error: file.toml: no such thing\nhint: look elsewhere\n");
        assert_eq!(code(&error), BAD_INPUT);
    }

    #[test]
    fn an_error_does_not_steer_the_terminal() {
        let error = anyhow::Error::from(Refusal::new("metadata `a\u{1b}[2Jb`"));
        assert_eq!(written(&error), "error: metadata `a\\u{1b}[2Jb`\n");
        let error = anyhow::Error::from(Refusal::new("x".repeat(100_000)));
        assert!(written(&error).len() < 5000);
    }

    #[test]
    fn a_cause_that_is_already_told_is_not_told_twice() {
        let io = io::Error::new(io::ErrorKind::NotFound, "gone");
        let error = Err::<(), _>(io).context("a: gone").err();
        assert_eq!(error.map(|it| (written(&it), code(&it))), Some(("error: a: gone\n".into(), BAD_INPUT)));
    }

    #[test]
    fn a_full_disk_is_not_the_users_input() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(code(&error), UNEXPECTED);
        assert_eq!(code(&anyhow::anyhow!("surprise")), UNEXPECTED);
    }

    #[test]
    fn a_broken_pipe_is_success() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("standard output");
        assert!(is_broken_pipe(&error));
    }
}
