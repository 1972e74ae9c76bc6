//! An answer as server-sent events, chunk by chunk; what is dropped unread is no longer computed.

use std::sync::Arc;

use axum::response::sse::{Event as Chunk, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{iter, unfold};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::answer::{Heading, Shape, call_value, engine_gone, finish_reason, record, refusal, usage};
use crate::calls::{CallReader, Said};
use crate::plan::{Meaning, Plan};
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
    /// What is left of each answer's reading, where it may hold calls.
    readers: Vec<Option<CallReader>>,
    /// Where the next token of each answer begins in its text, in characters.
    offsets: Vec<usize>,
    n_generated: usize,
    includes_usage: bool,
    is_over: bool,
}

/// Begins to answer; the rest comes as the engine gets to it.
pub(crate) fn respond(
    shared: Arc<Shared>,
    heading: Heading,
    events: UnboundedReceiver<Event>,
    includes_usage: bool,
) -> Response {
    let texts = vec![Some(String::new()); heading.tasks.len()];
    let offsets = heading.echoes.iter().map(|it| it.chars().count()).collect();
    let readers = vec![heading.reader.clone(); heading.tasks.len()];
    let streaming =
        Streaming { shared, heading, events, texts, readers, offsets, n_generated: 0, includes_usage, is_over: false };
    let openings = streaming.openings();
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
    /// The data of the events before the first token: who speaks in a chat, the prompts that are repeated.
    fn openings(&self) -> Vec<String> {
        let echoes = self.heading.echoes.iter().enumerate();
        let opening = |(index, echo): (usize, &String)| match self.heading.shape {
            Shape::Chat => Some(self.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null)),
            Shape::Text if echo.is_empty() => None,
            Shape::Text => Some(self.chunk(index, json!(echo), Value::Null)),
        };
        echoes.filter_map(opening).map(|it| it.to_string()).collect()
    }

    /// The data of the next events; `None` after the last one.
    async fn next_chunks(&mut self) -> Option<Vec<String>> {
        if self.is_over {
            return None;
        }
        let chunks = match self.events.recv().await {
            Some(Event::Piece { index, piece }) => Ok(self.piece(index, &piece).into_iter().collect()),
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
                let mut chunk = self.heading.value(true);
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

    /// `None` while it cannot be told whether what came is said or called.
    fn piece(&mut self, index: usize, piece: &Piece) -> Option<Value> {
        if let Some(text) = &mut self.texts[index] {
            text.push_str(&piece.text);
        }
        let words = match &mut self.readers[index] {
            Some(reader) => reader.push(&piece.text),
            None => piece.text.clone(),
        };
        if words.is_empty() && (!self.heading.has_logprobs || piece.logprobs.is_empty()) {
            return None;
        }
        let said = match self.heading.shape {
            Shape::Chat => json!({"content": words}),
            Shape::Text => json!(piece.text),
        };
        let mut chunk = self.chunk(index, said, Value::Null);
        if self.heading.has_logprobs {
            let offset = &mut self.offsets[index];
            chunk["choices"][0]["logprobs"] = self.heading.logprobs(&self.shared.tokenizer, &piece.logprobs, offset);
        }
        Some(chunk)
    }

    /// The last chunks of one answer, with what it calls and what it foresees.
    async fn end(&mut self, index: usize, ending: Ending) -> Result<Vec<Value>, Refusal> {
        self.heading.fault.check()?;
        let Said { words, calls } = self.readers[index].take().map(CallReader::finish).unwrap_or_default();
        let mut chunks = Vec::new();
        if !words.is_empty() {
            chunks.push(self.chunk(index, json!({"content": words}), Value::Null));
        }
        for (number, call) in calls.iter().enumerate() {
            let mut value = call_value(call);
            value["index"] = json!(number);
            chunks.push(self.chunk(index, json!({"tool_calls": [value]}), Value::Null));
        }
        self.n_generated += ending.n_tokens;
        let text = self.texts[index].take().unwrap_or_default();
        let plan = Plan::new(text, ending, &Meaning::overall(&self.shared));
        let plans = record(&self.shared, &self.heading.tasks[index..=index], None, vec![plan]).await?;
        let nothing = match self.heading.shape {
            Shape::Chat => json!({}),
            Shape::Text => json!(""),
        };
        let chunk = |plan: &Plan| {
            let mut chunk = self.chunk(index, nothing.clone(), json!(finish_reason(plan, &calls)));
            if let Some(extension) = plan.extension() {
                chunk["choices"][0]["fsq"] = extension;
            }
            chunk
        };
        chunks.extend(plans.iter().map(chunk));
        Ok(chunks)
    }

    /// `said` is the delta of a chat, or a text.
    fn chunk(&self, index: usize, said: Value, finish_reason: Value) -> Value {
        let name = if self.heading.shape == Shape::Chat { "delta" } else { "text" };
        let mut choice = json!({"index": index});
        choice[name] = said;
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = finish_reason;
        let mut chunk = self.heading.value(true);
        chunk["choices"] = json!([choice]);
        if self.includes_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}
