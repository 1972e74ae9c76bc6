//! Hostile files: what is no file, what is far larger than it seems, and parts that are not one another's.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::raw::{F32, Raw, Typed, i32, string, text, u32};
use super::table::{
    Expected::{Refused, Sound},
    Made::{Bytes, Files},
    Row, row,
};

/// Largest length that the file systems in use allow, and more than any machine has memory.
const GIANT_BYTES: u64 = 1 << 40;

/// A file that begins with these bytes and goes on with zeros that take no space.
fn giant(folder: &Path, start: &[u8]) -> PathBuf {
    let path = folder.join("giant.gguf");
    let mut file = File::create(&path).unwrap();
    file.write_all(start).unwrap();
    file.set_len(GIANT_BYTES).unwrap();
    path
}

/// The beginning of a header with one entry: an array or string, of which the length comes last.
fn claim(value: &[u8]) -> Vec<u8> {
    let entry = [1u64.to_le_bytes().as_slice(), b"k", value].concat();
    let counts = [0u64.to_le_bytes(), 1u64.to_le_bytes()].concat();
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &counts, &entry].concat()
}

fn counts(n_tensors: u64, n_entries: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_entries.to_le_bytes()].concat()
}

/// A whole small file with its last tensor at the very end of a terabyte.
fn far(folder: &Path, offset: u64) -> PathBuf {
    let raw = Raw::policy().tensor("far", &[8], F32, 32).retold("far", |it| it.offset = offset);
    let bytes = raw.bytes();
    let data_start = (bytes.len() - raw.data.len()) as u64;
    let path = giant(folder, &bytes);
    let mut file = File::options().write(true).open(&path).unwrap();
    file.set_len(data_start + (1 << 40)).unwrap();
    file.seek(SeekFrom::End(-1)).unwrap();
    file.write_all(&[1]).unwrap();
    path
}

fn special(folder: &Path, program: &str) -> PathBuf {
    let path = folder.join("special.gguf");
    let status = std::process::Command::new(program).arg(&path).status().unwrap();
    assert!(status.success());
    path
}

fn socket(folder: &Path) -> PathBuf {
    let path = folder.join("socket.gguf");
    std::os::unix::net::UnixListener::bind(&path).unwrap();
    path
}

fn link(folder: &Path, to: &str) -> PathBuf {
    let path = folder.join("link.gguf");
    std::os::unix::fs::symlink(to, &path).unwrap();
    path
}

fn u16(it: u16) -> Typed {
    Typed(2, it.to_le_bytes().into())
}

/// Part `number` of three, from 1. The first has the policy; each has some of its tensors.
fn part(number: u16) -> Raw {
    let end = [0, 4, 8, 11];
    let mut raw = Raw::policy().only(end[usize::from(number) - 1]..end[usize::from(number)]);
    if number > 1 {
        raw.entries.clear();
    }
    raw.set("split.no", u16(number - 1)).set("split.count", u16(3)).set("split.tensors.count", i32(11))
}

fn name(number: u16) -> String {
    format!("policy-0000{number}-of-00003.gguf")
}

/// Writes three parts, of which a row changes something, and opens one.
pub(super) fn parts(folder: &Path, opened: u16, change: fn(&mut [Option<Vec<u8>>; 3])) -> PathBuf {
    let mut bytes = [1, 2, 3].map(|it| Some(part(it).bytes()));
    change(&mut bytes);
    for (number, bytes) in (1..).zip(bytes) {
        bytes.into_iter().for_each(|it| std::fs::write(folder.join(name(number)), it).unwrap());
    }
    folder.join(name(opened))
}

/// The same where what is changed is the first part.
fn first(folder: &Path, raw: &Raw) -> PathBuf {
    let path = parts(folder, 1, |_| ());
    std::fs::write(&path, raw.bytes()).unwrap();
    path
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(209, "a folder", Refused("expected a"), Files(Path::to_path_buf)),
    row(210, "a pipe that nobody writes to", Refused("expected a file, found a pipe"),
        Files(|folder| special(folder, "mkfifo"))),
    row(211, "a socket", Refused("expected a file, found a socket"), Files(socket)),
    row(212, "a device without an end", Refused("expected a file, found a device"), Files(|_| "/dev/zero".into())),
    row(213, "a link to a device", Refused("expected a file, found a device"), Files(|it| link(it, "/dev/zero"))),
    row(214, "a link to nothing", Refused("No such file"), Files(|it| link(it, "nothing.gguf"))),
    row(215, "a terabyte of zeros", Refused("expected it to begin with `GGUF`"), Files(|it| giant(it, &[]))),
    row(216, "a terabyte, and tensors to fill it", Refused("number of tensors: expected at most 131072"),
        Files(|it| giant(it, &counts(GIANT_BYTES / 24, 0)))),
    row(217, "a terabyte, and entries to fill it", Refused("number of metadata entries: expected at most 16384"),
        Files(|it| giant(it, &counts(0, GIANT_BYTES / 13)))),
    row(218, "a terabyte, and as many tensors as are believed", Refused("tensor ``: expected one to four dimensions"),
        Files(|it| giant(it, &counts(131_072, 0)))),
    row(219, "a terabyte, and an array of strings to fill it", Refused("elements of metadata `k`: expected at most"),
        Files(|it| giant(it, &claim(&[9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec(),
            (1u64 << 36).to_le_bytes().to_vec()].concat())))),
    row(220, "a terabyte, and a string to fill it",
        Refused("bytes of the header, up to metadata `k`: expected at most 67108864"),
        Files(|it| giant(it, &claim(&[8u32.to_le_bytes().to_vec(), (1u64 << 39).to_le_bytes().to_vec()].concat())))),
    row(221, "a terabyte, and a tensor behind it", Refused("tensor `far`: expected its end within 1099511627776"),
        Files(|it| far(it, 1 << 40))),
    row(222, "a policy in three parts", Sound, Files(|it| parts(it, 1, |_| ()))),
    row(223, "a policy in three parts, opened by its last", Sound, Files(|it| parts(it, 3, |_| ()))),
    row(224, "no second part", Refused("part 2 of 3: expected `"), Files(|it| parts(it, 1, |it| it[1] = None))),
    row(225, "no first part", Refused("part 1 of 3: expected `"), Files(|it| parts(it, 3, |it| it[0] = None))),
    row(226, "two parts swapped", Refused("policy-00002-of-00003.gguf: part 3 of 3 by its metadata: expected a name"),
        Files(|it| parts(it, 1, |it| it.swap(1, 2)))),
    row(227, "two parts swapped, opened by one of them",
        Refused("policy-00003-of-00003.gguf: part 2 of 3 by its metadata: expected a name"),
        Files(|it| parts(it, 3, |it| it.swap(1, 2)))),
    row(228, "a part doubled over another", Refused("policy-00002-of-00003.gguf: part 1 of 3 by its metadata"),
        Files(|it| parts(it, 1, |it| it[1] = it[0].clone()))),
    row(229, "a part of a policy in two", Refused("part 2 of 2 by its metadata: expected a name that ends in"),
        Files(|it| parts(it, 1, |it| it[1] = Some(part(2).set("split.count", u16(2)).bytes())))),
    row(230, "a whole policy for a part", Refused("metadata `split.count`: expected 3, as part 2 of them"),
        Files(|it| parts(it, 1, |it| it[1] = Some(Raw::policy().bytes())))),
    row(231, "a part of another policy", Refused("metadata `general.name`: expected what"),
        Files(|it| parts(it, 1, |it| it[2] = Some(part(3).set("general.name", text("other")).bytes())))),
    row(232, "a part of another architecture", Refused("metadata `general.architecture`: expected what"),
        Files(|it| parts(it, 1, |it| it[2] = Some(part(3).set("general.architecture", text("gpt2")).bytes())))),
    row(233, "a part with a tensor of another",
        Refused("policy-00003-of-00003.gguf: tensor `output_norm.weight` is there twice"),
        Files(|it| parts(it, 1, |it| {
            let mut raw = part(3);
            raw.tensors[0].name = string(b"output_norm.weight");
            it[2] = Some(raw.bytes());
        }))),
    row(234, "a part with a tensor too many",
        Refused("metadata `split.tensors.count`: expected 12, the tensors of all"),
        Files(|it| parts(it, 1, |it| it[2] = Some(part(3).tensor("more", &[8], F32, 32).bytes())))),
    row(235, "parts that disagree on the tensors", Refused("metadata `split.tensors.count`: expected what"),
        Files(|it| parts(it, 1, |it| it[1] = Some(part(2).set("split.tensors.count", i32(10)).bytes())))),
    row(236, "parts without a number of tensors", Refused("metadata `split.tensors.count`: expected 11"),
        Files(|it| parts(it, 1, |it| {
            *it = [1, 2, 3].map(|it| Some(part(it).without("split.tensors.count").bytes()));
        }))),
    row(237, "a second part that is cut", Refused("policy-00002-of-00003.gguf: tensor `"),
        Files(|it| parts(it, 1, |it| it[1].as_mut().unwrap().truncate(600)))),
    row(238, "a second part that is empty", Refused("policy-00002-of-00003.gguf: magic at byte 0"),
        Files(|it| parts(it, 1, |it| it[1] = Some(Vec::new())))),
    row(239, "a second part that is a folder", Refused("policy-00002-of-00003.gguf: expected a file, found a folder"),
        Files(|folder| {
            std::fs::create_dir(folder.join(name(2))).unwrap();
            parts(folder, 1, |it| it[1] = None)
        })),
    row(240, "a second part that is a pipe", Refused("policy-00002-of-00003.gguf: expected a file, found a pipe"),
        Files(|folder| {
            let path = parts(folder, 1, |it| it[1] = None);
            std::fs::rename(special(folder, "mkfifo"), folder.join(name(2))).unwrap();
            path
        })),
    row(241, "a part under a name without a number", Refused("expected a name that ends in `-00001-of-00003.gguf`"),
        Bytes(|| part(1).bytes())),
    row(242, "65,535 parts, of which one is there", Refused("part 2 of 65535: expected `"),
        Files(|folder| {
            let path = folder.join("policy-00001-of-65535.gguf");
            std::fs::write(&path, part(1).set("split.count", u16(u16::MAX)).bytes()).unwrap();
            path
        })),
    row(243, "a million parts",
        Refused("metadata `split.count`: expected a number from 0 to 65535, found U32(1000000)"),
        Files(|it| first(it, &part(1).set("split.count", u32(1_000_000))))),
    row(244, "no part at all, as in a merged file", Sound,
        Files(|it| first(it, &Raw::policy().set("split.no", u16(0)).set("split.count", u16(0))))),
    row(245, "a number of parts in words", Refused("metadata `split.count`: expected a number from 0"),
        Files(|it| first(it, &part(1).set("split.count", text("3"))))),
    row(246, "a part that does not say how many there are", Refused("metadata `split.count`: expected a number from 0"),
        Files(|it| first(it, &part(1).without("split.count")))),
    row(247, "a part that does not say which it is", Refused("metadata `split.no`: expected a number from 0 to 2"),
        Files(|it| first(it, &part(1).without("split.no")))),
    row(248, "part 4 of 3", Refused("metadata `split.no`: expected a number from 0 to 2, found U16(3)"),
        Files(|it| first(it, &part(1).set("split.no", u16(3))))),
    row(249, "a part below zero", Refused("metadata `split.no`: expected a number from 0 to 2, found I32(-1)"),
        Files(|it| first(it, &part(1).set("split.no", i32(-1))))),
];
