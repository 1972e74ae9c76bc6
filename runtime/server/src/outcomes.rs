//! `/v1/outcomes`: what really happened to a prediction, told once or more often, and how well predictions did.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use crate::fields::Fields;
use crate::refusal::{Refusal, quoted};
use crate::routes::read_fields;
use crate::server::Shared;
use crate::store::{PredictionId, Unsettled};

/// `POST /v1/outcomes`: `{"prediction_id", "outcome": 0 | 1 | true | false}`.
pub(crate) async fn tell(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let (name, outcome) = read(read_fields(&shared, request).await?)?;
    let unknown = || {
        let message = format!("prediction `{}`: not known here", quoted(&name));
        Refusal::not_found("unknown_prediction", message).about("prediction_id")
    };
    let id: PredictionId = name.parse().map_err(|()| unknown())?;
    let settled = tokio::task::spawn_blocking(move || shared.store.settle(id, outcome)).await;
    let is_new = match settled {
        Ok(Ok(is_new)) => is_new,
        Ok(Err(Unsettled::Unknown)) => return Err(unknown()),
        Ok(Err(Unsettled::Conflict { recorded })) => {
            let message = format!("prediction `{name}`: its outcome is on record as {}", u8::from(recorded));
            return Err(Refusal::conflict("conflicting_outcome", message).about("outcome"));
        }
        Ok(Err(Unsettled::Disk(error))) => {
            return Err(Refusal::internal(format!("outcome file: {error}; nothing was recorded")));
        }
        Err(_) => return Err(Refusal::internal("the outcome could not be recorded")),
    };
    Ok(Json(json!({
        "object": "outcome",
        "prediction_id": name,
        "outcome": u8::from(outcome),
        "is_new": is_new,
    })))
}

fn read(mut fields: Fields) -> Result<(String, bool), Refusal> {
    let missing = |name: &str, expected: &str| Refusal::field(name, expected, &Value::Null);
    let name = fields.text("prediction_id")?.ok_or_else(|| missing("prediction_id", "a prediction's name"))?;
    let expected = "0, 1, true or false";
    let outcome = match fields.take("outcome").ok_or_else(|| missing("outcome", expected))? {
        Value::Bool(outcome) => outcome,
        Value::Number(number) if number.as_u64().is_some_and(|it| it <= 1) => number.as_u64() == Some(1),
        other => return Err(Refusal::field("outcome", expected, &other)),
    };
    fields.finish()?;
    Ok((name, outcome))
}

/// `GET /v1/outcomes/summary`: how well stated probabilities and estimates agree with the outcomes so far.
pub(crate) async fn summary(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let failed = || Refusal::internal("the outcomes could not be summed up");
    let summary = tokio::task::spawn_blocking(move || shared.store.summary()).await.map_err(|_| failed())?;
    let mut body = serde_json::to_value(summary).map_err(|_| failed())?;
    body["object"] = json!("outcome_summary");
    Ok(Json(body))
}
