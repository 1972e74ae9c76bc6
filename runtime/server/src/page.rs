//! The web page: a form for foresight and what came of it. It comes from the binary, loads nothing from elsewhere and
//! holds nothing that a key is needed for. Off unless it is asked for.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

use crate::refusal::Refusal;
use crate::server::Shared;

/// Only this server's own script and answers; no frame around it, no form to elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub(crate) async fn page(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    part(&shared, "text/html; charset=utf-8", include_str!("page/page.html"))
}

/// `GET /page.js`.
pub(crate) async fn script(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    part(&shared, "text/javascript; charset=utf-8", include_str!("page/page.js"))
}

fn part(shared: &Shared, kind: &'static str, text: &'static str) -> Result<Response, Refusal> {
    if !shared.has_page {
        return Err(Refusal::not_found("no_page", "this server has no page; `fsq serve --page` has one"));
    }
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, text).into_response())
}
