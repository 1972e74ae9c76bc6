//! The files of the repository as the tests about the tree itself see them.

use std::path::{Path, PathBuf};

/// Folders that are not ours to judge: build output, caches, the history.
const SKIPPED: &[&str] = &["target", "__pycache__", "node_modules"];
/// Folders with a dot that belong to the repository.
const DOTTED: &[&str] = &[".cargo", ".ci", ".config"];

/// One file of the repository.
pub(crate) struct Source {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    /// `None` when it is not UTF-8.
    pub(crate) text: Option<String>,
}

impl Source {
    pub(crate) fn extension(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |it| it.1)
    }

    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(crate) fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |it| it.0)
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file, sorted by path.
pub(crate) fn files() -> Vec<Source> {
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(found.len() > 30, "only {} files under {}", found.len(), root().display());
    found
}

/// Every Rust file.
pub(crate) fn rust_files() -> Vec<Source> {
    files().into_iter().filter(|it| it.extension() == "rs").collect()
}

/// Panics with one line for each finding.
pub(crate) fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

fn walk(folder: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            let skipped =
                SKIPPED.contains(&name.as_str()) || (name.starts_with('.') && !DOTTED.contains(&name.as_str()));
            if !skipped {
                walk(&path, found);
            }
        } else {
            let relative = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            found.push(Source { path: relative, text: String::from_utf8(std::fs::read(&path).unwrap()).ok() });
        }
    }
}
