//! Weights of 256 to a super-block with scaled groups (the k-quants), against activations in blocks of 256.

use std::marker::PhantomData;

use fsq_blocks::formats::{iq4_xs::IQ4_XS, q2_k::Q2_K, q3_k::Q3_K, q4_k::Q4_K, q5_k::Q5_K, q6_k::Q6_K};
use fsq_blocks::{BlockFormat, Half};

use super::codes::{Codes, GROUPS, Named, NibbleAnd, Single, UNIT, Uneven, n_tiles, raised};
use crate::cpu::activations::{Rounded256, RoundedRow, SUPER};
use crate::cpu::isa::{Isa, LANES, Line};

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

/// A matrix in tiles of 16 rows.
#[derive(Debug)]
pub(crate) struct SuperTiles<B> {
    n_supers: usize,
    /// `[tile][super][unit][line]`
    lines: Vec<Line>,
    /// `[tile][super]`, f16 bits of each row: the units of scales and minima.
    units: Vec<[[u16; LANES]; 2]>,
    /// `[tile][super][group]`
    scales: Vec<[i8; LANES]>,
    /// `[tile][super][group]`, empty without minima
    minima: Vec<[u8; LANES]>,
    format: PhantomData<fn() -> B>,
}

impl<B: SuperBlock> SuperTiles<B> {
    const N_GROUPS: usize = SUPER / B::GROUP;
    const N_LINES: usize = UNITS * B::Codes::LINES;

    /// From `blocks`, `[rows, columns / 256]`.
    pub(crate) fn new(blocks: &[B], rows: usize) -> Self {
        let n_supers = blocks.len().checked_div(rows).unwrap_or(0);
        let n = n_tiles(rows) * n_supers;
        let mut tiles = Self {
            n_supers,
            lines: [Line([0; 64])].repeat(n * Self::N_LINES),
            units: vec![[[0; LANES]; 2]; n],
            scales: vec![[0; LANES]; n * Self::N_GROUPS],
            minima: vec![[0; LANES]; if B::HAS_MINIMA { n * Self::N_GROUPS } else { 0 }],
            format: PhantomData,
        };
        for row in 0..rows {
            for index in 0..n_supers {
                tiles.put(row, row / LANES * n_supers + index, &blocks[row * n_supers + index]);
            }
        }
        tiles
    }

    fn put(&mut self, row: usize, at: usize, from: &B) {
        let lane = row % LANES;
        let (d, d_min) = from.units();
        self.units[at][0][lane] = d.to_bits();
        self.units[at][1][lane] = d_min.to_bits();
        for group in 0..Self::N_GROUPS {
            let (scale, minimum) = from.scale_and_minimum(group);
            self.scales[at * Self::N_GROUPS + group][lane] = scale;
            if B::HAS_MINIMA {
                self.minima[at * Self::N_GROUPS + group][lane] = minimum;
            }
        }
        let lines = &mut self.lines[at * Self::N_LINES..(at + 1) * Self::N_LINES];
        for (column, code) in from.codes().into_iter().enumerate() {
            let unit = &mut lines[column / UNIT * B::Codes::LINES..][..B::Codes::LINES];
            B::Codes::put(unit, lane, column % UNIT, code);
        }
    }

    /// One row as floats, `[columns]`; the same numbers as the format's own decoding.
    pub(crate) fn decode_row(&self, row: usize, into: &mut [f32]) {
        let lane = row % LANES;
        let first = row / LANES * self.n_supers;
        for (column, weight) in into.iter_mut().enumerate() {
            let at = first + column / SUPER;
            let inner = column % SUPER;
            let group = at * Self::N_GROUPS + inner / B::GROUP;
            let [d, d_min] = self.units[at].map(|it| half::f16::from_bits(it[lane]).to_f32());
            let unit = &self.lines[at * Self::N_LINES + inner / UNIT * B::Codes::LINES..][..B::Codes::LINES];
            let level = B::Codes::level(unit, lane, inner % UNIT);
            *weight = d * f32::from(self.scales[group][lane]) * level as f32;
            if B::HAS_MINIMA {
                *weight -= d_min * f32::from(self.minima[group][lane]);
            }
        }
    }

    /// Dot products of a tile's 16 rows with `M` rows of activations.
    #[inline(always)]
    pub(crate) fn dot<S: Isa, const M: usize>(
        &self,
        isa: S,
        tile: usize,
        rows: [RoundedRow<'_, Rounded256>; M],
    ) -> [S::F; M] {
        let mut sums = [isa.splat(0.0); M];
        let n = self.n_supers;
        let (mut all_quads, mut all_blocks) = ([rows[0].quads(n * UNITS); M], [rows[0].blocks(n); M]);
        for row in 1..M {
            all_quads[row] = rows[row].quads(n * UNITS);
            all_blocks[row] = rows[row].blocks(n);
        }
        for index in 0..self.n_supers {
            let at = tile * self.n_supers + index;
            let lines = &self.lines[at * Self::N_LINES..(at + 1) * Self::N_LINES];
            let groups = at * Self::N_GROUPS..(at + 1) * Self::N_GROUPS;
            let scales = &self.scales[groups.clone()];
            let minima = if B::HAS_MINIMA { &self.minima[groups] } else { &[] };
            let mut scaled = [isa.splat(0.0); M];
            let mut lowered = [isa.splat(0.0); M];
            let mut blocks = [&all_blocks[0][index]; M];
            for row in 1..M {
                blocks[row] = &all_blocks[row][index];
            }
            for (unit, lines) in lines.chunks_exact(B::Codes::LINES).enumerate() {
                let mut quads = [&all_quads[0][index * UNITS + unit]; M];
                for row in 1..M {
                    quads[row] = &all_quads[row][index * UNITS + unit];
                }
                Self::add_unit(isa, lines, quads, blocks, (scales, unit), &mut scaled);
                if B::HAS_MINIMA {
                    let (n, sums_of): (_, fn(&Rounded256) -> &[i32]) =
                        if B::GROUP == 32 { (1, |it| &it.sums_32) } else { (2, |it| &it.sums_16) };
                    for group in unit * n..(unit + 1) * n {
                        let minimum = isa.load_u8(&minima[group]);
                        for row in 0..M {
                            let sum = isa.to_float(isa.splat_int(sums_of(blocks[row])[group]));
                            lowered[row] = isa.fma(minimum, sum, lowered[row]);
                        }
                    }
                }
            }
            let d = isa.load_f16(&self.units[at][0]);
            for row in 0..M {
                let scale = isa.splat(blocks[row].scale);
                sums[row] = isa.fma(scaled[row], isa.mul(d, scale), sums[row]);
                if B::HAS_MINIMA {
                    let d_min = isa.load_f16(&self.units[at][1]);
                    let negative = isa.sub(isa.splat(0.0), isa.mul(d_min, scale));
                    sums[row] = isa.fma(lowered[row], negative, sums[row]);
                }
            }
        }
        sums
    }

    /// Adds 32 columns' products, each group times its scale.
    #[inline(always)]
    fn add_unit<S: Isa, const M: usize>(
        isa: S,
        lines: &[Line],
        quads: [&[i32; GROUPS]; M],
        blocks: [&Rounded256; M],
        (scales, unit): (&[[i8; LANES]], usize),
        scaled: &mut [S::F; M],
    ) {
        let zero = -if B::Codes::WIDE { S::WIDE_ZERO } else { B::Codes::ZERO };
        macro_rules! start {
            ($ints:ident, $sums:ident[$index:expr]) => {
                let mut $ints = [isa.splat_int(0); M];
                for row in 0..M {
                    $ints[row] = isa.splat_int(zero * blocks[row].$sums[$index]);
                }
            };
        }
        macro_rules! groups {
            ($ints:ident, $($g:literal)*) => {$(
                let codes = B::Codes::unpack::<S, $g>(isa, lines);
                for row in 0..M {
                    $ints[row] = if B::Codes::WIDE {
                        isa.dot_wide($ints[row], codes, quads[row][$g])
                    } else {
                        isa.dot($ints[row], codes, quads[row][$g])
                    };
                }
            )*};
        }
        macro_rules! scale {
            ($ints:ident, $scale:expr) => {
                let scale = isa.load_i8(&$scale);
                for row in 0..M {
                    scaled[row] = isa.fma(isa.to_float($ints[row]), scale, scaled[row]);
                }
            };
        }
        if B::GROUP == 32 {
            start!(ints, sums_32[unit]);
            groups!(ints, 0 1 2 3 4 5 6 7);
            scale!(ints, scales[unit]);
        } else {
            start!(ints, sums_16[unit * 2]);
            groups!(ints, 0 1 2 3);
            scale!(ints, scales[unit * 2]);
            start!(ints, sums_16[unit * 2 + 1]);
            groups!(ints, 4 5 6 7);
            scale!(ints, scales[unit * 2 + 1]);
        }
    }
}
