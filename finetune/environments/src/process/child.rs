//! A program that is asked in lines and answers in lines: started, timed, bounded, and never left behind.
//!
//! Knows nothing of what the lines say. Standard input and output each have a thread, so that neither a program that
//! does not read nor one that does not write can hold up the one that asks.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::{ProcessFault, shortened};

/// What is kept of standard error, for the error that tells of a program's end.
const LAST_WORDS_BYTES: usize = 2048;
/// How long a program may take to end after its input has ended.
const FAREWELL: Duration = Duration::from_millis(500);
/// How often it is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(5);

/// One line of a program's output, or why there is none.
enum Output {
    Line(Vec<u8>),
    TooLong,
    End,
}

/// A running program. Dropping it ends it and whatever it started.
pub(super) struct Child {
    process: std::process::Child,
    /// Lines to write; dropped to end the program's input.
    input: Option<Sender<Vec<u8>>>,
    output: Receiver<Output>,
    last_words: Arc<Mutex<VecDeque<u8>>>,
    /// Reads standard error to its end.
    listener: JoinHandle<()>,
    line_bytes_max: usize,
    guard: Option<Guard>,
    /// It was ended, and its number may be another's.
    is_over: bool,
}

impl Child {
    /// Starts a program in a folder.
    pub(super) fn start(command: &[String], folder: &Path, line_bytes_max: usize) -> Result<Self, ProcessFault> {
        let (program, arguments) = command.split_first().ok_or_else(|| start_fault("an empty command"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if !folder.as_os_str().is_empty() {
            command.current_dir(folder);
        }
        in_own_group(&mut command);
        let mut process = command.spawn().map_err(|it| start_fault(&format!("{program}: {it}")))?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            return Err(start_fault("no pipes"));
        };
        let guard = Guard::of(&process);
        let (input, lines) = mpsc::channel();
        thread::spawn(move || write_lines(stdin, &lines));
        // One line ahead at most: a program that floods its output waits.
        let (lines, output) = mpsc::sync_channel(1);
        thread::spawn(move || read_lines(stdout, line_bytes_max, &lines));
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let words = Arc::clone(&last_words);
        let listener = thread::spawn(move || keep_last_words(stderr, &words));
        Ok(Self { process, input: Some(input), output, last_words, listener, line_bytes_max, guard, is_over: false })
    }

    /// Sends a line and waits for one.
    pub(super) fn ask(&mut self, line: String, limit: Duration) -> Result<String, ProcessFault> {
        let mut bytes = line.into_bytes();
        bytes.push(b'\n');
        let sent = self.input.as_ref().is_some_and(|it| it.send(bytes).is_ok());
        if !sent {
            return Err(self.ended());
        }
        match self.output.recv_timeout(limit) {
            Ok(Output::Line(line)) => text(line),
            Ok(Output::TooLong) => Err(ProcessFault::TooLong { limit_bytes: self.line_bytes_max }),
            Ok(Output::End) | Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
            Err(RecvTimeoutError::Timeout) => Err(ProcessFault::Silent { limit_s: limit.as_secs_f64().to_string() }),
        }
    }

    /// How the program ended, waiting a little for it to do so.
    fn ended(&mut self) -> ProcessFault {
        self.input = None;
        let status = match self.wait(FAREWELL) {
            Some(status) => status.to_string(),
            None => "it closed its output and goes on".into(),
        };
        // Whoever reads standard error may be a little behind.
        let begun = Instant::now();
        while !self.listener.is_finished() && begun.elapsed() < FAREWELL {
            thread::sleep(GLANCE);
        }
        let words: Vec<u8> = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let words = String::from_utf8_lossy(&words).into_owned();
        let last = words.trim_end().rsplit('\n').next().unwrap_or_default();
        ProcessFault::Ended { status, last_words: shortened(last) }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if begun.elapsed() < limit => thread::sleep(GLANCE),
                _ => return None,
            }
        }
    }

    /// Ends a program that cannot be waited for.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        self.input = None;
        end_group(&self.process);
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.input = None;
        if !self.is_over {
            self.wait(FAREWELL);
        }
        // Also what the program started and left behind.
        self.end();
    }
}

fn start_fault(found: &str) -> ProcessFault {
    ProcessFault::Start { found: found.into() }
}

fn text(line: Vec<u8>) -> Result<String, ProcessFault> {
    String::from_utf8(line).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ProcessFault::NotUtf8 { byte: error.as_bytes().get(at).copied().unwrap_or_default(), at }
    })
}

fn write_lines(mut stdin: impl Write, lines: &Receiver<Vec<u8>>) {
    for line in lines {
        if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
            // The program is gone or does not read any more; its output tells which.
            return;
        }
    }
}

fn read_lines(stdout: impl Read, limit: usize, lines: &SyncSender<Output>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let read = read_line(&mut reader, limit).unwrap_or(Output::End);
        let is_last = !matches!(read, Output::Line(_));
        if lines.send(read).is_err() || is_last {
            return;
        }
    }
}

/// A line without its line feed; of one that is too long no more is read than shows that.
fn read_line(reader: &mut impl BufRead, limit: usize) -> io::Result<Output> {
    let mut line = Vec::new();
    // The line feed is not part of the limit.
    let most = limit as u64 + 1;
    reader.by_ref().take(most).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(Output::Line(line)),
        Some(_) if line.len() >= limit => Ok(Output::TooLong),
        // What has no line feed was cut off by the program's end.
        _ => Ok(Output::End),
    }
}

fn keep_last_words(mut stderr: impl Read, words: &Mutex<VecDeque<u8>>) {
    let mut piece = [0; 512];
    while let Ok(n) = stderr.read(&mut piece) {
        if n == 0 {
            return;
        }
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend(&piece[..n]);
        let surplus = words.len().saturating_sub(LAST_WORDS_BYTES);
        words.drain(..surplus);
    }
}

/// A process group of its own, so that what the program starts can be ended with it.
#[cfg(unix)]
fn in_own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
fn in_own_group(_: &mut Command) {}

#[cfg(unix)]
fn end_group(process: &std::process::Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    // An error says that nobody is left.
    let _ = kill_process_group(Pid::from_child(process), Signal::KILL);
}

#[cfg(not(unix))]
fn end_group(_: &std::process::Child) {}

/// Ends a program's group when this process is gone, however it went: a shell that waits for its input to end.
struct Guard(std::process::Child);

impl Guard {
    #[cfg(unix)]
    fn of(process: &std::process::Child) -> Option<Self> {
        const SCRIPT: &str = "read -r line || kill -s KILL -- \"-$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", &process.id().to_string()]);
        // A signal from the terminal must not reach it: it is the one that stays.
        in_own_group(&mut command);
        // Where there is no shell, the end of its input is all that the program is told.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok().map(Self)
    }

    #[cfg(not(unix))]
    fn of(_: &std::process::Child) -> Option<Self> {
        None
    }

    /// The program has ended, and its number may be another's.
    fn dismiss(mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], limit: usize) -> Vec<String> {
        let mut reader = BufReader::with_capacity(3, bytes);
        let mut found = Vec::new();
        loop {
            match read_line(&mut reader, limit).unwrap() {
                Output::Line(line) => found.push(String::from_utf8(line).unwrap()),
                Output::TooLong => found.push("too long".into()),
                Output::End => return found,
            }
        }
    }

    #[test]
    fn lines_are_cut_at_line_feeds_and_bounded() {
        assert_eq!(read(b"ab\n\ncd\nef", 4), ["ab", "", "cd"]);
        assert_eq!(read(b"abcd\nx\n", 4), ["abcd", "x"]);
        assert_eq!(read(b"abcde\n", 4)[0], "too long");
        assert!(read(b"", 4).is_empty());
    }

    #[test]
    fn an_endless_line_is_not_held() {
        let mut reader = BufReader::new(io::repeat(b'x'));
        assert!(matches!(read_line(&mut reader, 1 << 20).unwrap(), Output::TooLong));
    }
}
