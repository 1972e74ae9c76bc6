//! Weights of 256 to a super-block with scaled groups (the k-quants), against activations in blocks of 256.

use std::marker::PhantomData;

use fsq_blocks::formats::{iq4_xs::IQ4_XS, q2_k::Q2_K, q3_k::Q3_K, q4_k::Q4_K, q5_k::Q5_K, q6_k::Q6_K};
use fsq_blocks::{BlockFormat, Half};

use super::codes::{Codes, GROUPS, Named, NibbleAnd, Single, UNIT, Uneven, dot_codes, n_tiles, raised};
use crate::KernelError;
use crate::cpu::activations::{Rounded256, RoundedRow, SUPER};
use crate::cpu::isa::{Isa, LANES, Line};
use crate::cpu::memory::Zeroed;
use crate::cpu::pool::Pool;

/// Units of a super-block.
const UNITS: usize = SUPER / UNIT;

/// What a file's super-block tells a tile. `weight = d · scale · level - d_min · minimum`
pub(crate) trait SuperBlock: BlockFormat {
    type Codes: Codes;
    /// Weights that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether there are minima; unsigned scales go with them.
    const HAS_MINIMA: bool;
    fn units(&self) -> (Half, Half);
    /// What [`Codes::put`] takes.
    fn codes(&self) -> [u8; SUPER];
    fn scale_and_minimum(&self, group: usize) -> (i8, u8);
}

macro_rules! affine {
    ($block:ty, $codes:ty, $group:literal) => {
        impl SuperBlock for $block {
            type Codes = $codes;
            const GROUP: usize = $group;
            const HAS_MINIMA: bool = true;
            fn units(&self) -> (Half, Half) {
                (self.d, self.d_min)
            }
            fn codes(&self) -> [u8; SUPER] {
                raised::<Self::Codes, SUPER>(self.unpacked())
            }
            fn scale_and_minimum(&self, group: usize) -> (i8, u8) {
                // At most 6 bits each.
                let (scale, minimum) = <$block>::scale_and_minimum(self, group);
                (scale as i8, minimum)
            }
        }
    };
}

affine!(Q2_K, Single<2, 0>, 16);
affine!(Q4_K, Single<4, 0>, 32);
affine!(Q5_K, NibbleAnd<1, 0>, 32);

impl SuperBlock for Q6_K {
    type Codes = NibbleAnd<2, 32>;
    const GROUP: usize = 16;
    const HAS_MINIMA: bool = false;
    fn units(&self) -> (Half, Half) {
        (self.d, Half::default())
    }
    fn codes(&self) -> [u8; SUPER] {
        raised::<Self::Codes, SUPER>(self.unpacked())
    }
    fn scale_and_minimum(&self, group: usize) -> (i8, u8) {
        (self.scales[group], 0)
    }
}

impl SuperBlock for Q3_K {
    // Three bits on the nibble plane: a third larger than in the file, and one mask to unpack.
    type Codes = Single<4, 4>;
    const GROUP: usize = 16;
    const HAS_MINIMA: bool = false;
    fn units(&self) -> (Half, Half) {
        (self.d, Half::default())
    }
    fn codes(&self) -> [u8; SUPER] {
        raised::<Self::Codes, SUPER>(self.unpacked())
    }
    fn scale_and_minimum(&self, group: usize) -> (i8, u8) {
        (self.scale(group), 0)
    }
}

impl SuperBlock for IQ4_XS {
    type Codes = Named<Uneven>;
    const GROUP: usize = 32;
    const HAS_MINIMA: bool = false;
    fn units(&self) -> (Half, Half) {
        (self.d, Half::default())
    }
    fn codes(&self) -> [u8; SUPER] {
        self.codes()
    }
    fn scale_and_minimum(&self, group: usize) -> (i8, u8) {
        (self.scale(group), 0)
    }
}

/// The units of a super-block's scales and minima, of each row.
type Units = [[u16; LANES]; 2];
/// Minima of two groups, of each row.
type MinimumPairs = [u8; 2 * LANES];

/// A matrix in tiles of 16 rows.
#[derive(Debug)]
pub(crate) struct SuperTiles<B> {
    n_supers: usize,
    /// `[tile][super]` of records: a row of activations alone waits for memory, which gives most where all that it
    /// reads of a tile is one stream.
    records: Zeroed,
    format: PhantomData<fn() -> B>,
}

/// What a tile holds of one super-block, in the order in which it is read.
#[derive(Clone, Copy)]
struct Record<'a> {
    /// f16 bits: the units of scales and minima.
    units: &'a Units,
    /// `[pair of groups]`, none without minima
    minima: &'a [MinimumPairs],
    /// `[group]`
    scales: &'a [[i8; LANES]],
    /// `[unit][line]`
    lines: &'a [Line],
}

impl<B: SuperBlock> SuperTiles<B> {
    const N_GROUPS: usize = SUPER / B::GROUP;
    const N_PAIRS: usize = if B::HAS_MINIMA { Self::N_GROUPS / 2 } else { 0 };
    /// Where each part of a record begins, in lines, and where the last one ends. The units are one line.
    const MINIMA: usize = size_of::<Units>() / size_of::<Line>();
    const SCALES: usize = Self::MINIMA + Self::N_PAIRS * size_of::<MinimumPairs>() / size_of::<Line>();
    const LINES: usize = Self::SCALES + Self::N_GROUPS * LANES / size_of::<Line>();
    const RECORD: usize = Self::LINES + UNITS * B::Codes::LINES;

    /// From `blocks`, `[rows, columns / 256]`.
    pub(crate) fn new(pool: &Pool, blocks: &[B], rows: usize) -> Result<Self, KernelError> {
        let n_supers = blocks.len().checked_div(rows).unwrap_or(0);
        let n = n_tiles(rows) * n_supers;
        let records = Zeroed::new(n * Self::RECORD * size_of::<Line>())?;
        let mut tiles = Self { n_supers, records, format: PhantomData };
        if n == 0 {
            return Ok(tiles);
        }
        let of_tiles = tiles.records.parts_mut::<Line>().chunks_mut(n_supers * Self::RECORD);
        pool.run_each(of_tiles.zip(blocks.chunks(n_supers * LANES)), |(records, blocks)| {
            for (lane, blocks) in blocks.chunks_exact(n_supers).enumerate() {
                let records = records.chunks_exact_mut(Self::RECORD);
                records.zip(blocks).for_each(|(record, from)| Self::put(record, lane, from));
            }
        });
        Ok(tiles)
    }

    fn put(record: &mut [Line], lane: usize, from: &B) {
        let (record, lines) = record.split_at_mut(Self::LINES);
        let (record, scales) = record.split_at_mut(Self::SCALES);
        let (units, minima) = record.split_at_mut(Self::MINIMA);
        let units: &mut Units = bytemuck::cast_mut(&mut units[0]);
        let scales: &mut [[i8; LANES]] = bytemuck::cast_slice_mut(scales);
        let minima: &mut [MinimumPairs] = bytemuck::cast_slice_mut(minima);
        let (d, d_min) = from.units();
        units[0][lane] = d.to_bits();
        units[1][lane] = d_min.to_bits();
        for group in 0..Self::N_GROUPS {
            let (scale, minimum) = from.scale_and_minimum(group);
            scales[group][lane] = scale;
            if B::HAS_MINIMA {
                minima[group / 2][lane * 2 + group % 2] = minimum;
            }
        }
        for (unit, codes) in lines.chunks_exact_mut(B::Codes::LINES).zip(from.codes().as_chunks::<UNIT>().0) {
            B::Codes::put(unit, lane, codes);
        }
    }

    /// A super-block of a tile.
    #[inline(always)]
    fn record(&self, tile: usize, index: usize) -> Record<'_> {
        let at = (tile * self.n_supers + index) * Self::RECORD;
        let record = &self.records.parts::<Line>()[at..at + Self::RECORD];
        Record {
            units: bytemuck::cast_ref(&record[0]),
            minima: bytemuck::cast_slice(&record[Self::MINIMA..Self::SCALES]),
            scales: bytemuck::cast_slice(&record[Self::SCALES..Self::LINES]),
            lines: &record[Self::LINES..],
        }
    }

    /// One row as floats, `[columns]`; the same numbers as the format's own decoding.
    pub(crate) fn decode_row(&self, row: usize, into: &mut [f32]) {
        let lane = row % LANES;
        for (index, weights) in into.chunks_exact_mut(SUPER).enumerate() {
            let record = self.record(row / LANES, index);
            let [d, d_min] = record.units.map(|it| half::f16::from_bits(it[lane]).to_f32());
            for (column, weight) in weights.iter_mut().enumerate() {
                let group = column / B::GROUP;
                let unit = &record.lines[column / UNIT * B::Codes::LINES..][..B::Codes::LINES];
                let level = B::Codes::level(unit, lane, column % UNIT);
                *weight = d * f32::from(record.scales[group][lane]) * level as f32;
                if B::HAS_MINIMA {
                    *weight -= d_min * f32::from(record.minima[group / 2][lane * 2 + group % 2]);
                }
            }
        }
    }

    /// Dot products of the 16 rows of each of `N` tiles with `M` rows of activations.
    #[inline(always)]
    pub(crate) fn dot<S: Isa, const M: usize, const N: usize>(
        &self,
        isa: S,
        tile: usize,
        rows: [RoundedRow<'_, Rounded256>; M],
    ) -> [[S::F; N]; M] {
        let mut sums = [[isa.splat(0.0); N]; M];
        let n = self.n_supers;
        let (mut all_quads, mut all_blocks) = ([rows[0].quads(n * UNITS); M], [rows[0].blocks(n); M]);
        for row in 1..M {
            all_quads[row] = rows[row].quads(n * UNITS);
            all_blocks[row] = rows[row].blocks(n);
        }
        for index in 0..n {
            let mut records = [self.record(tile, index); N];
            for it in 1..N {
                records[it] = self.record(tile + it, index);
            }
            let mut blocks = [&all_blocks[0][index]; M];
            for row in 1..M {
                blocks[row] = &all_blocks[row][index];
            }
            if B::HAS_MINIMA {
                Self::subtract_minima(isa, records, blocks, &mut sums);
            }
            let mut scaled = [[isa.splat(0.0); N]; M];
            for unit in 0..UNITS {
                let mut quads = [&all_quads[0][index * UNITS + unit]; M];
                for row in 1..M {
                    quads[row] = &all_quads[row][index * UNITS + unit];
                }
                Self::add_unit(isa, (records, unit), quads, blocks, &mut scaled);
            }
            for it in 0..N {
                let d = isa.load_f16(&records[it].units[0]);
                for row in 0..M {
                    let both = isa.mul(d, isa.splat(blocks[row].scale));
                    sums[row][it] = isa.fma(scaled[row][it], both, sums[row][it]);
                }
            }
        }
        sums
    }

    /// Subtracts the minima of a super-block, times the sums of the activations that they stand before.
    #[inline(always)]
    fn subtract_minima<S: Isa, const M: usize, const N: usize>(
        isa: S,
        records: [Record<'_>; N],
        blocks: [&Rounded256; M],
        sums: &mut [[S::F; N]; M],
    ) {
        for it in 0..N {
            let mut lowered = [isa.splat_int(0); M];
            for pair in 0..Self::N_PAIRS {
                let minima = isa.load_pairs(&records[it].minima[pair]);
                for row in 0..M {
                    let of_32: [i32; UNITS / 2] = bytemuck::cast(blocks[row].sums_32);
                    let of_16: [i32; UNITS] = bytemuck::cast(blocks[row].sums_16);
                    let values = if B::GROUP == 32 { of_32[pair] } else { of_16[pair] };
                    lowered[row] = isa.dot_pairs(lowered[row], minima, values);
                }
            }
            let negative = isa.sub(isa.splat(0.0), isa.load_f16(&records[it].units[1]));
            for row in 0..M {
                let both = isa.mul(negative, isa.splat(blocks[row].scale));
                sums[row][it] = isa.fma(isa.to_float(lowered[row]), both, sums[row][it]);
            }
        }
    }

    /// Adds 32 columns' products, each group times its scale.
    #[inline(always)]
    fn add_unit<S: Isa, const M: usize, const N: usize>(
        isa: S,
        (records, unit): ([Record<'_>; N], usize),
        quads: [&[i32; GROUPS]; M],
        blocks: [&Rounded256; M],
        scaled: &mut [[S::F; N]; M],
    ) {
        let mut units = [&records[0].lines[..0]; N];
        for it in 0..N {
            units[it] = &records[it].lines[unit * B::Codes::LINES..][..B::Codes::LINES];
        }
        let zero = -if B::Codes::WIDE { S::WIDE_ZERO } else { B::Codes::ZERO };
        macro_rules! start {
            ($ints:ident, $sums:ident[$index:expr]) => {
                let mut $ints = [[isa.splat_int(0); N]; M];
                for row in 0..M {
                    $ints[row] = [isa.splat_int(zero * i32::from(blocks[row].$sums[$index])); N];
                }
            };
        }
        macro_rules! groups {
            ($ints:ident, $($g:literal)*) => {$(
                let mut codes = [isa.splat_int(0); N];
                for it in 0..N {
                    codes[it] = B::Codes::unpack::<S, $g>(isa, units[it]);
                }
                for row in 0..M {
                    for it in 0..N {
                        $ints[row][it] = dot_codes::<S, B::Codes>(isa, $ints[row][it], codes[it], quads[row][$g]);
                    }
                }
            )*};
        }
        macro_rules! scale {
            ($ints:ident, $index:expr) => {
                for it in 0..N {
                    let scale = isa.load_i8(&records[it].scales[$index]);
                    for row in 0..M {
                        scaled[row][it] = isa.fma(isa.to_float($ints[row][it]), scale, scaled[row][it]);
                    }
                }
            };
        }
        if B::GROUP == 32 {
            start!(ints, sums_32[unit]);
            groups!(ints, 0 1 2 3 4 5 6 7);
            scale!(ints, unit);
        } else {
            start!(ints, sums_16[unit * 2]);
            groups!(ints, 0 1 2 3);
            scale!(ints, unit * 2);
            start!(ints, sums_16[unit * 2 + 1]);
            groups!(ints, 4 5 6 7);
            scale!(ints, unit * 2 + 1);
        }
    }
}
