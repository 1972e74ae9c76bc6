//! Float weights (`F32`, `F16`, `BF16`) in tiles of 16 rows, against activations in f32. Also used by attention.

use bytemuck::{Pod, Zeroable};

use super::codes::n_tiles;
use crate::cpu::isa::{Isa, LANES, Line};

/// How a float lies in memory.
pub(crate) trait FloatLane: Pod + Send + Sync + std::fmt::Debug {
    fn load<S: Isa>(isa: S, from: &[Self; LANES]) -> S::F;
    fn value(self) -> f32;
}

/// An IEEE half.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct F16(pub(crate) u16);

/// The upper half of an f32.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

impl FloatLane for f32 {
    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[Self; LANES]) -> S::F {
        isa.load(from)
    }
    fn value(self) -> f32 {
        self
    }
}

/// A level without its scale.
impl FloatLane for i8 {
    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[Self; LANES]) -> S::F {
        isa.load_i8(from)
    }
    fn value(self) -> f32 {
        f32::from(self)
    }
}

impl FloatLane for F16 {
    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[Self; LANES]) -> S::F {
        isa.load_f16(bytemuck::cast_ref(from))
    }
    fn value(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}

impl FloatLane for Bf16 {
    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[Self; LANES]) -> S::F {
        isa.load_bf16(bytemuck::cast_ref(from))
    }
    fn value(self) -> f32 {
        half::bf16::from_bits(self.0).to_f32()
    }
}

/// A matrix in tiles of 16 rows.
#[derive(Debug)]
pub(crate) struct FloatTiles<T> {
    columns: usize,
    /// `[tile][column][16]` of `T`, on cache lines
    lines: Vec<Line>,
    lane: std::marker::PhantomData<fn() -> T>,
}

impl<T: FloatLane> FloatTiles<T> {
    /// From `value(index)` of `[rows, columns]`.
    pub(crate) fn new(rows: usize, columns: usize, value: impl Fn(usize) -> T) -> Self {
        let n_bytes = n_tiles(rows) * columns * size_of::<[T; LANES]>();
        let mut lines = [Line([0; 64])].repeat(n_bytes.div_ceil(64));
        let lanes: &mut [[T; LANES]] = bytemuck::cast_slice_mut(&mut lines);
        for row in 0..rows {
            for column in 0..columns {
                lanes[row / LANES * columns + column][row % LANES] = value(row * columns + column);
            }
        }
        Self { columns, lines, lane: std::marker::PhantomData }
    }

    /// One row, `[columns]`.
    pub(crate) fn decode_row(&self, row: usize, into: &mut [f32]) {
        for (weight, lanes) in into.iter_mut().zip(self.tile(row / LANES)) {
            *weight = lanes[row % LANES].value();
        }
    }

    /// Column by column, the 16 rows of a tile.
    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize) -> &[[T; LANES]] {
        let lanes: &[[T; LANES]] = bytemuck::cast_slice(&self.lines);
        &lanes[tile * self.columns..(tile + 1) * self.columns]
    }
}

/// Adds the dot products of `N` tiles (each `[n][16]`) with `M` rows (each `[n]`) to `sums`.
///
/// Every sum goes from first column to last, whatever `M` and `N` are: a row's result does not depend on its company.
#[inline(always)]
pub(crate) fn add_dots<S: Isa, T: FloatLane, const M: usize, const N: usize>(
    isa: S,
    mut tiles: [&[[T; LANES]]; N],
    mut rows: [&[f32]; M],
    sums: &mut [[S::F; N]; M],
) {
    let n = tiles[0].len();
    tiles.iter_mut().for_each(|it| *it = &it[..n]);
    rows.iter_mut().for_each(|it| *it = &it[..n]);
    let mut local = *sums;
    for column in 0..n {
        // No closures around lanes: one that is not inlined would not know the instruction set.
        let mut weights = [isa.splat(0.0); N];
        for tile in 0..N {
            weights[tile] = T::load(isa, &tiles[tile][column]);
        }
        for row in 0..M {
            let value = isa.splat(rows[row][column]);
            for tile in 0..N {
                local[row][tile] = isa.fma(value, weights[tile], local[row][tile]);
            }
        }
    }
    *sums = local;
}
