//! Has the system write a file to the disk while more of it is being written; knows no contents.
//!
//! Systems keep what is written in memory for long, so that syncing a large file at its end waits for all of it.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes after which the disk gets to work: few enough to leave little for the end, enough to be worth a sync.
const BYTES: usize = 32 << 20;

/// Syncs a growing file from time to time, beside whoever writes it.
#[derive(Default)]
pub(crate) struct WriteBack {
    n_waiting: usize,
    thread: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl WriteBack {
    /// Tells of bytes that were written to the file, the same in every call.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn wrote(&mut self, file: &File, n_bytes: usize) -> io::Result<()> {
        self.n_waiting += n_bytes;
        if self.n_waiting < BYTES {
            return Ok(());
        }
        self.n_waiting = 0;
        let (asked, _) = match &self.thread {
            Some(thread) => thread,
            None => self.thread.insert(begin(file.try_clone()?)?),
        };
        // While it syncs, one more wish can wait. If one does, that sync takes these bytes along.
        let _ = asked.try_send(());
        Ok(())
    }

    /// Waits for what was begun.
    ///
    /// # Errors
    /// The first fault of the disk, which the system tells once: a later sync of the same file would succeed.
    pub(crate) fn finish(self) -> io::Result<()> {
        let Some((asked, thread)) = self.thread else { return Ok(()) };
        drop(asked);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn begin(file: File) -> io::Result<(SyncSender<()>, JoinHandle<io::Result<()>>)> {
    let (asked, wishes) = sync_channel(1);
    let sync = move || wishes.iter().try_for_each(|()| file.sync_data());
    Ok((asked, std::thread::Builder::new().name("write-back".into()).spawn(sync)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_small_file_needs_no_thread() {
        let mut file = tempfile::tempfile().unwrap();
        let mut write_back = WriteBack::default();
        file.write_all(&[1; 100]).unwrap();
        write_back.wrote(&file, 100).unwrap();
        assert!(write_back.thread.is_none());
        write_back.finish().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_cannot_be_synced_is_told() {
        // A device has nothing to sync, and says so.
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut write_back = WriteBack::default();
        write_back.wrote(&file, BYTES).unwrap();
        write_back.wrote(&file, BYTES).unwrap();
        assert!(write_back.finish().is_err());
    }
}
