//! What happens between products: norms, rotary positions, gates. One pass each over rows of floats.

use super::isa::{Isa, Kernel, LANES};
use crate::{RotaryHeads, RotaryPairs};

/// `out = x / √(mean(x²) + epsilon) · weight`, row by row.
pub(crate) struct RmsNorm<'a> {
    /// `[rows, width]`
    pub(crate) x: &'a [f32],
    /// `[width]`
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
    /// `[rows, width]`
    pub(crate) out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let width = self.weight.len();
        let (weights, weights_rest) = self.weight.as_chunks::<LANES>();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (lanes, rest) = x.as_chunks::<LANES>();
            let mut squares = isa.splat(0.0);
            for lanes in lanes {
                let value = isa.load(lanes);
                squares = isa.fma(value, value, squares);
            }
            let squares = isa.sum(squares) + rest.iter().map(|it| it * it).sum::<f32>();
            let scale = 1.0 / (squares / width as f32 + self.epsilon).sqrt();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for ((lanes, weight), out) in lanes.iter().zip(weights).zip(out) {
                let scaled = isa.mul(isa.load(lanes), isa.splat(scale));
                isa.store(isa.mul(scaled, isa.load(weight)), out);
            }
            for ((x, weight), out) in rest.iter().zip(weights_rest).zip(out_rest) {
                *out = x * scale * weight;
            }
        }
    }
}

/// `gate = gate / (1 + e^-gate) · up`
pub(crate) struct Swiglu<'a> {
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

impl Kernel for Swiglu<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let (gates, gates_rest) = self.gate.as_chunks_mut::<LANES>();
        let (ups, ups_rest) = self.up.as_chunks::<LANES>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            let value = isa.load(gate);
            let denominator = isa.add(isa.splat(1.0), isa.exp(isa.sub(isa.splat(0.0), value)));
            isa.store(isa.mul(isa.div(value, denominator), isa.load(up)), gate);
        }
        for (gate, up) in gates_rest.iter_mut().zip(ups_rest) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    }
}

/// GELU by a hyperbolic tangent; `(1 + tanh(z)) / 2` is `1 / (1 + e^-2z)`.
pub(crate) struct Gelu<'a> {
    pub(crate) x: &'a mut [f32],
}

impl Kernel for Gelu<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        // -2 · √(2/π)
        const SLOPE: f32 = -1.595_769;
        const CUBIC: f32 = 0.044_715;
        let (lanes, rest) = self.x.as_chunks_mut::<LANES>();
        for lanes in lanes {
            let x = isa.load(lanes);
            let bend = isa.fma(isa.mul(x, x), isa.splat(CUBIC), isa.splat(1.0));
            let exponent = isa.mul(isa.mul(x, bend), isa.splat(SLOPE));
            isa.store(isa.div(x, isa.add(isa.splat(1.0), isa.exp(exponent))), lanes);
        }
        for x in rest {
            *x /= 1.0 + (SLOPE * *x * (CUBIC * *x * *x + 1.0)).exp();
        }
    }
}

/// `into += x`
pub(crate) struct Add<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) into: &'a mut [f32],
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let (intos, intos_rest) = self.into.as_chunks_mut::<LANES>();
        let (lanes, rest) = self.x.as_chunks::<LANES>();
        for (into, x) in intos.iter_mut().zip(lanes) {
            isa.store(isa.add(isa.load(into), isa.load(x)), into);
        }
        for (into, x) in intos_rest.iter_mut().zip(rest) {
            *into += x;
        }
    }
}

/// Turns every pair of every head by its token's angle, in place.
pub(crate) struct Rope<'a> {
    /// `[tokens, heads, head_dim]`
    pub(crate) x: &'a mut [f32],
    /// `[tokens, rotary_dim]`: the cosines of all pairs, then the sines
    pub(crate) angles: &'a [f32],
    pub(crate) heads: RotaryHeads,
}

impl Kernel for Rope<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self, _isa: S) {
        let RotaryHeads { n_heads, head_dim, rotary_dim, pairs } = self.heads;
        let half = rotary_dim / 2;
        let tokens = self.x.chunks_exact_mut(n_heads * head_dim);
        for (token, angles) in tokens.zip(self.angles.chunks_exact(rotary_dim)) {
            let (cosines, sines) = angles.split_at(half);
            for head in token.chunks_exact_mut(head_dim) {
                let head = &mut head[..rotary_dim];
                match pairs {
                    RotaryPairs::Adjacent => {
                        for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
                            *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
                        }
                    }
                    RotaryPairs::Halves => {
                        let (firsts, seconds) = head.split_at_mut(half);
                        let pairs = firsts.iter_mut().zip(seconds).zip(cosines).zip(sines);
                        for (((first, second), cos), sin) in pairs {
                            (*first, *second) = (*first * cos - *second * sin, *first * sin + *second * cos);
                        }
                    }
                }
            }
        }
    }
}

/// `x = e^((x - shift) · factor)` in place; the sum comes back. What is below -87 or NaN becomes about 1e-38.
pub(crate) struct ExpShifted<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) shift: f32,
    pub(crate) factor: f32,
}

impl Kernel for ExpShifted<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> f32 {
        let (lanes, rest) = self.x.as_chunks_mut::<LANES>();
        let (shift, factor) = (isa.splat(self.shift), isa.splat(self.factor));
        let mut sums = isa.splat(0.0);
        for lanes in lanes {
            let value = isa.exp(isa.mul(isa.sub(isa.load(lanes), shift), factor));
            sums = isa.add(sums, value);
            isa.store(value, lanes);
        }
        if !rest.is_empty() {
            let mut padded = [f32::NEG_INFINITY; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            let value = isa.exp(isa.mul(isa.sub(isa.load(&padded), shift), factor));
            isa.store(value, &mut padded);
            rest.copy_from_slice(&padded[..rest.len()]);
            // What fills the lanes up weighs about 1e-38 each.
            sums = isa.add(sums, value);
        }
        isa.sum(sums)
    }
}
