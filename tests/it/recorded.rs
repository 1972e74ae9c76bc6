//! Tensors that other programs recorded, and how far ours are from them.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// Logits of some tokens.
pub(crate) struct Recorded {
    /// `[n]`.
    pub(crate) tokens: Vec<u32>,
    /// `[n, vocabulary]`.
    pub(crate) logits: Vec<f32>,
}

impl Recorded {
    pub(crate) fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tokens = file.tensor("tokens").unwrap();
        assert_eq!(tokens.dtype(), Dtype::I32);
        let token = |it: &[u8]| u32::from_le_bytes(it.try_into().unwrap());
        Self { tokens: tokens.data().chunks_exact(4).map(token).collect(), logits: tensors(path)["logits"].clone() }
    }

    /// Tokens as the command reads them.
    pub(crate) fn token_list(&self) -> String {
        self.tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[cfg(feature = "train")]
    pub(crate) fn largest_difference(&self, found: &[f32]) -> f32 {
        assert_eq!(found.len(), self.logits.len());
        found.iter().zip(&self.logits).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
    }
}

/// Every f32 tensor of a file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = file.tensors().into_iter().filter(|(_, it)| it.dtype() == Dtype::F32);
    let value = |it: &[u8]| f32::from_le_bytes(it.try_into().unwrap());
    floats.map(|(name, it)| (name, it.data().chunks_exact(4).map(value).collect())).collect()
}

/// `‖found − expected‖ / ‖expected‖`.
pub(crate) fn relative_distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |it: f64| it * it;
    let distance: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|it| square(f64::from(*it))).sum();
    (distance / norm).sqrt()
}
