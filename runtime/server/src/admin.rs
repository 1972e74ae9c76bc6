//! The listener for administration: who has keys, what is served, and a way to stop. Clients never see it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use crate::keys::{Key, Keyring};
use crate::refusal::{Refusal, quoted};
use crate::routes::{described, read_fields};
use crate::server::Shared;

fn keyring(shared: &Shared) -> Result<Arc<Keyring>, Refusal> {
    let none = || Refusal::not_found("no_keys", "this server has no keys; `fsq serve --keys FILE` has some");
    shared.keyring.clone().ok_or_else(none)
}

/// `GET /admin/keys`: names, scopes and limits; the keys themselves are nowhere.
pub(crate) async fn keys(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let keys = keyring(&shared)?.keys();
    let row = |it: &Arc<Key>| {
        let scopes: Vec<&str> = it.scopes.iter().map(|it| it.name()).collect();
        json!({
            "name": it.name, "scopes": scopes, "requests_per_minute": it.requests_per_minute,
            "created_s": it.created_s,
        })
    };
    Ok(Json(json!({"object": "list", "data": keys.iter().map(row).collect::<Vec<_>>()})))
}

/// `POST /admin/keys/revoke`: `{"name"}`. The key opens nothing from here on, after a restart as well.
pub(crate) async fn revoke(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let mut fields = read_fields(&shared, request).await?;
    let name = fields.text("name")?.ok_or_else(|| Refusal::field("name", "the name of a key", &Value::Null))?;
    fields.finish()?;
    let (keyring, asked) = (keyring(&shared)?, name.clone());
    let revoking = tokio::task::spawn_blocking(move || keyring.revoke(&asked));
    let failed = |it: String| Refusal::internal(format!("the key could not be revoked: {it}"));
    let revoked = revoking.await.map_err(|it| failed(it.to_string()))?.map_err(|it| failed(it.to_string()))?;
    if !revoked {
        let message = format!("key `{}`: not known here", quoted(&name));
        return Err(Refusal::not_found("unknown_key", message).about("name"));
    }
    shared.record("keys", json!({"revoked": name})).map_err(|it| failed(it.to_string()))?;
    Ok(Json(json!({"name": name, "revoked": true})))
}

/// `GET /admin/policy`: what is served, and by which limits.
pub(crate) async fn policy(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let limits = &shared.limits;
    let mut value = described(&shared);
    value["limits"] = json!({
        "body_bytes_max": limits.body_bytes_max,
        "header_bytes_max": limits.header_bytes_max,
        "jobs_max": limits.jobs_max,
        "connections_max": limits.connections_max,
        "request_time_s_max": limits.request_time_max.as_secs_f64(),
        "queue_time_s_max": limits.queue_time_max.as_secs_f64(),
        "drain_time_s_max": limits.drain_time_max.as_secs_f64(),
    });
    Json(value)
}

/// `POST /admin/drain`: as SIGTERM does it, no more requests are taken, those that run have their time to end, and
/// then the process ends.
pub(crate) async fn drain(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let recorded = shared.record("drain", json!({}));
    recorded.map_err(|it| Refusal::unavailable("audit_unavailable", it.to_string()))?;
    shared.stop.send_replace(true);
    Ok(Json(json!({"status": "draining", "drain_time_s_max": shared.limits.drain_time_max.as_secs_f64()})))
}
