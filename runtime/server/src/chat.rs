//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use fsq_model::TokenId;
use serde_json::Value;

use crate::answer::{self, Heading, Shape};
use crate::asked::{self, Common, Delivery};
use crate::calls::CallReader;
use crate::fields::Fields;
use crate::form::{Fault, Form};
use crate::prompt::{Turn, encode_with_tools, take_messages};
use crate::refusal::Refusal;
use crate::routes::read_fields;
use crate::server::{Ask, Shared};
use crate::tools::{Layout, Tools, form};
use crate::worker::Draw;

/// As OpenAI's.
const TOP_LOGPROBS_MAX: u64 = 20;

/// A request, read.
struct Asked {
    turns: Vec<Turn>,
    common: Common,
    n_answers: u64,
    stop_texts: Vec<String>,
    delivery: Delivery,
    /// `None`: no log-probabilities.
    top_logprobs: Option<usize>,
    tools: Tools,
    form: Option<Form>,
}

/// A chat that is ready to be gone on from, with what its answers are read by.
pub(crate) struct Prepared {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) common: Common,
    pub(crate) reader: Option<CallReader>,
    pub(crate) fault: Fault,
}

/// Lays a chat out, and readies what its answers are held to.
pub(crate) fn prepare(
    shared: &Shared,
    turns: &[Turn],
    mut common: Common,
    tools: &Tools,
    form: Option<Form>,
) -> Result<Prepared, Refusal> {
    let reader = tools.reader(shared)?;
    if let (Some(form), true) = (&form, tools.may_call()) {
        let message = format!("field `{}`: expected without tools that may be called: they have a form", form.field());
        return Err(Refusal::invalid("conflicting_fields", message).about(form.field()));
    }
    let of_tools = || {
        let list_token = shared.tokenizer.token_id("[TOOL_CALLS]");
        Ok::<_, Refusal>(Form::of_tools(tools, self::form(shared)?, list_token))
    };
    let form = if tools.may_call() { of_tools()? } else { form };
    let fault = Fault::default();
    let prompt = encode_with_tools(shared, turns, tools.variables(shared)?)?;
    if let Some(form) = form {
        common.adjustments.constraint = Some(shared.grammars.constraint(&form, &fault)?);
    }
    Ok(Prepared { prompt, common, reader, fault })
}

/// `POST /v1/chat/completions`.
pub(crate) async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let fields = read_fields(&shared, request).await?;
    let reading = shared.read_beside(move |shared| {
        let mut asked = read(fields, shared)?;
        let form = asked.form.take();
        Ok((prepare(shared, &asked.turns, asked.common.clone(), &asked.tools, form)?, asked))
    });
    let (Prepared { prompt, common, reader, fault }, asked) = reading.await?;
    let mut heading = Heading::new(Shape::Chat, &shared.facts.name, &[&prompt], asked.n_answers as usize, &[]);
    heading.has_logprobs = asked.top_logprobs.is_some();
    (heading.reader, heading.fault) = (reader, fault);
    let ask = Ask {
        prompt,
        draws: (0..asked.n_answers).map(|it| Draw::new(&common, it)).collect(),
        tokens_max: common.tokens_max.unwrap_or(shared.context_tokens),
        stop_texts: asked.stop_texts,
        top_logprobs: asked.top_logprobs.unwrap_or(0),
    };
    let events = shared.submit(vec![ask])?;
    answer::respond(shared, heading, events, asked.delivery).await
}

fn read(mut fields: Fields, shared: &Shared) -> Result<Asked, Refusal> {
    let turns = take_messages(&mut fields)?;
    let turns = turns.ok_or_else(|| Refusal::field("messages", "an array", &Value::Null))?;
    let common = Common::take(&mut fields, shared)?;
    let n_answers = asked::take_n(&mut fields)?;
    let stop_texts = asked::take_stop(&mut fields)?;
    let delivery = Delivery::take(&mut fields)?;
    let has_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    if top_logprobs.is_some() && !has_logprobs {
        let message = "field `top_logprobs`: expected only with `logprobs`";
        return Err(Refusal::invalid("conflicting_fields", message).about("top_logprobs"));
    }
    let tools = Tools::take(&mut fields, Layout::Nested)?;
    let form = Form::take(&mut fields)?;
    asked::refuse_unsupported(&mut fields)?;
    fields.finish()?;
    let top_logprobs = has_logprobs.then(|| top_logprobs.unwrap_or(0) as usize);
    Ok(Asked { turns, common, n_answers, stop_texts, delivery, top_logprobs, tools, form })
}
