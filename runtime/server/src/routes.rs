//! The table of routes, what guards all of them, and the ones that only report.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use fsq_calibrate::gates::Confidence;
use fsq_calibrate::recalibration::RecalibrationMap;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::fields::Fields;
use crate::refusal::{Refusal, quoted};
use crate::server::Shared;
use crate::{chat, foresight, outcomes};

/// How much of a body beyond the limit is read and thrown away, so that its sender gets to read the answer.
const EXCESS_BYTES_MAX: usize = 64 << 20;

/// The paths, as metrics label them.
const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/foresight",
    "/v1/outcomes",
    "/v1/outcomes/summary",
    "/v1/models",
    "/live",
    "/ready",
    "/metrics",
];

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/foresight", post(foresight::plans))
        .route("/v1/outcomes", post(outcomes::tell))
        .route("/v1/outcomes/summary", get(outcomes::summary))
        .route("/v1/models", get(models))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// Runs before every route, and counts its answers.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let route = PATHS.into_iter().find(|it| *it == request.uri().path()).unwrap_or("other");
    let response = match check_headers(request.headers(), shared.limits.header_bytes_max) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    shared.metrics.add_request(route, response.status().as_u16());
    response
}

fn check_headers(headers: &HeaderMap, bytes_max: usize) -> Result<(), Refusal> {
    let n_bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if n_bytes > bytes_max {
        let message = format!("headers: expected at most {bytes_max} bytes, found {n_bytes}");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal::with_status(status, "headers_too_large", message));
    }
    // Without keys, a page that a browser shows must not be able to talk to this server: not from elsewhere
    // (`Origin`), and not under a name that was made to point here (`Host`).
    let host = headers.get(header::HOST).map(|it| it.to_str().unwrap_or("?"));
    let origin = headers.get(header::ORIGIN).map(|it| it.to_str().unwrap_or("?"));
    let origin_host = origin.map(|it| it.split_once("://").map_or(it, |it| it.1));
    for (name, found) in [("host", host), ("origin", origin_host)] {
        if let Some(found) = found.filter(|it| !is_loopback(it)) {
            let message = format!("header `{name}`: expected this machine, found `{}`", quoted(found));
            return Err(Refusal::with_status(StatusCode::FORBIDDEN, "foreign_origin", message).about(name));
        }
    }
    Ok(())
}

/// Whether `host` or `host:port` names this machine.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|it: std::net::IpAddr| it.is_loopback())
}

/// The object that a request's body is.
pub(crate) async fn read_fields(shared: &Shared, request: Request) -> Result<Fields, Refusal> {
    let reading = read_body(request, shared.limits.body_bytes_max);
    let too_slow = |_| {
        let message = format!("body: not whole after {} s", shared.limits.body_time_max.as_secs());
        Refusal::with_status(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    };
    let body = tokio::time::timeout(shared.limits.body_time_max, reading).await.map_err(too_slow)??;
    Fields::parse(&body)
}

async fn read_body(request: Request, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let mut chunks = request.into_body().into_data_stream();
    let mut body = Vec::new();
    let mut n_bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|it| Refusal::invalid("broken_body", format!("body: {it}")))?;
        n_bytes += chunk.len();
        if n_bytes <= bytes_max {
            body.extend_from_slice(&chunk);
        } else if n_bytes > bytes_max.saturating_add(EXCESS_BYTES_MAX) {
            break;
        } else {
            body = Vec::new();
        }
    }
    if n_bytes > bytes_max {
        let message = format!("body: expected at most {bytes_max} bytes, found more");
        return Err(Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok(body)
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let facts = &shared.facts;
    let gate = facts.gate.as_ref().map(|it| json!({"verdict": it.verdict, "profile": it.profile}));
    Json(json!({
        "object": "list",
        "data": [{
            "id": facts.name,
            "object": "model",
            "created": 0,
            "owned_by": "fsq",
            "fsq": {
                "digest": facts.digest,
                "context_tokens": shared.context_tokens,
                "confidence": confidence_name(facts.confidence),
                "confidence_in": facts.confidence_in,
                "recalibration": recalibration(shared.recalibration.of(None)),
                "gate": gate,
            },
        }],
    }))
}

/// Whether estimates may be chosen by, in a word.
pub(crate) fn confidence_name(confidence: Option<Confidence>) -> Value {
    confidence.map_or_else(|| json!("unjudged"), |it| json!(it))
}

/// The map that estimates come from.
pub(crate) fn recalibration(map: &RecalibrationMap) -> Value {
    json!({"family": map.family(), "n": map.n()})
}

async fn live(State(shared): State<Arc<Shared>>) -> Response {
    // The engine also ends in a drain, which is nothing to restart the process for.
    let is_draining = shared.is_draining.load(Ordering::Relaxed);
    if shared.signals.is_over.load(Ordering::Relaxed) && !is_draining {
        return Refusal::internal("the engine has stopped").into_response();
    }
    Json(json!({"status": "live"})).into_response()
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.is_ready() {
        return Json(json!({"status": "ready"})).into_response();
    }
    Refusal::unavailable("not_ready", "the server is stopping or its engine has stopped").into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let page = shared.metrics.render(&shared.facts, shared.store.counts(), shared.is_ready());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

async fn unknown_path(uri: Uri) -> Refusal {
    Refusal::not_found("unknown_path", format!("path `{}`: not known here", quoted(uri.path())))
}

async fn wrong_method(request: Request) -> Refusal {
    let message = format!("path `{}`: method {} is not for it", quoted(request.uri().path()), request.method());
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}
