//! `/v1/foresight`: several candidate plans for one state, each with its rollout and estimate, and the one to take.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use fsq_calibrate::foresight::Field;
use fsq_calibrate::gates::Confidence;
use fsq_model::TokenId;
use serde_json::{Value, json};

use crate::PolicyFacts;
use crate::answer;
use crate::asked::Common;
use crate::drift::seen_value;
use crate::fields::Fields;
use crate::plan::{Meaning, Plan};
use crate::prompt::{Role, Turn, encode_chat, encode_tagged, take_messages};
use crate::refusal::Refusal;
use crate::routes::{confidence_name, read_fields, recalibration};
use crate::server::{Ask, Shared};
use crate::worker::Draw;

/// Candidate plans of one request.
const PLANS_MAX: u64 = 16;
const PLANS_DEFAULT: u64 = 4;
/// Tokens of a plan unless the request says otherwise; foresight is short.
const TOKENS_DEFAULT: usize = 512;

/// A request, read.
struct Asked {
    turns: Vec<Turn>,
    /// Beginnings to go on from; an empty one leaves everything to the policy.
    beginnings: Vec<String>,
    /// Where the state comes from, if that was said.
    environment: Option<String>,
    /// Whether estimates may be chosen by there.
    confidence: Option<Confidence>,
    common: Common,
}

/// `POST /v1/foresight`.
///
/// `state` is the text of one user turn, `messages` a whole chat instead. Plans are sampled (`plans`, 4 unless
/// given), or go on from `candidates`: each is the beginning of an answer, at most up to its `<confidence>`; one
/// that does not begin with `<imaginary>` is taken as the beginning of the rollout. `environment` names the one of the
/// file's judged environments that the state is from, whose map and verdict then hold; without it estimates come from
/// the map over all of them, and a plan is chosen only if estimates hold in all.
pub(crate) async fn plans(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let fields = read_fields(&shared, request).await?;
    let reading = shared.read_beside(move |shared| {
        let asked = read(fields, shared)?;
        shared.check_text(asked.beginnings.iter().map(String::len).sum())?;
        let begun: Vec<_> = asked.beginnings.iter().map(|it| encode_tagged(&shared.tokenizer, it)).collect();
        Ok((encode_chat(shared, &asked.turns)?, begun, asked))
    });
    let (prompt, begun, asked) = reading.await?;
    let Asked { beginnings, environment, confidence, common, .. } = asked;
    let task = answer::task(&prompt);
    let n_prompt = prompt.len();
    let draw = |(index, (text, tokens)): (u64, (&String, Vec<TokenId>))| Draw {
        beginning: (text.clone(), tokens),
        ..Draw::new(&common, index)
    };
    let draws = (0..).zip(beginnings.iter().zip(begun)).map(draw).collect();
    let tokens_max = common.tokens_max.unwrap_or(TOKENS_DEFAULT);
    let ask = Ask { prompt, draws, tokens_max, stop_texts: Vec::new(), top_logprobs: 0 };
    let answers = answer::collect(shared.submit(vec![ask])?, beginnings).await?;
    let drift = shared.drift.seen(environment.as_deref());
    let meaning = Meaning::of(&shared, environment.as_deref(), confidence);
    let mut plans: Vec<Plan> = answers.into_iter().map(|it| Plan::new(it.text, it.ending, &meaning)).collect();
    plans = answer::record(&shared, &vec![task; plans.len()], environment.as_deref(), plans).await?;
    let is_alarmed = drift.as_ref().is_some_and(|it| it.is_alarmed);
    let choice = choose(&plans, confidence, is_alarmed);
    let n_generated: usize = plans.iter().map(|it| it.ending.n_tokens).sum();
    Ok(Json(json!({
        "id": answer::answer_id("foresight"),
        "object": "foresight",
        "created": answer::now_s(),
        "model": shared.facts.name,
        "plans": plans.iter().enumerate().map(|(index, it)| plan_value(index, it, &plans)).collect::<Vec<_>>(),
        "chosen": choice.as_ref().ok(),
        "reason": choice.as_ref().err(),
        "confidence": confidence_name(confidence),
        "recalibration": recalibration(&meaning.map),
        "threshold": meaning.threshold,
        "drift": seen_value(drift.as_ref()),
        "seed": common.seed,
        "usage": answer::usage(n_prompt, n_generated),
    })))
}

fn read(mut fields: Fields, shared: &Shared) -> Result<Asked, Refusal> {
    let messages = take_messages(&mut fields)?;
    let turns = match (messages, fields.text("state")?) {
        (Some(turns), None) => turns,
        (None, Some(state)) => vec![Turn::text(Role::User, state)],
        _ => return Err(Refusal::invalid("missing_field", "expected either `state` or `messages`").about("state")),
    };
    let n_plans = fields.integer("plans", 1..=PLANS_MAX)?;
    let candidates = fields.list("candidates", PLANS_MAX as usize)?;
    let beginnings = match (n_plans, candidates) {
        (Some(_), Some(_)) => {
            let message = "field `candidates`: expected without `plans`, since each candidate makes one plan";
            return Err(Refusal::invalid("conflicting_fields", message).about("candidates"));
        }
        (_, Some(candidates)) if candidates.is_empty() => {
            return Err(Refusal::field("candidates", "at least one candidate", &Value::Array(candidates)));
        }
        (_, Some(candidates)) => (0..).zip(candidates).map(beginning).collect::<Result<_, _>>()?,
        (n_plans, None) => vec![String::new(); n_plans.unwrap_or(PLANS_DEFAULT) as usize],
    };
    let environment = fields.text("environment")?;
    let confidence = confidence_in(environment.as_deref(), &shared.facts)?;
    let common = Common::take(&mut fields, shared)?;
    fields.finish()?;
    Ok(Asked { turns, beginnings, environment, confidence, common })
}

/// What the gates found of estimates in an environment, or in all of them.
fn confidence_in(environment: Option<&str>, facts: &PolicyFacts) -> Result<Option<Confidence>, Refusal> {
    let Some(environment) = environment else { return Ok(facts.confidence) };
    facts.confidence_in.get(environment).copied().map(Some).ok_or_else(|| {
        let judged: Vec<&str> = facts.confidence_in.keys().map(String::as_str).collect();
        let expected = match judged.is_empty() {
            true => "no environment, since this file was judged in none".to_owned(),
            false => format!("one that this file was judged in: {}", judged.join(", ")),
        };
        Refusal::field("environment", &expected, &Value::String(environment.to_owned()))
    })
}

/// The beginning of an answer that a candidate stands for.
fn beginning((index, candidate): (usize, Value)) -> Result<String, Refusal> {
    let name = format!("candidates[{index}]");
    let Value::String(text) = candidate else {
        return Err(Refusal::field(&name, "a string", &candidate));
    };
    let (imaginary, confidence) = (Field::Imaginary.opening(), Field::Confidence.opening());
    let is_over = text.find(confidence).is_some_and(|it| it + confidence.len() < text.len());
    if is_over || text.trim().is_empty() {
        let expected = "the beginning of an answer, at most up to `<confidence>`: the odds are the policy's to state";
        return Err(Refusal::field(&name, expected, &Value::String(text)));
    }
    Ok(if text.starts_with(imaginary) { text } else { format!("{imaginary}{text}") })
}

/// The plan to take: that of the highest estimate, the first of equals; or why there is none.
fn choose(plans: &[Plan], confidence: Option<Confidence>, is_alarmed: bool) -> Result<usize, &'static str> {
    if is_alarmed {
        return Err("outcomes say that estimates no longer hold here, so nothing is chosen by them until a map does");
    }
    if confidence == Some(Confidence::Unusable) {
        return Err("the file says that this policy's confidence is unusable here, so nothing is chosen by it");
    }
    let estimates = plans.iter().enumerate().filter_map(|(index, it)| Some((index, it.reading?.1)));
    let best = estimates.reduce(|best, it| if it.1 > best.1 { it } else { best });
    let (index, _) = best.ok_or("no plan is well-formed")?;
    if plans[index].abstains == Some(true) {
        return Err("no estimate reaches the threshold of the file for this map, so it is better not to act");
    }
    Ok(index)
}

fn plan_value(index: usize, plan: &Plan, plans: &[Plan]) -> Value {
    let same = plan.action().and_then(|it| plans[..index].iter().position(|earlier| earlier.action() == Some(it)));
    let mut value = json!({"index": index, "text": plan.text, "finish_reason": plan.finish_reason()});
    if let Value::Object(map) = &mut value {
        map.extend(plan.fields());
        map.insert("same_action_as".to_string(), json!(same));
    }
    value
}
