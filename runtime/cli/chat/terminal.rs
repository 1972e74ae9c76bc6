//! Who types: lines of standard input, and Ctrl-C. Knows nothing of what is said.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::Context;

/// Longest line; a chat's context is far shorter.
const LINE_BYTES_MAX: u64 = 1 << 24;

/// What came from the user.
pub(super) enum Heard {
    /// Without its line end.
    Line(String),
    /// Ctrl-C while nothing was being answered.
    Interrupt,
    /// The input has ended.
    End,
}

/// The user's side of the chat.
pub(super) struct Terminal {
    heard: Receiver<io::Result<Heard>>,
    /// Ctrl-C was pressed and nothing has followed from it yet.
    interrupted: Arc<AtomicBool>,
    is_terminal: bool,
}

impl Terminal {
    /// Starts to listen, on threads that live as long as the process.
    pub(super) fn start() -> io::Result<Self> {
        let (tell, heard) = sync_channel(1);
        let interrupted = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (flag, to_main) = (interrupted.clone(), tell.clone());
        thread::Builder::new().name("interrupts".into()).spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    flag.store(true, Ordering::Release);
                    // When the channel is full a line waits, so the main thread looks at the flag before it waits.
                    let _ = to_main.try_send(Ok(Heard::Interrupt));
                }
            });
        })?;
        thread::Builder::new().name("input".into()).spawn(move || read_lines(&tell))?;
        Ok(Self { heard, interrupted, is_terminal: io::stdin().is_terminal() })
    }

    /// Waits for the user.
    pub(super) fn hear(&self) -> anyhow::Result<Heard> {
        if self.is_terminal {
            let mut err = io::stderr().lock();
            let _ = write!(err, "> ").and_then(|()| err.flush());
        }
        loop {
            if self.interrupted.swap(false, Ordering::AcqRel) {
                return Ok(Heard::Interrupt);
            }
            match self.heard.recv().unwrap_or(Ok(Heard::End)).context("standard input")? {
                // One that an answer has already given way to says nothing more.
                Heard::Interrupt => {}
                heard => return Ok(heard),
            }
        }
    }

    /// From here on Ctrl-C concerns the answer.
    pub(super) fn begin_answer(&self) {
        self.interrupted.store(false, Ordering::Release);
    }

    /// Whether Ctrl-C was pressed since; asking takes it back.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.swap(false, Ordering::AcqRel)
    }

    /// Says something beside the answers.
    pub(super) fn tell(&self, text: &str) {
        // With standard error gone there is nobody left to tell.
        let _ = writeln!(io::stderr(), "[{text}]");
    }

    /// Says something that only a person at a terminal needs to know.
    pub(super) fn notice(&self, text: &str) {
        if self.is_terminal {
            self.tell(text);
        }
    }
}

fn read_lines(tell: &SyncSender<io::Result<Heard>>) {
    let mut input = io::stdin().lock();
    loop {
        let mut line = Vec::new();
        let heard = match io::Read::take(&mut input, LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => Ok(Heard::End),
            Ok(n) if n as u64 == LINE_BYTES_MAX => Err(io::Error::new(io::ErrorKind::InvalidData, "line too long")),
            // Bytes that are no text would become other tokens than the user meant; they are shown as such.
            Ok(_) => Ok(Heard::Line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())),
            Err(error) => Err(error),
        };
        let is_over = !matches!(heard, Ok(Heard::Line(_)));
        if tell.send(heard).is_err() || is_over {
            return;
        }
    }
}
