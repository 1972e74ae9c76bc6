//! How far the next-token distributions of two policies are apart, as llama-perplexity's `--kl-divergence` defines it.
//!
//! Source of the definitions: llama.cpp, `tools/perplexity/perplexity.cpp`. That program reads the reference from 16
//! bits and leaves out tokens that it gives less than e^-16; here both are taken as they are. Knows no tokens' texts
//! and nothing of how the logits came about.

use serde::Serialize;

use crate::intervals::quantile;

/// Below so many tokens an error of a mean is not defined, as in llama-perplexity.
const ERROR_TOKENS_MIN: usize = 11;

/// One place in a text: what two policies expect to come next, and how probable each holds the token that does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenDivergence {
    /// Kullback-Leibler divergence of the candidate from the reference, `Σ p (ln p - ln q)`, in nats.
    nats: f64,
    /// `-ln p` of the token that comes next, under the reference.
    reference_nll: f64,
    /// Likewise under the candidate.
    candidate_nll: f64,
    /// Whether both hold the same token most probable.
    same_top: bool,
}

impl TokenDivergence {
    /// Compares two rows of logits, both `[vocab]`, where token `next` comes next.
    ///
    /// `None` when the rows differ in length, `next` lies outside, or a logit is not finite.
    pub fn of(reference: &[f32], candidate: &[f32], next: usize) -> Option<Self> {
        if reference.len() != candidate.len() || next >= reference.len() {
            return None;
        }
        let (p, q) = (LogSoftmax::of(reference)?, LogSoftmax::of(candidate)?);
        let term = |(of_p, of_q): (&f32, &f32)| {
            let (ln_p, ln_q) = (p.at(*of_p), q.at(*of_q));
            ln_p.exp() * (ln_p - ln_q)
        };
        Some(Self {
            // The true value is never negative; a sum of roundings may be.
            nats: reference.iter().zip(candidate).map(term).sum::<f64>().max(0.0),
            reference_nll: -p.at(reference[next]),
            candidate_nll: -q.at(candidate[next]),
            same_top: p.top == q.top,
        })
    }
}

/// What turns a row of logits into log-probabilities, and its most probable token.
struct LogSoftmax {
    /// `ln Σ exp(logit)`
    total: f64,
    /// The first of equals.
    top: usize,
}

impl LogSoftmax {
    fn of(logits: &[f32]) -> Option<Self> {
        let mut top = 0;
        for (index, logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return None;
            }
            if *logit > logits[top] {
                top = index;
            }
        }
        let largest = f64::from(*logits.get(top)?);
        let sum: f64 = logits.iter().map(|it| (f64::from(*it) - largest).exp()).sum();
        Some(Self { total: largest + sum.ln(), top })
    }

    fn at(&self, logit: f32) -> f64 {
        f64::from(logit) - self.total
    }
}

/// All places of a text together. An error is one standard error, tokens taken as independent; `None`: not defined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Tokens compared.
    pub n_tokens: usize,
    /// Mean divergence of the candidate from the reference, in nats.
    pub kl_mean: f64,
    /// Its error.
    pub kl_mean_error: Option<f64>,
    /// Percentiles of the divergence, linear between neighbours, in nats.
    pub kl_median: f64,
    /// 90 %.
    pub kl_p90: f64,
    /// 95 %.
    pub kl_p95: f64,
    /// 99 %.
    pub kl_p99: f64,
    /// 99.9 %.
    pub kl_p999: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of places where both hold the same token most probable.
    pub top1_agreement: f64,
    /// Its error.
    pub top1_agreement_error: Option<f64>,
    /// `exp` of the mean negative log-probability of the text under the reference.
    pub perplexity_reference: f64,
    /// Its error.
    pub perplexity_reference_error: Option<f64>,
    /// Likewise under the candidate.
    pub perplexity_candidate: f64,
    /// Its error.
    pub perplexity_candidate_error: Option<f64>,
    /// Perplexity of the candidate over that of the reference.
    pub perplexity_ratio: f64,
    /// Its error, which knows that both read the same text.
    pub perplexity_ratio_error: Option<f64>,
    /// Pearson correlation of both mean negative log-probabilities.
    pub log_perplexity_correlation: Option<f64>,
    /// Change of the probability of the text's own tokens, candidate minus reference.
    pub delta_p: ProbabilityChange,
}

impl Divergence {
    /// All statistics of these places; `None` where there are none.
    pub fn of(tokens: &[TokenDivergence]) -> Option<Self> {
        if tokens.is_empty() {
            return None;
        }
        let column = |of: fn(&TokenDivergence) -> f64| tokens.iter().map(of).collect::<Vec<f64>>();
        let mut nats = column(|it| it.nats);
        let (reference, candidate) = (column(|it| it.reference_nll), column(|it| it.candidate_nll));
        let (kl_mean, kl_mean_error) = mean(&nats);
        let (reference_mean, reference_error) = mean(&reference);
        let (candidate_mean, candidate_error) = mean(&candidate);
        let shared = covariance(&reference, &candidate);
        let (perplexity_reference, perplexity_candidate) = (reference_mean.exp(), candidate_mean.exp());
        let perplexity_ratio = (candidate_mean - reference_mean).exp();
        let errors = || Some((reference_error?, candidate_error?, shared?));
        let ratio_error =
            errors().map(|(of_r, of_c, shared)| (of_r * of_r + of_c * of_c - 2.0 * shared).max(0.0).sqrt());
        let correlation = errors().map(|(of_r, of_c, shared)| shared / (of_r * of_c)).filter(|it| it.is_finite());
        let n_same = tokens.iter().filter(|it| it.same_top).count();
        let top1_agreement = n_same as f64 / tokens.len() as f64;
        nats.sort_unstable_by(f64::total_cmp);
        let kl = |share: f64| quantile(&nats, share);
        Some(Self {
            n_tokens: tokens.len(),
            kl_mean,
            kl_mean_error,
            kl_median: kl(0.5),
            kl_p90: kl(0.9),
            kl_p95: kl(0.95),
            kl_p99: kl(0.99),
            kl_p999: kl(0.999),
            kl_max: kl(1.0),
            top1_agreement,
            top1_agreement_error: share_error(top1_agreement, tokens.len()),
            perplexity_reference,
            perplexity_reference_error: reference_error.map(|it| it * perplexity_reference),
            perplexity_candidate,
            perplexity_candidate_error: candidate_error.map(|it| it * perplexity_candidate),
            perplexity_ratio,
            perplexity_ratio_error: ratio_error.map(|it| it * perplexity_ratio),
            log_perplexity_correlation: correlation,
            delta_p: ProbabilityChange::of(column(|it| (-it.candidate_nll).exp() - (-it.reference_nll).exp())),
        })
    }
}

/// How the probability of the tokens that really come next has changed; above 0 it has grown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbabilityChange {
    /// The mean.
    pub mean: f64,
    /// Its error.
    pub mean_error: Option<f64>,
    /// Root of the mean square.
    pub rms: f64,
    /// Its error.
    pub rms_error: Option<f64>,
    /// Percentiles, linear between neighbours: the smallest.
    pub min: f64,
    /// 0.1 %.
    pub p001: f64,
    /// 1 %.
    pub p01: f64,
    /// 5 %.
    pub p05: f64,
    /// 10 %.
    pub p10: f64,
    /// 25 %.
    pub p25: f64,
    /// 50 %.
    pub median: f64,
    /// 75 %.
    pub p75: f64,
    /// 90 %.
    pub p90: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl ProbabilityChange {
    /// Of at least one change.
    fn of(mut changes: Vec<f64>) -> Self {
        let squares: Vec<f64> = changes.iter().map(|it| it * it).collect();
        let ((mean, mean_error), (square_mean, square_error)) = (self::mean(&changes), self::mean(&squares));
        let rms = square_mean.sqrt();
        changes.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| quantile(&changes, share);
        Self {
            mean,
            mean_error,
            rms,
            rms_error: square_error.map(|it| 0.5 * it / rms).filter(|it| it.is_finite()),
            min: at(0.0),
            p001: at(0.001),
            p01: at(0.01),
            p05: at(0.05),
            p10: at(0.1),
            p25: at(0.25),
            median: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// A mean and its standard error, `s / √n` with the unbiased `s`.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (mean, covariance(values, values).map(f64::sqrt))
}

/// The covariance of two means over the same places.
fn covariance(left: &[f64], right: &[f64]) -> Option<f64> {
    if left.len() < ERROR_TOKENS_MIN {
        return None;
    }
    let n = left.len() as f64;
    let (of_left, of_right) = (left.iter().sum::<f64>() / n, right.iter().sum::<f64>() / n);
    let sum: f64 = left.iter().zip(right).map(|(l, r)| (l - of_left) * (r - of_right)).sum();
    Some(sum / n / (n - 1.0))
}

/// The standard error of a share.
fn share_error(share: f64, n: usize) -> Option<f64> {
    (n >= ERROR_TOKENS_MIN).then(|| (share * (1.0 - share) / (n as f64 - 1.0)).sqrt())
}
