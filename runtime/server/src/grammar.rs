//! Answers held to a form: a JSON schema, any JSON object, or a grammar in llguidance's Lark syntax. The form says at
//! each token which tokens may come next (`llguidance`, <https://docs.rs/llguidance>).
//!
//! A form comes from a client, so making one is bounded in size, depth, work, memory and time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use fsq_model::{Constrain, Constraint, TokenId, Tokenizer};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use crate::form::{Fault, Form};
use crate::refusal::Refusal;

/// For a form to be made ready; it goes on no longer than its fuel lasts.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(2);
/// Forms that are made ready at a time.
const COMPILING_MAX: usize = 2;
/// The parsers of forms call themselves for each level.
const STACK_BYTES: usize = 64 << 20;
/// Longest token that a form can be matched against; longer ones, which are mistakes, may not come.
const TOKEN_BYTES_MAX: usize = 255;
/// What a control token's name begins with in llguidance.
const CONTROL_MARK: u8 = 0xFF;

/// A fifth or less of llguidance's own, which are for schemas of megabytes; a state takes one or two KiB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 1_000,
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Makes forms into constraints, for one vocabulary.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Of the decoder, which may have tokens that the tokenizer does not know.
    vocab: usize,
    /// Made for the first form: a policy may never be asked for any.
    factory: OnceLock<Result<Arc<ParserFactory>, String>>,
    n_compiling: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, vocab: usize) -> Self {
        Self { tokenizer, vocab, factory: OnceLock::new(), n_compiling: Arc::default() }
    }

    /// A constraint that every answer of a request begins anew. What goes wrong later is told to `fault`.
    pub(crate) fn constraint(&self, form: &Form, fault: &Fault) -> Result<Constraint, Refusal> {
        let factory = self.factory.get_or_init(|| self.factory().map(Arc::new)).clone();
        let factory = factory.map_err(|it| Refusal::internal(format!("tokens of the policy: {it}")))?;
        let invalid = |it: String| Refusal::invalid("invalid_grammar", it).about(form.field());
        let grammar = match form {
            Form::Lark { text, .. } => TopLevelGrammar::from_lark(text.clone()),
            Form::Schema { schema, .. } => TopLevelGrammar::from_json_schema(schema.clone()),
        };
        let matcher = self.within_limits(move || {
            let matcher = Matcher::new(factory.create_parser(grammar));
            matcher.get_error().map_or(Ok(matcher), Err)
        });
        let matcher = matcher?.map_err(|it| invalid(format!("field `{}`: {it}", form.field())))?;
        let (matcher, fault) = (Mutex::new(matcher), fault.clone());
        let ends = self.tokenizer.ends().to_vec();
        Ok(Constraint::new(move || {
            let matcher = matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
            Box::new(Held { matcher, ends: ends.clone(), fault: fault.clone() })
        }))
    }

    /// Runs `make` on a thread of its own, for as long as the client may be kept waiting.
    fn within_limits<T: Send + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
        let n_compiling = Arc::clone(&self.n_compiling);
        if n_compiling.fetch_add(1, Ordering::SeqCst) >= COMPILING_MAX {
            n_compiling.fetch_sub(1, Ordering::SeqCst);
            let message = format!("{COMPILING_MAX} grammars are being made ready; try again");
            return Err(Refusal::too_often("grammar_busy", message, Duration::from_secs(1)));
        }
        let (made, waiting) = mpsc::channel();
        let place = Compiling(n_compiling);
        let thread = std::thread::Builder::new().name("fsq-grammar".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            let _place = place;
            let _ = made.send(make());
        });
        started.map_err(|it| Refusal::internal(format!("a thread for the grammar: {it}")))?;
        waiting.recv_timeout(COMPILE_TIME_MAX).map_err(|it| match it {
            mpsc::RecvTimeoutError::Timeout => {
                let message = format!("the grammar is not ready after {} s", COMPILE_TIME_MAX.as_secs());
                Refusal::invalid("grammar_too_complex", message)
            }
            mpsc::RecvTimeoutError::Disconnected => Refusal::invalid("invalid_grammar", "the grammar cannot be used"),
        })
    }

    /// The vocabulary as llguidance wants it.
    fn factory(&self) -> Result<ParserFactory, String> {
        let ends = self.tokenizer.ends();
        let end = ends.first().copied().ok_or("there is none that ends an answer")?;
        let word = |token: TokenId| {
            let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
            match bytes {
                _ if bytes.len() >= TOKEN_BYTES_MAX => Vec::new(),
                [] => Vec::new(),
                _ if self.tokenizer.is_control(token) => [&[CONTROL_MARK], bytes].concat(),
                _ => bytes.to_vec(),
            }
        };
        let words: Vec<Vec<u8>> = (0..self.vocab as TokenId).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(self.vocab as u32, end), &words).with_eos_tokens(ends);
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &[]).map_err(|it| it.to_string())?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(factory)
    }
}

/// A place among those that are made ready; given back when it is dropped.
struct Compiling(Arc<AtomicUsize>);

impl Drop for Compiling {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One answer held to a form.
struct Held {
    matcher: Matcher,
    ends: Vec<TokenId>,
    fault: Fault,
}

impl Constrain for Held {
    fn restrict(&mut self, logits: &mut [f32]) {
        match self.matcher.compute_mask_or_eos() {
            Ok(mask) if !mask.is_zero() => {
                let allowed = |token: usize| token < mask.len() && mask.get(token);
                let others = logits.iter_mut().enumerate().filter(|it| !allowed(it.0));
                others.for_each(|it| *it.1 = f32::NEG_INFINITY);
                return;
            }
            Ok(_) => self.fault.tell("no token can follow".to_owned()),
            Err(error) => self.fault.tell(error.to_string()),
        }
        // The answer ends here, and its request hears why.
        let others = (0..).zip(logits).filter(|it| !self.ends.contains(&it.0));
        others.for_each(|it| *it.1 = f32::NEG_INFINITY);
    }

    fn note(&mut self, token: TokenId) {
        let is_over = self.matcher.is_stopped() || self.ends.contains(&token);
        if !is_over && let Err(error) = self.matcher.consume_token(token) {
            self.fault.tell(error.to_string());
        }
    }
}
