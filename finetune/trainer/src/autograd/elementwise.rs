//! The parts of a block that are no matrix products: norm, rotary positions, gated unit. Each with its backward.
//!
//! Pure functions over row-major slices; rows are tokens.

use std::ops::Range;
use std::sync::Arc;

use fsq_checkpoint::{Activation, Turning};
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

/// [`rms_norm`] of every head in some columns of `rows [tokens, width]`, in place; `w [head_dim]` is shared by them.
pub(crate) fn norm_heads(rows: &mut [f32], width: usize, columns: &Range<usize>, w: &[f32], eps: f32) {
    rows.par_chunks_mut(width * ROWS).for_each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            for head in row[columns.clone()].chunks_exact_mut(w.len()) {
                let inverse = inverse_root(head, eps);
                for (value, w) in head.iter_mut().zip(w) {
                    *value = *value * inverse * w;
                }
            }
        }
    });
}

/// Turns the gradient by what [`norm_heads`] wrote into the gradient by `raw`, what it read, in place.
#[expect(clippy::cast_precision_loss, reason = "a head's width is far below 2^24")]
pub(crate) fn norm_heads_backward(
    raw: &[f32],
    grads: &mut [f32],
    width: usize,
    columns: &Range<usize>,
    w: &[f32],
    eps: f32,
) {
    grads.par_chunks_mut(width * ROWS).zip(raw.par_chunks(width * ROWS)).for_each(|(grads, raw)| {
        for (grad, row) in grads.chunks_exact_mut(width).zip(raw.chunks_exact(width)) {
            let heads = grad[columns.clone()].chunks_exact_mut(w.len());
            for (grad, head) in heads.zip(row[columns.clone()].chunks_exact(w.len())) {
                let inverse = inverse_root(head, eps);
                let dot: f32 = head.iter().zip(&*grad).zip(w).map(|((x, g), w)| x * g * w).sum();
                let shared = dot * inverse * inverse * inverse / w.len() as f32;
                for ((grad, x), w) in grad.iter_mut().zip(head).zip(w) {
                    *grad = *grad * w * inverse - x * shared;
                }
            }
        }
    });
}

/// Cosines and sines of positions, `[tokens, rotary_dim / 2]` each.
pub(crate) struct Turns {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    head_dim: usize,
    rotary_dim: usize,
}

impl Turns {
    /// Pair `i` turns by `position · theta^(−2i / rotary_dim) / divisor`. Source: arXiv 2104.09864.
    #[expect(clippy::cast_precision_loss, reason = "positions and widths are far below 2^24")]
    pub(crate) fn new(positions: &[usize], head_dim: usize, theta: f32, turning: &Turning) -> Arc<Self> {
        let half = turning.divisors.len();
        let rate = |(pair, divisor): (usize, &f32)| theta.powf(-(pair as f32) / half as f32) / divisor;
        let rates: Vec<f32> = turning.divisors.iter().enumerate().map(rate).collect();
        let angles = positions.iter().flat_map(|position| rates.iter().map(move |rate| *position as f32 * rate));
        let turned = angles.map(|it| {
            let (sine, cosine) = it.sin_cos();
            (sine * turning.magnitude, cosine * turning.magnitude)
        });
        let (sines, cosines) = turned.unzip();
        Arc::new(Self { cosines, sines, head_dim, rotary_dim: 2 * half })
    }

    /// Turns the heads in some columns of `rows [tokens, width]`, in transformers' half-split order.
    ///
    /// `direction` is 1 for the forward turn and −1 for its transpose.
    pub(crate) fn apply(&self, rows: &mut [f32], width: usize, columns: Range<usize>, direction: f32) {
        let half = self.rotary_dim / 2;
        let turns = self.cosines.par_chunks(half * ROWS).zip(self.sines.par_chunks(half * ROWS));
        rows.par_chunks_mut(width * ROWS).zip(turns).for_each(|(rows, (cosines, sines))| {
            let turns = cosines.chunks_exact(half).zip(sines.chunks_exact(half));
            for (row, (cosines, sines)) in rows.chunks_exact_mut(width).zip(turns) {
                for head in row[columns.clone()].chunks_exact_mut(self.head_dim) {
                    let (low, high) = head[..self.rotary_dim].split_at_mut(half);
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

/// What a gate is multiplied by, and the two factors of its slope: `value = g · share`, `slope = first · second`.
struct Gated {
    share: f32,
    slope: (f32, f32),
}

fn silu(g: f32) -> Gated {
    let s = 1.0 / (1.0 + (-g).exp());
    Gated { share: s, slope: (s, 1.0 + g * (1.0 - s)) }
}

/// The approximation by a hyperbolic tangent. Source: arXiv 1606.08415.
fn gelu(g: f32) -> Gated {
    const ROOT: f32 = 0.797_884_6; // √(2/π)
    const CUBIC: f32 = 0.044_715;
    let t = (ROOT * (g + CUBIC * g * g * g)).tanh();
    let share = 0.5 * (1.0 + t);
    Gated { share, slope: (share + 0.5 * g * (1.0 - t * t) * ROOT * (1.0 + 3.0 * CUBIC * g * g), 1.0) }
}

/// `out = activation(gate) ∘ up` with `both [tokens, 2·width]` holding gate, then up, in each row.
pub(crate) fn gated(activation: Activation, both: &[f32], width: usize, out: &mut [f32]) {
    match activation {
        Activation::Silu => gated_by(silu, both, width, out),
        Activation::GeluTanh => gated_by(gelu, both, width, out),
    }
}

fn gated_by(gate_of: impl Fn(f32) -> Gated + Sync, both: &[f32], width: usize, out: &mut [f32]) {
    out.par_chunks_mut(width * ROWS).zip(both.par_chunks(2 * width * ROWS)).for_each(|(out, both)| {
        for (out, both) in out.chunks_exact_mut(width).zip(both.chunks_exact(2 * width)) {
            let (gate, up) = both.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate * gate_of(*gate).share * up;
            }
        }
    });
}

/// The gradient of [`gated`], in the layout of `both`, written over it.
pub(crate) fn gated_backward(activation: Activation, both: &mut [f32], width: usize, dy: &[f32]) {
    match activation {
        Activation::Silu => gated_backward_by(silu, both, width, dy),
        Activation::GeluTanh => gated_backward_by(gelu, both, width, dy),
    }
}

fn gated_backward_by(gate_of: impl Fn(f32) -> Gated + Sync, both: &mut [f32], width: usize, dy: &[f32]) {
    both.par_chunks_mut(2 * width * ROWS).zip(dy.par_chunks(width * ROWS)).for_each(|(both, dy)| {
        for (both, dy) in both.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
            let (gate, up) = both.split_at_mut(width);
            for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                let (g, Gated { share, slope }) = (*gate, gate_of(*gate));
                *gate = dy * *up * slope.0 * slope.1;
                *up = dy * g * share;
            }
        }
    });
}
