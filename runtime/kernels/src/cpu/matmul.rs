//! `out[tokens, rows] (+)= x[tokens, cols] · wᵀ` over tiles, for every format. Knows no layers.

use std::ops::Range;

use super::activations::{Rounded32, Rounded256, RoundedBlock, RoundedRow, RoundedRows};
use super::isa::{Choice, Isa, Kernel, LANES, dispatch};
use super::pool::Pool;
use super::tiles::blocks::{Block, BlockTiles};
use super::tiles::codes::n_tiles;
use super::tiles::floats::{FloatLane, FloatTiles, add_dots};
use super::tiles::supers::{SuperBlock, SuperTiles};

/// Multiplications below which a second thread costs more than it brings.
const ALONE_MAX: usize = 1 << 16;
/// Multiplications of one piece of work at least.
const PIECE_MIN: usize = 1 << 15;
/// Rows of activations that go over a tile before the next tile's turn: they are to stay in the second-level cache.
const ROWS_IN_CACHE: usize = 192;

/// Tiles and the activations that they multiply with.
pub(crate) trait Tiled: Sync {
    /// All rows of activations.
    type Rows<'a>: Copy + Sync;
    /// One of them.
    type Row<'a>: Copy;

    fn row<'a>(rows: Self::Rows<'a>, row: usize) -> Self::Row<'a>;

    /// A tile's 16 results for each of `M` rows.
    fn dot<S: Isa, const M: usize>(&self, isa: S, tile: usize, rows: [Self::Row<'_>; M]) -> [S::F; M];

    /// The same for two tiles beside each other.
    #[inline(always)]
    fn dot_pair<S: Isa, const M: usize>(&self, isa: S, tile: usize, rows: [Self::Row<'_>; M]) -> [[S::F; 2]; M] {
        let (first, second) = (self.dot(isa, tile, rows), self.dot(isa, tile + 1, rows));
        let mut both = [[isa.splat(0.0); 2]; M];
        for row in 0..M {
            both[row] = [first[row], second[row]];
        }
        both
    }
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
    fn dot<S: Isa, const M: usize>(&self, isa: S, tile: usize, rows: [&[f32]; M]) -> [S::F; M] {
        let mut sums = [[isa.splat(0.0)]; M];
        add_dots(isa, [self.tile(tile)], rows, &mut sums);
        let mut single = [isa.splat(0.0); M];
        for row in 0..M {
            single[row] = sums[row][0];
        }
        single
    }

    #[inline(always)]
    fn dot_pair<S: Isa, const M: usize>(&self, isa: S, tile: usize, rows: [&[f32]; M]) -> [[S::F; 2]; M] {
        let mut sums = [[isa.splat(0.0); 2]; M];
        add_dots(isa, [self.tile(tile), self.tile(tile + 1)], rows, &mut sums);
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
    fn dot<S: Isa, const M: usize>(&self, isa: S, tile: usize, rows: [Self::Row<'_>; M]) -> [S::F; M] {
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
    fn dot<S: Isa, const M: usize>(&self, isa: S, tile: usize, rows: [Self::Row<'_>; M]) -> [S::F; M] {
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

/// Shares the tiles of a product among the threads. `out` is `[tokens, rows]`.
pub(crate) fn multiply<W: Tiled>(
    (choice, pool): (Choice, &Pool),
    weight: &W,
    x: W::Rows<'_>,
    shape: Shape,
    out: &mut [f32],
) {
    assert_eq!(out.len(), shape.tokens * shape.rows, "results of a product");
    let out = Destination::new(out);
    let n_pairs = n_tiles(shape.rows).div_ceil(2);
    let per_pair = shape.tokens * shape.columns * LANES * 2;
    let alone = shape.tokens * shape.columns * shape.rows < ALONE_MAX;
    let pairs_per_piece = if alone { n_pairs.max(1) } else { (PIECE_MIN / per_pair.max(1)).max(1) };
    pool.run(n_pairs.div_ceil(pairs_per_piece), &|piece| {
        let pairs = piece * pairs_per_piece..((piece + 1) * pairs_per_piece).min(n_pairs);
        dispatch(choice, Pairs { weight, x, shape, out: &out, pairs });
    });
}

/// Where threads put their results, each its own tiles' columns.
struct Destination<'a> {
    start: *mut f32,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: `write` requires of its callers that no two threads touch the same element.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    fn new(out: &'a mut [f32]) -> Self {
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

/// A range of tile pairs over all rows of activations.
struct Pairs<'a, 'x, W: Tiled> {
    weight: &'a W,
    x: W::Rows<'x>,
    shape: Shape,
    out: &'a Destination<'a>,
    pairs: Range<usize>,
}

impl<W: Tiled> Kernel for Pairs<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let mut start = 0;
        while start < self.shape.tokens {
            let end = (start + ROWS_IN_CACHE).min(self.shape.tokens);
            for pair in self.pairs.clone() {
                let mut row = start;
                while row < end {
                    row += match end - row {
                        8.. if S::ROWS_MAX >= 8 => self.block::<S, 8>(isa, pair, row),
                        4.. if S::ROWS_MAX >= 4 => self.block::<S, 4>(isa, pair, row),
                        2.. if S::ROWS_MAX >= 2 => self.block::<S, 2>(isa, pair, row),
                        _ => self.block::<S, 1>(isa, pair, row),
                    };
                }
            }
            start = end;
        }
    }
}

impl<W: Tiled> Pairs<'_, '_, W> {
    /// Two tiles by `M` rows of activations; returns `M`.
    #[inline(always)]
    fn block<S: Isa, const M: usize>(&self, isa: S, pair: usize, first: usize) -> usize {
        let mut rows = [W::row(self.x, first); M];
        for row in 1..M {
            rows[row] = W::row(self.x, first + row);
        }
        let tile = pair * 2;
        if tile + 1 < n_tiles(self.shape.rows) {
            let sums = self.weight.dot_pair(isa, tile, rows);
            for row in 0..M {
                self.put(isa, sums[row][0], tile, first + row);
                self.put(isa, sums[row][1], tile + 1, first + row);
            }
        } else {
            let sums = self.weight.dot(isa, tile, rows);
            for row in 0..M {
                self.put(isa, sums[row], tile, first + row);
            }
        }
        M
    }

    /// Stores one tile's results for one row; the last tile may be narrower.
    #[inline(always)]
    fn put<S: Isa>(&self, isa: S, sums: S::F, tile: usize, row: usize) {
        let n = LANES.min(self.shape.rows - tile * LANES);
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
pub(crate) fn round<B: RoundedBlock>(choice: Choice, rows: &mut RoundedRows<B>, x: &[f32], shape: Shape) {
    rows.resize(shape.tokens, shape.columns);
    dispatch(choice, super::activations::Round { x, into: rows });
}
