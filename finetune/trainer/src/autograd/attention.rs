//! Causal attention with grouped queries, over sequences that lie one behind another.
//!
//! Sequences never see each other, so a batch has no padding and no mask: each is a range of tokens.

use std::ops::Range;

use rayon::prelude::*;

use super::product;

/// The heads of one block, and how a row holds them: queries, then keys, then values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f32,
}

impl Heads {
    /// Width of the queries.
    pub(crate) fn query_width(self) -> usize {
        self.queries * self.dim
    }

    /// Width of the keys, and of the values.
    pub(crate) fn key_width(self) -> usize {
        self.keys * self.dim
    }

    /// Width of a row: queries, keys and values.
    pub(crate) fn width(self) -> usize {
        self.query_width() + 2 * self.key_width()
    }

    /// First columns of the query, key and value of one query head.
    fn columns(self, head: usize) -> [usize; 3] {
        let shared = head / (self.queries / self.keys) * self.dim;
        [head * self.dim, self.query_width() + shared, self.query_width() + self.key_width() + shared]
    }

    /// `softmax(scale · q · kᵀ) · v`: `qkv [tokens, width]` to `out [tokens, query_width]`.
    ///
    /// With a window a token attends to itself and to the tokens before it, so many in all.
    pub(crate) fn attend(self, sequences: &[Range<usize>], window: Option<usize>, qkv: &[f32], out: &mut [f32]) {
        let outputs = pieces(out, sequences, self.query_width());
        outputs.into_par_iter().zip(sequences.par_iter()).for_each(|(out, sequence)| {
            let qkv = &qkv[sequence.start * self.width()..sequence.end * self.width()];
            let mut weights = vec![0.0; sequence.len() * sequence.len()];
            for head in 0..self.queries {
                let [q, k, v] = self.columns(head);
                self.weights(&qkv[q..], &qkv[k..], sequence.len(), window, &mut weights);
                let sizes = (sequence.len(), self.dim, sequence.len());
                let (b, strides) = (&qkv[v..], (self.width(), 1));
                let out = &mut out[head * self.dim..];
                product(sizes, 1.0, (&weights, (sequence.len(), 1)), (b, strides), 0.0, (out, self.query_width()), 1);
            }
        });
    }

    /// The gradient of [`Heads::attend`] by `qkv`, in its layout; `dqkv` is zero at the start.
    pub(crate) fn attend_backward(
        self,
        sequences: &[Range<usize>],
        window: Option<usize>,
        qkv: &[f32],
        dy: &[f32],
        dqkv: &mut [f32],
    ) {
        let outputs = pieces(dqkv, sequences, self.width());
        outputs.into_par_iter().zip(sequences.par_iter()).for_each(|(dqkv, sequence)| {
            let qkv = &qkv[sequence.start * self.width()..sequence.end * self.width()];
            let dy = &dy[sequence.start * self.query_width()..sequence.end * self.query_width()];
            self.backward_sequence(window, qkv, dy, dqkv);
        });
    }

    fn backward_sequence(self, window: Option<usize>, qkv: &[f32], dy: &[f32], dqkv: &mut [f32]) {
        let (width, dim) = (self.width(), self.dim);
        let length = qkv.len() / width;
        let mut weights = vec![0.0; length * length];
        let mut scores = vec![0.0; length * length];
        for head in 0..self.queries {
            let [q, k, v] = self.columns(head);
            let dy = (&dy[head * dim..], (self.query_width(), 1));
            self.weights(&qkv[q..], &qkv[k..], length, window, &mut weights);
            // dv += weightsᵀ · dy.
            product((length, dim, length), 1.0, (&weights, (1, length)), dy, 1.0, (&mut dqkv[v..], width), 1);
            // d(weights) = dy · vᵀ, then back through the softmax.
            let values = (&qkv[v..], (1, width));
            product((length, length, dim), 1.0, dy, values, 0.0, (&mut scores, length), 1);
            for (row, weights) in scores.chunks_exact_mut(length).zip(weights.chunks_exact(length)) {
                let dot: f32 = row.iter().zip(weights).map(|(a, b)| a * b).sum();
                for (score, weight) in row.iter_mut().zip(weights) {
                    *score = weight * (*score - dot) * self.scale;
                }
            }
            let sizes = (length, dim, length);
            product(sizes, 1.0, (&scores, (length, 1)), (&qkv[k..], (width, 1)), 1.0, (&mut dqkv[q..], width), 1);
            product(sizes, 1.0, (&scores, (1, length)), (&qkv[q..], (width, 1)), 1.0, (&mut dqkv[k..], width), 1);
        }
    }

    /// Attention weights of one head: `[length, length]`, zero above the diagonal and before the window.
    fn weights(self, q: &[f32], k: &[f32], length: usize, window: Option<usize>, weights: &mut [f32]) {
        let width = self.width();
        let sizes = (length, length, self.dim);
        product(sizes, self.scale, (q, (width, 1)), (k, (1, width)), 0.0, (weights, length), 1);
        for (token, row) in weights.chunks_exact_mut(length).enumerate() {
            let first = window.map_or(0, |it| (token + 1).saturating_sub(it));
            let (seen, unseen) = row.split_at_mut(token + 1);
            let (forgotten, seen) = seen.split_at_mut(first);
            forgotten.fill(0.0);
            let largest = seen.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let mut sum = 0.0;
            for weight in seen.iter_mut() {
                *weight = (*weight - largest).exp();
                sum += *weight;
            }
            for weight in seen.iter_mut() {
                *weight /= sum;
            }
            unseen.fill(0.0);
        }
    }
}

/// Cuts a tensor into one piece for each sequence.
fn pieces<'a>(mut tensor: &'a mut [f32], sequences: &[Range<usize>], width: usize) -> Vec<&'a mut [f32]> {
    let mut pieces = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let (piece, rest) = tensor.split_at_mut(sequence.len() * width);
        pieces.push(piece);
        tensor = rest;
    }
    pieces
}
