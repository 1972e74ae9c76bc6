//! A response of `/v1/responses` as server-sent events, each with its name and number; what is dropped unread is no
//! longer computed.

use std::sync::Arc;

use axum::response::sse::{Event as Chunk, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{iter, unfold};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::answer::{engine_gone, record, refusal};
use crate::calls::{CallReader, Said};
use crate::form::Fault;
use crate::plan::{Meaning, Plan};
use crate::refusal::Refusal;
use crate::responses::{Outline, call_item, text_part};
use crate::server::Shared;
use crate::worker::{Ending, Event};

/// A response on its way.
struct Streaming {
    shared: Arc<Shared>,
    outline: Outline,
    reader: Option<CallReader>,
    fault: Fault,
    answers: UnboundedReceiver<Event>,
    /// All that the policy wrote, and what of it are words.
    text: String,
    words: String,
    n_events: u64,
    is_over: bool,
}

/// Begins to answer; the rest comes as the engine gets to it.
pub(crate) fn respond(
    shared: Arc<Shared>,
    outline: Outline,
    reader: Option<CallReader>,
    fault: Fault,
    answers: UnboundedReceiver<Event>,
) -> Response {
    let (text, words) = (String::new(), String::new());
    let mut streaming = Streaming { shared, outline, reader, fault, answers, text, words, n_events: 0, is_over: false };
    let begun = streaming.outline.begun();
    let opening = ["response.created", "response.in_progress"];
    let opening = opening.map(|it| streaming.event(it, json!({"response": begun})));
    let rest = unfold(streaming, |mut it| async move {
        let events = it.next_events().await?;
        Some((iter(events), it))
    });
    let events = iter(opening).chain(rest.flatten());
    let chunk = |(name, data): (&'static str, Value)| Chunk::default().event(name).data(data.to_string());
    Sse::new(events.map(move |it| Ok::<_, std::convert::Infallible>(chunk(it))))
        .keep_alive(KeepAlive::default())
        .into_response()
}

impl Streaming {
    fn event(&mut self, name: &'static str, mut data: Value) -> (&'static str, Value) {
        data["type"] = json!(name);
        data["sequence_number"] = json!(self.n_events);
        self.n_events += 1;
        (name, data)
    }

    /// `None` after the last ones.
    async fn next_events(&mut self) -> Option<Vec<(&'static str, Value)>> {
        if self.is_over {
            return None;
        }
        let events = match self.answers.recv().await {
            Some(Event::Piece { piece, .. }) => {
                self.text.push_str(&piece.text);
                let words = match &mut self.reader {
                    Some(reader) => reader.push(&piece.text),
                    None => piece.text,
                };
                Ok(self.say(&words))
            }
            Some(Event::End { ending, .. }) => self.end(ending).await,
            Some(Event::Failed(failure)) => Err(refusal(failure)),
            None => Err(engine_gone()),
        };
        Some(events.unwrap_or_else(|refusal| {
            self.is_over = true;
            vec![self.failed(&refusal)]
        }))
    }

    fn failed(&mut self, refusal: &Refusal) -> (&'static str, Value) {
        let mut response = self.outline.begun();
        let error = refusal.body()["error"].take();
        response["status"] = json!("failed");
        response["error"] = json!({"code": error["code"], "message": error["message"]});
        self.event("response.failed", json!({"response": response}))
    }

    fn say(&mut self, words: &str) -> Vec<(&'static str, Value)> {
        let mut events = Vec::new();
        if words.is_empty() {
            return events;
        }
        if self.words.is_empty() {
            events.extend(self.open_message());
        }
        self.words.push_str(words);
        let id = self.outline.message_id.clone();
        let delta = json!({"item_id": id, "output_index": 0, "content_index": 0, "delta": words, "logprobs": []});
        events.push(self.event("response.output_text.delta", delta));
        events
    }

    fn open_message(&mut self) -> [(&'static str, Value); 2] {
        let item = self.outline.message("", "in_progress");
        let (id, part) = (self.outline.message_id.clone(), text_part(""));
        let part = json!({"item_id": id, "output_index": 0, "content_index": 0, "part": part});
        [
            self.event("response.output_item.added", json!({"output_index": 0, "item": item})),
            self.event("response.content_part.added", part),
        ]
    }

    /// What is left of the words, the calls, and the whole.
    async fn end(&mut self, ending: Ending) -> Result<Vec<(&'static str, Value)>, Refusal> {
        self.fault.check()?;
        let Said { words, calls } = self.reader.take().map(CallReader::finish).unwrap_or_default();
        let mut events = self.say(&words);
        let plan = Plan::new(std::mem::take(&mut self.text), ending, &Meaning::overall(&self.shared));
        let mut plans = record(&self.shared, &[self.outline.task], None, vec![plan]).await?;
        let plan = plans.pop().ok_or_else(engine_gone)?;
        let said = Said { words: std::mem::take(&mut self.words), calls };
        let response = self.outline.finished(&plan, &said);
        let has_message = !said.words.is_empty() || said.calls.is_empty();
        if has_message {
            if said.words.is_empty() {
                events.extend(self.open_message());
            }
            events.extend(self.close_message(&said.words, &response["output"][0]));
        }
        for (index, call) in said.calls.iter().enumerate() {
            let output_index = index + usize::from(has_message);
            let item = call_item(call, "in_progress", "");
            let id = item["id"].clone();
            let place = json!({"item_id": id, "output_index": output_index});
            let with = |field: &str| {
                let mut data = place.clone();
                data[field] = json!(call.arguments);
                data
            };
            let mut done = with("arguments");
            done["name"] = json!(call.name);
            let item_done = response["output"][output_index].clone();
            events.push(self.event("response.output_item.added", json!({"output_index": output_index, "item": item})));
            events.push(self.event("response.function_call_arguments.delta", with("delta")));
            events.push(self.event("response.function_call_arguments.done", done));
            let data = json!({"output_index": output_index, "item": item_done});
            events.push(self.event("response.output_item.done", data));
        }
        let name = if plan.ending.is_complete { "response.completed" } else { "response.incomplete" };
        events.push(self.event(name, json!({"response": response})));
        self.is_over = true;
        Ok(events)
    }

    fn close_message(&mut self, words: &str, item: &Value) -> [(&'static str, Value); 3] {
        let id = self.outline.message_id.clone();
        let text = json!({"item_id": id, "output_index": 0, "content_index": 0, "text": words, "logprobs": []});
        let part = json!({"item_id": id, "output_index": 0, "content_index": 0, "part": text_part(words)});
        [
            self.event("response.output_text.done", text),
            self.event("response.content_part.done", part),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
        ]
    }
}
