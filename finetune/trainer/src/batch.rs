//! Sequences one behind another, and what is asked at each token.

use std::ops::Range;

use crate::TokenLoss;

/// Token ids with the weight of predicting each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Weight of predicting the token at the same place; the first token is never predicted.
    pub weights: Vec<f32>,
}

impl Sequence {
    /// Appends tokens that all have one weight.
    pub fn extend(&mut self, tokens: &[u32], weight: f32) {
        self.tokens.extend_from_slice(tokens);
        self.weights.resize(self.tokens.len(), weight);
    }
}

/// What one forward pass reads. Sequences need no padding: attention keeps them apart.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[tokens]`, all sequences one behind another.
    pub tokens: Vec<u32>,
    /// The tokens of each sequence; they tile `0..tokens.len()`.
    pub sequences: Vec<Range<usize>>,
    /// Rows whose logits are needed, with the loss at each.
    pub losses: Vec<(usize, TokenLoss)>,
}

impl Batch {
    /// A batch of plain sequences, each token weighed as the sequence says.
    #[must_use]
    pub fn of(sequences: &[Sequence]) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            let weighed = sequence.weights.iter().enumerate().skip(1).filter(|(_, weight)| **weight != 0.0);
            let losses = weighed.map(|(place, weight)| {
                (place - 1, TokenLoss::Likelihood { target: sequence.tokens[place], weight: *weight })
            });
            batch.push(&sequence.tokens, losses.collect());
        }
        batch
    }

    /// Appends a sequence; the rows of `losses` count from its first token.
    pub fn push(&mut self, tokens: &[u32], losses: Vec<(usize, TokenLoss)>) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.sequences.push(start..self.tokens.len());
        self.losses.extend(losses.into_iter().map(|(row, loss)| (start + row, loss)));
    }

    /// Sum of the likelihood weights: what the loss of a plain batch is divided by.
    #[must_use]
    pub fn total_weight(&self) -> f32 {
        let weight = |(_, loss): &(usize, TokenLoss)| match loss {
            TokenLoss::Likelihood { weight, .. } => *weight,
            TokenLoss::Surrogate { .. } | TokenLoss::Confidence(_) => 0.0,
        };
        self.losses.iter().map(weight).sum()
    }

    /// Position of each token within its sequence.
    #[must_use]
    pub fn positions(&self) -> Vec<usize> {
        self.sequences.iter().flat_map(|it| 0..it.len()).collect()
    }
}
