//! `/v1/chat/completions`, and what all routes that ask the engine have in common.

mod stream;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use fsq_model::{Sampling, TokenId, Tokenizer};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::fields::Fields;
use crate::plan::Plan;
use crate::prompt::{Turn, encode_chat, take_messages};
use crate::refusal::Refusal;
use crate::routes::read_fields;
use crate::sample::TokenLogprob;
use crate::server::{Ask, Shared};
use crate::worker::{Draw, Ending, Event, Failure};

/// Answers of one request.
const ANSWERS_MAX: u64 = 16;
const STOP_TEXTS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 256;
/// As OpenAI's.
const TOP_LOGPROBS_MAX: u64 = 20;
const TEMPERATURE_MAX: f64 = 2.0;
/// What OpenAI's clients take for an impossible token.
const LOGPROB_MIN: f32 = -9999.0;

/// How answers are sampled, the same for every route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Common {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    /// Drawn at random where the request has none.
    pub(crate) seed: u64,
    pub(crate) tokens_max: Option<usize>,
}

impl Common {
    pub(crate) fn take(fields: &mut Fields, shared: &Shared) -> Result<Self, Refusal> {
        if let Some(model) = fields.text("model")?
            && model != shared.facts.name
        {
            let message =
                format!("model `{}`: this server has `{}`", crate::refusal::quoted(&model), shared.facts.name);
            return Err(Refusal::not_found("model_not_found", message).about("model"));
        }
        let context_tokens = shared.context_tokens as u64;
        let (old_name, new_name) = ("max_tokens", "max_completion_tokens");
        let tokens_max = fields.integer(old_name, 1..=context_tokens)?;
        let newer = fields.integer(new_name, 1..=context_tokens)?;
        if let (Some(old), Some(new)) = (tokens_max, newer)
            && old != new
        {
            let message = format!("field `{new_name}`: expected the same as `{old_name}` ({old}), found {new}");
            return Err(Refusal::invalid("conflicting_fields", message).about(new_name));
        }
        // Seeds are any 64-bit numbers, and clients write them with a sign.
        let seed_value = fields.take("seed");
        let read_seed = |it: &Value| it.as_u64().or_else(|| it.as_i64().map(|it| it as u64));
        let seed = match &seed_value {
            Some(it) => read_seed(it).ok_or_else(|| Refusal::field("seed", "a whole number of 64 bits", it))?,
            // Few enough bits that every JSON reader can give it back.
            None => rand::random::<u64>() >> 11,
        };
        fields.ignore(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
        Ok(Self {
            temperature: fields.number("temperature", 0.0..=TEMPERATURE_MAX)?.unwrap_or(1.0) as f32,
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32,
            top_k: fields.integer("top_k", 0..=1_000_000)?.unwrap_or(0) as usize,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            seed,
            tokens_max: newer.or(tokens_max).map(|it| it as usize),
        })
    }

    /// The sampling of the request's answer `index`, which has a random stream of its own.
    pub(crate) fn sampling(&self, index: u64) -> Sampling {
        let Self { temperature, top_p, top_k, min_p, seed, .. } = *self;
        Sampling { temperature, top_k, top_p, min_p, seed: seed.wrapping_add(index) }
    }
}

/// A request, read.
struct Asked {
    turns: Vec<Turn>,
    common: Common,
    n_answers: u64,
    stop_texts: Vec<String>,
    is_streamed: bool,
    includes_usage: bool,
    /// `None`: no log-probabilities.
    top_logprobs: Option<usize>,
}

/// What every part of an answer repeats.
#[derive(Clone, Debug)]
struct Heading {
    id: String,
    created_s: u64,
    model: String,
    /// The prompt as a task, and its length.
    task: u64,
    n_prompt: usize,
    has_logprobs: bool,
}

/// `POST /v1/chat/completions`.
pub(crate) async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let asked = read(read_fields(&shared, request).await?, &shared)?;
    let prompt = encode_chat(&shared.tokenizer, &shared.template, &asked.turns)?;
    let heading = Heading {
        id: answer_id("chatcmpl"),
        created_s: now_s(),
        model: shared.facts.name.clone(),
        task: task(&prompt),
        n_prompt: prompt.len(),
        has_logprobs: asked.top_logprobs.is_some(),
    };
    let draw = |index| Draw { beginning: (String::new(), Vec::new()), sampling: asked.common.sampling(index) };
    let draws: Vec<Draw> = (0..asked.n_answers).map(draw).collect();
    let n_answers = draws.len();
    let ask = Ask {
        prompt,
        draws,
        tokens_max: asked.common.tokens_max.unwrap_or(shared.context_tokens),
        stop_texts: asked.stop_texts,
        top_logprobs: asked.top_logprobs.unwrap_or(0),
    };
    let events = shared.submit(ask)?;
    if asked.is_streamed {
        return Ok(stream::respond(shared, heading, events, n_answers, asked.includes_usage));
    }
    let answers = collect(events, vec![String::new(); n_answers]).await?;
    let (mut plans, mut logprobs) = (Vec::new(), Vec::new());
    for Answer { text, ending, logprobs: of_answer } in answers {
        plans.push(Plan::new(text, ending, shared.recalibration.of(None)));
        logprobs.push(of_answer);
    }
    let plans = record(&shared, heading.task, plans).await?;
    let n_generated = plans.iter().map(|it| it.ending.n_tokens).sum();
    let choice = |(index, (plan, logprobs)): (usize, (&Plan, &Vec<TokenLogprob>))| {
        let message = json!({"role": "assistant", "content": plan.text, "refusal": null});
        let logprobs = heading.has_logprobs.then(|| logprobs_value(&shared.tokenizer, logprobs));
        let reason = plan.finish_reason();
        let mut choice = json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason});
        if let Some(extension) = plan.extension() {
            choice["fsq"] = extension;
        }
        choice
    };
    Ok(Json(json!({
        "id": heading.id,
        "object": "chat.completion",
        "created": heading.created_s,
        "model": heading.model,
        "choices": plans.iter().zip(&logprobs).enumerate().map(choice).collect::<Vec<_>>(),
        "usage": usage(heading.n_prompt, n_generated),
    }))
    .into_response())
}

fn read(mut fields: Fields, shared: &Shared) -> Result<Asked, Refusal> {
    let turns = take_messages(&mut fields)?;
    let turns = turns.ok_or_else(|| Refusal::field("messages", "an array", &Value::Null))?;
    let common = Common::take(&mut fields, shared)?;
    let n_answers = fields.integer("n", 1..=ANSWERS_MAX)?.unwrap_or(1);
    let stop_texts = take_stop(&mut fields)?;
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    if fields.has("stream_options") && !is_streamed {
        let message = "field `stream_options`: expected only with `stream`";
        return Err(Refusal::invalid("conflicting_fields", message).about("stream_options"));
    }
    let includes_usage = match fields.take("stream_options") {
        Some(options) => {
            let mut options = Fields::of("stream_options", options)?;
            let includes_usage = options.boolean("include_usage")?.unwrap_or(false);
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
            includes_usage
        }
        None => false,
    };
    let has_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    if top_logprobs.is_some() && !has_logprobs {
        let message = "field `top_logprobs`: expected only with `logprobs`";
        return Err(Refusal::invalid("conflicting_fields", message).about("top_logprobs"));
    }
    refuse_unsupported(&mut fields)?;
    fields.finish()?;
    let top_logprobs = has_logprobs.then(|| top_logprobs.unwrap_or(0) as usize);
    Ok(Asked { turns, common, n_answers, stop_texts, is_streamed, includes_usage, top_logprobs })
}

/// Fields of the protocol that are only accepted where they ask for nothing.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), Refusal> {
    let is_zero = |it: &Value| it.as_f64() == Some(0.0);
    let is_empty =
        |it: &Value| it.as_array().is_some_and(Vec::is_empty) || it.as_object().is_some_and(serde_json::Map::is_empty);
    for field in ["frequency_penalty", "presence_penalty"] {
        fields.neutral(field, "only 0 is", is_zero)?;
    }
    for field in ["logit_bias", "tools", "functions"] {
        fields.neutral(field, "leave it out", is_empty)?;
    }
    fields.neutral("tool_choice", "only `none` and `auto` are", |it| it == "none" || it == "auto")?;
    fields.neutral("parallel_tool_calls", "leave it out", Value::is_boolean)?;
    fields.neutral("response_format", "only `{\"type\": \"text\"}` is", |it| *it == json!({"type": "text"}))?;
    fields.neutral("modalities", "only `[\"text\"]` is", |it| *it == json!(["text"]))?;
    fields.neutral("store", "only false is", |it| *it == json!(false))?;
    fields.neutral("service_tier", "only `auto` and `default` are", |it| it == "auto" || it == "default")
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, Refusal> {
    let expected = format!("a string, or at most {STOP_TEXTS_MAX}, of 1 to {STOP_BYTES_MAX} bytes");
    let Some(value) = fields.take("stop") else { return Ok(Vec::new()) };
    let values = match &value {
        Value::Array(values) if values.len() <= STOP_TEXTS_MAX => values.as_slice(),
        Value::String(_) => std::slice::from_ref(&value),
        _ => return Err(Refusal::field("stop", &expected, &value)),
    };
    let text = |it: &Value| it.as_str().filter(|it| (1..=STOP_BYTES_MAX).contains(&it.len())).map(str::to_owned);
    values.iter().map(|it| text(it).ok_or_else(|| Refusal::field("stop", &expected, it))).collect()
}

/// One answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) ending: Ending,
    logprobs: Vec<TokenLogprob>,
}

/// Waits for all answers of a job; `beginnings` are what they begin with.
pub(crate) async fn collect(
    mut events: UnboundedReceiver<Event>,
    beginnings: Vec<String>,
) -> Result<Vec<Answer>, Refusal> {
    let mut parts: Vec<_> = beginnings.into_iter().map(|text| (text, Vec::new(), None)).collect();
    while parts.iter().any(|it| it.2.is_none()) {
        match events.recv().await.ok_or_else(engine_gone)? {
            Event::Piece { index, piece } => {
                parts[index].0.push_str(&piece.text);
                parts[index].1.extend(piece.logprobs);
            }
            Event::End { index, ending } => parts[index].2 = Some(ending),
            Event::Failed(failure) => return Err(refusal(failure)),
        }
    }
    Ok(parts
        .into_iter()
        .filter_map(|(text, logprobs, ending)| Some(Answer { text, ending: ending?, logprobs }))
        .collect())
}

fn engine_gone() -> Refusal {
    Refusal::internal("the engine stopped before the answer was done")
}

fn refusal(failure: Failure) -> Refusal {
    match failure {
        Failure::Deadline => Refusal::too_slow("the answer took longer than a request may"),
        Failure::Stopping => Refusal::unavailable("draining", "the server stopped before the answer was done"),
        Failure::Runtime(reason) => Refusal::internal(reason),
    }
}

/// Gives every plan with an estimate the name of its prediction, once that is on record.
pub(crate) async fn record(shared: &Arc<Shared>, task: u64, mut plans: Vec<Plan>) -> Result<Vec<Plan>, Refusal> {
    if plans.iter().all(|it| it.reading.is_none()) {
        return Ok(plans);
    }
    let shared = Arc::clone(shared);
    let recording = tokio::task::spawn_blocking(move || {
        for plan in &mut plans {
            if let Some((stated, estimate)) = plan.reading {
                plan.prediction = Some(shared.store.predict(task, stated, estimate)?);
            }
        }
        Ok::<_, std::io::Error>(plans)
    });
    match recording.await {
        Ok(Ok(plans)) => Ok(plans),
        Ok(Err(error)) => Err(Refusal::internal(format!("prediction file: {error}"))),
        Err(_) => Err(Refusal::internal("the prediction could not be recorded")),
    }
}

/// A number for a prompt: equal prompts, equal numbers (FNV-1a over the tokens' bytes).
pub(crate) fn task(prompt: &[TokenId]) -> u64 {
    let bytes = prompt.iter().flat_map(|it| it.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A name for one answer, such as `chatcmpl-` and 24 digits.
pub(crate) fn answer_id(kind: &str) -> String {
    format!("{kind}-{:024x}", rand::random::<u128>() >> 32)
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

pub(crate) fn usage(n_prompt: usize, n_generated: usize) -> Value {
    json!({"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": n_prompt + n_generated})
}

fn logprobs_value(tokenizer: &Tokenizer, tokens: &[TokenLogprob]) -> Value {
    let one = |token: TokenId, logprob: f32| {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob.max(LOGPROB_MIN), "bytes": bytes})
    };
    let entry = |it: &TokenLogprob| {
        let mut entry = one(it.token, it.logprob);
        entry["top_logprobs"] = it.alternatives.iter().map(|it| one(it.0, it.1)).collect();
        entry
    };
    json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}
