//! What commands leave behind: text or JSON on standard output, and files that are whole or not there.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::failure::Refusal;

/// Writes text to standard output. A broken pipe comes back as an error, which ends the command as a success.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// Writes one JSON document to standard output.
pub(crate) fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(document)? + "\n"))
}

/// Writes a file under a temporary name beside its real one, syncs it and renames it.
///
/// # Errors
/// Names the file. Nothing is left behind then.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut draft = Draft::new(path)?;
    draft.write(bytes)?;
    draft.publish()
}

/// A file under a temporary name beside its real one; dropped, it is gone. Every error names the real file.
pub(crate) struct Draft<'a> {
    path: &'a Path,
    file: BufWriter<tempfile::NamedTempFile>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(path: &'a Path) -> anyhow::Result<Self> {
        let folder = folder_of(path);
        if !folder.is_dir() {
            return Err(Refusal::new(format!("{}: expected a folder `{}`", path.display(), folder.display())).into());
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".fsq-").suffix(".draft");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any program makes a file; the user's mask takes from it.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder).with_context(|| path.display().to_string())?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| self.path.display().to_string())
    }

    /// Syncs the file and gives it its real name.
    pub(crate) fn publish(self) -> anyhow::Result<()> {
        let Self { path, file } = self;
        let publish = || {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|it| it.error)?;
            if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
        };
        publish().with_context(|| path.display().to_string())
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder and those above it.
///
/// # Errors
/// Names the folder.
pub(crate) fn make_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())
}

/// A length such as `2.4 MB`: decimal units, as file browsers show them.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1000.0;
    let mut unit = 0;
    while size >= 999.95 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// Rows of cells as text: the first column to the left, the others to the right.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|it| it.get(column)).map(|it| it.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|it| width(it).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let (gap, width) = (if column == 0 { "" } else { "  " }, widths[column]);
            let _ = if column == 0 { write!(line, "{gap}{cell:<width$}") } else { write!(line, "{gap}{cell:>width$}") };
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    #[test]
    fn lengths_are_read_at_a_glance() {
        let shown: Vec<_> = [0, 999, 1000, 999_949, 999_950, 2_400_000, 7_000_000_000].map(bytes_text).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "2.4 MB", "7.0 GB"]);
    }

    #[test]
    fn a_file_is_whole_and_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_whole(&path, b"old").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_whole(&folder.path().join("none/a.json"), b"").unwrap_err();
        assert!(error.to_string().contains("none/a.json: expected a folder `"), "{error}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "10".into()], vec!["bcd".into(), "2".into()]];
        assert_eq!(columns(&rows), "a    10\nbcd   2\n");
    }
}
