//! `/v1/outcomes`: what really happened to a prediction, told once or more often, and how well predictions did.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use crate::drift::seen_value;
use crate::fields::Fields;
use crate::refusal::{Refusal, quoted};
use crate::routes::read_fields;
use crate::server::Shared;
use crate::store::{PredictionId, Unsettled};

/// Outcomes told together.
const IDS_MAX: usize = 256;

/// `POST /v1/outcomes`: `{"prediction_id", "outcome": 0 | 1 | true | false}`, or `prediction_ids` for the predictions
/// of one episode, which share its outcome: all are recorded, or none. `grade`, from 0 to 1, is kept beside it.
pub(crate) async fn tell(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let Asked { ids, is_list, outcome, grade } = read(read_fields(&shared, request).await?)?;
    let told = Arc::clone(&shared);
    let asked = ids.clone();
    let settling = tokio::task::spawn_blocking(move || {
        let _in_order = told.drift.telling();
        let settled = told.store.settle(&asked, outcome, grade)?;
        told.drift.observe(&settled.told);
        Ok::<_, Unsettled>(settled.n_new)
    });
    let n_new = match settling.await {
        Ok(Ok(n_new)) => n_new,
        Ok(Err(Unsettled::Unknown { id })) => return Err(unknown(&id.to_string())),
        Ok(Err(Unsettled::Conflict { id, recorded })) => {
            let message = format!("prediction `{id}`: its outcome is on record as {}", u8::from(recorded));
            return Err(Refusal::conflict("conflicting_outcome", message).about("outcome"));
        }
        Ok(Err(Unsettled::Disk(error))) => {
            return Err(Refusal::internal(format!("outcome file: {error}; nothing was recorded")));
        }
        Err(_) => return Err(Refusal::internal("the outcome could not be recorded")),
    };
    let mut body = json!({"object": "outcome"});
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [name] if !is_list => body["prediction_id"] = json!(name),
        names => body["prediction_ids"] = json!(names),
    }
    body["outcome"] = json!(u8::from(outcome));
    if let Some(grade) = grade {
        body["grade"] = json!(grade);
    }
    body["is_new"] = json!(n_new > 0);
    body["n_new"] = json!(n_new);
    Ok(Json(body))
}

fn unknown(name: &str) -> Refusal {
    let message = format!("prediction `{}`: not known here", quoted(name));
    Refusal::not_found("unknown_prediction", message).about("prediction_id")
}

struct Asked {
    ids: Vec<PredictionId>,
    is_list: bool,
    outcome: bool,
    grade: Option<f64>,
}

fn read(mut fields: Fields) -> Result<Asked, Refusal> {
    let missing = |name: &str, expected: &str| Refusal::field(name, expected, &Value::Null);
    let expected = "0, 1, true or false";
    let outcome = match fields.take("outcome").ok_or_else(|| missing("outcome", expected))? {
        Value::Bool(outcome) => outcome,
        Value::Number(number) if number.as_u64().is_some_and(|it| it <= 1) => number.as_u64() == Some(1),
        other => return Err(Refusal::field("outcome", expected, &other)),
    };
    let grade = fields.number("grade", 0.0..=1.0)?;
    let id = |name: &str| name.parse::<PredictionId>().map_err(|()| unknown(name));
    let of_list = |it: &Value| match it {
        Value::String(name) => id(name),
        other => Err(Refusal::field("prediction_ids", "names of predictions", other)),
    };
    let (ids, is_list) = match (fields.text("prediction_id")?, fields.list("prediction_ids", IDS_MAX)?) {
        (Some(name), None) => (vec![id(&name)?], false),
        (None, Some(names)) if !names.is_empty() => (names.iter().map(of_list).collect::<Result<Vec<_>, _>>()?, true),
        (None, Some(names)) => return Err(Refusal::field("prediction_ids", "at least one name", &Value::Array(names))),
        _ => return Err(missing("prediction_id", "a prediction's name, or `prediction_ids` instead")),
    };
    fields.finish()?;
    Ok(Asked { ids, is_list, outcome, grade })
}

/// `GET /v1/outcomes/summary`: how well stated probabilities and estimates agree with the outcomes so far.
pub(crate) async fn summary(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let failed = || Refusal::internal("the outcomes could not be summed up");
    let drift = shared.drift.all_seen();
    let summary = tokio::task::spawn_blocking(move || shared.store.summary()).await.map_err(|_| failed())?;
    let mut body = serde_json::to_value(summary).map_err(|_| failed())?;
    body["object"] = json!("outcome_summary");
    body["drift"] = drift.iter().map(|(name, it)| (name.clone(), seen_value(Some(it)))).collect();
    Ok(Json(body))
}
