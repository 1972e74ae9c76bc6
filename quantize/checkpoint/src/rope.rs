//! Rotary positions beyond the plain ones: how each form of scaling changes the pairs' frequencies.
//!
//! Sources: transformers `modeling_rope_utils.py`, ggml `ggml_rope_cache_init` and `rope_yarn`. Knows no heads.

use std::f64::consts::PI;

/// YaRN turns pairs that complete more rotations than this within the original context at their own frequency.
pub const YARN_BETA_FAST: f32 = 32.0;
/// YaRN slows pairs that complete fewer rotations than this by the whole factor.
pub const YARN_BETA_SLOW: f32 = 1.0;

/// How rotary positions reach further than they were trained for.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all. Dynamic NTK scaling is none up to the context in `config.json`, and no sequence goes beyond.
    None,
    /// Every angle is divided by the factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Every pair's angle is divided by its own factor, as Llama 3 scales: `rope_freqs.weight`.
    PerPair {
        /// `[rotary_dim / 2]`
        factors: Vec<f32>,
    },
    /// YaRN (arXiv 2309.00071): slow pairs are interpolated, fast ones are not, and attention is sharpened.
    Yarn {
        /// What slow angles are divided by.
        factor: f32,
        /// Context before the scaling, in tokens.
        original_context: usize,
        /// See [`YARN_BETA_FAST`].
        beta_fast: f32,
        /// See [`YARN_BETA_SLOW`].
        beta_slow: f32,
        /// What cosines and sines are multiplied by.
        magnitude: f32,
    },
    /// LongRoPE (arXiv 2402.13753): factors for each pair, one set up to the original context, one beyond.
    LongRope {
        /// Context before the scaling, in tokens.
        original_context: usize,
        /// `[rotary_dim / 2]`, for contexts up to the original one.
        short: Vec<f32>,
        /// `[rotary_dim / 2]`, for longer ones.
        long: Vec<f32>,
        /// What cosines and sines are multiplied by.
        magnitude: f32,
    },
}

/// What scaling does to the angles at one context length.
#[derive(Clone, Debug, PartialEq)]
pub struct Turning {
    /// `[rotary_dim / 2]`: what each pair's angle is divided by.
    pub divisors: Vec<f32>,
    /// What cosines and sines are multiplied by.
    pub magnitude: f32,
}

impl RopeScaling {
    /// For sequences of at most `context` tokens. LongRoPE's choice falls here once, as llama.cpp's does: a key that
    /// is in the cache cannot be turned again when its sequence grows.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "widths of heads and counts of tokens are far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "angles are computed in f32")]
    pub fn turning(&self, theta: f32, rotary_dim: usize, context: usize) -> Turning {
        let pairs = rotary_dim / 2;
        let (divisors, magnitude) = match self {
            Self::None => (vec![1.0; pairs], 1.0),
            Self::Linear { factor } => (vec![*factor; pairs], 1.0),
            Self::PerPair { factors } => (factors.clone(), 1.0),
            Self::LongRope { original_context, short, long, magnitude } => {
                (if context > *original_context { long.clone() } else { short.clone() }, *magnitude)
            }
            Self::Yarn { factor, original_context, beta_fast, beta_slow, magnitude } => {
                // The pair that completes so many rotations within the original context.
                let pair_of = |rotations: f32| {
                    let waves = *original_context as f64 / (f64::from(rotations) * 2.0 * PI);
                    rotary_dim as f64 * waves.ln() / (2.0 * f64::from(theta).ln())
                };
                let low = pair_of(*beta_fast).floor().max(0.0);
                let high = pair_of(*beta_slow).ceil().min(rotary_dim as f64 - 1.0);
                let divisor = |pair: usize| {
                    let slowed = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    1.0 / (slowed / f64::from(*factor) + (1.0 - slowed))
                };
                ((0..pairs).map(|it| divisor(it) as f32).collect(), *magnitude)
            }
        };
        Turning { divisors, magnitude }
    }

    /// Llama 3's: long waves are slowed by the factor, short ones not, those between in part.
    ///
    /// Source: transformers `_compute_llama3_parameters`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "widths of heads and counts of tokens are far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "GGUF files hold these factors in f32")]
    pub fn llama3(
        theta: f32,
        rotary_dim: usize,
        factor: f32,
        (low, high): (f32, f32),
        original_context: usize,
    ) -> Self {
        let (factor, low, high) = (f64::from(factor), f64::from(low), f64::from(high));
        let original = original_context as f64;
        let of_pair = |pair: usize| {
            let wave = 2.0 * PI * f64::from(theta).powf(2.0 * pair as f64 / rotary_dim as f64);
            if wave < original / high {
                1.0
            } else if wave > original / low {
                factor
            } else {
                let smooth = (original / wave - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Self::PerPair { factors: (0..rotary_dim / 2).map(|it| of_pair(it) as f32).collect() }
    }

    /// What YaRN multiplies cosines and sines by when nothing else is said.
    #[must_use]
    pub fn yarn_magnitude(factor: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
    }

    /// What LongRoPE multiplies cosines and sines by when nothing else is said.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "GGUF files hold it in f32")]
    pub fn longrope_magnitude(factor: f64, original_context: usize) -> f32 {
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() as f32 }
    }
}
