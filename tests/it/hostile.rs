//! Hostile files: each is refused with words that name its fault, or found out by `fsq inspect --strict`.
//!
//! None may make a reader panic, wait, or take memory beyond what the file has. `tests/hostile/README.md` lists them.

mod changing;
mod inspecting;
mod metadata;
mod mutations;
mod places;
mod policy;
mod raw;
mod structure;
mod table;
mod tensors;
mod vocabulary;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use fsq_gguf::{Gguf, flaws};
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, Tokenizer};

use crate::program::{BAD_INPUT, fsq, text};
use crate::tree::{report, root};
use raw::{F32, Raw, boolean, string};
use table::{Expected, Made, Row};

const TABLES: &[&[Row]] =
    &[structure::ROWS, metadata::ROWS, tensors::ROWS, policy::ROWS, vocabulary::ROWS, places::ROWS];
/// Bytes that opening takes for each byte on the disk: an empty string has 8 there and 24 in memory.
const OPENING_SHARE: u64 = 4;
/// What it takes besides: paths, messages and the first buckets of maps.
const OPENING_BYTES: u64 = 1 << 16;
/// The same for the tokenizer and the decoder, which compile regular expressions and hold buffers of their own.
const LOADING_SHARE: u64 = 8;
const LOADING_BYTES: u64 = 1 << 20;
/// What it takes for each tensor and metadata entry.
const OPENING_BYTES_EACH: u64 = 320;
/// Past this a reader hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What reading a file came to.
struct Seen {
    opening: Result<(), String>,
    tokenizing: Result<(), String>,
    loading: Result<(), String>,
    /// Largest number of bytes held at once.
    opening_bytes: u64,
    loading_bytes: u64,
}

fn see(path: &Path) -> Seen {
    let mut opened = None;
    let opening = allocation_counter::measure(|| opened = Some(Gguf::open(path)));
    let mut seen = Seen {
        opening: Ok(()),
        tokenizing: Ok(()),
        loading: Ok(()),
        opening_bytes: opening.bytes_max,
        loading_bytes: 0,
    };
    match opened.unwrap() {
        Ok(gguf) => {
            flaws(&gguf);
            let loading = allocation_counter::measure(|| {
                seen.tokenizing = Tokenizer::from_gguf(&gguf).map(|_| ()).map_err(|it| it.to_string());
                let options = DecoderOptions { threads: 1, context_tokens: 16, kv: KvFormat::F16, max_sequences: 1 };
                seen.loading = Decoder::<Cpu>::load(&gguf, options).map(|_| ()).map_err(|it| it.to_string());
            });
            seen.loading_bytes = loading.bytes_max;
        }
        Err(error) => seen.opening = Err(error.to_string()),
    }
    seen
}

/// The same, given up on after a while.
fn see_in_time(path: &Path) -> Result<Seen, String> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_path_buf();
    std::thread::spawn(move || sender.send(see(&path)));
    receiver.recv_timeout(PATIENCE).map_err(|it| match it {
        mpsc::RecvTimeoutError::Timeout => "hangs".to_string(),
        mpsc::RecvTimeoutError::Disconnected => "panics".to_string(),
    })
}

/// Bytes on the disk of all files beside one: a terabyte of nothing counts as nothing.
fn bytes_on_disk(path: &Path) -> u64 {
    let beside = path.parent().unwrap().read_dir().unwrap();
    beside.map(|it| it.unwrap().path()).filter(|it| it.is_file()).map(|it| it.metadata().unwrap().blocks() * 512).sum()
}

fn check(row: &Row, path: &Path, most_seen: &mut [u64; 2]) -> Result<(), String> {
    let seen = see_in_time(path)?;
    *most_seen = [most_seen[0].max(seen.opening_bytes), most_seen[1].max(seen.loading_bytes)];
    let n_bytes = if matches!(row.made, Made::Files(_)) { bytes_on_disk(path) } else { path.metadata().unwrap().len() };
    for (what, found, most) in [
        ("opening", seen.opening_bytes, OPENING_SHARE * n_bytes + OPENING_BYTES),
        ("loading", seen.loading_bytes, LOADING_SHARE * n_bytes + LOADING_BYTES),
    ] {
        if found > most {
            return Err(format!("{what} takes {found} bytes, expected at most {most}"));
        }
    }
    let named = |result: &Result<(), String>, words: &str| match result {
        Err(message) if message.contains(words) => Ok(()),
        Err(message) => Err(format!("expected `{words}` in: {message}")),
        Ok(()) => Err(format!("accepted; expected `{words}`")),
    };
    let sound = || seen.opening.clone().and(seen.loading.clone()).and(seen.tokenizing.clone());
    match row.expected {
        Expected::Refused(words) => named(&seen.opening, words)?,
        Expected::NotRun(words) => seen.opening.clone().and_then(|()| named(&seen.loading, words))?,
        Expected::NotTokenized(words) => seen.opening.clone().and_then(|()| named(&seen.tokenizing, words))?,
        Expected::Strict(_) | Expected::Sound => sound()?,
    }
    check_command(row, path)
}

/// `fsq inspect --strict` names the fault; without it, it shows what can be shown.
fn check_command(row: &Row, path: &Path) -> Result<(), String> {
    let strict = fsq(&["inspect", "--strict", text(path)]);
    let errors = String::from_utf8_lossy(&strict.stderr);
    match row.expected {
        Expected::Sound if !strict.status.success() => return Err(format!("strict: {errors}")),
        Expected::Sound => {}
        Expected::Refused(words)
        | Expected::NotRun(words)
        | Expected::NotTokenized(words)
        | Expected::Strict(words) => {
            if strict.status.code() != BAD_INPUT || !errors.contains(words) || !strict.stdout.is_empty() {
                return Err(format!("strict ended with {}: {errors}", strict.status));
            }
        }
    }
    let plain = fsq(&["inspect", "--json", text(path)]);
    let expected = if matches!(row.expected, Expected::Refused(_)) { BAD_INPUT } else { Some(0) };
    if plain.status.code() != expected {
        return Err(format!("inspect ended with {}: {}", plain.status, String::from_utf8_lossy(&plain.stderr)));
    }
    let shown: Result<serde_json::Value, _> = serde_json::from_slice(&plain.stdout);
    match shown {
        Ok(_) => Ok(()),
        Err(_) if plain.stdout.is_empty() && expected == BAD_INPUT => Ok(()),
        Err(error) => Err(format!("inspect prints what is not JSON: {error}")),
    }
}

fn check_all(rows: &[Row]) {
    let (mut findings, mut most_seen) = (Vec::new(), [0; 2]);
    for row in rows {
        let folder = tempfile::tempdir().unwrap();
        for path in row.write(folder.path()) {
            if let Err(finding) = check(row, &path, &mut most_seen) {
                findings.push(format!("{} ({}, {}): {finding}", row.number, row.idea, path.display()));
            }
        }
    }
    println!("{} rows: opening took at most {} bytes, loading {}", rows.len(), most_seen[0], most_seen[1]);
    report("hostile files", &findings);
}

#[test]
fn structure_that_is_none() {
    check_all(structure::ROWS);
}

#[test]
fn metadata_that_cannot_be_read() {
    check_all(metadata::ROWS);
}

#[test]
fn tensors_that_lead_astray() {
    check_all(tensors::ROWS);
}

#[test]
fn policies_that_cannot_be_run() {
    check_all(policy::ROWS);
}

#[test]
fn vocabularies_that_are_none() {
    check_all(vocabulary::ROWS);
}

#[test]
fn places_that_hold_no_file_and_parts_that_do_not_fit() {
    check_all(places::ROWS);
}

#[test]
fn a_crowd_of_small_things_takes_little_each() {
    let folder = tempfile::tempdir().unwrap();
    let entries = (0..16_000).fold(Raw::new(), |it, n: u32| it.entry(string(format!("{n:x}").as_bytes()), boolean(1)));
    let tensors = (0..100_000).fold(Raw::new(), |it, n| it.tensor(&n.to_string(), &[1], F32, 4));
    for (name, raw, n) in [("entries", entries, 16_000), ("tensors", tensors, 100_000)] {
        let path = folder.path().join(name);
        std::fs::write(&path, raw.bytes()).unwrap();
        let mut opened = None;
        let taken = allocation_counter::measure(|| opened = Some(Gguf::open(&path)));
        let gguf = opened.unwrap().unwrap();
        assert_eq!(gguf.tensors().len() + gguf.metadata().len(), n);
        println!("{n} {name} take {} bytes each", taken.bytes_max / n as u64);
        assert!(taken.bytes_max <= OPENING_BYTES_EACH * n as u64 + OPENING_BYTES, "{name}: {}", taken.bytes_max);
    }
}

#[test]
fn the_list_is_the_table() {
    let rows: Vec<&Row> = TABLES.iter().flat_map(|it| it.iter()).collect();
    assert!(rows.len() >= 100, "{} hostile files", rows.len());
    assert!(rows.iter().zip(1..).all(|(row, number)| row.number == number), "the numbers run from 1");
    let page: PathBuf = root().join("tests/hostile/README.md");
    let page = std::fs::read_to_string(&page).unwrap();
    let listed: Vec<&str> =
        page.lines().filter(|it| it.starts_with("| ") && it.as_bytes()[2].is_ascii_digit()).collect();
    let lines: Vec<String> = rows.iter().map(|it| it.line()).collect();
    let findings: Vec<String> = lines.iter().filter(|it| !listed.contains(&it.as_str())).cloned().collect();
    report("rows that tests/hostile/README.md lacks", &findings);
    assert_eq!(listed, lines, "tests/hostile/README.md has rows that the table lacks, or in another order");
}
