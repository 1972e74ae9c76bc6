//! The angles of rotary positions, computed once for each position that is reached. Knows no heads' contents.

use fsq_gguf::Gguf;

use crate::ModelError;

/// The tensor that scales frequencies: Llama 3's way to long contexts.
const FACTORS: &str = "rope_freqs.weight";

/// Cosines and sines by position.
#[derive(Debug)]
pub(crate) struct RotaryTable {
    head_dim: usize,
    /// Ratio of neighbouring frequencies.
    step: f32,
    /// `[head_dim / 2]`: what each pair's angle is divided by (`rope_freqs.weight`), if the file scales them.
    factors: Option<Vec<f32>>,
    /// `[position, head_dim]`: the cosines of all pairs, then the sines
    angles: Vec<f32>,
}

impl RotaryTable {
    /// For heads of a width, at a base of the frequencies, with the factors of a file if it has them.
    ///
    /// # Errors
    /// [`ModelError::TensorShape`] when the factors are not one for each pair, [`ModelError::TensorValue`] when one
    /// cannot divide an angle.
    pub(crate) fn read(gguf: &Gguf, head_dim: usize, theta: f32) -> Result<Self, ModelError> {
        let view = gguf.tensor(FACTORS);
        if let Some(view) = view.filter(|it| it.shape != [head_dim / 2]) {
            let found = view.shape.iter().rev().copied().collect();
            return Err(ModelError::TensorShape { name: FACTORS.into(), expected: vec![head_dim / 2], found });
        }
        let factors = view.map(|it| it.to_f32());
        if let Some(odd) = factors.iter().flatten().find(|it| !(it.is_finite() && **it > 0.0)) {
            let expected = "finite numbers above 0".into();
            return Err(ModelError::TensorValue { name: FACTORS.into(), expected, found: odd.to_string() });
        }
        Ok(Self { head_dim, step: theta.powf(-2.0 / head_dim as f32), factors, angles: Vec::new() })
    }

    /// `[head_dim]`: cosines, then sines, at a position.
    pub(crate) fn at(&mut self, position: usize) -> &[f32] {
        for position in self.angles.len() / self.head_dim..=position {
            self.push(position);
        }
        &self.angles[position * self.head_dim..(position + 1) * self.head_dim]
    }

    /// The frequencies are multiplied up in f32 as llama.cpp does (`ggml-cpu/ops.cpp`, `ggml_rope_cache_init`): at
    /// long contexts the roundings are part of what the file's numbers were tested with.
    fn push(&mut self, position: usize) {
        let half = self.head_dim / 2;
        let mut angle = position as f32;
        let start = self.angles.len();
        self.angles.resize(start + self.head_dim, 0.0);
        for pair in 0..half {
            let factor = self.factors.as_ref().map_or(1.0, |it| it[pair]);
            let (sine, cosine) = f64::from(angle / factor).sin_cos();
            self.angles[start + pair] = cosine as f32;
            self.angles[start + half + pair] = sine as f32;
            angle *= self.step;
        }
    }
}
