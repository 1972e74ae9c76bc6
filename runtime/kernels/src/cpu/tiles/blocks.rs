//! Weights of 32 to a block with one scale, and a minimum in some formats, against activations in blocks of 32.

use bytemuck::Zeroable;
use fsq_blocks::BlockFormat;
use fsq_blocks::formats::{iq4_nl::IQ4_NL, mxfp4::MXFP4, q4_0::Q4_0, q4_1::Q4_1, q5_0::Q5_0, q5_1::Q5_1, q8_0::Q8_0};

use super::codes::{Codes, Fp4, Named, NibbleAnd, Single, UNIT, Uneven, n_tiles, raised};
use super::floats::{Bf16, F16, FloatLane};
use crate::cpu::activations::{Rounded32, RoundedRow};
use crate::cpu::isa::{Isa, LANES, Line};

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
    /// `[tile][block][line]`
    lines: Vec<Line>,
    /// `[tile][block]`
    scales: Vec<[B::Scale; LANES]>,
    /// `[tile][block]`, empty without minima
    minima: Vec<[F16; LANES]>,
}

impl<B: Block> BlockTiles<B> {
    /// From `blocks`, `[rows, columns / 32]`.
    pub(crate) fn new(blocks: &[B], rows: usize) -> Self {
        let n_blocks = blocks.len().checked_div(rows).unwrap_or(0);
        let zero = [Line([0; 64])];
        let mut tiles = Self {
            n_blocks,
            lines: zero.repeat(n_tiles(rows) * n_blocks * B::Codes::LINES),
            scales: vec![[B::Scale::zeroed(); LANES]; n_tiles(rows) * n_blocks],
            minima: vec![[F16(0); LANES]; if B::HAS_MINIMUM { n_tiles(rows) * n_blocks } else { 0 }],
        };
        for row in 0..rows {
            for block in 0..n_blocks {
                let from = &blocks[row * n_blocks + block];
                let at = row / LANES * n_blocks + block;
                tiles.scales[at][row % LANES] = from.scale();
                if B::HAS_MINIMUM {
                    tiles.minima[at][row % LANES] = from.minimum();
                }
                let unit = &mut tiles.lines[at * B::Codes::LINES..][..B::Codes::LINES];
                for (column, code) in from.codes().into_iter().enumerate() {
                    B::Codes::put(unit, row % LANES, column, code);
                }
            }
        }
        tiles
    }

    /// One row as floats, `[columns]`; the same numbers as the format's own decoding.
    pub(crate) fn decode_row(&self, row: usize, into: &mut [f32]) {
        let first = row / LANES * self.n_blocks;
        for (block, weights) in into.chunks_exact_mut(UNIT).enumerate() {
            let at = first + block;
            let scale = self.scales[at][row % LANES].value();
            let unit = &self.lines[at * B::Codes::LINES..][..B::Codes::LINES];
            for (column, weight) in weights.iter_mut().enumerate() {
                *weight = B::Codes::level(unit, row % LANES, column) as f32 * scale;
                if B::HAS_MINIMUM {
                    *weight += self.minima[at][row % LANES].value();
                }
            }
        }
    }

    /// Dot products of a tile's 16 rows with `M` rows of activations.
    #[inline(always)]
    pub(crate) fn dot<S: Isa, const M: usize>(
        &self,
        isa: S,
        tile: usize,
        rows: [RoundedRow<'_, Rounded32>; M],
    ) -> [S::F; M] {
        let blocks = tile * self.n_blocks..(tile + 1) * self.n_blocks;
        let scales = &self.scales[blocks.clone()];
        let minima = if B::HAS_MINIMUM { &self.minima[blocks.clone()] } else { &[] };
        let lines = &self.lines[blocks.start * B::Codes::LINES..blocks.end * B::Codes::LINES];
        let zero = if B::Codes::WIDE { S::WIDE_ZERO } else { B::Codes::ZERO };
        let mut sums = [isa.splat(0.0); M];
        let (mut all_quads, mut all_blocks) = ([rows[0].quads(self.n_blocks); M], [rows[0].blocks(self.n_blocks); M]);
        for row in 1..M {
            all_quads[row] = rows[row].quads(self.n_blocks);
            all_blocks[row] = rows[row].blocks(self.n_blocks);
        }
        for (block, (unit, scale)) in lines.chunks_exact(B::Codes::LINES).zip(scales).enumerate() {
            let mut ints = [isa.splat_int(0); M];
            for row in 0..M {
                ints[row] = isa.splat_int(-zero * all_blocks[row][block].sum);
            }
            let mut quads = [&all_quads[0][block]; M];
            for row in 1..M {
                quads[row] = &all_quads[row][block];
            }
            macro_rules! group {
                ($($g:literal)*) => {$(
                    let codes = B::Codes::unpack::<S, $g>(isa, unit);
                    for row in 0..M {
                        ints[row] = if B::Codes::WIDE {
                            isa.dot_wide(ints[row], codes, quads[row][$g])
                        } else {
                            isa.dot(ints[row], codes, quads[row][$g])
                        };
                    }
                )*};
            }
            group!(0 1 2 3 4 5 6 7);
            let scale = B::Scale::load(isa, scale);
            for row in 0..M {
                let both = isa.mul(scale, isa.splat(all_blocks[row][block].scale));
                sums[row] = isa.fma(isa.to_float(ints[row]), both, sums[row]);
            }
            if B::HAS_MINIMUM {
                let minimum = F16::load(isa, &minima[block]);
                for row in 0..M {
                    sums[row] = isa.fma(minimum, isa.splat(all_blocks[row][block].value_sum), sums[row]);
                }
            }
        }
        sums
    }
}
