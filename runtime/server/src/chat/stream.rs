//! A chat answer as server-sent events, chunk by chunk; what is dropped unread is no longer computed.

use std::sync::Arc;

use axum::response::sse::{Event as Chunk, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{iter, unfold};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Heading, engine_gone, logprobs_value, record, refusal, usage};
use crate::plan::Plan;
use crate::refusal::Refusal;
use crate::sample::Piece;
use crate::server::Shared;
use crate::worker::{Ending, Event};

/// An answer on its way.
struct Streaming {
    shared: Arc<Shared>,
    heading: Heading,
    events: UnboundedReceiver<Event>,
    /// The text of each answer so far; `None` once it has ended.
    texts: Vec<Option<String>>,
    n_generated: usize,
    includes_usage: bool,
    is_over: bool,
}

/// Begins to answer; the rest comes as the engine gets to it.
pub(super) fn respond(
    shared: Arc<Shared>,
    heading: Heading,
    events: UnboundedReceiver<Event>,
    n_answers: usize,
    includes_usage: bool,
) -> Response {
    let texts = vec![Some(String::new()); n_answers];
    let streaming = Streaming { shared, heading, events, texts, n_generated: 0, includes_usage, is_over: false };
    let first = |index| streaming.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null);
    let openings: Vec<String> = (0..n_answers).map(|it| first(it).to_string()).collect();
    let rest = unfold(streaming, |mut it| async move {
        let chunks = it.next_chunks().await?;
        Some((iter(chunks), it))
    });
    let chunks = iter(openings).chain(rest.flatten());
    Sse::new(chunks.map(|it| Ok::<_, std::convert::Infallible>(Chunk::default().data(it))))
        .keep_alive(KeepAlive::default())
        .into_response()
}

impl Streaming {
    /// The data of the next events; `None` after the last one.
    async fn next_chunks(&mut self) -> Option<Vec<String>> {
        if self.is_over {
            return None;
        }
        let chunks = match self.events.recv().await {
            Some(Event::Piece { index, piece }) => Ok(vec![self.piece(index, &piece)]),
            Some(Event::End { index, ending }) => self.end(index, ending).await,
            Some(Event::Failed(failure)) => Err(refusal(failure)),
            None => Err(engine_gone()),
        };
        let mut chunks = chunks.unwrap_or_else(|refusal| {
            self.is_over = true;
            vec![refusal.body()]
        });
        if self.texts.iter().all(Option::is_none) && !self.is_over {
            self.is_over = true;
            if self.includes_usage {
                let mut chunk = self.heading();
                chunk["choices"] = json!([]);
                chunk["usage"] = usage(self.heading.n_prompt, self.n_generated);
                chunks.push(chunk);
            }
        }
        let mut data: Vec<String> = chunks.iter().map(Value::to_string).collect();
        if self.is_over {
            data.push("[DONE]".to_string());
        }
        Some(data)
    }

    fn piece(&mut self, index: usize, piece: &Piece) -> Value {
        if let Some(text) = &mut self.texts[index] {
            text.push_str(&piece.text);
        }
        let logprobs = self.heading.has_logprobs.then(|| logprobs_value(&self.shared.tokenizer, &piece.logprobs));
        let mut chunk = self.chunk(index, json!({"content": piece.text}), Value::Null);
        chunk["choices"][0]["logprobs"] = json!(logprobs);
        chunk
    }

    /// The last chunk of one answer, with what it foresees.
    async fn end(&mut self, index: usize, ending: Ending) -> Result<Vec<Value>, Refusal> {
        self.n_generated += ending.n_tokens;
        let text = self.texts[index].take().unwrap_or_default();
        let plan = Plan::new(text, ending, self.shared.recalibration.of(None));
        let plans = record(&self.shared, self.heading.task, vec![plan]).await?;
        let chunk = |plan: &Plan| {
            let mut chunk = self.chunk(index, json!({}), json!(plan.finish_reason()));
            if let Some(extension) = plan.extension() {
                chunk["choices"][0]["fsq"] = extension;
            }
            chunk
        };
        Ok(plans.iter().map(chunk).collect())
    }

    fn chunk(&self, index: usize, delta: Value, finish_reason: Value) -> Value {
        let mut chunk = self.heading();
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
        chunk["choices"] = json!([choice]);
        if self.includes_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn heading(&self) -> Value {
        let Heading { id, created_s, model, .. } = &self.heading;
        json!({"id": id, "object": "chat.completion.chunk", "created": created_s, "model": model})
    }
}
