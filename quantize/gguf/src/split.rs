//! Split files: which part a file is, where the others lie, and whether they belong together.
//!
//! A policy in three files is `name-00001-of-00003.gguf` and so on. Each says its number (`split.no`, from 0), their
//! count (`split.count`) and how many tensors all have (`split.tensors.count`); the first has the metadata. Source:
//! `gguf-split` of llama.cpp.

use std::path::{Path, PathBuf};

use crate::part::{Part, Proved};
use crate::{ALIGNMENT_KEY, GgufError, Metadata, Value, memory};

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";
/// Parts of one policy: what the 16 bits of `split.count` hold.
const COUNT_MAX: u64 = u16::MAX as u64;

/// Which part a file is, by its metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    /// From 0, below `count`.
    index: u64,
    /// More than one.
    count: u64,
}

impl Place {
    /// `None` for a whole file.
    fn read(path: &Path, metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        if metadata.get(COUNT_KEY).is_none() && metadata.get(NUMBER_KEY).is_none() {
            return Ok(None);
        }
        let fault =
            |key, expected: String| GgufError::Split { path: path.into(), key, expected, found: shown(metadata, key) };
        let number = |key, least: u64, most: u64| {
            let usable = metadata.u64(key).filter(|it| (least..=most).contains(it));
            usable.ok_or_else(|| fault(key, format!("a number from {least} to {most}")))
        };
        let count = number(COUNT_KEY, 0, COUNT_MAX)?;
        if count <= 1 {
            // Merging leaves a count of 0, and the other fields as they were in the first part.
            return Ok(None);
        }
        Ok(Some(Self { index: number(NUMBER_KEY, 0, count - 1)?, count }))
    }

    fn name_end(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.index + 1, self.count)
    }

    /// What stands before the number in the names of all parts.
    fn name_start(self, path: &Path) -> Result<&str, GgufError> {
        let name = path.file_name().and_then(|it| it.to_str());
        let expected = self.name_end();
        name.and_then(|it| it.strip_suffix(expected.as_str())).ok_or_else(|| GgufError::PartName {
            path: path.into(),
            number: self.index + 1,
            count: self.count,
            expected,
        })
    }
}

/// Proves a file, and the other parts where it is one of several.
pub(crate) fn prove_all(path: &Path, memory: memory::Memory) -> Result<Vec<Proved>, GgufError> {
    let opened = Part::prove(path, memory, 0)?;
    let Some(place) = Place::read(path, &opened.metadata)? else {
        return Ok(vec![opened]);
    };
    let start = place.name_start(path)?;
    let mut opened = Some(opened);
    let mut parts: Vec<Proved> = Vec::new();
    for index in 0..place.count {
        let proved = match opened.take_if(|_| index == place.index) {
            Some(opened) => of_part(opened, parts.len()),
            None => prove_sibling(path, start, Place { index, ..place }, parts.len())?,
        };
        parts.push(proved);
    }
    let (first, others) = parts.split_at(1);
    others.iter().try_for_each(|it| check_belongs(it, &first[0]))?;
    check_tensors(&parts[0], parts.iter().map(|it| it.tensors.len()).sum())?;
    Ok(parts)
}

/// Refuses bytes in memory that are one of several parts: the others cannot be looked for.
pub(crate) fn check_alone(path: &Path, proved: &Proved) -> Result<(), GgufError> {
    match Place::read(path, &proved.metadata)? {
        Some(Place { index, count }) => Err(GgufError::Split {
            path: path.into(),
            key: COUNT_KEY,
            expected: "1, since bytes in memory have no other parts".into(),
            found: format!("part {} of {count}", index + 1),
        }),
        None => Ok(()),
    }
}

/// The file that was opened may turn out to be a later part.
fn of_part(mut proved: Proved, part: usize) -> Proved {
    proved.tensors.iter_mut().for_each(|it| it.part = part);
    proved
}

fn prove_sibling(opened: &Path, start: &str, place: Place, part: usize) -> Result<Proved, GgufError> {
    let path: PathBuf = opened.with_file_name(format!("{start}{}", place.name_end()));
    let memory = memory::map(&path).map_err(|error| match error {
        GgufError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => GgufError::MissingPart {
            path: opened.into(),
            part: path.clone(),
            number: place.index + 1,
            count: place.count,
        },
        other => other,
    })?;
    let proved = Part::prove(&path, memory, part)?;
    match Place::read(&path, &proved.metadata)? {
        Some(found) if found == place => Ok(proved),
        Some(found) => {
            Err(GgufError::PartName { path, number: found.index + 1, count: found.count, expected: found.name_end() })
        }
        None => Err(GgufError::Split {
            path,
            key: COUNT_KEY,
            expected: format!("{}, as part {} of them", place.count, place.index + 1),
            found: "a whole file".into(),
        }),
    }
}

/// A later part may repeat the first one's metadata, and contradicts or adds nothing.
fn check_belongs(proved: &Proved, first: &Proved) -> Result<(), GgufError> {
    let own = [NUMBER_KEY, ALIGNMENT_KEY];
    let mut entries = proved.metadata.iter().filter(|it| !own.contains(&it.0));
    match entries.find(|(key, value)| first.metadata.get(key) != Some(value)) {
        Some((key, _)) => Err(GgufError::ForeignPart {
            path: proved.part.path().into(),
            first: first.part.path().into(),
            key: key.into(),
        }),
        None => Ok(()),
    }
}

fn check_tensors(first: &Proved, n_tensors: usize) -> Result<(), GgufError> {
    if first.metadata.u64(TENSORS_KEY) == Some(n_tensors as u64) {
        return Ok(());
    }
    Err(GgufError::Split {
        path: first.part.path().into(),
        key: TENSORS_KEY,
        expected: format!("{n_tensors}, the tensors of all parts"),
        found: shown(&first.metadata, TENSORS_KEY),
    })
}

fn shown(metadata: &Metadata, key: &str) -> String {
    metadata.get(key).map_or_else(|| "nothing".into(), Value::shown)
}
