//! The parts of a block that are no matrix products: norm, rotary positions, gated unit. Each with its backward.
//!
//! Pure functions over row-major slices; rows are tokens.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

/// Rows that one thread takes at a time: enough to hide the cost of handing them out.
const ROWS: usize = 64;

/// `1 / √(mean(x²) + ε)`.
#[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
fn inverse_root(row: &[f32], eps: f32) -> f32 {
    let sum: f32 = row.iter().map(|it| it * it).sum();
    1.0 / (sum / row.len() as f32 + eps).sqrt()
}

/// `out = w ∘ x / √(mean(x²) + ε)`, `x [tokens, width]`, `w [width]`.
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let width = w.len();
    out.par_chunks_mut(width * ROWS).zip(x.par_chunks(width * ROWS)).for_each(|(out, x)| {
        for (out, row) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse_root(row, eps);
            for ((out, x), w) in out.iter_mut().zip(row).zip(w) {
                *out = x * inverse * w;
            }
        }
    });
}

/// Adds the gradient of [`rms_norm`] by `x` to `dx`, and by `w` to `dw` where it is wanted.
#[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
pub(crate) fn rms_norm_backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: Option<&mut [f32]>) {
    let width = w.len();
    let inputs = x.par_chunks(width * ROWS).zip(dy.par_chunks(width * ROWS));
    dx.par_chunks_mut(width * ROWS).zip(inputs).for_each(|(dx, (x, dy))| {
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for (dx, (row, dy)) in dx.chunks_exact_mut(width).zip(rows) {
            let inverse = inverse_root(row, eps);
            let dot: f32 = row.iter().zip(dy).zip(w).map(|((x, g), w)| x * g * w).sum();
            // dx = r·(dy∘w) − x·r³·⟨dy∘w, x⟩ / width.
            let shared = dot * inverse * inverse * inverse / width as f32;
            for (((dx, x), g), w) in dx.iter_mut().zip(row).zip(dy).zip(w) {
                *dx += g * w * inverse - x * shared;
            }
        }
    });
    if let Some(dw) = dw {
        for (row, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let inverse = inverse_root(row, eps);
            for ((sum, x), g) in dw.iter_mut().zip(row).zip(dy) {
                *sum += g * x * inverse;
            }
        }
    }
}

/// Cosines and sines of positions, `[tokens, head_dim / 2]` each.
pub(crate) struct Turns {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    head_dim: usize,
}

impl Turns {
    /// Pair `i` turns by `position · theta^(−2i / head_dim)`. Source: arXiv 2104.09864.
    #[expect(clippy::cast_precision_loss, reason = "positions and widths are far below 2^24")]
    pub(crate) fn new(positions: &[usize], head_dim: usize, theta: f32) -> Arc<Self> {
        let half = head_dim / 2;
        let rates: Vec<f32> = (0..half).map(|it| theta.powf(-(it as f32) / half as f32)).collect();
        let angles = positions.iter().flat_map(|position| rates.iter().map(move |rate| *position as f32 * rate));
        let (sines, cosines) = angles.map(f32::sin_cos).unzip();
        Arc::new(Self { cosines, sines, head_dim })
    }

    /// Turns the heads in some columns of `rows [tokens, width]`, in transformers' half-split order.
    ///
    /// `direction` is 1 for the forward turn and −1 for its inverse, which is also its transpose.
    pub(crate) fn apply(&self, rows: &mut [f32], width: usize, columns: Range<usize>, direction: f32) {
        let half = self.head_dim / 2;
        let turns = self.cosines.par_chunks(half * ROWS).zip(self.sines.par_chunks(half * ROWS));
        rows.par_chunks_mut(width * ROWS).zip(turns).for_each(|(rows, (cosines, sines))| {
            let turns = cosines.chunks_exact(half).zip(sines.chunks_exact(half));
            for (row, (cosines, sines)) in rows.chunks_exact_mut(width).zip(turns) {
                for head in row[columns.clone()].chunks_exact_mut(self.head_dim) {
                    let (low, high) = head.split_at_mut(half);
                    for (((low, high), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                        let (x, y, sine) = (*low, *high, sine * direction);
                        *low = x * cosine - y * sine;
                        *high = y * cosine + x * sine;
                    }
                }
            }
        });
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `out = silu(gate) ∘ up` with `both [tokens, 2·width]` holding gate, then up, in each row.
pub(crate) fn swiglu(both: &[f32], width: usize, out: &mut [f32]) {
    out.par_chunks_mut(width * ROWS).zip(both.par_chunks(2 * width * ROWS)).for_each(|(out, both)| {
        for (out, both) in out.chunks_exact_mut(width).zip(both.chunks_exact(2 * width)) {
            let (gate, up) = both.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate * sigmoid(*gate) * up;
            }
        }
    });
}

/// The gradient of [`swiglu`], in the layout of `both`, written over it.
pub(crate) fn swiglu_backward(both: &mut [f32], width: usize, dy: &[f32]) {
    both.par_chunks_mut(2 * width * ROWS).zip(dy.par_chunks(width * ROWS)).for_each(|(both, dy)| {
        for (both, dy) in both.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
            let (gate, up) = both.split_at_mut(width);
            for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                let (g, s) = (*gate, sigmoid(*gate));
                *gate = dy * *up * s * (1.0 + g * (1.0 - s));
                *up = dy * g * s;
            }
        }
    });
}
