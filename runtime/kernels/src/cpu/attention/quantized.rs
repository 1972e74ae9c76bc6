//! Keys and values in 8 bits (`q8_0`), attended as llama.cpp's flash attention on x86 does with such a cache.
//!
//! Queries are rounded to 8 bits as well and meet keys in integers; weights stay in f32 and meet the levels of values,
//! once multiplied by their scales (`ggml-cpu/ops.cpp`, `ggml_compute_forward_flash_attn_ext_f16_one_chunk`).
//!
//! Tiles are those of f16, in bytes: keys `[token tile][head_dim / 4][16][4]`, raised by 128 as the integer products
//! want them, with scales `[token tile][block][16]`; values `[dim tile][token][16]` with scales `[block][token]`.

use super::super::activations::{Rounded32, RoundedBlock, RoundedRow};
use super::super::isa::{Isa, Kernel, LANES, Line};
use super::super::tiles::codes::{GROUPS, UNIT};
use super::super::tiles::floats::{F16, FloatLane, add_dots};
use super::{CpuCache, Found, PAGE_TILES, Run, Store};
use crate::{CacheShape, PAGE_TOKENS};

/// Flips the top bit of four bytes at once: a level from -128 to 127 becomes a code from 0 to 255.
const RAISE: u32 = 0x8080_8080;

/// One head of one page.
#[derive(Clone, Copy)]
struct Levels<'a> {
    /// `[token tile][head_dim / 4]`
    keys: &'a [Line],
    /// `[token tile][block]`
    key_scales: &'a [[F16; LANES]],
    /// `[dim tile][token]`
    values: &'a [[i8; LANES]],
    /// `[block][token tile]`
    value_scales: &'a [[F16; LANES]],
}

impl CpuCache {
    #[inline(always)]
    fn levels(&self, layer: usize, page: u32, head: usize) -> Levels<'_> {
        let bytes: &[u8] = self.bytes.parts();
        let bytes = &bytes[self.head(layer, page, head)];
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        let n = PAGE_TOKENS * self.shape.head_dim;
        Levels {
            keys: bytemuck::cast_slice(&keys[..n]),
            key_scales: bytemuck::cast_slice(&keys[n..]),
            values: bytemuck::cast_slice(&values[..n]),
            value_scales: bytemuck::cast_slice(&values[n..]),
        }
    }
}

/// Up to 32 numbers, filled up with zeroes, as one block: levels in quads, and the scale.
#[inline(always)]
fn round<S: Isa>(isa: S, numbers: &[f32]) -> ([i32; GROUPS], u16) {
    let mut block = [0.0; UNIT];
    block[..numbers.len()].copy_from_slice(numbers);
    let mut quads = [[0; GROUPS]];
    let rounded = Rounded32::round(isa, &block, &mut quads);
    (quads[0], half::f16::from_f32(rounded.scale).to_bits())
}

impl Store<'_> {
    /// Rounds keys and values on their way to their slots.
    #[inline(always)]
    pub(super) fn levels<S: Isa>(self, isa: S) {
        let CacheShape { n_kv_heads, head_dim: dim, .. } = self.cache.shape;
        let n_blocks = dim.div_ceil(UNIT);
        let rows = self.keys.chunks_exact(dim).zip(self.values.chunks_exact(dim));
        for (index, (keys, values)) in rows.take(self.slots.len() * n_kv_heads).enumerate() {
            let slot = self.slots[index / n_kv_heads];
            let token = slot.offset as usize;
            let head = self.cache.head(self.layer, slot.page, index % n_kv_heads);
            let bytes = &mut self.cache.bytes.parts_mut::<u8>()[head];
            let (of_keys, of_values) = bytes.split_at_mut(bytes.len() / 2);

            let (lines, scales) = of_keys.split_at_mut(PAGE_TOKENS * dim);
            let lines: &mut [[u32; LANES]] = bytemuck::cast_slice_mut(lines);
            let scales: &mut [[u16; LANES]] = bytemuck::cast_slice_mut(scales);
            let (tile, lane) = (token / LANES, token % LANES);
            let lines = lines[tile * dim / 4..][..dim / 4].chunks_mut(GROUPS);
            for ((keys, lines), scale) in keys.chunks(UNIT).zip(lines).zip(&mut scales[tile * n_blocks..]) {
                let (quads, of_block) = round(isa, keys);
                scale[lane] = of_block;
                for (line, quad) in lines.iter_mut().zip(quads) {
                    line[lane] = (quad as u32 ^ RAISE).to_le();
                }
            }

            let (lines, scales) = of_values.split_at_mut(PAGE_TOKENS * dim);
            let lines: &mut [[i32; LANES / 4]] = bytemuck::cast_slice_mut(lines);
            let scales: &mut [u16] = bytemuck::cast_slice_mut(scales);
            for (block, values) in values.chunks(UNIT).enumerate() {
                let (quads, scale) = round(isa, values);
                scales[block * PAGE_TOKENS + token] = scale;
                for (half, quads) in quads.chunks_exact(LANES / 4).take(values.len() / LANES).enumerate() {
                    let line = &mut lines[(block * 2 + half) * PAGE_TOKENS + token];
                    line.iter_mut().zip(quads).for_each(|(line, quad)| *line = quad.to_le());
                }
            }
        }
    }
}

/// Adds the products of one block of 16 keys, `N` lines, with `M` queries to `sums`.
#[inline(always)]
fn add_block<S: Isa, const M: usize, const N: usize>(
    isa: S,
    (lines, scale): (&[Line; N], S::F),
    queries: [(&[i32; GROUPS], Rounded32); M],
    sums: &mut [S::F; M],
) {
    let mut ints = [isa.splat_int(0); M];
    for row in 0..M {
        ints[row] = isa.splat_int(-S::WIDE_ZERO * queries[row].1.sum);
    }
    for group in 0..N {
        let codes = isa.load_line(&lines[group]);
        for row in 0..M {
            ints[row] = isa.dot_wide(ints[row], codes, queries[row].0[group]);
        }
    }
    for row in 0..M {
        let both = isa.mul(scale, isa.splat(queries[row].1.scale));
        sums[row] = isa.fma(isa.to_float(ints[row]), both, sums[row]);
    }
}

/// Products of 16 keys with `M` queries.
#[inline(always)]
fn dot<S: Isa, const M: usize>(
    isa: S,
    lines: &[Line],
    scales: &[[F16; LANES]],
    queries: [RoundedRow<'_, Rounded32>; M],
) -> [S::F; M] {
    let mut sums = [isa.splat(0.0); M];
    let n_blocks = scales.len();
    for (block, (lines, scale)) in lines.chunks(GROUPS).zip(scales).enumerate() {
        let scale = F16::load(isa, scale);
        let mut rows = [(&queries[0].quads(n_blocks)[block], queries[0].blocks(n_blocks)[block]); M];
        for row in 1..M {
            rows[row] = (&queries[row].quads(n_blocks)[block], queries[row].blocks(n_blocks)[block]);
        }
        if let Some(lines) = lines.first_chunk::<GROUPS>() {
            add_block(isa, (lines, scale), rows, &mut sums);
        } else if let Some(lines) = lines.first_chunk::<{ GROUPS / 2 }>() {
            add_block(isa, (lines, scale), rows, &mut sums);
        }
    }
    sums
}

impl Run<'_> {
    /// Products of queries and keys, scaled.
    #[inline(always)]
    pub(super) fn score_levels<S: Isa, const M: usize>(&mut self, isa: S, found: &Found) {
        let (cache, layer, head) = (self.attention.cache, self.attention.layer, self.piece.head);
        let dim = cache.shape.head_dim;
        let n_blocks = dim.div_ceil(UNIT);
        if !dim.is_multiple_of(UNIT) {
            let mut filled = vec![0.0; M * n_blocks * UNIT];
            for (filled, query) in filled.chunks_exact_mut(n_blocks * UNIT).zip(self.scratch.queries.chunks(dim)) {
                filled[..dim].copy_from_slice(query);
            }
            self.scratch.queries = filled;
        }
        self.scratch.rounded.resize(M, n_blocks * UNIT);
        for mut piece in self.scratch.rounded.pieces(&self.scratch.queries, M) {
            (&mut piece).run(isa);
        }
        let queries: [_; M] = std::array::from_fn(|row| self.scratch.rounded.row(row));
        let pages = found.pages(&self.piece.span);
        for (index, page) in pages.iter().enumerate() {
            let Levels { keys, key_scales, values, value_scales } = cache.levels(layer, *page, head);
            if let Some(next) = pages.get(index + 1) {
                let next = cache.levels(layer, *next, head);
                isa.prefetch(next.keys);
                isa.prefetch(next.key_scales);
            }
            isa.prefetch(values);
            isa.prefetch(value_scales);
            for tile in 0..PAGE_TILES {
                let lines = &keys[tile * dim / 4..][..dim / 4];
                let sums = dot(isa, lines, &key_scales[tile * n_blocks..][..n_blocks], queries);
                for row in 0..M {
                    let at = row * found.stride + index * PAGE_TOKENS + tile * LANES;
                    if let Some(scores) = self.scratch.scores[at..].first_chunk_mut::<LANES>() {
                        isa.store(isa.mul(sums[row], isa.splat(self.attention.attending.scale)), scores);
                    }
                }
            }
        }
    }

    /// Sums the values of all dimensions by their weights.
    #[inline(always)]
    pub(super) fn all_levels<S: Isa, const M: usize>(&mut self, isa: S, found: &Found) {
        let n_tiles = self.attention.cache.shape.head_dim / LANES;
        for block in 0..n_tiles / 2 {
            self.sum_levels::<S, M, 2>(isa, block, found);
        }
        if !n_tiles.is_multiple_of(2) {
            self.sum_levels::<S, M, 1>(isa, n_tiles / 2, found);
        }
    }

    /// Sums the values of a block of `N` tiles of dimensions by their weights.
    #[inline(always)]
    fn sum_levels<S: Isa, const M: usize, const N: usize>(&mut self, isa: S, block: usize, found: &Found) {
        let cache = self.attention.cache;
        let mut sums = [[isa.splat(0.0); N]; M];
        for (index, page) in found.pages(&self.piece.span).iter().enumerate() {
            let start = index * PAGE_TOKENS;
            let n = PAGE_TOKENS.min(found.longest - start);
            let levels = cache.levels(self.attention.layer, *page, self.piece.head);
            let scales = &levels.value_scales[block * PAGE_TILES..][..PAGE_TILES];
            let mut weights = [[0.0; PAGE_TOKENS]; M];
            for row in 0..M {
                let from = &self.scratch.scores[row * found.stride + start..][..PAGE_TOKENS];
                let into = weights[row].as_chunks_mut::<LANES>().0;
                for ((into, from), scale) in into.iter_mut().zip(from.as_chunks::<LANES>().0).zip(scales) {
                    isa.store(isa.mul(isa.load(from), F16::load(isa, scale)), into);
                }
            }
            let tiles: [_; N] = std::array::from_fn(|it| &levels.values[(block * 2 + it) * PAGE_TOKENS..][..n]);
            let weights: [_; M] = std::array::from_fn(|row| &weights[row][..n]);
            add_dots(isa, tiles, weights, &mut sums);
        }
        for row in 0..M {
            for it in 0..N {
                let at = (found.first + row) * cache.shape.head_dim + (block * 2 + it) * LANES;
                if let Some(out) = self.scratch.out[at..].first_chunk_mut::<LANES>() {
                    isa.store(sums[row][it], out);
                }
            }
        }
    }
}
