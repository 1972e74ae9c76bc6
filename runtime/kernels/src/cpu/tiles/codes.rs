//! Integer weights as planes of bits, 16 rows to a tile, at the size that they have in the file.
//!
//! A *unit* is 32 weights of each of 16 rows: eight *groups* of 4 weights, one group being a [`Line`] of 16 rows by
//! 4 bytes once unpacked. Packed, a line of the nibble plane carries two groups, of the 2-bit plane four, of the
//! 1-bit plane eight, and one shift and mask unpacks any of them for all rows at once.

use std::marker::PhantomData;

use fsq_blocks::formats::{iq4_nl, mxfp4};

use crate::cpu::isa::{Isa, LANES, Line};

/// Weights of a unit, in each row.
pub(crate) const UNIT: usize = 32;
/// Groups of a unit.
pub(crate) const GROUPS: usize = 8;

/// How many bits a code has and on which planes they lie.
pub(crate) trait Codes: Send + Sync + 'static {
    /// Lines of a unit.
    const LINES: usize;
    /// What is to be subtracted from an unpacked code to get the weight's level.
    const ZERO: i32;
    /// Whether unpacked codes go beyond 127.
    const WIDE: bool = false;

    /// Group `G` of a unit as bytes.
    fn unpack<S: Isa, const G: usize>(isa: S, unit: &[Line]) -> S::I;

    /// Puts a row's codes (or places in a codebook) where they belong.
    fn put(unit: &mut [Line], row: usize, codes: &[u8; UNIT]);

    /// The level of one weight.
    fn level(unit: &[Line], row: usize, column: usize) -> i32;
}

/// Levels as codes that start at zero.
pub(crate) fn raised<C: Codes, const N: usize>(levels: [i8; N]) -> [u8; N] {
    levels.map(|it| (i32::from(it) + C::ZERO) as u8)
}

/// Adds a group's products, by the instruction that takes its codes.
#[inline(always)]
pub(crate) fn dot_codes<S: Isa, C: Codes>(isa: S, acc: S::I, codes: S::I, quad: i32) -> S::I {
    if C::WIDE { isa.dot_wide(acc, codes, quad) } else { isa.dot(acc, codes, quad) }
}

/// Bits of a code on a plane of `BITS` bits.
struct Plane<const BITS: usize>;

impl<const BITS: usize> Plane<BITS> {
    const GROUPS_PER_LINE: usize = 8 / BITS;
    const LINES: usize = GROUPS / Self::GROUPS_PER_LINE;
    const MASK: u8 = (0xFFu16 >> (8 - BITS)) as u8;

    fn place(row: usize, column: usize) -> (usize, usize, usize) {
        let group = column / 4;
        let byte = row * 4 + column % 4;
        (group / Self::GROUPS_PER_LINE, byte, group % Self::GROUPS_PER_LINE * BITS)
    }

    fn put(lines: &mut [Line], row: usize, codes: &[u8; UNIT]) {
        // Four codes at once: masked, none reaches into its neighbour.
        let mask = u32::from_le_bytes([Self::MASK; 4]);
        let quads = codes.as_chunks::<4>().0;
        for (line, quads) in lines[..Self::LINES].iter_mut().zip(quads.chunks_exact(Self::GROUPS_PER_LINE)) {
            let mut word = 0;
            for (place, quad) in quads.iter().enumerate() {
                word |= (u32::from_le_bytes(*quad) & mask) << (place * BITS);
            }
            line.0[row * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn get(lines: &[Line], row: usize, column: usize) -> u8 {
        let (line, byte, shift) = Self::place(row, column);
        (lines[line].0[byte] >> shift) & Self::MASK
    }

    #[inline(always)]
    fn unpack<S: Isa, const G: usize>(isa: S, lines: &[Line]) -> S::I {
        let line = isa.load_line(&lines[G / Self::GROUPS_PER_LINE]);
        let shifted = match G % Self::GROUPS_PER_LINE * BITS {
            0 => line,
            1 => isa.shift::<1>(line),
            2 => isa.shift::<2>(line),
            3 => isa.shift::<3>(line),
            4 => isa.shift::<4>(line),
            5 => isa.shift::<5>(line),
            6 => isa.shift::<6>(line),
            _ => isa.shift::<7>(line),
        };
        if BITS == 8 { shifted } else { isa.and(shifted, Self::MASK) }
    }

    /// The same, 4 bits up, where a nibble leaves off: one shift instead of two. `BITS` is at most 2.
    #[inline(always)]
    fn unpack_raised<S: Isa, const G: usize>(isa: S, lines: &[Line]) -> S::I {
        let line = isa.load_line(&lines[G / Self::GROUPS_PER_LINE]);
        let shifted = match G % Self::GROUPS_PER_LINE * BITS {
            0 => isa.raise::<4>(line),
            1 => isa.raise::<3>(line),
            2 => isa.raise::<2>(line),
            3 => isa.raise::<1>(line),
            4 => line,
            5 => isa.shift::<1>(line),
            6 => isa.shift::<2>(line),
            _ => isa.shift::<3>(line),
        };
        isa.and(shifted, Self::MASK << 4)
    }
}

/// Codes of one plane.
pub(crate) struct Single<const BITS: usize, const ZERO: i32>;

impl<const BITS: usize, const ZERO: i32> Codes for Single<BITS, ZERO> {
    const LINES: usize = Plane::<BITS>::LINES;
    const ZERO: i32 = ZERO;
    const WIDE: bool = BITS == 8;

    #[inline(always)]
    fn unpack<S: Isa, const G: usize>(isa: S, unit: &[Line]) -> S::I {
        Plane::<BITS>::unpack::<S, G>(isa, unit)
    }
    fn put(unit: &mut [Line], row: usize, codes: &[u8; UNIT]) {
        Plane::<BITS>::put(unit, row, codes);
    }
    fn level(unit: &[Line], row: usize, column: usize) -> i32 {
        i32::from(Plane::<BITS>::get(unit, row, column)) - ZERO
    }
}

/// Codes with a low nibble and `HIGH` more bits on a plane of their own.
pub(crate) struct NibbleAnd<const HIGH: usize, const ZERO: i32>;

impl<const HIGH: usize, const ZERO: i32> Codes for NibbleAnd<HIGH, ZERO> {
    const LINES: usize = Plane::<4>::LINES + Plane::<HIGH>::LINES;
    const ZERO: i32 = ZERO;

    #[inline(always)]
    fn unpack<S: Isa, const G: usize>(isa: S, unit: &[Line]) -> S::I {
        let (low, high) = unit.split_at(Plane::<4>::LINES);
        isa.or(Plane::<4>::unpack::<S, G>(isa, low), Plane::<HIGH>::unpack_raised::<S, G>(isa, high))
    }
    fn put(unit: &mut [Line], row: usize, codes: &[u8; UNIT]) {
        let (low, high) = unit.split_at_mut(Plane::<4>::LINES);
        Plane::<4>::put(low, row, codes);
        Plane::<HIGH>::put(high, row, &codes.map(|it| it >> 4));
    }
    fn level(unit: &[Line], row: usize, column: usize) -> i32 {
        let (low, high) = unit.split_at(Plane::<4>::LINES);
        i32::from(Plane::<4>::get(low, row, column) | Plane::<HIGH>::get(high, row, column) << 4) - ZERO
    }
}

/// Sixteen levels that a nibble chooses from.
pub(crate) trait Codebook: 'static {
    const LEVELS: [i8; 16];
    /// What is added to the levels so that none is negative.
    const ZERO: i32;
}

/// Nibbles that are places in a codebook. They stay nibbles in memory.
pub(crate) struct Named<B>(PhantomData<fn() -> B>);

impl<B: Codebook> Named<B> {
    const RAISED: [u8; 16] = {
        let mut raised = [0; 16];
        let mut index = 0;
        while index < 16 {
            raised[index] = (B::LEVELS[index] as i32 + B::ZERO) as u8;
            index += 1;
        }
        raised
    };
}

impl<B: Codebook> Codes for Named<B> {
    const LINES: usize = Plane::<4>::LINES;
    const ZERO: i32 = B::ZERO;
    const WIDE: bool = B::ZERO > 63;

    #[inline(always)]
    fn unpack<S: Isa, const G: usize>(isa: S, unit: &[Line]) -> S::I {
        isa.look_up(&Self::RAISED, Plane::<4>::unpack::<S, G>(isa, unit))
    }
    fn put(unit: &mut [Line], row: usize, codes: &[u8; UNIT]) {
        Plane::<4>::put(unit, row, codes);
    }
    fn level(unit: &[Line], row: usize, column: usize) -> i32 {
        i32::from(B::LEVELS[usize::from(Plane::<4>::get(unit, row, column))])
    }
}

/// The levels of `IQ4_NL` and `IQ4_XS`. The zero point is that of bytes: with it, no level becomes code 0.
pub(crate) struct Uneven;

impl Codebook for Uneven {
    const LEVELS: [i8; 16] = iq4_nl::LEVELS;
    const ZERO: i32 = 128;
}

/// The levels of `MXFP4`.
pub(crate) struct Fp4;

impl Codebook for Fp4 {
    const LEVELS: [i8; 16] = mxfp4::LEVELS;
    const ZERO: i32 = 12;
}

/// Tiles that a thread takes at once: activations that stay in the first cache meanwhile serve all of them.
pub(crate) const QUAD: usize = 4;

/// The number of tiles that `rows` rows fill, whole quads of them.
pub(crate) fn n_tiles(rows: usize) -> usize {
    rows.div_ceil(LANES).next_multiple_of(QUAD)
}
