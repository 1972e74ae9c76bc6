//! `out[tokens, rows] (+)= x[tokens, cols] · wᵀ` over tiles, for every format. Knows no layers.

use std::ops::Range;

use super::activations::{Rounded32, Rounded256, RoundedBlock, RoundedRow, RoundedRows};
use super::isa::{Choice, Isa, Kernel, LANES, dispatch};
use super::pool::Pool;
use super::tiles::blocks::{Block, BlockTiles};
use super::tiles::codes::{QUAD, n_tiles};
use super::tiles::floats::{FloatLane, FloatTiles, add_dots};
use super::tiles::supers::{SuperBlock, SuperTiles};

/// Multiplications of a job below which a second thread costs more than it brings.
pub(crate) const ALONE_MAX: usize = 1 << 16;
/// Multiplications of one piece of work at least.
const PIECE_MIN: usize = 1 << 15;
/// Activations that one thread rounds at a time.
const ROUNDED_MIN: usize = 1 << 15;
/// Rows of activations that go over a tile before the next tile's turn: they are to stay in the second-level cache.
const ROWS_IN_CACHE: usize = 192;

/// Tiles and the activations that they multiply with.
pub(crate) trait Tiled: Sync {
    /// All rows of activations.
    type Rows<'a>: Copy + Sync;
    /// One of them.
    type Row<'a>: Copy;

    fn row<'a>(rows: Self::Rows<'a>, row: usize) -> Self::Row<'a>;

    /// The 16 results of each of `N` tiles beside each other, for each of `M` rows.
    fn dot<S: Isa, const M: usize, const N: usize>(
        &self,
        isa: S,
        tile: usize,
        rows: [Self::Row<'_>; M],
    ) -> [[S::F; N]; M];
}

/// Rows of floats, `[rows, columns]`.
#[derive(Clone, Copy)]
pub(crate) struct FloatRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) columns: usize,
}

impl<T: FloatLane> Tiled for FloatTiles<T> {
    type Rows<'a> = FloatRows<'a>;
    type Row<'a> = &'a [f32];

    #[inline(always)]
    fn row<'a>(rows: Self::Rows<'a>, row: usize) -> Self::Row<'a> {
        &rows.values[row * rows.columns..(row + 1) * rows.columns]
    }

    #[inline(always)]
    fn dot<S: Isa, const M: usize, const N: usize>(&self, isa: S, tile: usize, rows: [&[f32]; M]) -> [[S::F; N]; M] {
        let mut tiles = [self.tile(tile); N];
        for it in 1..N {
            tiles[it] = self.tile(tile + it);
        }
        let mut sums = [[isa.splat(0.0); N]; M];
        add_dots(isa, tiles, rows, &mut sums);
        sums
    }
}

impl<B: Block> Tiled for BlockTiles<B> {
    type Rows<'a> = &'a RoundedRows<Rounded32>;
    type Row<'a> = RoundedRow<'a, Rounded32>;

    #[inline(always)]
    fn row<'a>(rows: Self::Rows<'a>, row: usize) -> Self::Row<'a> {
        rows.row(row)
    }

    #[inline(always)]
    fn dot<S: Isa, const M: usize, const N: usize>(
        &self,
        isa: S,
        tile: usize,
        rows: [Self::Row<'_>; M],
    ) -> [[S::F; N]; M] {
        BlockTiles::dot(self, isa, tile, rows)
    }
}

impl<B: SuperBlock> Tiled for SuperTiles<B> {
    type Rows<'a> = &'a RoundedRows<Rounded256>;
    type Row<'a> = RoundedRow<'a, Rounded256>;

    #[inline(always)]
    fn row<'a>(rows: Self::Rows<'a>, row: usize) -> Self::Row<'a> {
        rows.row(row)
    }

    #[inline(always)]
    fn dot<S: Isa, const M: usize, const N: usize>(
        &self,
        isa: S,
        tile: usize,
        rows: [Self::Row<'_>; M],
    ) -> [[S::F; N]; M] {
        SuperTiles::dot(self, isa, tile, rows)
    }
}

/// One product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows of activations.
    pub(crate) tokens: usize,
    /// Rows of the weight.
    pub(crate) rows: usize,
    /// Columns of both.
    pub(crate) columns: usize,
    /// Whether results are added to what `out` holds.
    pub(crate) adds: bool,
}

/// A product cut into pieces of work, some quads of tiles each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    n_quads: usize,
    quads_per_piece: usize,
}

impl Cut {
    pub(crate) fn new(shape: Shape) -> Self {
        let n_quads = n_tiles(shape.rows) / QUAD;
        let per_quad = shape.tokens * shape.columns * LANES * QUAD;
        Self { n_quads, quads_per_piece: (PIECE_MIN / per_quad.max(1)).max(1) }
    }

    pub(crate) fn n_pieces(self) -> usize {
        self.n_quads.div_ceil(self.quads_per_piece)
    }

    fn quads(self, piece: usize) -> Range<usize> {
        piece * self.quads_per_piece..((piece + 1) * self.quads_per_piece).min(self.n_quads)
    }
}

/// One piece of a product. Every piece of a [`Cut`] is to be computed once; `out` is `[tokens, rows]`.
pub(crate) fn multiply<W: Tiled>(
    choice: Choice,
    weight: &W,
    x: W::Rows<'_>,
    shape: Shape,
    out: &Destination<'_>,
    (cut, piece): (Cut, usize),
) {
    assert_eq!(out.len, shape.tokens * shape.rows, "results of a product");
    dispatch(choice, Quads { weight, x, shape, out, quads: cut.quads(piece) });
}

/// Where threads put their results, each its own tiles' columns.
pub(crate) struct Destination<'a> {
    start: *mut f32,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: `write` requires of its callers that no two threads touch the same element.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    pub(crate) fn new(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), borrow: std::marker::PhantomData }
    }

    /// The elements `at..at + n`.
    ///
    /// # Safety
    /// No other reference to any of them may be alive.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches for disjoint parts of a borrowed slice")]
    #[inline(always)]
    unsafe fn part(&self, at: usize, n: usize) -> &mut [f32] {
        assert!(at + n <= self.len, "a part of the results");
        // SAFETY: the range lies inside the slice that is borrowed for 'a, and the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), n) }
    }
}

/// A range of quads of tiles over all rows of activations.
struct Quads<'a, 'x, W: Tiled> {
    weight: &'a W,
    x: W::Rows<'x>,
    shape: Shape,
    out: &'a Destination<'a>,
    quads: Range<usize>,
}

impl<W: Tiled> Kernel for Quads<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let mut start = 0;
        while start < self.shape.tokens {
            let end = (start + ROWS_IN_CACHE).min(self.shape.tokens);
            for quad in self.quads.clone() {
                let mut row = start;
                while row < end {
                    // Sums, products and codes of a block fill the registers: 32, 16, or none to speak of.
                    row += match end - row {
                        6.. if S::ROWS_MAX >= 8 => self.block::<S, 6, 2>(isa, quad, row),
                        2.. if S::ROWS_MAX >= 8 => self.block::<S, 2, 2>(isa, quad, row),
                        4.. if S::ROWS_MAX == 4 => self.block::<S, 4, 1>(isa, quad, row),
                        // A row alone waits for memory, which gives most to one stream from beginning to end.
                        _ => self.block::<S, 1, 1>(isa, quad, row),
                    };
                }
            }
            start = end;
        }
    }
}

impl<W: Tiled> Quads<'_, '_, W> {
    /// A quad of tiles, `N` at a time, by `M` rows of activations; returns `M`.
    #[inline(always)]
    fn block<S: Isa, const M: usize, const N: usize>(&self, isa: S, quad: usize, first: usize) -> usize {
        let mut rows = [W::row(self.x, first); M];
        for row in 1..M {
            rows[row] = W::row(self.x, first + row);
        }
        let mut tile = quad * QUAD;
        // The last quad may be filled up with tiles of no rows.
        while tile < (quad + 1) * QUAD && tile * LANES < self.shape.rows {
            let sums: [[S::F; N]; M] = self.weight.dot(isa, tile, rows);
            for row in 0..M {
                for it in 0..N {
                    self.put(isa, sums[row][it], tile + it, first + row);
                }
            }
            tile += N;
        }
        M
    }

    /// Stores one tile's results for one row; the last tile may be narrower.
    #[inline(always)]
    fn put<S: Isa>(&self, isa: S, sums: S::F, tile: usize, row: usize) {
        let n = LANES.min(self.shape.rows.saturating_sub(tile * LANES));
        if n == 0 {
            return;
        }
        // SAFETY: every (tile, row) is put once, by the one thread whose range holds the tile, and no reference
        // outlives this call.
        let out = unsafe { self.out.part(row * self.shape.rows + tile * LANES, n) };
        if let Some(whole) = out.first_chunk_mut::<LANES>() {
            let sums = if self.shape.adds { isa.add(isa.load(whole), sums) } else { sums };
            isa.store(sums, whole);
        } else {
            let mut lanes = [0.0; LANES];
            isa.store(sums, &mut lanes);
            for (value, sum) in out.iter_mut().zip(lanes) {
                *value = if self.shape.adds { *value + sum } else { sum };
            }
        }
    }
}

/// Rounds `x` (`[tokens, columns]`) for integer weights, on all threads when it is much.
pub(crate) fn round<B: RoundedBlock>(
    (choice, pool): (Choice, &Pool),
    rows: &mut RoundedRows<B>,
    x: &[f32],
    shape: Shape,
) {
    rows.resize(shape.tokens, shape.columns);
    let rows_per_piece = (ROUNDED_MIN / shape.columns.max(1)).max(1);
    pool.run_each(rows.pieces(x, rows_per_piece), |mut it| dispatch(choice, &mut it));
}
