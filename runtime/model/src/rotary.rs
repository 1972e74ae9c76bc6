//! The angles of rotary positions, computed once for each position that is reached. Knows no heads' contents.

use fsq_checkpoint::Turning;

/// Cosines and sines by position.
#[derive(Debug)]
pub(crate) struct RotaryTable {
    /// Numbers of each head that are turned.
    rotary_dim: usize,
    /// Ratio of neighbouring frequencies.
    step: f32,
    turning: Turning,
    /// `[position, rotary_dim]`: the cosines of all pairs, then the sines
    angles: Vec<f32>,
}

impl RotaryTable {
    /// For a base of the frequencies, turned as scaling has it: one divisor for each pair.
    pub(crate) fn new(theta: f32, turning: Turning) -> Self {
        let rotary_dim = turning.divisors.len() * 2;
        Self { rotary_dim, step: theta.powf(-2.0 / rotary_dim as f32), turning, angles: Vec::new() }
    }

    /// `[rotary_dim]`: cosines, then sines, at a position.
    pub(crate) fn at(&mut self, position: usize) -> &[f32] {
        for position in self.angles.len() / self.rotary_dim..=position {
            self.push(position);
        }
        &self.angles[position * self.rotary_dim..(position + 1) * self.rotary_dim]
    }

    /// The frequencies are multiplied up in f32 as llama.cpp does (`ggml-cpu/ops.cpp`, `ggml_rope_cache_init`): at
    /// long contexts the roundings are part of what the file's numbers were tested with.
    fn push(&mut self, position: usize) {
        let half = self.rotary_dim / 2;
        let mut angle = position as f32;
        let start = self.angles.len();
        self.angles.resize(start + self.rotary_dim, 0.0);
        for (pair, divisor) in self.turning.divisors.iter().enumerate() {
            let (sine, cosine) = f64::from(angle / divisor).sin_cos();
            self.angles[start + pair] = cosine as f32 * self.turning.magnitude;
            self.angles[start + half + pair] = sine as f32 * self.turning.magnitude;
            angle *= self.step;
        }
    }
}
