//! Weights of 32 to a block with one scale, and a minimum in some formats, against activations in blocks of 32.

use std::marker::PhantomData;

use fsq_blocks::BlockFormat;
use fsq_blocks::formats::{iq4_nl::IQ4_NL, mxfp4::MXFP4, q4_0::Q4_0, q4_1::Q4_1, q5_0::Q5_0, q5_1::Q5_1, q8_0::Q8_0};

use super::codes::{Codes, Fp4, Named, NibbleAnd, Single, UNIT, Uneven, dot_codes, n_tiles, raised};
use super::floats::{Bf16, F16, FloatLane};
use crate::KernelError;
use crate::cpu::activations::{Rounded32, RoundedRow};
use crate::cpu::isa::{Isa, LANES, Line};
use crate::cpu::memory::Zeroed;
use crate::cpu::pool::Pool;

/// What a file's block tells a tile. `weight = scale · level + minimum`
pub(crate) trait Block: BlockFormat {
    type Codes: Codes;
    /// How the scale lies in memory: 16 bits that hold it exactly.
    type Scale: FloatLane;
    const HAS_MINIMUM: bool = false;
    fn scale(&self) -> Self::Scale;
    fn minimum(&self) -> F16 {
        F16(0)
    }
    /// What [`Codes::put`] takes.
    fn codes(&self) -> [u8; UNIT];
}

/// A format with a half as scale.
macro_rules! scaled {
    ($block:ty, $codes:ty, |$it:ident| $put:expr $(, and $minimum:ident)?) => {
        impl Block for $block {
            type Codes = $codes;
            type Scale = F16;
            fn scale(&self) -> F16 {
                F16(self.d.to_bits())
            }
            $(
                const HAS_MINIMUM: bool = true;
                fn minimum(&self) -> F16 {
                    F16(self.$minimum.to_bits())
                }
            )?
            fn codes(&self) -> [u8; UNIT] {
                let $it = self;
                $put
            }
        }
    };
}

scaled!(Q8_0, Single<8, 128>, |it| raised::<Self::Codes, UNIT>(it.levels));
scaled!(Q5_0, NibbleAnd<1, 16>, |it| raised::<Self::Codes, UNIT>(it.unpacked()));
scaled!(Q5_1, NibbleAnd<1, 0>, |it| raised::<Self::Codes, UNIT>(it.unpacked()), and minimum);
scaled!(Q4_0, Single<4, 8>, |it| raised::<Self::Codes, UNIT>(it.unpacked()));
scaled!(Q4_1, Single<4, 0>, |it| raised::<Self::Codes, UNIT>(it.unpacked()), and minimum);
scaled!(IQ4_NL, Named<Uneven>, |it| it.codes());

impl Block for MXFP4 {
    type Codes = Named<Fp4>;
    // A power of two: its upper half is all of it.
    type Scale = Bf16;
    fn scale(&self) -> Bf16 {
        Bf16((self.scale().to_bits() >> 16) as u16)
    }
    fn codes(&self) -> [u8; UNIT] {
        self.codes()
    }
}

/// A matrix in tiles of 16 rows.
#[derive(Debug)]
pub(crate) struct BlockTiles<B: Block> {
    n_blocks: usize,
    /// `[tile][block][line]` of lines
    lines: Zeroed,
    /// `[tile][block]` of scales of each row
    scales: Zeroed,
    /// `[tile][block]` of minima of each row, empty without them
    minima: Zeroed,
    format: PhantomData<fn() -> B>,
}

/// What one thread packs: some tiles.
struct Packing<'a, S> {
    lines: &'a mut [Line],
    scales: &'a mut [[S; LANES]],
    minima: &'a mut [[F16; LANES]],
}

impl<B: Block> BlockTiles<B> {
    /// From `blocks`, `[rows, columns / 32]`.
    pub(crate) fn new(pool: &Pool, blocks: &[B], rows: usize) -> Result<Self, KernelError> {
        let n_blocks = blocks.len().checked_div(rows).unwrap_or(0);
        let n = n_tiles(rows) * n_blocks;
        let n_minima = if B::HAS_MINIMUM { n } else { 0 };
        let mut tiles = Self {
            n_blocks,
            lines: Zeroed::new(n * B::Codes::LINES * size_of::<Line>())?,
            scales: Zeroed::new(n * size_of::<[B::Scale; LANES]>())?,
            minima: Zeroed::new(n_minima * size_of::<[F16; LANES]>())?,
            format: PhantomData,
        };
        if n == 0 {
            return Ok(tiles);
        }
        let lines = tiles.lines.parts_mut::<Line>().chunks_mut(n_blocks * B::Codes::LINES);
        let scales = tiles.scales.parts_mut().chunks_mut(n_blocks);
        let minima = tiles.minima.parts_mut().chunks_mut(n_blocks).chain(std::iter::repeat_with(Default::default));
        let parts = lines.zip(scales).zip(minima);
        let packings = parts.map(|((lines, scales), minima)| Packing { lines, scales, minima });
        let rows_of_tiles = blocks.chunks(n_blocks * LANES);
        pool.run_each(packings.zip(rows_of_tiles), |(packing, blocks)| Self::pack(packing, blocks, n_blocks));
        Ok(tiles)
    }

    /// One tile, from `blocks` (`[rows, n_blocks]`).
    fn pack(packing: Packing<'_, B::Scale>, blocks: &[B], n_blocks: usize) {
        for (row, blocks) in blocks.chunks_exact(n_blocks).enumerate() {
            let units = packing.lines.chunks_exact_mut(B::Codes::LINES);
            for (block, (from, unit)) in blocks.iter().zip(units).enumerate() {
                packing.scales[block][row] = from.scale();
                if B::HAS_MINIMUM {
                    packing.minima[block][row] = from.minimum();
                }
                B::Codes::put(unit, row, &from.codes());
            }
        }
    }

    /// One row as floats, `[columns]`; the same numbers as the format's own decoding.
    pub(crate) fn decode_row(&self, row: usize, into: &mut [f32]) {
        let first = row / LANES * self.n_blocks;
        let (lines, scales) = (self.lines.parts::<Line>(), self.scales.parts::<[B::Scale; LANES]>());
        let minima = self.minima.parts::<[F16; LANES]>();
        for (block, weights) in into.chunks_exact_mut(UNIT).enumerate() {
            let at = first + block;
            let scale = scales[at][row % LANES].value();
            let unit = &lines[at * B::Codes::LINES..][..B::Codes::LINES];
            for (column, weight) in weights.iter_mut().enumerate() {
                *weight = B::Codes::level(unit, row % LANES, column) as f32 * scale;
                if B::HAS_MINIMUM {
                    *weight += minima[at][row % LANES].value();
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
        rows: [RoundedRow<'_, Rounded32>; M],
    ) -> [[S::F; N]; M] {
        let n = self.n_blocks;
        let all_lines = self.lines.parts::<Line>();
        let mut lines = [all_lines; N];
        let mut scales = [self.scales.parts::<[B::Scale; LANES]>(); N];
        let mut minima = [self.minima.parts::<[F16; LANES]>(); N];
        for it in 0..N {
            let blocks = (tile + it) * n..(tile + it + 1) * n;
            lines[it] = &lines[it][blocks.start * B::Codes::LINES..blocks.end * B::Codes::LINES];
            scales[it] = &scales[it][blocks.clone()];
            if B::HAS_MINIMUM {
                minima[it] = &minima[it][blocks];
            }
        }
        let zero = if B::Codes::WIDE { S::WIDE_ZERO } else { B::Codes::ZERO };
        let mut sums = [[isa.splat(0.0); N]; M];
        let (mut all_quads, mut all_blocks) = ([rows[0].quads(n); M], [rows[0].blocks(n); M]);
        for row in 1..M {
            all_quads[row] = rows[row].quads(n);
            all_blocks[row] = rows[row].blocks(n);
        }
        for block in 0..n {
            let mut units = [&lines[0][..0]; N];
            for it in 0..N {
                units[it] = &lines[it][block * B::Codes::LINES..][..B::Codes::LINES];
            }
            let mut ints = [[isa.splat_int(0); N]; M];
            let mut quads = [&all_quads[0][block]; M];
            for row in 0..M {
                ints[row] = [isa.splat_int(-zero * all_blocks[row][block].sum); N];
                quads[row] = &all_quads[row][block];
            }
            macro_rules! group {
                ($($g:literal)*) => {$(
                    let mut codes = [isa.splat_int(0); N];
                    for it in 0..N {
                        codes[it] = B::Codes::unpack::<S, $g>(isa, units[it]);
                    }
                    for row in 0..M {
                        for it in 0..N {
                            ints[row][it] = dot_codes::<S, B::Codes>(isa, ints[row][it], codes[it], quads[row][$g]);
                        }
                    }
                )*};
            }
            group!(0 1 2 3 4 5 6 7);
            for it in 0..N {
                let scale = B::Scale::load(isa, &scales[it][block]);
                for row in 0..M {
                    let both = isa.mul(scale, isa.splat(all_blocks[row][block].scale));
                    sums[row][it] = isa.fma(isa.to_float(ints[row][it]), both, sums[row][it]);
                }
                if B::HAS_MINIMUM {
                    let minimum = F16::load(isa, &minima[it][block]);
                    for row in 0..M {
                        let sum = isa.splat(all_blocks[row][block].value_sum);
                        sums[row][it] = isa.fma(minimum, sum, sums[row][it]);
                    }
                }
            }
        }
        sums
    }
}
