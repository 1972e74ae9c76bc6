//! What a request changes about logits before a token is chosen from them: biases, penalties, a constraint. Knows no
//! sequences.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::TokenId;

/// Changes to logits, none of them by default. What a token's log-probability is reported as stays untouched by them.
#[derive(Clone, Debug, PartialEq)]
pub struct Adjustments {
    /// Added to the logits of these tokens.
    pub bias: Vec<(TokenId, f32)>,
    /// Taken from the logit of every token that was generated (OpenAI's `presence_penalty`).
    pub presence: f32,
    /// Taken from it for every time that it was (OpenAI's `frequency_penalty`).
    pub frequency: f32,
    /// What logits of tokens in the prompt and the answer are divided by where they are positive, and multiplied by
    /// where they are negative (Keskar et al. 2019, CTRL, section 4.1); 1 changes nothing.
    pub repetition: f32,
    /// What tokens the answer may be made of, whatever biases and penalties say.
    pub constraint: Option<Constraint>,
}

impl Default for Adjustments {
    fn default() -> Self {
        Self { bias: Vec::new(), presence: 0.0, frequency: 0.0, repetition: 1.0, constraint: None }
    }
}

/// Says at each place of one answer which tokens may come next; a grammar, for instance.
pub trait Constrain: Send {
    /// Makes the logits (`[vocab]`) of tokens that may not come next negative infinity. At least one has to be left.
    fn restrict(&mut self, logits: &mut [f32]);
    /// Learns which token came.
    fn note(&mut self, token: TokenId);
}

/// Makes the same constraint anew for each answer. Equal to its clones only.
#[derive(Clone)]
pub struct Constraint(Arc<dyn Fn() -> Box<dyn Constrain> + Send + Sync>);

impl Constraint {
    /// A constraint whose answers begin with what `make` makes.
    pub fn new(make: impl Fn() -> Box<dyn Constrain> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}

impl fmt::Debug for Adjuster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adjuster").field("adjustments", &self.adjustments).finish_non_exhaustive()
    }
}

/// Adjustments with what one request has said so far.
pub(crate) struct Adjuster {
    adjustments: Adjustments,
    constrain: Option<Box<dyn Constrain>>,
    in_prompt: HashSet<TokenId>,
    generated: HashMap<TokenId, u32>,
    /// Reused between tokens: `[vocab]`
    adjusted: Vec<f32>,
}

impl Adjuster {
    /// `None` where nothing is changed, which costs nothing.
    pub(crate) fn new(adjustments: &Adjustments, prompt: &[TokenId]) -> Option<Self> {
        if *adjustments == Adjustments::default() {
            return None;
        }
        let repeats = adjustments.repetition != 1.0;
        let in_prompt = if repeats { prompt.iter().copied().collect() } else { HashSet::new() };
        let (generated, adjusted) = (HashMap::new(), Vec::new());
        let constrain = adjustments.constraint.as_ref().map(|it| it.0());
        Some(Self { adjustments: adjustments.clone(), constrain, in_prompt, generated, adjusted })
    }

    /// Remembers a generated token.
    pub(crate) fn note(&mut self, token: TokenId) {
        *self.generated.entry(token).or_default() += 1;
        if let Some(constrain) = &mut self.constrain {
            constrain.note(token);
        }
    }

    /// The logits to choose by: `[vocab]` to `[vocab]`. Tokens beyond the vocabulary are passed over.
    pub(crate) fn apply(&mut self, logits: &[f32]) -> &[f32] {
        let Adjustments { bias, presence, frequency, repetition, .. } = &self.adjustments;
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        let new_in_prompt = self.in_prompt.iter().filter(|it| !self.generated.contains_key(it));
        for token in new_in_prompt.chain(self.generated.keys()) {
            if let Some(logit) = self.adjusted.get_mut(*token as usize) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
        for (token, n) in &self.generated {
            if let Some(logit) = self.adjusted.get_mut(*token as usize) {
                *logit -= presence + frequency * *n as f32;
            }
        }
        for (token, bias) in bias {
            if let Some(logit) = self.adjusted.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(constrain) = &mut self.constrain {
            constrain.restrict(&mut self.adjusted);
        }
        &self.adjusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_and_biases_follow_their_formulas() {
        assert!(Adjuster::new(&Adjustments::default(), &[1]).is_none());
        let adjustments = Adjustments {
            bias: vec![(3, -100.0), (4, 2.0), (99, 1.0)],
            presence: 0.5,
            frequency: 0.25,
            repetition: 2.0,
            constraint: None,
        };
        let adjuster = Adjuster::new(&adjustments, &[0, 1]);
        let Some(mut adjuster) = adjuster else { panic!("something is changed") };
        let logits = [4.0, -4.0, 4.0, 4.0, 4.0];
        assert_eq!(adjuster.apply(&logits), [2.0, -8.0, 4.0, -96.0, 6.0]);
        for token in [1, 2, 2] {
            adjuster.note(token);
        }
        assert_eq!(adjuster.apply(&logits), [2.0, -8.75, 1.0, -96.0, 6.0]);
    }

    #[test]
    fn a_constraint_begins_anew_with_each_answer_and_has_the_last_word() {
        struct Alternating(TokenId);
        impl Constrain for Alternating {
            fn restrict(&mut self, logits: &mut [f32]) {
                let others = (0..).zip(logits).filter(|it| it.0 % 2 != self.0 % 2);
                others.for_each(|it| *it.1 = f32::NEG_INFINITY);
            }
            fn note(&mut self, token: TokenId) {
                self.0 = token + 1;
            }
        }
        let constraint = Some(Constraint::new(|| Box::new(Alternating(0))));
        let adjustments = Adjustments { bias: vec![(1, 9.0)], constraint, ..Adjustments::default() };
        assert_eq!(adjustments, adjustments.clone());
        for _ in 0..2 {
            let Some(mut adjuster) = Adjuster::new(&adjustments, &[]) else { panic!("something is changed") };
            assert_eq!(adjuster.apply(&[1.0, 1.0, 1.0]), [1.0, f32::NEG_INFINITY, 1.0]);
            adjuster.note(2);
            assert_eq!(adjuster.apply(&[1.0, 1.0, 1.0]), [f32::NEG_INFINITY, 10.0, f32::NEG_INFINITY]);
        }
    }
}
