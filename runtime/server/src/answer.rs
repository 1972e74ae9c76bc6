//! Answers in the shapes that OpenAI's clients read, whole or in chunks: of chats and of plain completions.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::{IntoResponse, Response};
use fsq_model::{TokenId, Tokenizer};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::asked::Delivery;
use crate::calls::{Call, CallReader, Said};
use crate::form::Fault;
use crate::plan::{Meaning, Plan};
use crate::refusal::Refusal;
use crate::sample::TokenLogprob;
use crate::server::Shared;
use crate::stream;
use crate::worker::{Ending, Event, Failure};

/// What OpenAI's clients take for an impossible token.
const LOGPROB_MIN: f32 = -9999.0;

/// Which of the two protocols an answer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Text,
}

/// What every part of an answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub(crate) shape: Shape,
    id: String,
    created_s: u64,
    model: String,
    /// Of each answer, its prompt as a task.
    pub(crate) tasks: Vec<u64>,
    /// What each answer repeats of its prompt.
    pub(crate) echoes: Vec<String>,
    pub(crate) n_prompt: usize,
    pub(crate) has_logprobs: bool,
    /// Reads calls of tools out of answers that may hold some.
    pub(crate) reader: Option<CallReader>,
    /// Where it is told that an answer could not be held to its form.
    pub(crate) fault: Fault,
}

impl Heading {
    /// The heading of answers to these prompts, `n` to each; `echoes` are empty, or one for each prompt.
    pub(crate) fn new(shape: Shape, model: &str, prompts: &[&[TokenId]], n: usize, echoes: &[String]) -> Self {
        let kind = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
        let each = |index: usize| echoes.get(index).cloned().unwrap_or_default();
        Self {
            shape,
            id: answer_id(kind),
            created_s: now_s(),
            model: model.to_string(),
            tasks: prompts.iter().flat_map(|it| std::iter::repeat_n(task(it), n)).collect(),
            echoes: (0..prompts.len()).flat_map(|it| std::iter::repeat_n(each(it), n)).collect(),
            n_prompt: prompts.iter().map(|it| it.len()).sum(),
            has_logprobs: false,
            reader: None,
            fault: Fault::default(),
        }
    }

    /// What a whole answer or a chunk of one begins with.
    pub(crate) fn value(&self, is_chunk: bool) -> Value {
        let object = match (self.shape, is_chunk) {
            (Shape::Chat, false) => "chat.completion",
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Text, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created_s, "model": self.model})
    }

    /// One answer of a whole response.
    fn choice(&self, tokenizer: &Tokenizer, index: usize, plan: &Plan, tokens: &[TokenLogprob]) -> Value {
        let mut offset = self.echoes[index].chars().count();
        let logprobs = self.has_logprobs.then(|| self.logprobs(tokenizer, tokens, &mut offset));
        let mut choice = match self.shape {
            Shape::Chat => {
                let Said { words, calls } = self.said(&plan.text);
                let is_empty = words.is_empty() && !calls.is_empty();
                let content = if is_empty { Value::Null } else { Value::String(words) };
                let mut message = json!({"role": "assistant", "content": content, "refusal": null});
                if !calls.is_empty() {
                    message["tool_calls"] = calls.iter().map(call_value).collect();
                }
                let reason = finish_reason(plan, &calls);
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
            }
            Shape::Text => {
                let text = format!("{}{}", self.echoes[index], plan.text);
                let reason = plan.finish_reason();
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
            }
        };
        if let Some(extension) = plan.extension() {
            choice["fsq"] = extension;
        }
        choice
    }

    /// An answer's words and calls.
    pub(crate) fn said(&self, text: &str) -> Said {
        let Some(mut reader) = self.reader.clone() else { return Said { words: text.to_owned(), calls: Vec::new() } };
        let words = reader.push(text);
        let rest = reader.finish();
        Said { words: words + &rest.words, ..rest }
    }

    /// Log-probabilities of tokens; `offset` is where the first of them begins in a plain text, in characters, and
    /// then where the next one will.
    pub(crate) fn logprobs(&self, tokenizer: &Tokenizer, tokens: &[TokenLogprob], offset: &mut usize) -> Value {
        if self.shape == Shape::Chat {
            return chat_logprobs(tokenizer, tokens);
        }
        let mut offsets = Vec::new();
        for it in tokens {
            offsets.push(*offset);
            *offset += token_text(tokenizer, it.token).chars().count();
        }
        let top = |it: &TokenLogprob| -> Map<String, Value> {
            let entry = |it: &(TokenId, f32)| (token_text(tokenizer, it.0), json!(it.1.max(LOGPROB_MIN)));
            it.alternatives.iter().map(entry).collect()
        };
        json!({
            "tokens": tokens.iter().map(|it| token_text(tokenizer, it.token)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|it| it.logprob.max(LOGPROB_MIN)).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

/// One call in a chat's answer.
pub(crate) fn call_value(call: &Call) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

/// `tool_calls` where the answer ends with calls.
pub(crate) fn finish_reason(plan: &Plan, calls: &[Call]) -> &'static str {
    if calls.is_empty() || !plan.ending.is_complete { plan.finish_reason() } else { "tool_calls" }
}

fn token_text(tokenizer: &Tokenizer, token: TokenId) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token).unwrap_or_default()).into_owned()
}

fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[TokenLogprob]) -> Value {
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

/// Answers with what the engine makes of a request, at once or as it comes.
pub(crate) async fn respond(
    shared: Arc<Shared>,
    heading: Heading,
    events: UnboundedReceiver<Event>,
    delivery: Delivery,
) -> Result<Response, Refusal> {
    if delivery.is_streamed {
        return Ok(stream::respond(shared, heading, events, delivery.includes_usage));
    }
    let answers = collect(events, vec![String::new(); heading.tasks.len()]).await?;
    heading.fault.check()?;
    let meaning = Meaning::overall(&shared);
    let (mut plans, mut logprobs) = (Vec::new(), Vec::new());
    for Answer { text, ending, logprobs: of_answer } in answers {
        plans.push(Plan::new(text, ending, &meaning));
        logprobs.push(of_answer);
    }
    let plans = record(&shared, &heading.tasks, None, plans).await?;
    let n_generated = plans.iter().map(|it| it.ending.n_tokens).sum();
    let choices = plans.iter().zip(&logprobs).enumerate();
    let mut body = heading.value(false);
    body["choices"] = choices.map(|(index, it)| heading.choice(&shared.tokenizer, index, it.0, it.1)).collect();
    body["usage"] = usage(heading.n_prompt, n_generated);
    Ok(Json(body).into_response())
}

/// One answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) ending: Ending,
    logprobs: Vec<TokenLogprob>,
}

/// Waits for all answers of a request; `beginnings` are what they begin with.
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

pub(crate) fn engine_gone() -> Refusal {
    Refusal::internal("the engine stopped before the answer was done")
}

pub(crate) fn refusal(failure: Failure) -> Refusal {
    match failure {
        Failure::Deadline => Refusal::too_slow("the answer took longer than a request may"),
        Failure::Queue => {
            Refusal::too_often("queue_time", "no place in the batch came free in time", Duration::from_secs(5))
        }
        Failure::Stopping => Refusal::unavailable("draining", "the server stopped before the answer was done"),
        Failure::Runtime(reason) => Refusal::internal(reason),
    }
}

/// Gives every plan with an estimate the name of its prediction, once that is on record. `tasks` are those of the
/// plans.
pub(crate) async fn record(
    shared: &Arc<Shared>,
    tasks: &[u64],
    environment: Option<&str>,
    mut plans: Vec<Plan>,
) -> Result<Vec<Plan>, Refusal> {
    if plans.iter().all(|it| it.reading.is_none()) {
        return Ok(plans);
    }
    let (shared, tasks, environment) = (Arc::clone(shared), tasks.to_vec(), environment.map(str::to_owned));
    let recording = tokio::task::spawn_blocking(move || {
        for (plan, task) in plans.iter_mut().zip(tasks) {
            if let Some((stated, estimate)) = plan.reading {
                plan.prediction = Some(shared.store.predict(task, environment.as_deref(), stated, estimate)?);
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
