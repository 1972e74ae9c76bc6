//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use crate::answer::{self, Heading, Shape};
use crate::asked::{self, Common, Delivery};
use crate::fields::Fields;
use crate::prompt::{Turn, encode_chat, take_messages};
use crate::refusal::Refusal;
use crate::routes::read_fields;
use crate::server::{Ask, Shared};
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
}

/// `POST /v1/chat/completions`.
pub(crate) async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let fields = read_fields(&shared, request).await?;
    let reading = shared.read_beside(move |shared| {
        let asked = read(fields, shared)?;
        Ok((encode_chat(shared, &asked.turns)?, asked))
    });
    let (prompt, asked) = reading.await?;
    let mut heading = Heading::new(Shape::Chat, &shared.facts.name, &[&prompt], asked.n_answers as usize, &[]);
    heading.has_logprobs = asked.top_logprobs.is_some();
    let ask = Ask {
        prompt,
        draws: (0..asked.n_answers).map(|it| Draw::new(&asked.common, it)).collect(),
        tokens_max: asked.common.tokens_max.unwrap_or(shared.context_tokens),
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
    asked::refuse_unsupported(&mut fields)?;
    fields.finish()?;
    let top_logprobs = has_logprobs.then(|| top_logprobs.unwrap_or(0) as usize);
    Ok(Asked { turns, common, n_answers, stop_texts, delivery, top_logprobs })
}
