//! Attention over paged keys and values, with f32 sums. Knows no sequences, only their pages.
//!
//! This file has keys and values in f16, `quantized` has those in 8 bits.
//!
//! Queries and weights are rounded to f16 before they meet keys and values, as in llama.cpp's `ggml_mul_mat` with a
//! matrix in f16: finer ones would be no nearer to what the file was judged by, and would part greedy tokens.
//!
//! Keys lie in tiles of 16 tokens (`[head_dim][16]`) and values in tiles of 16 dimensions (`[tokens][16]`), so both
//! products are the tile product of matrices: scores are 16 tokens at a time, outputs 16 dimensions at a time.

mod quantized;

use std::ops::Range;

use super::activations::{Rounded32, RoundedRows};
use super::elementwise::ExpShifted;
use super::isa::{Choice, Isa, Kernel, LANES, dispatch};
use super::memory::Zeroed;
use super::pool::Pool;
use super::tiles::floats::{F16, add_dots};
use crate::{Attending, CacheShape, KernelError, KvFormat, PAGE_TOKENS, Slot, Span};

/// Token tiles of a page.
const PAGE_TILES: usize = PAGE_TOKENS / LANES;
/// Query rows that share one reading of keys and values.
const ROWS_AT_ONCE: usize = 8;

/// All pages of all layers.
#[derive(Debug)]
pub struct CpuCache {
    shape: CacheShape,
    /// `[layer][page][kv head][keys, then values]`
    bytes: Zeroed,
}

impl CpuCache {
    pub(crate) fn new(shape: CacheShape) -> Result<Self, KernelError> {
        assert!(shape.head_dim.is_multiple_of(LANES), "heads of a multiple of {LANES} dimensions");
        let bytes = shape.bytes().ok_or(KernelError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { shape, bytes: Zeroed::new(bytes)? })
    }

    /// Keys of one head in one page in f16, `[token tile][head_dim][16]`, and values, `[dim tile][token][16]`.
    #[inline(always)]
    fn halves(&self, layer: usize, page: u32, head: usize) -> (&[[F16; LANES]], &[[F16; LANES]]) {
        let bytes: &[u8] = self.bytes.parts();
        let lanes: &[[F16; LANES]] = bytemuck::cast_slice(&bytes[self.head(layer, page, head)]);
        lanes.split_at(lanes.len() / 2)
    }

    /// Where a head's keys and values of one page lie, in bytes.
    #[inline(always)]
    fn head(&self, layer: usize, page: u32, head: usize) -> Range<usize> {
        assert!((page as usize) < self.shape.n_pages && head < self.shape.n_kv_heads, "a page of the cache");
        let n = 2 * PAGE_TOKENS * self.shape.format.head_bytes(self.shape.head_dim);
        let page = layer * self.shape.n_pages + page as usize;
        let start = (page * self.shape.n_kv_heads + head) * n;
        start..start + n
    }

    /// Copies a page in all layers.
    pub(crate) fn copy_page(&mut self, from: u32, to: u32) {
        for layer in 0..self.shape.n_layers {
            for head in 0..self.shape.n_kv_heads {
                let (from, to) = (self.head(layer, from, head), self.head(layer, to, head));
                self.bytes.parts_mut::<u8>().copy_within(from, to.start);
            }
        }
    }
}

/// Writes keys and values, `[slots, kv heads, head_dim]`, to their slots.
pub(crate) struct Store<'a> {
    pub(crate) cache: &'a mut CpuCache,
    pub(crate) layer: usize,
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    pub(crate) slots: &'a [Slot],
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        match self.cache.shape.format {
            KvFormat::F16 => self.halves(isa),
            KvFormat::Q8_0 => self.levels(isa),
        }
    }
}

impl Store<'_> {
    #[inline(always)]
    fn halves<S: Isa>(self, isa: S) {
        let CacheShape { n_kv_heads, head_dim: dim, .. } = self.cache.shape;
        let rows = self.keys.chunks_exact(dim).zip(self.values.chunks_exact(dim));
        for (index, (keys, values)) in rows.take(self.slots.len() * n_kv_heads).enumerate() {
            let slot = self.slots[index / n_kv_heads];
            let token = slot.offset as usize;
            let head = self.cache.head(self.layer, slot.page, index % n_kv_heads);
            let bytes: &mut [u8] = self.cache.bytes.parts_mut();
            let lanes: &mut [[u16; LANES]] = bytemuck::cast_slice_mut(&mut bytes[head]);
            let (key_lanes, value_lanes) = lanes.split_at_mut(PAGE_TOKENS * dim / LANES);
            let key_tile = &mut key_lanes[token / LANES * dim..][..dim];
            for (part, keys) in key_tile.chunks_exact_mut(LANES).zip(keys.as_chunks::<LANES>().0) {
                let mut halves = [0; LANES];
                isa.store_f16(isa.load(keys), &mut halves);
                for (lane, half) in part.iter_mut().zip(halves) {
                    lane[token % LANES] = half;
                }
            }
            for (tile, values) in values.as_chunks::<LANES>().0.iter().enumerate() {
                isa.store_f16(isa.load(values), &mut value_lanes[tile * PAGE_TOKENS + token]);
            }
        }
    }
}

/// One call: the queries of some spans against one layer of the cache.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) cache: &'a CpuCache,
    pub(crate) layer: usize,
    /// `[tokens, heads, head_dim]`
    pub(crate) queries: &'a [f32],
    pub(crate) attending: Attending,
}

/// Some query rows of one span and one key head: one piece of work.
#[derive(Clone, Copy)]
struct Piece<'a> {
    span: Span<'a>,
    /// Tokens of the span.
    first: usize,
    n: usize,
    head: usize,
}

impl Attention<'_> {
    /// Attends all spans; `out` is `[tokens, heads, head_dim]`.
    pub(crate) fn run(&self, (choice, pool): (Choice, &Pool), spans: &[Span<'_>], out: &mut [f32]) {
        let shape = self.cache.shape;
        let group = self.attending.n_heads / shape.n_kv_heads;
        let tokens_at_once = (ROWS_AT_ONCE / group).max(1);
        let mut pieces = Vec::new();
        for span in spans {
            for first in (0..span.n_tokens).step_by(tokens_at_once) {
                let n = tokens_at_once.min(span.n_tokens - first);
                pieces.extend((0..shape.n_kv_heads).map(|head| Piece { span: *span, first, n, head }));
            }
        }
        let width = self.attending.n_heads * shape.head_dim;
        let out = Output { start: out.as_mut_ptr(), len: out.len() };
        // A few pieces at a time: a piece of a short sequence takes about a microsecond.
        let chunk = (pieces.len() / (pool.threads() * 4)).max(1);
        pool.run(pieces.len().div_ceil(chunk), &|index| {
            let mut scratch = Scratch::default();
            for piece in &pieces[index * chunk..((index + 1) * chunk).min(pieces.len())] {
                dispatch(choice, Run { attention: *self, piece: *piece, scratch: &mut scratch });
                for (row, result) in scratch.out.chunks_exact(shape.head_dim).enumerate() {
                    let token = piece.span.first_token + piece.first + row / group;
                    let at = token * width + (piece.head * group + row % group) * shape.head_dim;
                    // SAFETY: each (token, head) belongs to one piece, and each piece to one call of this closure.
                    unsafe { out.write(at, result) };
                }
            }
        });
    }
}

/// Where pieces put their rows.
struct Output {
    start: *mut f32,
    len: usize,
}

// SAFETY: `write` requires of its callers that no two threads write the same elements; nobody reads meanwhile.
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    /// The slice that this was made from is still mutably borrowed, and no other thread writes these elements.
    unsafe fn write(&self, at: usize, values: &[f32]) {
        assert!(at + values.len() <= self.len, "a row of the output");
        // SAFETY: the range was checked, and the caller vouches for the rest.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), values.len()) };
    }
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    /// `[rows, head_dim]`, rounded to f16 where keys are in f16
    queries: Vec<f32>,
    /// The same in 8 bits where keys are, a head's width filled up to whole blocks
    rounded: RoundedRows<Rounded32>,
    /// `[rows, positions]`: scores, then weights, rounded to f16 where values are in f16
    scores: Vec<f32>,
    /// `[rows, head_dim]`
    out: Vec<f32>,
}

/// Where the weights of some rows lie.
struct Found {
    /// The first row.
    first: usize,
    /// The first page that any row sees.
    page: usize,
    /// Positions from there to the last that the last row sees.
    longest: usize,
    /// Floats from one row of weights to the next.
    stride: usize,
}

impl Found {
    /// The pages that the rows see.
    #[inline(always)]
    fn pages<'a>(&self, span: &Span<'a>) -> &'a [u32] {
        &span.pages[self.page..][..self.longest.div_ceil(PAGE_TOKENS)]
    }
}

struct Run<'a> {
    attention: Attention<'a>,
    piece: Piece<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        let dim = self.attention.cache.shape.head_dim;
        let group = self.attention.attending.n_heads / self.attention.cache.shape.n_kv_heads;
        let n_rows = self.piece.n * group;
        self.scratch.out.clear();
        self.scratch.out.resize(n_rows * dim, 0.0);
        let mut row = 0;
        while row < n_rows {
            row += match n_rows - row {
                8.. if S::ROWS_MAX >= 8 => self.rows::<S, 8>(isa, row),
                4.. if S::ROWS_MAX >= 4 => self.rows::<S, 4>(isa, row),
                2.. if S::ROWS_MAX >= 2 => self.rows::<S, 2>(isa, row),
                _ => self.rows::<S, 1>(isa, row),
            };
        }
    }
}

impl Run<'_> {
    /// Query rows `first..first + M` of the piece; returns `M`.
    #[inline(always)]
    fn rows<S: Isa, const M: usize>(&mut self, isa: S, first: usize) -> usize {
        let CacheShape { head_dim: dim, n_kv_heads, .. } = self.attention.cache.shape;
        let group = self.attention.attending.n_heads / n_kv_heads;
        let span = self.piece.span;
        // A row sees the positions up to its own, from the first of its window. Pages before the first row's are not
        // touched: whole pages, so that a position meets the same lane in any company.
        let end: [usize; M] = std::array::from_fn(|row| span.position + self.piece.first + (first + row) / group + 1);
        let start = |end: usize| self.attention.attending.window.map_or(0, |window| end.saturating_sub(window));
        let first_page = start(end[0]) / PAGE_TOKENS;
        let before = first_page * PAGE_TOKENS;
        let seen: [Range<usize>; M] = end.map(|end| start(end) - before..end - before);
        let longest = end[M - 1] - before;
        let stride = longest.next_multiple_of(PAGE_TOKENS);
        let found = Found { first, page: first_page, longest, stride };
        self.scratch.scores.clear();
        self.scratch.scores.resize(M * stride, 0.0);
        self.scratch.queries.clear();
        for row in first..first + M {
            let token = span.first_token + self.piece.first + row / group;
            let query = token * self.attention.attending.n_heads + self.piece.head * group + row % group;
            self.scratch.queries.extend_from_slice(&self.attention.queries[query * dim..(query + 1) * dim]);
        }
        let format = self.attention.cache.shape.format;
        match format {
            KvFormat::F16 => self.score_halves::<S, M>(isa, &found),
            KvFormat::Q8_0 => self.score_levels::<S, M>(isa, &found),
        }
        for (scores, seen) in self.scratch.scores.chunks_exact_mut(stride).zip(seen) {
            weigh(isa, scores, seen, format);
        }
        match format {
            KvFormat::F16 => self.all_halves::<S, M>(isa, &found),
            KvFormat::Q8_0 => self.all_levels::<S, M>(isa, &found),
        }
        M
    }

    /// Products of queries and keys, scaled.
    #[inline(always)]
    fn score_halves<S: Isa, const M: usize>(&mut self, isa: S, found: &Found) {
        let (cache, layer, head) = (self.attention.cache, self.attention.layer, self.piece.head);
        let dim = cache.shape.head_dim;
        round_to_halves(isa, &mut self.scratch.queries, 1.0);
        let pages = found.pages(&self.piece.span);
        let queries: [&[f32]; M] = std::array::from_fn(|row| &self.scratch.queries[row * dim..(row + 1) * dim]);
        for (index, page) in pages.iter().enumerate() {
            let (keys, values) = cache.halves(layer, *page, head);
            // The pages of many sequences do not fit the processor's caches: these come from memory, so ask early.
            if let Some(next) = pages.get(index + 1) {
                isa.prefetch(cache.halves(layer, *next, head).0);
            }
            isa.prefetch(values);
            let mut sums = [[isa.splat(0.0); PAGE_TILES]; M];
            let tiles: [_; PAGE_TILES] = std::array::from_fn(|tile| &keys[tile * dim..(tile + 1) * dim]);
            add_dots(isa, tiles, queries, &mut sums);
            for row in 0..M {
                let scores = &mut self.scratch.scores[row * found.stride + index * PAGE_TOKENS..][..PAGE_TOKENS];
                for (scores, sum) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(sums[row]) {
                    isa.store(isa.mul(sum, isa.splat(self.attention.attending.scale)), scores);
                }
            }
        }
    }

    /// Sums the values of all dimensions by their weights.
    #[inline(always)]
    fn all_halves<S: Isa, const M: usize>(&mut self, isa: S, found: &Found) {
        let n_tiles = self.attention.cache.shape.head_dim / LANES;
        let mut tile = 0;
        while tile < n_tiles {
            // Four tiles at once keep enough sums in flight to hide the latency of adding to them.
            tile += match n_tiles - tile {
                4.. if S::ROWS_MAX >= 8 && M <= 4 => self.values::<S, M, 4>(isa, tile, found),
                2.. => self.values::<S, M, 2>(isa, tile, found),
                _ => self.values::<S, M, 1>(isa, tile, found),
            };
        }
    }

    /// Sums the values of `N` tiles of dimensions by their weights; returns `N`.
    #[inline(always)]
    fn values<S: Isa, const M: usize, const N: usize>(&mut self, isa: S, tile: usize, found: &Found) -> usize {
        let cache = self.attention.cache;
        let dim = cache.shape.head_dim;
        let mut sums = [[isa.splat(0.0); N]; M];
        for (index, page) in found.pages(&self.piece.span).iter().enumerate() {
            let start = index * PAGE_TOKENS;
            let n = PAGE_TOKENS.min(found.longest - start);
            let (_, values) = cache.halves(self.attention.layer, *page, self.piece.head);
            let tiles: [_; N] = std::array::from_fn(|it| &values[(tile + it) * PAGE_TOKENS..][..n]);
            let weights: [_; M] = std::array::from_fn(|row| &self.scratch.scores[row * found.stride + start..][..n]);
            add_dots(isa, tiles, weights, &mut sums);
        }
        for row in 0..M {
            for it in 0..N {
                let out = &mut self.scratch.out[(found.first + row) * dim + (tile + it) * LANES..];
                if let Some(out) = out.first_chunk_mut::<LANES>() {
                    isa.store(sums[row][it], out);
                }
            }
        }
        N
    }
}

/// Turns the scores of a range into weights that add up to one, and the others into zeroes.
#[inline(always)]
fn weigh<S: Isa>(isa: S, scores: &mut [f32], seen: Range<usize>, format: KvFormat) {
    let padded = seen.end.next_multiple_of(LANES);
    // Past the end lies whatever the page held before: it must not be seen, nor what the window has left behind.
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..padded].fill(f32::NEG_INFINITY);
    let mut largest = isa.splat(f32::NEG_INFINITY);
    for lanes in scores[..padded].as_chunks::<LANES>().0 {
        largest = isa.max(largest, isa.load(lanes));
    }
    let largest = isa.largest(largest);
    let sum = ExpShifted { x: &mut scores[..padded], shift: largest, factor: 1.0 }.run(isa);
    match format {
        KvFormat::F16 => round_to_halves(isa, &mut scores[..padded], 1.0 / sum),
        KvFormat::Q8_0 => {
            for lanes in scores[..padded].as_chunks_mut::<LANES>().0 {
                isa.store(isa.mul(isa.load(lanes), isa.splat(1.0 / sum)), lanes);
            }
        }
    }
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
}

/// Multiplies by a factor, then rounds to f16. A row's length is a multiple of the lanes.
#[inline(always)]
fn round_to_halves<S: Isa>(isa: S, x: &mut [f32], factor: f32) {
    let factor = isa.splat(factor);
    for lanes in x.as_chunks_mut::<LANES>().0 {
        let mut halves = [0; LANES];
        isa.store_f16(isa.mul(isa.load(lanes), factor), &mut halves);
        isa.store(isa.load_f16(&halves), lanes);
    }
}
