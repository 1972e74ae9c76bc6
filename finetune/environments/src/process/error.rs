//! What can be wrong with a user's environment program, as sentences that name it, the request, expected and found.

/// Characters of what a program said that an error repeats.
const FOUND_CHARACTERS_MAX: usize = 120;

/// Why a user's environment cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment `{environment}`: `{request}`: {fault}; hint: {}", fault.hint())]
pub struct ProcessError {
    /// The name that it gave itself, or its command.
    pub environment: String,
    /// What it was asked, such as `step go east`.
    pub request: String,
    /// What was wrong with the answer.
    pub fault: Box<ProcessFault>,
}

/// What was expected of a program and what it did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessFault {
    /// The system cannot start it.
    #[error("expected a program that starts, found: {found}")]
    Start {
        /// What the system said.
        found: String,
    },
    /// It speaks another version.
    #[error("expected protocol {expected}, found {found}")]
    Protocol {
        /// Ours.
        expected: u64,
        /// Its.
        found: String,
    },
    /// It did not answer in time.
    #[error("expected an answer within {limit_s} s, found none")]
    Silent {
        /// The limit.
        limit_s: String,
    },
    /// It ended instead of answering.
    #[error("expected an answer, found the end of the program ({status}){}", said(last_words))]
    Ended {
        /// Its exit status.
        status: String,
        /// The end of what it wrote to standard error.
        last_words: String,
    },
    /// It ended or fell silent more often than it may be started again.
    #[error("expected at most {limit} restarts in a run, found one more to be needed: {last}")]
    Restarts {
        /// Restarts that are allowed.
        limit: u32,
        /// What happened last.
        last: Box<ProcessFault>,
    },
    /// A line goes on beyond the limit.
    #[error("expected a line of at most {limit_bytes} bytes, found a longer one")]
    TooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// A line is no text.
    #[error("expected UTF-8, found byte 0x{byte:02X} at byte {at} of the line")]
    NotUtf8 {
        /// The first byte that is none.
        byte: u8,
        /// Where it is.
        at: usize,
    },
    /// A line is no JSON object.
    #[error("expected one JSON object, found {found}")]
    NotJson {
        /// The beginning of the line.
        found: String,
    },
    /// The program says that it cannot answer.
    #[error("expected an answer, found its error: {found}")]
    Refused {
        /// What it said.
        found: String,
    },
    /// A field is missing or of another kind.
    #[error("field `{field}`: expected {expected}, found {found}")]
    Field {
        /// Its name, such as `actions[2]`.
        field: String,
        /// What the protocol says.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An action that `legal` lists was refused.
    #[error("expected an action to be taken that `legal` lists for the same state, found it refused: {reason}")]
    ListedButRefused {
        /// What the program said.
        reason: String,
    },
    /// Asked twice about one state, it gave two answers.
    #[error("expected the same answer for the same state, found {found}")]
    Changed {
        /// What differs.
        found: String,
    },
}

impl ProcessFault {
    /// Something that starting the program again may mend.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Ended { .. })
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Start { .. } => "`command` is a list of the program and its arguments, run in the run file's folder",
            Self::Protocol { .. } => "answer `hello` with the protocol that it names",
            Self::Silent { .. } => "does the program flush each line? a slow one needs a larger `timeout_s`",
            Self::Ended { .. } => "the program must answer until its standard input ends",
            Self::Restarts { .. } => "`fsq environment check` plays it alone; `restarts` says how often it may fail",
            Self::TooLong { .. } => "keep states short, or raise `line_bytes_max`",
            Self::NotUtf8 { .. } => "write standard output as UTF-8, whatever the locale says",
            Self::NotJson { .. } => "answer each line with one line; print everything else to standard error",
            Self::Refused { .. } => "the message is the program's own",
            Self::Field { .. } => "docs/environments.md lists the fields of every answer",
            Self::ListedButRefused { .. } => "`legal` and `step` must follow from the state alone, and agree",
            Self::Changed { .. } => "keep everything that matters in the state, random numbers too",
        }
    }
}

fn said(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!(", which said: {last_words}") }
}

/// The beginning of a text, on one line.
pub(crate) fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut told: String = line.chars().take(FOUND_CHARACTERS_MAX).collect();
    if told.len() < line.len() {
        told.push('…');
    }
    told
}
