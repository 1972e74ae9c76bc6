//! The training losses, fused with the softmax over the vocabulary.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{Op, Weights};

/// Logits that are held at once where the output matrix is frozen: of a large vocabulary, those of a whole batch take
/// more memory than the policy.
const LOGITS_MAX: usize = 1 << 24;

/// What the policy is asked for at one token.
#[derive(Clone, Debug)]
pub enum TokenLoss {
    /// `−weight · log p(target)`.
    Likelihood {
        /// The next token.
        target: u32,
        /// Its weight; 0 leaves it out.
        weight: f32,
    },
    /// The clipped surrogate `−min(ρ·A, clip(ρ, 1 − low, 1 + high)·A)` with `ρ = p(target) / p_sampled(target)`.
    Surrogate {
        /// The sampled token.
        target: u32,
        /// Its log-probability when it was sampled.
        sampled_log_probability: f32,
        /// The advantage of its span, times the normaliser.
        advantage: f32,
        /// The clip range, `(low, high)`.
        clip: (f32, f32),
    },
    /// The Brier score of the stated probability, at the place of the confidence.
    Confidence(Confidence),
}

/// `weight · [(m − outcome)² + (1 − Σ_k p(k))]` with `m` the mean of the 21 grid answers `k` under the policy's own
/// distribution: the number that is read as the stated probability, scored by the Brier rule.
///
/// ConfTuner (arXiv 2508.18847) scores each answer instead, which also rewards certainty about a single answer and
/// collapses the distribution; the mean is calibrated without that. The last term keeps mass on the grid.
#[derive(Clone, Debug)]
pub struct Confidence {
    /// First token of each grid answer, with its value in 0..=1.
    pub levels: std::sync::Arc<Vec<(u32, f32)>>,
    /// 1 for success.
    pub outcome: f32,
    /// Weight of this token.
    pub weight: f32,
}

/// Sum of the losses of some rows. Input: `logits [rows, vocab]`; output: `[1]`.
pub(crate) struct SpanLoss {
    pub(crate) losses: Vec<TokenLoss>,
    pub(crate) vocab: usize,
}

/// Probabilities of a row of logits.
fn softmax(row: &[f32]) -> Vec<f32> {
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut probabilities: Vec<f32> = row.iter().map(|it| (it - largest).exp()).collect();
    let sum: f32 = probabilities.iter().sum();
    for probability in &mut probabilities {
        *probability /= sum;
    }
    probabilities
}

/// `log p(target)` of a row of logits.
pub(crate) fn log_softmax_at(row: &[f32], target: u32) -> f32 {
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let sum: f32 = row.iter().map(|it| (it - largest).exp()).sum();
    row[target as usize] - largest - sum.ln()
}

/// Below this mass on the grid its mean says nothing and would have an unbounded gradient.
const MASS_MIN: f32 = 1e-3;

impl Confidence {
    /// The mean of the grid answers, and the mass that lies on them.
    fn mean_and_mass(&self, probabilities: &[f32]) -> (f32, f32) {
        let levels = self.levels.iter().map(|(token, value)| (probabilities[*token as usize], *value));
        let (sum, mass) = levels.fold((0.0, 0.0), |(sum, mass), (p, value)| (sum + p * value, mass + p));
        (sum / mass.max(MASS_MIN), mass)
    }
}

impl TokenLoss {
    fn value(&self, row: &[f32]) -> f32 {
        match self {
            Self::Likelihood { weight: 0.0, .. } => 0.0,
            Self::Likelihood { target, weight } => -weight * log_softmax_at(row, *target),
            Self::Surrogate { target, sampled_log_probability, advantage, clip } => {
                let ratio = (log_softmax_at(row, *target) - sampled_log_probability).exp();
                -(ratio * advantage).min(ratio.clamp(1.0 - clip.0, 1.0 + clip.1) * advantage)
            }
            Self::Confidence(confidence) => {
                let (mean, mass) = confidence.mean_and_mass(&softmax(row));
                confidence.weight * ((mean - confidence.outcome).powi(2) + 1.0 - mass)
            }
        }
    }

    /// Adds `scale ·` the gradient by the logits to `grad`.
    fn gradient(&self, row: &[f32], scale: f32, grad: &mut [f32]) {
        match self {
            Self::Likelihood { weight: 0.0, .. } => {}
            Self::Likelihood { target, weight } => log_gradient(row, *target, -weight * scale, grad),
            Self::Surrogate { target, sampled_log_probability, advantage, clip } => {
                let ratio = (log_softmax_at(row, *target) - sampled_log_probability).exp();
                let clipped = ratio.clamp(1.0 - clip.0, 1.0 + clip.1) * advantage < ratio * advantage;
                if !clipped {
                    log_gradient(row, *target, -advantage * ratio * scale, grad);
                }
            }
            Self::Confidence(confidence) => {
                // dm/dx_j = p_j·(v_j − m) / mass on the grid, 0 off it; d(mass)/dx_j = p_j·([j on the grid] − mass).
                let probabilities = softmax(row);
                let (mean, mass) = confidence.mean_and_mass(&probabilities);
                let scale = scale * confidence.weight;
                for (grad, probability) in grad.iter_mut().zip(&probabilities) {
                    *grad += scale * probability * mass;
                }
                let missed = 2.0 * (mean - confidence.outcome) / mass.max(MASS_MIN);
                for (token, value) in confidence.levels.iter() {
                    let token = *token as usize;
                    grad[token] += scale * probabilities[token] * (missed * (value - mean) - 1.0);
                }
            }
        }
    }
}

/// Adds `factor · d log p(target) / d logits`.
fn log_gradient(row: &[f32], target: u32, factor: f32, grad: &mut [f32]) {
    for (grad, probability) in grad.iter_mut().zip(softmax(row)) {
        *grad -= factor * probability;
    }
    grad[target as usize] += factor;
}

impl Op for SpanLoss {
    const NAME: &'static str = "span_loss";

    fn shape(&self, _: &[&[usize]]) -> Vec<usize> {
        vec![1]
    }

    fn forward(&self, values: &[&[f32]], output: &mut [f32]) {
        #[expect(clippy::cast_possible_truncation, reason = "a loss is reported at f32")]
        let sum = total(values[0], &self.losses, self.vocab) as f32;
        output[0] = sum;
    }

    fn backward(&self, values: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        let rows = values[0].par_chunks_exact(self.vocab).zip(&self.losses);
        let grads = grads[0].par_chunks_exact_mut(self.vocab);
        rows.zip(grads).for_each(|((row, loss), out)| loss.gradient(row, grad[0], out));
    }
}

/// The output matrix, frozen, and the losses behind it: `Σ loss(x · Wᵀ)`. Input: `x [rows, width]`; output: `[1]`.
///
/// Logits are made some rows at a time and their gradient is taken at once, so that they are never all there.
pub(crate) struct FrozenLoss {
    /// `[vocab, width]`.
    pub(crate) weight: std::sync::Arc<Weights>,
    pub(crate) width: usize,
    /// What no logit exceeds; see [`capped`].
    pub(crate) cap: Option<f32>,
    pub(crate) span: SpanLoss,
    pub(crate) threads: usize,
    /// The gradient by `x`, from the forward for the backward.
    pub(crate) saved: Mutex<Option<Vec<f32>>>,
}

/// `cap · tanh(logit / cap)` of each logit, in place.
pub(crate) fn capped(logits: &mut [f32], cap: f32) {
    logits.par_iter_mut().for_each(|it| *it = cap * (*it / cap).tanh());
}

impl FrozenLoss {
    /// The sum of the losses; their gradient by `x` is written to `dx`.
    fn compute(&self, x: &[f32], dx: &mut [f32]) -> f32 {
        let (vocab, width) = (self.span.vocab, self.width);
        let rows_max = (LOGITS_MAX / vocab).max(1);
        let mut sum = 0.0f64;
        let pieces = x.chunks(rows_max * width).zip(dx.chunks_mut(rows_max * width));
        for ((x, dx), losses) in pieces.zip(self.span.losses.chunks(rows_max)) {
            let mut logits = self.weight.times(x, vocab, self.threads);
            if let Some(cap) = self.cap {
                capped(&mut logits, cap);
            }
            sum += total(&logits, losses, vocab);
            let mut grads = vec![0.0; logits.len()];
            let each = logits.par_chunks_exact(vocab).zip(losses).zip(grads.par_chunks_exact_mut(vocab));
            each.for_each(|((row, loss), out)| loss.gradient(row, 1.0, out));
            if let Some(cap) = self.cap {
                // d(cap · tanh(z / cap)) / dz = 1 − tanh².
                let slopes = logits.par_iter().map(|it| 1.0 - (it / cap).powi(2));
                grads.par_iter_mut().zip(slopes).for_each(|(grad, slope)| *grad *= slope);
            }
            drop(logits);
            self.weight.times_back(&grads, vocab, dx, self.threads);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a loss is reported at f32")]
        let sum = sum as f32;
        sum
    }
}

/// Sum of the losses of some rows of logits: in order and in f64, the same on any number of threads.
fn total(logits: &[f32], losses: &[TokenLoss], vocab: usize) -> f64 {
    let rows = logits.par_chunks_exact(vocab).zip(losses);
    let losses: Vec<f32> = rows.map(|(row, loss)| loss.value(row)).collect();
    losses.iter().map(|it| f64::from(*it)).sum()
}

impl Op for FrozenLoss {
    const NAME: &'static str = "frozen_loss";

    fn shape(&self, _: &[&[usize]]) -> Vec<usize> {
        vec![1]
    }

    fn forward(&self, values: &[&[f32]], output: &mut [f32]) {
        let mut dx = vec![0.0; values[0].len()];
        output[0] = self.compute(values[0], &mut dx);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(dx);
    }

    fn backward(&self, values: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        let [dx] = grads else { return };
        match self.saved.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(saved) => *dx = saved,
            None => drop(self.compute(values[0], dx)),
        }
        dx.iter_mut().for_each(|it| *it *= grad[0]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::check::{gradients, noise};
    use super::*;

    #[test]
    fn backward_equals_differences() {
        let levels = Arc::new(vec![(1, 0.0), (2, 0.5), (4, 1.0)]);
        let confidence = |outcome| Confidence { levels: Arc::clone(&levels), outcome, weight: 0.7 };
        let row = noise(6, 7, 1.0);
        let sampled_log_probability = log_softmax_at(&row, 3) - 0.05;
        let losses = vec![
            TokenLoss::Likelihood { target: 2, weight: 0.3 },
            TokenLoss::Likelihood { target: 0, weight: 0.0 },
            TokenLoss::Surrogate { target: 3, sampled_log_probability, advantage: -0.4, clip: (0.2, 0.28) },
            TokenLoss::Confidence(confidence(1.0)),
            TokenLoss::Confidence(confidence(0.0)),
        ];
        let mut logits = noise(30, 1, 1.0);
        logits[12..18].copy_from_slice(&row);
        let op = SpanLoss { losses, vocab: 6 };
        gradients(&op, &[(vec![5, 6], logits)], &[0], 3e-3);
    }

    #[test]
    fn a_ratio_beyond_the_clip_gets_no_gradient() {
        let row = noise(4, 1, 1.0);
        let sampled_log_probability = log_softmax_at(&row, 1) - 0.5;
        let clip = (0.2, 0.28);
        let gradient = |advantage| {
            let mut grad = vec![0.0; 4];
            let loss = TokenLoss::Surrogate { target: 1, sampled_log_probability, advantage, clip };
            loss.gradient(&row, 1.0, &mut grad);
            grad
        };
        assert_eq!(gradient(1.0), vec![0.0; 4], "the ratio is 1.65 already: no push further up");
        assert_ne!(gradient(-1.0), vec![0.0; 4], "but it may come down");
    }

    #[test]
    fn a_frozen_output_matrix_backward_equals_differences() {
        let losses: Vec<TokenLoss> =
            (0..3).map(|it| TokenLoss::Likelihood { target: it, weight: 0.5 + it as f32 }).collect();
        let mut found = Vec::new();
        for cap in [None, Some(1.5)] {
            let op = FrozenLoss {
                weight: Arc::new(Weights::F32(noise(30, 2, 1.0))),
                width: 5,
                cap,
                span: SpanLoss { losses: losses.clone(), vocab: 6 },
                threads: 1,
                saved: Mutex::new(None),
            };
            let x = noise(15, 1, 1.0);
            gradients(&op, &[(vec![3, 5], x.clone())], &[0], 3e-3);
            let mut output = [0.0];
            op.forward(&[&x], &mut output);
            found.push(output);
        }
        assert_ne!(found[0], found[1]);
    }
}
