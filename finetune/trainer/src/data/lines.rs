//! Lines of a file, none of them longer than can be held. Knows nothing of what they say.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Fault;

/// Longest line that is read: a record of a million tokens has a few megabytes, and whatever is far beyond that is a
/// file without line feeds.
pub const LINE_BYTES_MAX: usize = 64 << 20;
/// What is read at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// One line, or why it cannot be read.
#[derive(Debug)]
pub struct Line {
    /// From 1.
    pub number: usize,
    /// Where it begins in the file.
    pub start_byte: u64,
    /// Its length without the line feed.
    pub bytes: u64,
    /// Its text, without the line feed.
    pub text: Result<String, Fault>,
}

/// Reads a file line by line.
pub struct Lines<R> {
    reader: R,
    number: usize,
    at: u64,
}

impl Lines<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(BufReader::with_capacity(BUFFER_BYTES, File::open(path)?)))
    }
}

impl<R: BufRead> Lines<R> {
    /// Reads from anything.
    pub fn new(reader: R) -> Self {
        Self { reader, number: 0, at: 0 }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When the system refuses; a line that is no text, or too long, is a [`Line`] that says so.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        let (mut held, mut bytes, mut ended) = (Vec::new(), 0u64, false);
        while !ended {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                break;
            }
            let found = buffer.iter().position(|it| *it == b'\n');
            let piece = &buffer[..found.unwrap_or(buffer.len())];
            // Of a line that is too long only the length is of interest.
            if held.len() <= LINE_BYTES_MAX {
                held.extend_from_slice(&piece[..piece.len().min(LINE_BYTES_MAX + 1 - held.len())]);
            }
            bytes += piece.len() as u64;
            ended = found.is_some();
            let read = piece.len() + usize::from(ended);
            self.reader.consume(read);
        }
        if bytes == 0 && !ended {
            return Ok(None);
        }
        let (start_byte, number) = (self.at, self.number + 1);
        (self.at, self.number) = (self.at + bytes + u64::from(ended), number);
        Ok(Some(Line { number, start_byte, bytes, text: text(held, bytes) }))
    }
}

fn text(held: Vec<u8>, bytes: u64) -> Result<String, Fault> {
    if held.len() > LINE_BYTES_MAX {
        let expected = format!("one JSON record a line, of at most {LINE_BYTES_MAX} bytes");
        return Err(Fault::new("", expected, format!("a line of {bytes} bytes")));
    }
    String::from_utf8(held).map_err(|it| {
        let at = it.utf8_error().valid_up_to();
        let byte = it.as_bytes().get(at).copied().unwrap_or_default();
        Fault::new("", "UTF-8", format!("byte 0x{byte:02X} at byte {at} of the line"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<(usize, u64, u64, Result<String, String>)> {
        // A buffer shorter than a line, so that lines are put together.
        let mut lines = Lines::new(BufReader::with_capacity(5, bytes));
        let mut found = Vec::new();
        while let Some(Line { number, start_byte, bytes, text }) = lines.next_line().unwrap() {
            found.push((number, start_byte, bytes, text.map_err(|it| it.found)));
        }
        found
    }

    #[test]
    fn every_byte_is_in_one_line() {
        let lines = read(b"first line\n\nthird\xff line\nlast");
        assert_eq!(lines[0], (1, 0, 10, Ok("first line".into())));
        assert_eq!(lines[1], (2, 11, 0, Ok(String::new())));
        assert_eq!(lines[2], (3, 12, 11, Err("byte 0xFF at byte 5 of the line".into())));
        assert_eq!(lines[3], (4, 24, 4, Ok("last".into())));
        assert_eq!(lines.len(), 4);
        assert!(read(b"").is_empty());
        assert_eq!(read(b"\n").len(), 1);
    }

    #[test]
    fn a_line_without_end_is_told_by_its_length_and_what_follows_is_read() {
        let endless = io::Read::take(io::repeat(b'x'), 200 << 20);
        let mut lines = Lines::new(BufReader::new(io::Read::chain(endless, &b"\n{}"[..])));
        let long = lines.next_line().unwrap().unwrap();
        assert_eq!(long.text.unwrap_err().found, "a line of 209715200 bytes");
        assert_eq!(lines.next_line().unwrap().unwrap().text.unwrap(), "{}");
    }
}
