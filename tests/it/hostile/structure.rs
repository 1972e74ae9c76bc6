//! Hostile files: the first bytes, the counts, and cuts in every field.

use super::raw::{Raw, i32s, text, u32};
use super::table::{
    Expected::{Refused, Sound, Strict},
    Made::{Bytes, Each, One},
    Row, row,
};

/// A file with one field of every kind.
fn fields() -> Raw {
    let raw = Raw::new().set("kk", u32(7)).set("general.name", text("name")).set("array", i32s(&[1, 2]));
    raw.tensor("tt", &[8, 2], 0, 64)
}

fn zeros(more_tensors: i64, more_entries: i64, n: usize) -> Vec<u8> {
    let raw = Raw { more_tensors, more_entries, ..Raw::new() };
    [raw.bytes(), vec![0; n]].concat()
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(1, "an empty file", Refused("magic at byte 0: expected 4 more bytes, found 0"), Bytes(Vec::new)),
    row(2, "one to three bytes of the magic", Refused("magic at byte 0: expected 4 more bytes"),
        Each(|| (1..4).map(|it| b"GGUF"[..it].to_vec()).collect())),
    row(3, "4 to 64 zeros", Refused("expected it to begin with `GGUF`, found [0, 0, 0, 0]"),
        Each(|| (4..=64).map(|it| vec![0; it]).collect())),
    row(4, "the first 8 to 64 bytes of a policy", Refused("number of tensors"),
        Each(|| (8..=64).map(|it| Raw::policy().bytes()[..it].to_vec()).collect())),
    row(5, "a magic in small letters", Refused("expected it to begin with `GGUF`, found [103, 103, 117, 102]"),
        One(|| Raw { magic: *b"gguf", ..Raw::policy() })),
    row(6, "a magic backwards", Refused("expected it to begin with `GGUF`"),
        One(|| Raw { magic: *b"FUGG", ..Raw::policy() })),
    row(7, "the format before GGUF", Refused("expected it to begin with `GGUF`"),
        One(|| Raw { magic: *b"ggjt", ..Raw::policy() })),
    row(8, "a byte-order mark before the magic", Refused("expected it to begin with `GGUF`"),
        Bytes(|| [b"\xef\xbb\xbf".to_vec(), Raw::policy().bytes()].concat())),
    row(9, "a whole file behind a magic of its own", Refused("found 1179993927"),
        Bytes(|| [b"GGUF".to_vec(), Raw::policy().bytes()].concat())),
    row(10, "version 0", Refused("expected GGUF version 2 or 3, found 0"),
        One(|| Raw { version: 0, ..Raw::policy() })),
    row(11, "version 1, whose lengths have 32 bits", Refused("expected GGUF version 2 or 3, found 1"),
        One(|| Raw { version: 1, ..Raw::policy() })),
    row(12, "a version to come", Refused("found 4"), One(|| Raw { version: 4, ..Raw::policy() })),
    row(13, "the largest version", Refused("found 4294967295"), One(|| Raw { version: u32::MAX, ..Raw::policy() })),
    row(14, "big-endian numbers", Refused("found 50331648 (big endian)"),
        One(|| Raw { version: 3u32.swap_bytes(), ..Raw::policy() })),
    row(15, "version 2", Sound, One(|| Raw { version: 2, ..Raw::policy() })),
    row(16, "2^64 - 1 tensors", Refused("number of tensors: expected at most"), Bytes(|| zeros(-1, 0, 4096))),
    row(17, "2^63 tensors", Refused("number of tensors: expected at most"), Bytes(|| zeros(i64::MIN, 0, 4096))),
    row(18, "2^64 - 1 metadata entries", Refused("number of metadata entries: expected at most"),
        Bytes(|| zeros(0, -1, 4096))),
    row(19, "more tensors than any policy has", Refused("number of tensors: expected at most 131072, found 140000"),
        Bytes(|| zeros(140_000, 0, 140_000 * 24))),
    row(20, "more metadata than any policy has",
        Refused("number of metadata entries: expected at most 16384, found 20000"),
        Bytes(|| zeros(0, 20_000, 20_000 * 13))),
    row(21, "as many tensors of zeros as fit", Refused("tensor ``: expected one to four dimensions"),
        Bytes(|| zeros(100_000, 0, 100_000 * 24))),
    row(22, "as many entries of zeros as fit", Refused("metadata `` is there twice"),
        Bytes(|| zeros(0, 10_000, 10_000 * 13))),
    row(23, "one entry more than there are", Refused("bytes of tensor name: expected at most 63, found"),
        One(|| Raw { more_entries: 1, ..Raw::policy() })),
    row(24, "one entry less than there are", Refused("bytes of tensor name: expected at most 63, found"),
        One(|| Raw { more_entries: -1, ..Raw::policy() })),
    row(25, "one tensor more than there are", Refused("tensor ``: expected one to four dimensions"),
        One(|| Raw { more_tensors: 1, ..Raw::policy() })),
    row(26, "one tensor less than there are", Strict("belong to no tensor"),
        One(|| {
            let raw = Raw::policy().tensor("extra", &[8], 0, 32);
            Raw { more_tensors: -1, ..raw }
        })),
    row(27, "cut in the magic", Refused("magic at byte 0"), Bytes(|| fields().cut_in("magic"))),
    row(28, "cut in the version", Refused("version at byte 4: expected 4 more bytes, found 1"),
        Bytes(|| fields().cut_in("version"))),
    row(29, "cut in the number of tensors", Refused("number of tensors at byte 8: expected 8 more bytes, found 1"),
        Bytes(|| fields().cut_in("tensor count"))),
    row(30, "cut in the number of entries", Refused("number of tensors: expected at most 0, found 1"),
        Bytes(|| fields().cut_in("entry count"))),
    row(31, "cut in the length of a key", Refused("number of tensors: expected at most 0, found 1"),
        Bytes(|| fields().cut_in("key length"))),
    row(32, "cut in a key", Refused("number of metadata entries: expected at most 0, found 1"),
        Bytes(|| Raw { more_entries: -2, more_tensors: -1, ..fields() }.cut_in("key"))),
    row(33, "cut in the type of a value", Refused("number of metadata entries: expected at most 0, found 1"),
        Bytes(|| Raw { more_entries: -2, more_tensors: -1, ..fields() }.cut_in("value type"))),
    row(34, "cut in a value", Refused("metadata `kk` at byte 38: expected 4 more bytes, found 1"),
        Bytes(|| Raw { more_entries: -2, more_tensors: -1, ..fields() }.cut_in("value"))),
    row(35, "cut in the length of a string", Refused("metadata `general.name` at byte 66: expected 8 more bytes"),
        Bytes(|| fields().cut_in("string length"))),
    row(36, "cut in a string", Refused("metadata `general.name` at byte 74: expected 4 more bytes, found 1"),
        Bytes(|| fields().cut_in("string"))),
    row(37, "cut in the type of an array", Refused("metadata `array` at byte 95: expected 4 more bytes, found 1"),
        Bytes(|| fields().cut_in("element type"))),
    row(38, "cut in the length of an array", Refused("elements of metadata `array` at byte 99: expected 8 more bytes"),
        Bytes(|| fields().cut_in("element count"))),
    row(39, "cut in the elements of an array", Refused("elements of metadata `array`: expected at most 0, found 2"),
        Bytes(|| fields().cut_in("elements"))),
    row(40, "cut in the length of a tensor's name", Refused("tensor name at byte 115: expected 8 more bytes, found 1"),
        Bytes(|| fields().cut_in("name length"))),
    row(41, "cut in a tensor's name", Refused("tensor name at byte 123: expected 2 more bytes, found 1"),
        Bytes(|| fields().cut_in("name"))),
    row(42, "cut in the number of dimensions", Refused("tensor `tt` at byte 125: expected 4 more bytes, found 1"),
        Bytes(|| fields().cut_in("dimension count"))),
    row(43, "cut in a dimension", Refused("tensor `tt` at byte 129: expected 8 more bytes, found 1"),
        Bytes(|| fields().cut_in("dimensions"))),
    row(44, "cut in a format", Refused("tensor `tt` at byte 145: expected 4 more bytes, found 1"),
        Bytes(|| fields().cut_in("format"))),
    row(45, "cut in an offset", Refused("tensor `tt` at byte 149: expected 8 more bytes, found 1"),
        Bytes(|| fields().cut_in("offset"))),
    row(46, "cut in the padding behind the header",
        Refused("tensor `tt`: expected its end within 0 bytes of tensor data, found 64"),
        Bytes(|| fields().cut_in("padding"))),
    row(47, "cut in the tensor data", Refused("tensor `tt`: expected its end within 1 bytes of tensor data, found 64"),
        Bytes(|| fields().cut_in("data"))),
    row(48, "a policy without its last byte", Refused("tensor `blk.0.ffn_norm.weight`: expected its end within"),
        Bytes(|| {
            let mut bytes = Raw::policy().bytes();
            bytes.pop();
            bytes
        })),
    row(49, "a policy without the padding behind its last tensor", Sound,
        Bytes(|| {
            let mut bytes = Raw::policy().tensor("extra", &[1], 0, 4).bytes();
            bytes.truncate(bytes.len() - 28);
            bytes
        })),
    row(50, "a whole policy", Sound, One(Raw::policy)),
];
