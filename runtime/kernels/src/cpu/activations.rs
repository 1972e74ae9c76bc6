//! Rows of activations rounded to 8 bits, as integer weights want them. Knows no weights.
//!
//! Rounding follows llama.cpp on x86 (`ggml-cpu/arch/x86/quants.c`, `quantize_row_q8_0` and `_q8_1`; `ggml-quants.c`,
//! `quantize_row_q8_K_ref`): to nearest, ties to even, the scale of a 32-block rounded to f16.

use half::f16;

use super::isa::{Isa, Kernel, LANES};
use super::tiles::codes::{GROUPS, UNIT};

/// Activations of a super-block.
pub(crate) const SUPER: usize = 256;

/// Scale and sums of 32 activations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rounded32 {
    pub(crate) scale: f32,
    /// Of the levels.
    pub(crate) sum: i32,
    /// Of the levels times the scale before it was rounded, itself rounded to f16: what minima multiply.
    pub(crate) value_sum: f32,
}

/// Scale of 256 activations, and sums of each 16 and each 32.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rounded256 {
    pub(crate) scale: f32,
    pub(crate) sums_16: [i16; SUPER / 16],
    pub(crate) sums_32: [i16; SUPER / 32],
}

/// A block kind and how many activations it spans.
pub(crate) trait RoundedBlock: Copy + Default + Send + Sync {
    const VALUES: usize;
    /// Rounds `values` (`[VALUES]`) to four bytes a quad, `[VALUES / 4]`.
    fn round<S: Isa>(isa: S, values: &[f32], quads: &mut [[i32; GROUPS]]) -> Self;
}

/// `[rows, columns]` rounded; the memory is reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct RoundedRows<B> {
    columns: usize,
    /// `[row][column / 32]`
    quads: Vec<[i32; GROUPS]>,
    /// `[row][column / VALUES]`
    blocks: Vec<B>,
}

/// One row of them.
#[derive(Clone, Copy)]
pub(crate) struct RoundedRow<'a, B> {
    quads: &'a [[i32; GROUPS]],
    blocks: &'a [B],
}

impl<'a, B> RoundedRow<'a, B> {
    /// Exactly `n` units of 32 activations.
    #[inline(always)]
    pub(crate) fn quads(&self, n: usize) -> &'a [[i32; GROUPS]] {
        &self.quads[..n]
    }

    /// Exactly `n` blocks.
    #[inline(always)]
    pub(crate) fn blocks(&self, n: usize) -> &'a [B] {
        &self.blocks[..n]
    }
}

impl<B: RoundedBlock> RoundedRows<B> {
    /// Makes room for `[rows, columns]`.
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) {
        assert!(columns.is_multiple_of(B::VALUES), "{columns} columns in blocks of {}", B::VALUES);
        self.columns = columns;
        self.quads.resize(rows * columns / UNIT, [0; GROUPS]);
        self.blocks.resize(rows * columns / B::VALUES, B::default());
    }

    /// Pieces of at most `n` rows each, to be rounded from the same rows of `x`, `[rows, columns]`.
    pub(crate) fn pieces<'a>(&'a mut self, x: &'a [f32], n: usize) -> impl Iterator<Item = Round<'a, B>> {
        let n = n * self.columns;
        let into = self.quads.chunks_mut(n / UNIT).zip(self.blocks.chunks_mut(n / B::VALUES));
        x.chunks(n).zip(into).map(|(x, (quads, blocks))| Round { x, quads, blocks })
    }

    /// Row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> RoundedRow<'_, B> {
        let (units, blocks) = (self.columns / UNIT, self.columns / B::VALUES);
        RoundedRow {
            quads: &self.quads[row * units..(row + 1) * units],
            blocks: &self.blocks[row * blocks..(row + 1) * blocks],
        }
    }
}

impl RoundedBlock for Rounded32 {
    const VALUES: usize = UNIT;

    #[inline(always)]
    fn round<S: Isa>(isa: S, values: &[f32], quads: &mut [[i32; GROUPS]]) -> Self {
        let largest = largest_magnitude(isa, values);
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let sums = round_values(isa, values, inverse, quads);
        let (scale, sum) = (largest / 127.0, sums[0] + sums[1]);
        let half = |value: f32| f16::from_f32(value).to_f32();
        Self { scale: half(scale), sum, value_sum: half(scale * sum as f32) }
    }
}

impl RoundedBlock for Rounded256 {
    const VALUES: usize = SUPER;

    #[inline(always)]
    fn round<S: Isa>(isa: S, values: &[f32], quads: &mut [[i32; GROUPS]]) -> Self {
        let largest = largest_magnitude(isa, values);
        let mut block = Self::default();
        if largest == 0.0 || largest.is_nan() {
            quads.fill([0; GROUPS]);
            return block;
        }
        // The value of largest magnitude becomes -127, whatever its sign.
        let is_first_positive = values.iter().find(|it| it.abs() == largest).is_some_and(|it| *it > 0.0);
        let inverse = -127.0 / if is_first_positive { largest } else { -largest };
        for (unit, values) in values.chunks_exact(UNIT).enumerate() {
            let sums = round_values(isa, values, inverse, &mut quads[unit..=unit]);
            // At most 127 · 32 each.
            block.sums_16[unit * 2] = sums[0] as i16;
            block.sums_16[unit * 2 + 1] = sums[1] as i16;
            block.sums_32[unit] = (sums[0] + sums[1]) as i16;
        }
        block.scale = 1.0 / inverse;
        block
    }
}

#[inline(always)]
fn largest_magnitude<S: Isa>(isa: S, values: &[f32]) -> f32 {
    let mut largest = isa.splat(0.0);
    for lanes in values.as_chunks::<LANES>().0 {
        let value = isa.load(lanes);
        largest = isa.max(largest, isa.max(value, isa.sub(isa.splat(0.0), value)));
    }
    isa.largest(largest)
}

/// Rounds 32 values times `inverse` into eight quads; the sums of each half come back.
#[inline(always)]
fn round_values<S: Isa>(isa: S, values: &[f32], inverse: f32, quads: &mut [[i32; GROUPS]]) -> [i32; 2] {
    let mut sums = [0; 2];
    let mut bytes = [[0i8; LANES]; 2];
    for half in 0..2 {
        let lanes = &values.as_chunks::<LANES>().0[half];
        sums[half] = isa.store_i8(isa.mul(isa.load(lanes), isa.splat(inverse)), &mut bytes[half]);
    }
    quads[0] = bytemuck::cast(bytes);
    for quad in &mut quads[0] {
        *quad = i32::from_le(*quad);
    }
    sums
}

/// Rounds some rows.
pub(crate) struct Round<'a, B> {
    /// `[rows, columns]`
    x: &'a [f32],
    quads: &'a mut [[i32; GROUPS]],
    blocks: &'a mut [B],
}

impl<B: RoundedBlock> Kernel for &mut Round<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let quads = self.quads.chunks_exact_mut(B::VALUES / UNIT);
        for ((values, quads), block) in self.x.chunks_exact(B::VALUES).zip(quads).zip(&mut *self.blocks) {
            *block = B::round(isa, values, quads);
        }
    }
}
