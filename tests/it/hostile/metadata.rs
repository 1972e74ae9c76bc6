//! Hostile files: keys, values, arrays and the alignment.

use super::raw::{Raw, Typed, array, boolean, i32, string, text, u32};
use super::table::{
    Expected::{Refused, Sound, Strict},
    Made::One,
    Row, row,
};

/// A policy with one more entry.
fn with(value: Typed) -> Raw {
    Raw::policy().set("k", value)
}

/// A policy with one more entry under a key whose length says `n`.
fn key(n: u64, bytes: &[u8]) -> Raw {
    Raw::new().entry([n.to_le_bytes().as_slice(), bytes].concat(), u32(1))
}

/// Arrays in arrays, so many deep, each of one element.
fn nested(depth: usize) -> Typed {
    let outer = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat().repeat(depth - 1);
    Typed(9, [outer, 0u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec(), vec![7]].concat())
}

/// A string value whose length says `n`.
fn long(n: u64) -> Typed {
    Typed(8, [n.to_le_bytes().as_slice(), b"short"].concat())
}

fn alignment(value: Typed) -> Raw {
    Raw::policy().set("general.alignment", value)
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(51, "a key of 2^64 - 1 bytes", Refused("bytes of metadata key 0: expected at most 65535"),
        One(|| key(u64::MAX, b"k"))),
    row(52, "a key of 65,536 bytes", Refused("bytes of metadata key 0: expected at most 65535, found 65536"),
        One(|| key(65_536, &[b'k'; 65_536]))),
    row(53, "a key that ends beyond the file", Refused("metadata key 0 at byte 32: expected 60000 more bytes"),
        One(|| key(60_000, b"k"))),
    row(54, "a key that is not UTF-8", Refused("metadata key 0: expected UTF-8"), One(|| key(2, b"\xff\xfe"))),
    row(55, "an empty key", Strict("metadata key \"\": expected a name of visible characters"),
        One(|| Raw::policy().set("", u32(1)))),
    row(56, "a key that clears the terminal", Strict("metadata key \"\\u{1b}[2J\": expected a name"),
        One(|| Raw::policy().set("\u{1b}[2J", u32(1)))),
    row(57, "a key with a zero in it", Strict("metadata key \"a\\0b\": expected a name"),
        One(|| Raw::policy().set("a\0b", u32(1)))),
    row(58, "a key that clears the terminal, and a fault in its value",
        Refused("expected a value type from 0 to 12, found 99"),
        One(|| Raw::policy().set("\u{1b}[2J", Typed(99, Vec::new())))),
    row(59, "a key twice", Refused("metadata `k` is there twice"), One(|| with(u32(1)).entry(string(b"k"), u32(1)))),
    row(60, "two architectures", Refused("metadata `general.architecture` is there twice"),
        One(|| Raw::policy().entry(string(b"general.architecture"), text("gpt2")))),
    row(61, "a value of type 13", Refused("metadata `k`: expected a value type from 0 to 12, found 13"),
        One(|| with(Typed(13, vec![0; 8])))),
    row(62, "a value of type 2^32 - 1", Refused("expected a value type from 0 to 12, found 4294967295"),
        One(|| with(Typed(u32::MAX, vec![0; 8])))),
    row(63, "a bool of 2", Refused("metadata `k`: expected a bool of 0 or 1, found 2"), One(|| with(boolean(2)))),
    row(64, "a bool of 255", Refused("metadata `k`: expected a bool of 0 or 1, found 255"), One(|| with(boolean(255)))),
    row(65, "a bool of 7 in an array", Refused("metadata `k`: expected a bool of 0 or 1, found 7"),
        One(|| with(array(7, 3, vec![0, 1, 7])))),
    row(66, "a string of 2^64 - 1 bytes", Refused("expected 18446744073709551615 more bytes"),
        One(|| with(long(u64::MAX)))),
    row(67, "a string of 2^63 bytes", Refused("expected 9223372036854775808 more bytes"), One(|| with(long(1 << 63)))),
    row(68, "a string that ends beyond the file", Refused("expected 1000000 more bytes"),
        One(|| with(long(1_000_000)))),
    row(69, "a string that is not UTF-8", Refused("metadata `k`: expected UTF-8"),
        One(|| with(Typed(8, string(b"\x80abc"))))),
    row(70, "a string with half a surrogate pair", Refused("metadata `k`: expected UTF-8"),
        One(|| with(Typed(8, string(b"\xed\xa0\x80"))))),
    row(71, "a string with a zero of two bytes", Refused("metadata `k`: expected UTF-8"),
        One(|| with(Typed(8, string(b"\xc0\x80"))))),
    row(72, "an array of type 13", Refused("metadata `k`: expected a value type from 0 to 12, found 13"),
        One(|| with(array(13, 1, vec![0; 8])))),
    row(73, "an array of 2^64 - 1 bytes", Refused("elements of metadata `k`: expected at most"),
        One(|| with(array(0, u64::MAX, vec![1])))),
    row(74, "an array whose bytes are 2^64", Refused("elements of metadata `k`: expected at most"),
        One(|| with(array(10, 1 << 61, vec![0; 8])))),
    row(75, "an array of strings of which the second ends beyond the file", Refused("expected 9999999 more bytes"),
        One(|| with(array(8, 2, [string(b"a"), 9_999_999u64.to_le_bytes().to_vec()].concat())))),
    row(76, "an array of strings of which one is not UTF-8", Refused("metadata `k`: expected UTF-8"),
        One(|| with(array(8, 2, [string(b"a"), string(b"\xff")].concat())))),
    row(77, "an array of 2^60 arrays", Refused("elements of metadata `k`: expected at most"),
        One(|| with(array(9, 1 << 60, vec![0; 24])))),
    row(78, "arrays in arrays, five deep", Refused("arrays in arrays of metadata `k`: expected at most 4, found 5"),
        One(|| with(nested(5)))),
    row(79, "arrays in arrays, 100,000 deep", Refused("arrays in arrays of metadata `k`: expected at most 4, found 5"),
        One(|| with(nested(100_000)))),
    row(80, "arrays in arrays, four deep", Sound, One(|| with(nested(4)))),
    row(81, "100,000 empty strings", Sound, One(|| with(array(8, 100_000, vec![0; 800_000])))),
    row(82, "100,000 empty arrays", Sound, One(|| with(array(9, 100_000, vec![0; 1_200_000])))),
    row(83, "an alignment of 0", Refused("`general.alignment`: expected a power of two up to 65536, found U32(0)"),
        One(|| alignment(u32(0)))),
    row(84, "an alignment of 33", Refused("`general.alignment`: expected a power of two"), One(|| alignment(u32(33)))),
    row(85, "an alignment of 2^31", Refused("`general.alignment`: expected a power of two"),
        One(|| alignment(u32(1 << 31)))),
    row(86, "an alignment of 2^40", Refused("`general.alignment`: expected a power of two"),
        One(|| alignment(Typed(10, (1u64 << 40).to_le_bytes().into())))),
    row(87, "an alignment below zero", Refused("`general.alignment`: expected a power of two"),
        One(|| alignment(i32(-32)))),
    row(88, "an alignment in words", Refused("found the string \"32\""), One(|| alignment(text("32")))),
    row(89, "an alignment of a million numbers", Refused("found an array of 1000000"),
        One(|| alignment(array(0, 1_000_000, vec![1; 1_000_000])))),
    row(90, "an alignment that the tensors do not have",
        Refused("expected an offset that is a multiple of 4096, found 8864"), One(|| alignment(u32(4096)))),
];
