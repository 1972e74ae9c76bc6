//! From logits to a token: greedy or seeded, and the log-probability of what was taken. Knows no sequences.

use fsq_kernels::exp_shifted;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::TokenId;

/// How tokens are chosen. The filters apply in the order of the fields, as in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most probable token (the lowest id of equals).
    pub temperature: f32,
    /// Only the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Only the smallest set of tokens whose probability reaches `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Of the request's own random stream, so that batching changes nothing.
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable token.
    #[must_use]
    pub fn greedy() -> Self {
        Self::temperature(0.0, 0)
    }

    /// The whole distribution at a temperature.
    #[must_use]
    pub fn temperature(temperature: f32, seed: u64) -> Self {
        Self { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed }
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Its natural-log probability under the untouched distribution: temperature 1, no filter.
    pub logprob: f32,
}

/// The state of one request's sampling: its options and its own random stream.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Reused between tokens: `[vocab]`
    weights: Vec<f32>,
    /// Reused between tokens: (logit, token)
    candidates: Vec<(f32, TokenId)>,
}

/// What the vectorized exponential gives for a weight that is really zero; nothing below it is ever drawn.
const IMPOSSIBLE: f32 = 2e-38;

impl Sampler {
    /// Starts the random stream at the seed.
    #[must_use]
    pub fn new(sampling: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Self { sampling, random, weights: Vec::new(), candidates: Vec::new() }
    }

    /// Takes one token from `logits` (`[vocab]`, not empty). A NaN counts as impossible.
    ///
    /// Exactly one number is drawn for each token unless the temperature is 0, so equal seeds and logits give
    /// equal tokens whatever else is in the batch.
    pub fn sample(&mut self, logits: &[f32]) -> Sampled {
        let best = most_probable(logits);
        let largest = logits[best as usize];
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        let total = exp_shifted(&mut self.weights, largest, 1.0);
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let token = if temperature <= 0.0 {
            best
        } else if top_k == 0 && top_p >= 1.0 && min_p <= 0.0 {
            self.draw(logits, largest, total)
        } else {
            self.draw_filtered(logits, largest)
        };
        Sampled { token, logprob: logits[token as usize] - largest - total.ln() }
    }

    /// Walks the cumulative distribution in order of token ids, without a sort. `weights` and `total` are those of
    /// temperature 1.
    fn draw(&mut self, logits: &[f32], largest: f32, mut total: f32) -> TokenId {
        let uniform: f64 = self.random.random();
        if self.sampling.temperature != 1.0 {
            self.weights.copy_from_slice(logits);
            total = exp_shifted(&mut self.weights, largest, 1.0 / self.sampling.temperature);
        }
        let mut left = uniform * f64::from(total);
        let mut last_possible = 0;
        for (weight, token) in self.weights.iter().zip(0..) {
            if *weight > IMPOSSIBLE {
                last_possible = token;
                left -= f64::from(*weight);
                if left < 0.0 {
                    break;
                }
            }
        }
        last_possible
    }

    /// Sorts, cuts, and walks what is left, most probable first.
    fn draw_filtered(&mut self, logits: &[f32], largest: f32) -> TokenId {
        let uniform: f64 = self.random.random();
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).filter(|it| !it.0.is_nan()).map(|(it, token)| (*it, token)));
        candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if top_k > 0 {
            candidates.truncate(top_k);
        }
        keep_top_p(candidates, top_p);
        // Relative to the most probable token, before the temperature: llama.cpp's order of filters.
        let floor = if min_p > 0.0 { largest + min_p.ln() } else { f32::NEG_INFINITY };
        candidates.retain(|it| it.0 >= floor);
        let weights = || candidates.iter().map(|it| f64::from((it.0 - largest) / temperature).exp());
        let mut left = uniform * weights().sum::<f64>();
        let mut token = candidates.first().map_or(0, |it| it.1);
        for (candidate, weight) in candidates.iter().zip(weights()) {
            token = candidate.1;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        token
    }
}

/// Cuts sorted candidates after the first whose cumulated probability reaches `top_p`.
fn keep_top_p(candidates: &mut Vec<(f32, TokenId)>, top_p: f32) {
    if top_p >= 1.0 || candidates.is_empty() {
        return;
    }
    let largest = candidates[0].0;
    let total: f64 = candidates.iter().map(|it| f64::from(it.0 - largest).exp()).sum();
    let mut sum = 0.0;
    let mut n_kept = 0;
    for candidate in candidates.iter() {
        sum += f64::from(candidate.0 - largest).exp();
        n_kept += 1;
        if sum >= f64::from(top_p) * total {
            break;
        }
    }
    candidates.truncate(n_kept);
}

/// The index of the largest logit; the lowest of equals; 0 when nothing compares.
fn most_probable(logits: &[f32]) -> TokenId {
    let mut best = 0;
    let mut largest = f32::NEG_INFINITY;
    for (logit, token) in logits.iter().zip(0..) {
        if *logit > largest {
            largest = *logit;
            best = token;
        }
    }
    best
}

/// The natural-log probability of every token: `[vocab]` to `[vocab]`. A NaN counts as impossible.
#[must_use]
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.get(most_probable(logits) as usize).copied().unwrap_or_default();
    let total = exp_shifted(&mut logits.to_vec(), largest, 1.0).ln();
    logits.iter().map(|it| it - largest - total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_id_of_equals_and_reports_its_log_probability() {
        let sampled = Sampler::new(Sampling::greedy()).sample(&[0.0, 2.0, 2.0, f32::NAN]);
        assert_eq!(sampled.token, 1);
        let expected = 2.0 - (1.0 + 2.0 * 2f32.exp()).ln();
        assert!((sampled.logprob - expected).abs() < 1e-6);
    }

    #[test]
    fn draws_follow_the_distribution_at_the_temperature() {
        let logits = [0.0, 1.0, -1.0, f32::NEG_INFINITY];
        let mut sampler = Sampler::new(Sampling::temperature(2.0, 7));
        let mut counts = [0usize; 4];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits).token as usize] += 1;
        }
        let weights: Vec<f64> = logits.iter().map(|it| f64::from(it / 2.0).exp()).collect();
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = weight / weights.iter().sum::<f64>();
            assert!((*count as f64 / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_tokens_and_filters_keep_what_they_say() {
        let logits: Vec<f32> = (0..50).map(|it| (it % 7) as f32).collect();
        let run = |sampling: Sampling| {
            let mut sampler = Sampler::new(sampling);
            (0..200).map(|_| sampler.sample(&logits).token).collect::<Vec<_>>()
        };
        let plain = Sampling::temperature(1.0, 3);
        assert_eq!(run(plain), run(plain));
        assert_ne!(run(plain), run(Sampling { seed: 4, ..plain }));
        assert!(run(Sampling { top_k: 1, ..plain }).iter().all(|it| *it == 6));
        assert!(run(Sampling { min_p: 0.9, ..plain }).iter().all(|it| it % 7 == 6));
        assert!(run(Sampling { top_p: 0.3, ..plain }).iter().all(|it| it % 7 == 6));
    }
}
