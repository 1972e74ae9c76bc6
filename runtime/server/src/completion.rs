//! `/v1/completions`: texts or token ids that are gone on from as they are, without a chat around them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use fsq_model::{Special, TokenId};
use serde_json::Value;

use crate::answer::{self, Heading, Shape};
use crate::asked::{self, Common, Delivery};
use crate::fields::Fields;
use crate::form::{Fault, Form};
use crate::refusal::Refusal;
use crate::routes::read_fields;
use crate::server::{Ask, Shared};
use crate::worker::Draw;

/// Prompts of one request; with as many answers to each, still far from what the engine takes at a time.
const PROMPTS_MAX: usize = 16;
/// As OpenAI's.
const LOGPROBS_MAX: u64 = 5;
/// As OpenAI's, where a request does not say.
const TOKENS_DEFAULT: usize = 16;

/// A request, read.
struct Asked {
    prompts: Vec<Vec<TokenId>>,
    /// Empty unless the answers are to repeat their prompts.
    echoes: Vec<String>,
    common: Common,
    n_answers: u64,
    stop_texts: Vec<String>,
    delivery: Delivery,
    /// `None`: no log-probabilities.
    logprobs: Option<usize>,
    fault: Fault,
}

/// `POST /v1/completions`.
///
/// `prompt` is a text, token ids, or a list of either. A text is only ever text: what looks like a control token in
/// it is spelled out; who wants control tokens sends token ids, see `/tokenize`.
pub(crate) async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let fields = read_fields(&shared, request).await?;
    let asked = shared.read_beside(move |shared| read(fields, shared)).await?;
    let prompts: Vec<&[TokenId]> = asked.prompts.iter().map(Vec::as_slice).collect();
    let n = asked.n_answers as usize;
    let mut heading = Heading::new(Shape::Text, &shared.facts.name, &prompts, n, &asked.echoes);
    heading.has_logprobs = asked.logprobs.is_some();
    heading.fault = asked.fault.clone();
    let ask = |(index, prompt): (u64, Vec<TokenId>)| Ask {
        prompt,
        draws: (0..asked.n_answers).map(|it| Draw::new(&asked.common, index * asked.n_answers + it)).collect(),
        tokens_max: asked.common.tokens_max.unwrap_or(TOKENS_DEFAULT),
        stop_texts: asked.stop_texts.clone(),
        top_logprobs: asked.logprobs.unwrap_or(0),
    };
    let events = shared.submit((0..).zip(asked.prompts).map(ask).collect())?;
    answer::respond(shared, heading, events, asked.delivery).await
}

fn read(mut fields: Fields, shared: &Shared) -> Result<Asked, Refusal> {
    let prompt = fields.take("prompt").unwrap_or_default();
    let prompts = prompts("prompt", prompt, shared)?;
    let mut common = Common::take(&mut fields, shared)?;
    let (form, fault) = (Form::take(&mut fields)?, Fault::default());
    let n_answers = asked::take_n(&mut fields)?;
    let stop_texts = asked::take_stop(&mut fields)?;
    let delivery = Delivery::take(&mut fields)?;
    let logprobs = fields.integer("logprobs", 0..=LOGPROBS_MAX)?.map(|it| it as usize);
    let echoes = fields.boolean("echo")?.unwrap_or(false);
    if echoes && logprobs.is_some() {
        return Err(Refusal::unsupported("echo", "only without `logprobs`: those of prompts are not computed"));
    }
    fields.neutral("best_of", "only as many as `n` are", |it| it.as_u64() == Some(n_answers))?;
    fields.neutral("suffix", "leave it out", |it| it == "")?;
    asked::refuse_unsupported(&mut fields)?;
    fields.finish()?;
    if let Some(form) = form {
        common.adjustments.constraint = Some(shared.grammars.constraint(&form, &fault)?);
    }
    let echoes = match echoes {
        true => prompts.iter().map(|it| shared.tokenizer.decode(it)).collect(),
        false => Vec::new(),
    };
    Ok(Asked { prompts, echoes, common, n_answers, stop_texts, delivery, logprobs, fault })
}

/// A text, token ids, or a list of either.
fn prompts(name: &str, value: Value, shared: &Shared) -> Result<Vec<Vec<TokenId>>, Refusal> {
    let vocab = shared.tokenizer.vocab();
    let expected = format!("a text, token ids, or at most {PROMPTS_MAX} of either");
    let found = match value {
        Value::String(text) => vec![encode(shared, &text)?],
        Value::Array(values) if values.first().is_some_and(Value::is_number) => {
            vec![tokens(name, &values, vocab)?]
        }
        Value::Array(values) if (1..=PROMPTS_MAX).contains(&values.len()) => {
            let one = |(index, it): (usize, &Value)| match it {
                Value::String(text) => encode(shared, text),
                Value::Array(values) => tokens(&format!("{name}[{index}]"), values, vocab),
                other => Err(Refusal::field(&format!("{name}[{index}]"), "a text or token ids", other)),
            };
            values.iter().enumerate().map(one).collect::<Result<_, _>>()?
        }
        other => return Err(Refusal::field(name, &expected, &other)),
    };
    if found.iter().any(Vec::is_empty) {
        return Err(Refusal::field(name, "at least one token", &Value::String(String::new())));
    }
    Ok(found)
}

/// Token ids from a request.
pub(crate) fn tokens(name: &str, values: &[Value], vocab: usize) -> Result<Vec<TokenId>, Refusal> {
    let expected = format!("token ids below {vocab}");
    let token = |it: &Value| it.as_u64().filter(|it| *it < vocab as u64).map(|it| it as TokenId);
    values.iter().map(|it| token(it).ok_or_else(|| Refusal::field(name, &expected, it))).collect()
}

/// A text as the beginning of a sequence.
pub(crate) fn encode(shared: &Shared, text: &str) -> Result<Vec<TokenId>, Refusal> {
    shared.check_text(text.len())?;
    let tokenizer = &shared.tokenizer;
    let mut tokens = tokenizer.encode(text, Special::Escape);
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}
