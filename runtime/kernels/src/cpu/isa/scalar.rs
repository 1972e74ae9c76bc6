//! Plain Rust lanes: what runs where nothing faster is known, and what the others are compared with.

use half::{bf16, f16};

use super::{Isa, LANES, Line};

/// No special instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scalar;

type F = [f32; LANES];
type Bytes = [u8; 64];

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|it| f(a[it], b[it]))
}

#[inline(always)]
fn lanes(a: Bytes) -> [i32; LANES] {
    std::array::from_fn(|it| i32::from_le_bytes([a[it * 4], a[it * 4 + 1], a[it * 4 + 2], a[it * 4 + 3]]))
}

#[inline(always)]
fn bytes(a: [i32; LANES]) -> Bytes {
    let mut bytes = [0; 64];
    for (four, value) in bytes.chunks_exact_mut(4).zip(a) {
        four.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[inline(always)]
fn dot(acc: Bytes, codes: Bytes, quad: i32, zero: i32) -> Bytes {
    let values = quad.to_le_bytes().map(|it| i32::from(it as i8));
    let acc = lanes(acc);
    bytes(std::array::from_fn(|lane| {
        let terms = (0..4).map(|it| (i32::from(codes[lane * 4 + it]) - zero) * values[it]);
        acc[lane] + terms.sum::<i32>()
    }))
}

impl Isa for Scalar {
    type F = F;
    type I = Bytes;
    const ROWS_MAX: usize = 1;
    const WIDE_ZERO: i32 = 0;

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }
    #[inline(always)]
    fn store(self, value: F, into: &mut [f32; LANES]) {
        *into = value;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        from.map(|it| f16::from_bits(it).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        from.map(|it| bf16::from_bits(it).to_f32())
    }
    #[inline(always)]
    fn store_f16(self, value: F, into: &mut [u16; LANES]) {
        *into = value.map(|it| f16::from_f32(it).to_bits());
    }
    #[inline(always)]
    fn store_i8(self, value: F, into: &mut [i8; LANES]) -> i32 {
        *into = value.map(|it| it.round_ties_even() as i8);
        into.iter().map(|it| i32::from(*it)).sum()
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F {
        from.map(f32::from)
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // Two roundings: a fused one is a library call where the instruction is missing.
        std::array::from_fn(|it| a[it] * b[it] + c[it])
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale_by_power(self, a: F, n: F) -> F {
        zip(a, n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> Bytes {
        bytes([value; LANES])
    }
    #[inline(always)]
    fn load_line(self, from: &Line) -> Bytes {
        from.0
    }
    #[inline(always)]
    fn shift<const N: u32>(self, a: Bytes) -> Bytes {
        a.map(|it| it >> N)
    }
    #[inline(always)]
    fn and(self, a: Bytes, mask: u8) -> Bytes {
        a.map(|it| it & mask)
    }
    #[inline(always)]
    fn raise<const N: u32>(self, a: Bytes) -> Bytes {
        a.map(|it| it << N)
    }
    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        std::array::from_fn(|it| a[it] | b[it])
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: Bytes) -> Bytes {
        places.map(|it| table[usize::from(it & 15)])
    }
    #[inline(always)]
    fn dot(self, acc: Bytes, codes: Bytes, quad: i32) -> Bytes {
        dot(acc, codes, quad, 0)
    }
    #[inline(always)]
    fn dot_wide(self, acc: Bytes, codes: Bytes, quad: i32) -> Bytes {
        dot(acc, codes, quad, 128)
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; 2 * LANES]) -> Bytes {
        std::array::from_fn(|it| if it % 2 == 0 { from[it / 2] } else { 0 })
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Bytes, pairs: Bytes, values: i32) -> Bytes {
        let halves = |it: i32| [i32::from(it as i16), it >> 16];
        let (acc, pairs, values) = (lanes(acc), lanes(pairs).map(halves), halves(values));
        bytes(std::array::from_fn(|it| acc[it] + pairs[it][0] * values[0] + pairs[it][1] * values[1]))
    }
    #[inline(always)]
    fn to_float(self, a: Bytes) -> F {
        lanes(a).map(|it| it as f32)
    }
    #[inline(always)]
    fn prefetch<T>(self, _soon: &[T]) {}
}
