//! The last part: a real request to the running server, and what then really happens.

use std::path::Path;

use anyhow::Context;
use fsq_environments::{End, Environment, Split, in_world};
use fsq_gguf::Gguf;
use serde_json::{Value, json};

use crate::evaluate::World;
use crate::report::record::Served;
use crate::serve;

/// Candidate plans that the demo asks for.
const PLANS: u64 = 4;
/// The held-out task that is played: seed and place in the list of held-out tasks.
const TASK_SEED: u64 = 7;

/// A served episode, as data and as text.
pub(super) struct ServedEpisode {
    pub(super) record: Served,
    pub(super) text: String,
}

/// Serves a file, asks for plans on a held-out task, follows the chosen ones and reports the outcome.
///
/// The task is from the first environment in which the gates found the file's estimates fit to choose by, if any.
pub(super) fn serve_one(file: &Path, threads: usize, port: u16, seed: u64) -> anyhow::Result<ServedEpisode> {
    let gguf = Gguf::open(file)?;
    let usable = |it: &&World| gguf.metadata().str(&format!("fsq.gate.{}.confidence", it.name())) == Some("usable");
    let world = World::ALL.iter().find(usable).unwrap_or(&World::Countdown);
    let server = serve::start(file, threads, port)?;
    let origin = format!("http://{}", server.address());
    let played = in_world!(&world.any(), it => play(it, &origin, seed));
    server.stop()?;
    played
}

fn post(url: &str, body: &Value) -> anyhow::Result<Value> {
    let mut answer = ureq::post(url).send_json(body).with_context(|| url.to_string())?;
    answer.body_mut().read_json().with_context(|| url.to_string())
}

fn play<E: Environment>(world: &E, origin: &str, seed: u64) -> anyhow::Result<ServedEpisode> {
    let tasks = world.tasks(Split::Test, TASK_SEED, 1);
    let task = tasks.first().context("no held-out task")?;
    let mut state = world.start(task);
    let mut messages = vec![json!({"role": "user", "content": world.observe(task, &state)})];
    let mut first: Option<(Value, Value, usize)> = None;
    let mut text = format!("\nserved at {origin}\n");
    let mut happened = vec![world.observe(task, &state)];
    let mut predictions = Vec::new();
    while world.end(task, &state).is_none() && happened.len() <= E::STEPS_MAX {
        let request = json!({
            "environment": E::NAME, "messages": messages, "plans": PLANS, "temperature": 1.0, "seed": seed,
        });
        let answer = post(&format!("{origin}/v1/foresight"), &request)?;
        let plans = answer["plans"].as_array().cloned().unwrap_or_default();
        let chosen = answer["chosen"].as_u64().and_then(|it| usize::try_from(it).ok());
        text += &format!(
            "\nPOST /v1/foresight  {}\n{}",
            messages.last().map_or("", |it| it["content"].as_str().unwrap_or("")),
            plans_text(&plans, chosen)
        );
        if chosen.is_none() {
            text += &format!("  no plan was chosen ({}); the first is followed\n", answer["reason"]);
        }
        let taken = chosen.unwrap_or(0);
        let plan = plans.get(taken).cloned().unwrap_or_default();
        predictions.extend(plan["prediction_id"].as_str().map(str::to_string));
        first.get_or_insert((request, answer, taken));
        let action = plan["action"].as_str().unwrap_or("");
        match world.step(task, &state, action) {
            Ok(next) => state = next,
            Err(fault) => {
                happened.push(fault.to_string());
                break;
            }
        }
        happened.push(world.observe(task, &state));
        messages.push(json!({"role": "assistant", "content": plan["text"]}));
        messages.push(json!({"role": "user", "content": world.observe(task, &state)}));
    }
    let success = world.end(task, &state) == Some(End::Success);
    text += &format!("\nwhat then really happened: {}\n", happened.join("  ->  "));
    for id in &predictions {
        let outcome = json!({"prediction_id": id, "outcome": u8::from(success)});
        post(&format!("{origin}/v1/outcomes"), &outcome)?;
    }
    text += &format!("POST /v1/outcomes   {} predictions, outcome {}\n", predictions.len(), u8::from(success));
    let (request, response, chosen) = first.context("the server was never asked")?;
    let outcome_text = happened.join("  ->  ");
    Ok(ServedEpisode { record: Served { request, response, chosen, outcome_text, success }, text })
}

fn plans_text(plans: &[Value], chosen: Option<usize>) -> String {
    let mut text = String::new();
    for (index, plan) in plans.iter().enumerate() {
        let mark = if chosen == Some(index) { "*" } else { " " };
        let rollout: Vec<&str> =
            plan["rollout"].as_array().map(|it| it.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
        let percent = |key: &str| plan[key].as_f64().map_or("-".into(), |it| format!("{:.0} %", 100.0 * it));
        text += &format!(
            "{mark} plan {index}: {:<44} stated {:>5}  estimate {:>5}  -> {}\n",
            rollout.join(" ; "),
            percent("stated_expectation"),
            percent("estimate"),
            plan["action"].as_str().unwrap_or("malformed"),
        );
    }
    text
}
