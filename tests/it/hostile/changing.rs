//! Files that change while they are open: what `fsq_gguf::Gguf` promises of them, tried out.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use fsq_gguf::Gguf;

use super::raw::{F32, Raw};

/// What ends a process that reads a page which its file no longer has, by Linux's number or by that of macOS.
const SIGBUS: [i32; 2] = [7, 10];
/// Tells the last test, run again as a process of its own, to cut its file.
const CUT: &str = "FSQ_TEST_CUT";

/// A tensor of three pages.
fn long() -> Vec<u8> {
    Raw::new().tensor("t", &[3072], F32, 3 * 4096).bytes()
}

#[test]
fn a_file_that_is_replaced_stays_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    std::fs::write(&path, long()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let before = gguf.tensor("t").unwrap().bytes.to_vec();
    std::fs::write(&other, Raw::policy().bytes()).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(gguf.tensor("t").unwrap().bytes, before);
}

#[test]
fn a_file_that_is_overwritten_changes_weights_and_no_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, long()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let n_bytes = long().len();
    // In place and of the same length, as a careless copy does it.
    let file = File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xff; n_bytes], 0).unwrap();
    let view = gguf.tensor("t").unwrap();
    assert_eq!((view.bytes.len(), view.rows(), view.cols()), (3 * 4096, 1, 3072));
    assert!(view.to_f32().iter().all(|it| it.is_nan()));
}

/// Within the last page that is left, what was cut off reads as zeros.
#[test]
fn a_file_that_is_cut_keeps_its_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, long()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let view = gguf.tensor("t").unwrap();
    assert_eq!(view.bytes.len(), 3 * 4096);
    assert_eq!(view.bytes[0], 0x11);
    let cut = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::changing::reading_pages_that_are_gone"])
        .env(CUT, "")
        .output()
        .unwrap();
    let signal = cut.status.signal();
    assert!(signal.is_some_and(|it| SIGBUS.contains(&it)), "{:?}: {cut:?}", cut.status);
}

/// Run by the test above as a process that is to die of it; run by itself it reads a file that is whole.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test has no arguments of its own")]
fn reading_pages_that_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.gguf");
    std::fs::write(&own, long()).unwrap();
    let gguf = Gguf::open(&own).unwrap();
    if std::env::var_os(CUT).is_some() {
        File::options().write(true).open(&own).unwrap().set_len(4096).unwrap();
    }
    assert_eq!(gguf.tensor("t").unwrap().bytes.iter().map(|it| u64::from(*it)).sum::<u64>(), 0x11 * 3 * 4096);
}
