//! Weights of 32 to a block with one scale (`Q8_0`, `Q5_0`, `Q4_0`), against activations in blocks of 32.

use std::marker::PhantomData;

use fsq_blocks::formats::{q4_0::Q4_0, q5_0::Q5_0, q8_0::Q8_0};
use fsq_blocks::{BlockFormat, Half};

use super::codes::{Codes, NibbleAnd, Single, UNIT, n_tiles};
use crate::cpu::activations::{Rounded32, RoundedRow};
use crate::cpu::isa::{Isa, LANES, Line};

/// What a file's block tells a tile.
pub(crate) trait Block: BlockFormat {
    type Codes: Codes;
    fn scale(&self) -> Half;
    /// From `-ZERO` upwards.
    fn levels(&self) -> [i8; UNIT];
}

impl Block for Q8_0 {
    type Codes = Single<8, 128>;
    fn scale(&self) -> Half {
        self.d
    }
    fn levels(&self) -> [i8; UNIT] {
        self.levels
    }
}

impl Block for Q5_0 {
    type Codes = NibbleAnd<1, 16>;
    fn scale(&self) -> Half {
        self.d
    }
    fn levels(&self) -> [i8; UNIT] {
        self.unpacked()
    }
}

impl Block for Q4_0 {
    type Codes = Single<4, 8>;
    fn scale(&self) -> Half {
        self.d
    }
    fn levels(&self) -> [i8; UNIT] {
        self.unpacked()
    }
}

/// A matrix in tiles of 16 rows.
#[derive(Debug)]
pub(crate) struct BlockTiles<B> {
    n_blocks: usize,
    /// `[tile][block][line]`
    lines: Vec<Line>,
    /// `[tile][block]`, f16 bits of each row
    scales: Vec<[u16; LANES]>,
    format: PhantomData<fn() -> B>,
}

impl<B: Block> BlockTiles<B> {
    /// From `blocks`, `[rows, columns / 32]`.
    pub(crate) fn new(blocks: &[B], rows: usize) -> Self {
        let n_blocks = blocks.len().checked_div(rows).unwrap_or(0);
        let zero = [Line([0; 64])];
        let mut tiles = Self {
            n_blocks,
            lines: zero.repeat(n_tiles(rows) * n_blocks * B::Codes::LINES),
            scales: vec![[0; LANES]; n_tiles(rows) * n_blocks],
            format: PhantomData,
        };
        for row in 0..rows {
            for block in 0..n_blocks {
                let from = &blocks[row * n_blocks + block];
                let at = row / LANES * n_blocks + block;
                tiles.scales[at][row % LANES] = from.scale().to_bits();
                let unit = &mut tiles.lines[at * B::Codes::LINES..][..B::Codes::LINES];
                for (column, level) in from.levels().into_iter().enumerate() {
                    let code = i32::from(level) + B::Codes::ZERO;
                    B::Codes::put(unit, row % LANES, column, code as u8);
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
            let scale = half::f16::from_bits(self.scales[at][row % LANES]).to_f32();
            let unit = &self.lines[at * B::Codes::LINES..][..B::Codes::LINES];
            for (column, weight) in weights.iter_mut().enumerate() {
                let level = i32::from(B::Codes::get(unit, row % LANES, column)) - B::Codes::ZERO;
                *weight = level as f32 * scale;
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
            let scale = isa.load_f16(scale);
            for row in 0..M {
                let both = isa.mul(scale, isa.splat(all_blocks[row][block].scale));
                sums[row] = isa.fma(isa.to_float(ints[row]), both, sums[row]);
            }
        }
        sums
    }
}
