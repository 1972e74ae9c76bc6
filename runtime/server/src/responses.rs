//! `/v1/responses` without memory: every request brings its whole history, and nothing of it is kept.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::answer::{self, answer_id, now_s};
use crate::asked::{Common, Delivery};
use crate::calls::{Call, CallReader, Said};
use crate::chat::{Prepared, prepare};
use crate::events;
use crate::fields::Fields;
use crate::form::{self, Form};
use crate::plan::{Meaning, Plan};
use crate::prompt::{MESSAGES_MAX, Role, Turn, content_text};
use crate::refusal::Refusal;
use crate::routes::read_fields;
use crate::server::{Ask, Shared};
use crate::tools::{Choice, Layout, Tools, read_call, read_call_id};
use crate::worker::Draw;

/// A request, read.
struct Asked {
    turns: Vec<Turn>,
    instructions: Option<String>,
    common: Common,
    tokens_max: Option<usize>,
    tools: Tools,
    form: Option<Form>,
    is_streamed: bool,
}

/// What every state of a response repeats.
#[derive(Clone, Debug)]
pub(crate) struct Outline {
    value: Value,
    /// Of the message in it.
    pub(crate) message_id: String,
    /// Its prompt as a task.
    pub(crate) task: u64,
    pub(crate) n_prompt: usize,
}

/// `POST /v1/responses`.
pub(crate) async fn create(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let fields = read_fields(&shared, request).await?;
    let reading = shared.read_beside(move |shared| {
        let mut asked = read(fields, shared)?;
        let form = asked.form.take();
        let value = outline(&asked, form.as_ref(), shared);
        Ok((prepare(shared, &asked.turns, asked.common.clone(), &asked.tools, form)?, value, asked))
    });
    let (Prepared { prompt, common, reader, fault }, value, asked) = reading.await?;
    let (task, n_prompt) = (answer::task(&prompt), prompt.len());
    let outline = Outline { value, message_id: answer_id("msg"), task, n_prompt };
    let tokens_max = asked.tokens_max.unwrap_or(shared.context_tokens);
    let draws = vec![Draw::new(&common, 0)];
    let answers = shared.submit(vec![Ask { prompt, draws, tokens_max, stop_texts: Vec::new(), top_logprobs: 0 }])?;
    if asked.is_streamed {
        return Ok(events::respond(shared, outline, reader, fault, answers));
    }
    let answers = answer::collect(answers, vec![String::new()]).await?;
    fault.check()?;
    let meaning = Meaning::overall(&shared);
    let plans = answers.into_iter().map(|it| Plan::new(it.text, it.ending, &meaning)).collect();
    let plans = answer::record(&shared, &[outline.task], None, plans).await?;
    let plan = plans.first().ok_or_else(answer::engine_gone)?;
    let said = reader.map_or_else(|| Said { words: plan.text.clone(), calls: Vec::new() }, |it| whole(it, &plan.text));
    Ok(Json(outline.finished(plan, &said)).into_response())
}

fn whole(mut reader: CallReader, text: &str) -> Said {
    let words = reader.push(text);
    let rest = reader.finish();
    Said { words: words + &rest.words, ..rest }
}

fn read(mut fields: Fields, shared: &Shared) -> Result<Asked, Refusal> {
    let instructions = fields.text("instructions")?;
    let system = instructions.clone().map(|it| Turn::text(Role::System, it));
    let said = match fields.take("input") {
        Some(Value::String(text)) => vec![Turn::text(Role::User, text)],
        Some(Value::Array(items)) if (1..=MESSAGES_MAX).contains(&items.len()) => read_items(items)?,
        other => {
            let expected = format!("a text, or 1 to {MESSAGES_MAX} items");
            return Err(Refusal::field("input", &expected, &other.unwrap_or_default()));
        }
    };
    let turns = system.into_iter().chain(said).collect();
    let tokens_max = fields.integer("max_output_tokens", 1..=shared.context_tokens as u64)?.map(|it| it as usize);
    let tools = Tools::take(&mut fields, Layout::Flat)?;
    let form = match fields.take("text") {
        None => None,
        Some(text) => {
            let mut text = Fields::of("text", text)?;
            text.neutral("verbosity", "only `medium` is", |it| it == "medium")?;
            let format = text.take("format");
            text.finish()?;
            match format {
                Some(format) => Form::of_format(Fields::of("text.format", format)?, "text.format")?,
                None => None,
            }
        }
    };
    let Delivery { is_streamed, .. } = Delivery::take(&mut fields)?;
    refuse_memory(&mut fields)?;
    for name in ["max_tokens", "max_completion_tokens"] {
        fields.neutral(name, "`max_output_tokens` is", |_| false)?;
    }
    let common = Common::take(&mut fields, shared)?;
    fields.finish()?;
    Ok(Asked { turns, instructions, common, tokens_max, tools, form, is_streamed })
}

/// What asks this server to remember something, or for what it does not have.
fn refuse_memory(fields: &mut Fields) -> Result<(), Refusal> {
    let is_empty = |it: &Value| it.as_array().is_some_and(Vec::is_empty) || *it == json!({});
    fields.neutral("store", "nothing is kept here, so only false is", |it| *it == json!(false))?;
    fields.neutral("background", "only false is", |it| *it == json!(false))?;
    for name in ["previous_response_id", "conversation", "prompt"] {
        fields.neutral(name, "nothing is kept here: send the whole history as `input`", |_| false)?;
    }
    fields.neutral("include", "leave it out", is_empty)?;
    fields.neutral("reasoning", "leave it out", is_empty)?;
    fields.neutral("truncation", "only `disabled` is", |it| it == "disabled")?;
    fields.neutral("top_logprobs", "only 0 is", |it| *it == json!(0))?;
    fields.neutral("max_tool_calls", "leave it out", |_| false)?;
    fields.neutral("service_tier", "only `auto` and `default` are", |it| it == "auto" || it == "default")
}

/// Items of a history as turns of a chat. Calls that follow one another are one turn, with the words before them.
fn read_items(items: Vec<Value>) -> Result<Vec<Turn>, Refusal> {
    let mut turns: Vec<Turn> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let mut fields = Fields::of(&format!("input[{index}]"), item)?;
        let kind_name = fields.name("type");
        let kind = fields.take("type").unwrap_or_else(|| json!("message"));
        fields.ignore(&["status"]);
        match kind.as_str() {
            Some("message") => turns.push(read_message(&mut fields)?),
            Some("function_call") => {
                fields.ignore(&["id"]);
                let id = read_call_id(&mut fields, "call_id")?;
                let call = read_call(&mut fields, id)?;
                match turns.last_mut().filter(|it| it.role == Role::Assistant) {
                    Some(turn) => turn.calls.push(call),
                    None => {
                        turns.push(Turn { calls: vec![call], ..Turn::text(Role::Assistant, String::new()) });
                    }
                }
            }
            Some("function_call_output") => {
                fields.ignore(&["id"]);
                let id = read_call_id(&mut fields, "call_id")?;
                let output_name = fields.name("output");
                let output = fields.take("output").unwrap_or_default();
                let text = content_text(&output_name, output)?;
                turns.push(Turn { answers: Some((id, None)), ..Turn::text(Role::Tool, text) });
            }
            _ => {
                let expected = "`message`, `function_call` or `function_call_output`";
                return Err(Refusal::field(&kind_name, expected, &kind));
            }
        }
        fields.finish()?;
    }
    Ok(turns)
}

fn read_message(fields: &mut Fields) -> Result<Turn, Refusal> {
    fields.ignore(&["id"]);
    let role_name = fields.name("role");
    let role = fields.take("role").unwrap_or_default();
    let known = role.as_str().and_then(Role::from_name).filter(|it| *it != Role::Tool);
    let expected = "`system`, `developer`, `user` or `assistant`";
    let role = known.ok_or_else(|| Refusal::field(&role_name, expected, &role))?;
    let content_name = fields.name("content");
    let content = fields.take("content").unwrap_or_default();
    Ok(Turn::text(role, content_text(&content_name, content)?))
}

/// The response as far as the request settles it.
fn outline(asked: &Asked, form: Option<&Form>, shared: &Shared) -> Value {
    let choice = match &asked.tools.choice {
        Choice::None => json!("none"),
        Choice::Auto => json!("auto"),
        Choice::Required => json!("required"),
        Choice::Named(name) => json!({"type": "function", "name": name}),
    };
    json!({
        "id": answer_id("resp"),
        "object": "response",
        "created_at": now_s(),
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": asked.instructions,
        "max_output_tokens": asked.tokens_max,
        "metadata": {},
        "model": shared.facts.name,
        "output": [],
        "parallel_tool_calls": asked.tools.is_parallel,
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "service_tier": "default",
        "store": false,
        "temperature": asked.common.temperature(),
        "text": {"format": form::shown(form)},
        "tool_choice": choice,
        "tools": asked.tools.list.iter().map(crate::tools::Tool::flat).collect::<Vec<_>>(),
        "top_p": asked.common.top_p(),
        "truncation": "disabled",
        "usage": null,
    })
}

impl Outline {
    /// Before anything is said.
    pub(crate) fn begun(&self) -> Value {
        self.value.clone()
    }

    /// With all that was said.
    pub(crate) fn finished(&self, plan: &Plan, said: &Said) -> Value {
        let mut value = self.value.clone();
        let is_complete = plan.ending.is_complete;
        let status = if is_complete { "completed" } else { "incomplete" };
        value["status"] = json!(status);
        if !is_complete {
            value["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let mut output = Vec::new();
        if !said.words.is_empty() || said.calls.is_empty() {
            output.push(self.message(&said.words, status));
        }
        output.extend(said.calls.iter().map(|it| call_item(it, status, &it.arguments)));
        value["output"] = Value::Array(output);
        let n_generated = plan.ending.n_tokens;
        value["usage"] = json!({
            "input_tokens": self.n_prompt, "input_tokens_details": {"cached_tokens": plan.ending.n_reused},
            "output_tokens": n_generated, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.n_prompt + n_generated,
        });
        if let Some(extension) = plan.extension() {
            value["fsq"] = extension;
        }
        value
    }

    /// The item that words are.
    pub(crate) fn message(&self, words: &str, status: &str) -> Value {
        let content = if status == "in_progress" { json!([]) } else { json!([text_part(words)]) };
        json!({
            "id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content,
        })
    }
}

/// What a message's words are put into.
pub(crate) fn text_part(words: &str) -> Value {
    json!({"type": "output_text", "text": words, "annotations": [], "logprobs": []})
}

/// The item that a call is; its own name follows from the call's.
pub(crate) fn call_item(call: &Call, status: &str, arguments: &str) -> Value {
    let id = format!("fc_{}", call.id.trim_start_matches("call_"));
    json!({
        "id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
        "arguments": arguments,
    })
}
