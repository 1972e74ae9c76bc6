//! The table of routes, what guards all of them, and the ones that only report.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Json;
use axum::Router;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use fsq_calibrate::gates::Confidence;
use fsq_calibrate::recalibration::RecalibrationMap;
use futures::StreamExt;
use serde_json::{Map, Value, json};

use crate::answer::answer_id;
use crate::fields::Fields;
use crate::keys::{Key, Keyring, Scope};
use crate::metrics::drift_page;
use crate::refusal::{Refusal, quoted};
use crate::server::Shared;
use crate::{admin, chat, completion, foresight, outcomes, page, responses, tokens};

/// What comes before the key in a header, as OpenAI's clients send it.
const BEARER: &[u8] = b"bearer ";
/// The header that names a request, in both directions.
const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 128;
/// How much of a body beyond the limit is read and thrown away, so that its sender gets to read the answer.
const EXCESS_BYTES_MAX: usize = 64 << 20;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone: it says nothing but whether the server is there.
    Open,
    /// Whoever has a key with this scope, where the server has keys.
    Needs(Scope),
}

/// One row of the table.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// As metrics label it.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    methods: fn() -> MethodRouter<Arc<Shared>>,
}

const fn route(path: &'static str, access: Access, methods: fn() -> MethodRouter<Arc<Shared>>) -> Route {
    Route { path, access, methods }
}

const INFER: Access = Access::Needs(Scope::Infer);
const OUTCOMES: Access = Access::Needs(Scope::Outcomes);
const ADMIN: Access = Access::Needs(Scope::Admin);

/// Every route that clients see.
pub(crate) const ROUTES: &[Route] = &[
    route("/v1/chat/completions", INFER, || post(chat::completions)),
    route("/v1/responses", INFER, || post(responses::create)),
    route("/v1/foresight", INFER, || post(foresight::plans)),
    route("/v1/completions", INFER, || post(completion::completions)),
    route("/v1/models", INFER, || get(models)),
    route("/v1/models/{model}", INFER, || get(model)),
    route("/tokenize", INFER, || post(tokens::tokenize)),
    route("/detokenize", INFER, || post(tokens::detokenize)),
    route("/v1/outcomes", OUTCOMES, || post(outcomes::tell)),
    route("/v1/outcomes/summary", OUTCOMES, || get(outcomes::summary)),
    route("/metrics", Access::Needs(Scope::Metrics), || get(metrics)),
    route("/live", Access::Open, || get(live)),
    route("/ready", Access::Open, || get(ready)),
    route("/", Access::Open, || get(page::page)),
    route("/page.js", Access::Open, || get(page::script)),
];

/// Every route of the listener for administration.
pub(crate) const ADMIN_ROUTES: &[Route] = &[
    route("/admin/keys", ADMIN, || get(admin::keys)),
    route("/admin/keys/revoke", ADMIN, || post(admin::revoke)),
    route("/admin/policy", ADMIN, || get(admin::policy)),
    route("/admin/drain", ADMIN, || post(admin::drain)),
    route("/metrics", Access::Needs(Scope::Metrics), || get(metrics)),
    route("/live", Access::Open, || get(live)),
    route("/ready", Access::Open, || get(ready)),
];

/// The routes of one listener behind what guards all of them.
pub(crate) fn router(shared: Arc<Shared>, routes: &'static [Route]) -> Router {
    let table = routes.iter().fold(Router::new(), |router, it| router.route(it.path, (it.methods)()));
    table
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state((Arc::clone(&shared), routes), guard))
        .with_state(shared)
}

/// What the guard knows: the server, and which routes there are here.
type Guarded = (Arc<Shared>, &'static [Route]);

/// Runs before every route, what is no route included, and counts its answers.
async fn guard(State((shared, routes)): State<Guarded>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = path.and_then(|path| routes.iter().find(|it| it.path == path));
    let access = route.map(|it| it.access);
    let label = route.map_or("other", |it| it.path);
    let begun = Instant::now();
    let headers = request.headers();
    let id = request_id(headers);
    let mut key = None;
    let admitted = check_size(headers, shared.limits.header_bytes_max).and_then(|()| match &shared.keyring {
        Some(keyring) => check_key(keyring, headers, access, &mut key),
        None => check_local(headers),
    });
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    if access != Some(Access::Open) {
        let written = shared.log_request(json!({
            "request_id": id.to_str().unwrap_or_default(),
            "route": label,
            "status": response.status().as_u16(),
            "key": key.as_ref().map(|it| &it.name),
            "seconds": begun.elapsed().as_secs_f64(),
        }));
        if let Err(error) = written {
            response = Refusal::unavailable("audit_unavailable", error.to_string()).into_response();
        }
    }
    response.headers_mut().insert(REQUEST_ID, id);
    shared.metrics.add_request(label, response.status().as_u16());
    response
}

/// The client's own name for its request where it has a sensible one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_sensible =
        |it: &&HeaderValue| it.len() <= REQUEST_ID_BYTES_MAX && it.to_str().is_ok_and(|it| !it.is_empty());
    let made = || HeaderValue::try_from(answer_id("req"));
    let found = headers.get(REQUEST_ID).filter(is_sensible).cloned();
    found.or_else(|| made().ok()).unwrap_or(HeaderValue::from_static("req"))
}

/// Lets in who has a key for a route, and says which; what is no route is told to those with any key.
fn check_key(
    keyring: &Keyring,
    headers: &HeaderMap,
    access: Option<Access>,
    found: &mut Option<Arc<Key>>,
) -> Result<(), Refusal> {
    if access == Some(Access::Open) {
        return Ok(());
    }
    let presented = headers.get(header::AUTHORIZATION).map(|it| it.as_bytes());
    let missing = || Refusal::unauthorized("missing_key", "header `authorization`: expected `Bearer KEY`");
    let (scheme, presented) = presented.and_then(|it| it.split_at_checked(BEARER.len())).ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case(BEARER) {
        return Err(missing());
    }
    let unknown = || Refusal::unauthorized("invalid_key", "header `authorization`: this key is not known here");
    let key = found.insert(keyring.find(presented.trim_ascii()).ok_or_else(unknown)?);
    if let Some(Access::Needs(scope)) = access
        && !key.scopes.contains(&scope)
    {
        let message = format!("key `{}`: expected the scope `{}`, which it does not have", key.name, scope.name());
        return Err(Refusal::forbidden("missing_scope", message));
    }
    keyring.spend(key, Instant::now()).map_err(|wait| {
        let per_minute = key.requests_per_minute.unwrap_or_default();
        let message = format!("key `{}`: expected at most {per_minute} requests a minute", key.name);
        Refusal::too_often("rate_limit_exceeded", message, wait)
    })
}

fn check_size(headers: &HeaderMap, bytes_max: usize) -> Result<(), Refusal> {
    let n_bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if n_bytes > bytes_max {
        let message = format!("headers: expected at most {bytes_max} bytes, found {n_bytes}");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal::with_status(status, "headers_too_large", message));
    }
    Ok(())
}

/// Without keys, a page that a browser shows must not be able to talk to this server: not from elsewhere (`Origin`),
/// and not under a name that was made to point here (`Host`).
fn check_local(headers: &HeaderMap) -> Result<(), Refusal> {
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
    Json(json!({"object": "list", "data": [described(&shared)]}))
}

async fn model(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    if name != shared.facts.name {
        let message = format!("model `{}`: this server has `{}`", quoted(&name), shared.facts.name);
        return Err(Refusal::not_found("model_not_found", message).about("model"));
    }
    Ok(Json(described(&shared)))
}

/// The policy that is served.
pub(crate) fn described(shared: &Shared) -> Value {
    let facts = &shared.facts;
    let gate = facts.gate.as_ref().map(|it| json!({"verdict": it.verdict, "profile": it.profile}));
    json!({
        "id": facts.name,
        "object": "model",
        "created": shared.started_s,
        "owned_by": "fsq",
        "max_model_len": shared.context_tokens,
        "fsq": {
            "digest": facts.digest,
            "context_tokens": shared.context_tokens,
            "confidence": confidence_name(facts.confidence),
            "confidence_in": facts.confidence_in,
            "recalibration": recalibration(&shared.drift.map(None)),
            "gate": gate,
        },
    })
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
        let drift = shared.drift.all_seen().into_iter().map(|(name, it)| (name, json!({"alarmed": it.is_alarmed})));
        return Json(json!({"status": "ready", "drift": drift.collect::<Map<_, _>>()})).into_response();
    }
    Refusal::unavailable("not_ready", "the server is stopping or its engine has stopped").into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut page = shared.metrics.render(&shared.facts, shared.store.counts(), shared.is_ready());
    page.push_str(&drift_page(&shared.drift.all_seen()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

async fn unknown_path(uri: Uri) -> Refusal {
    Refusal::not_found("unknown_path", format!("path `{}`: not known here", quoted(uri.path())))
}

async fn wrong_method(request: Request) -> Refusal {
    let message = format!("path `{}`: method {} is not for it", quoted(request.uri().path()), request.method());
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}
