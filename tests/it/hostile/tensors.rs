//! Hostile files: names, shapes, formats and places of tensors, and what lies in them.

use super::raw::{F32, Q8_0, Raw, RawTensor, string};
use super::table::{
    Expected::{Refused, Sound, Strict},
    Made::{Each, One},
    Row, row,
};

/// A policy with one more tensor of 32 bytes, told otherwise.
fn told(change: fn(&mut RawTensor)) -> Raw {
    Raw::policy().tensor("t", &[8], F32, 32).retold("t", change)
}

fn shaped(shape: &[u64]) -> Raw {
    Raw::policy().tensor("t", shape, F32, 32)
}

/// A policy whose tensor begins with a half of those bits.
fn scale(bits: u16) -> Raw {
    Raw::policy().damaged("blk.0.attn_q.weight", |it| it[34..36].copy_from_slice(&bits.to_le_bytes()))
}

fn norm(value: f32) -> Raw {
    Raw::policy().damaged("output_norm.weight", |it| it[4..8].copy_from_slice(&value.to_le_bytes()))
}

/// A policy with so many bytes of the data behind the tensors.
fn behind(n: usize) -> Raw {
    let mut raw = Raw::policy();
    raw.data.resize(raw.data.len() + n, 0x55);
    raw
}

/// A policy with a page between two tensors.
fn gap() -> Raw {
    let mut raw = Raw::policy();
    raw.data.resize(raw.data.len() + 4096, 0);
    raw.tensor("t", &[8], F32, 32)
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(91, "a tensor's name of 64 bytes", Refused("bytes of tensor name: expected at most 63, found 64"),
        One(|| told(|it| it.name = string(&[b'n'; 64])))),
    row(92, "a tensor's name of 2^64 - 1 bytes", Refused("bytes of tensor name: expected at most 63"),
        One(|| told(|it| it.name[..8].fill(0xff)))),
    row(93, "a tensor's name that is not UTF-8", Refused("tensor name: expected UTF-8"),
        One(|| told(|it| it.name = string(b"\xf5")))),
    row(94, "a tensor without a name", Strict("tensor \"\": expected a name of visible characters"),
        One(|| told(|it| it.name = string(b"")))),
    row(95, "a tensor twice", Refused("tensor `output_norm.weight` is there twice"),
        One(|| Raw::policy().tensor("output_norm.weight", &[32], F32, 128))),
    row(96, "a tensor twice in one place", Refused("tensor `output_norm.weight` is there twice"),
        One(|| {
            let mut raw = Raw::policy();
            raw.tensors.push(raw.tensors[1].clone());
            raw
        })),
    row(97, "a tensor without dimensions", Refused("tensor `t`: expected one to four dimensions"), One(|| shaped(&[]))),
    row(98, "a tensor of five dimensions", Refused("dimensions of tensor `t`: expected at most 4, found 5"),
        One(|| shaped(&[8, 1, 1, 1, 1]))),
    row(99, "2^32 - 1 dimensions", Refused("dimensions of tensor `t`: expected at most 4, found 4294967295"),
        One(|| told(|it| it.n_dimensions = u32::MAX))),
    row(100, "fewer dimensions than are told", Refused("tensor `"), One(|| told(|it| it.n_dimensions = 3))),
    row(101, "a row of 0 weights", Refused("tensor `t`: expected one to four dimensions from 1"), One(|| shaped(&[0]))),
    row(102, "0 rows", Refused("tensor `t`: expected one to four dimensions from 1"), One(|| shaped(&[8, 0]))),
    row(103, "a row of 2^64 - 1 weights", Refused("whose bytes fit in memory"), One(|| shaped(&[u64::MAX]))),
    row(104, "dimensions whose product is 2^64", Refused("whose bytes fit in memory, found [4294967296, 4294967296]"),
        One(|| shaped(&[1 << 32, 1 << 32]))),
    row(105, "dimensions whose product wraps to the right size", Refused("whose bytes fit in memory"),
        One(|| shaped(&[8, (1 << 61) + 1]))),
    row(106, "dimensions whose bytes are 2^64", Refused("whose bytes fit in memory"), One(|| shaped(&[1 << 62]))),
    row(107, "blocks that fit in memory and weights that do not", Refused("whose bytes fit in memory"),
        One(|| told(|it| (it.shape, it.format) = (vec![1 << 61], Q8_0)))),
    row(108, "a tensor of 2^60 bytes", Refused("tensor `t`: expected its end within"), One(|| shaped(&[1 << 58]))),
    row(109, "a format to come", Refused("tensor `t`: expected a known format, found number 77"),
        One(|| told(|it| it.format = 77))),
    row(110, "a format that was removed", Refused("tensor `t`: expected a known format, found number 4"),
        One(|| told(|it| it.format = 4))),
    row(111, "format 2^32 - 1", Refused("tensor `t`: expected a known format, found number 4294967295"),
        One(|| told(|it| it.format = u32::MAX))),
    row(112, "a row that is not whole blocks of 32",
        Refused("tensor `t`: expected rows of a multiple of 32 weights for Q8_0, found 8"),
        One(|| told(|it| it.format = Q8_0))),
    row(113, "a row that is not whole blocks of 256",
        Refused("tensor `t`: expected rows of a multiple of 256 weights for Q4_K, found 32"),
        One(|| told(|it| (it.shape, it.format) = (vec![32], 12)))),
    row(114, "an offset off the alignment", Refused("expected an offset that is a multiple of 32, found"),
        Each(|| {
            let off = |n: u64| Raw::policy().retold("output_norm.weight", |it| it.offset += n).bytes();
            [1, 4, 16, 31].map(off).into()
        })),
    row(115, "an offset behind the end", Refused("tensor `t`: expected its end within"),
        One(|| told(|it| it.offset += 32))),
    row(116, "an offset of 2^63", Refused("tensor `t`: expected its end within"),
        One(|| told(|it| it.offset = 1 << 63))),
    row(117, "an offset that wraps to the beginning", Refused("found 18446744073709551616"),
        One(|| told(|it| it.offset = u64::MAX - 31))),
    row(118, "two tensors of the same bytes", Refused("overlaps tensor `"), One(|| told(|it| it.offset = 0))),
    row(119, "a tensor within another", Refused("tensor `t` overlaps tensor `token_embd.weight`"),
        One(|| told(|it| it.offset = 320))),
    row(120, "a tensor across the ends of two others", Refused("overlaps tensor `"),
        One(|| told(|it| (it.offset, it.shape) = (8832, vec![16])))),
    row(121, "a page that belongs to no tensor", Strict("4096 bytes at"), One(gap)),
    row(122, "bytes behind the last tensor", Strict("100 bytes at"), One(|| behind(100))),
    row(123, "padding that says something", Strict("the padding at byte"),
        One(|| {
            let mut raw = Raw::policy();
            raw.data[260 * 34] = 1;
            raw
        })),
    row(124, "padding behind the header that says something", Strict("the padding at byte"),
        Each(|| {
            let (raw, mut bytes) = (Raw::policy(), Raw::policy().bytes());
            let data_start = bytes.len() - raw.data.len();
            bytes[data_start - 1] = 1;
            vec![bytes]
        })),
    row(125, "tensors in another order than their bytes", Sound,
        One(|| {
            let mut raw = Raw::policy();
            raw.tensors.reverse();
            raw
        })),
    row(126, "a scale that is no number",
        Strict("tensor `blk.0.attn_q.weight`: block 1: expected a finite scale, found weights of NaN"),
        Each(|| [0x7e00, 0xffff, 0x7c01].map(|it| scale(it).bytes()).into())),
    row(127, "an infinite scale", Strict("tensor `blk.0.attn_q.weight`: block 1: expected a finite scale"),
        Each(|| [0x7c00, 0xfc00].map(|it| scale(it).bytes()).into())),
    row(128, "a weight that is no number", Strict("tensor `output_norm.weight`: weight 1: expected a finite number"),
        One(|| norm(f32::NAN))),
    row(129, "an infinite weight",
        Strict("tensor `output_norm.weight`: weight 1: expected a finite number, found -inf"),
        One(|| norm(f32::NEG_INFINITY))),
];
