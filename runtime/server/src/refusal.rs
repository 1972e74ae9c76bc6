//! The answer to a request that is not served: OpenAI's error body, with a status, a type and the field at fault.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Longest piece of a client's text that an error repeats, in characters.
const QUOTED_CHARACTERS_MAX: usize = 80;

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The broad kind, such as `invalid_request_error`.
    kind: &'static str,
    /// The exact cause, for programs.
    code: &'static str,
    /// The field at fault.
    param: Option<String>,
    message: String,
    retry_after_s: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after_s: None }
    }

    /// The body or one of its fields cannot be used.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    /// A field holds something else than it should.
    pub(crate) fn field(name: &str, expected: &str, found: &Value) -> Self {
        let message = format!("field `{name}`: expected {expected}, found {}", quoted(&found.to_string()));
        Self::invalid("invalid_value", message).about(name)
    }

    /// A field that this server does not know.
    pub(crate) fn unknown_field(name: &str) -> Self {
        Self::invalid("unknown_field", format!("field `{}`: not known here", quoted(name))).about(name)
    }

    /// A field or value of the protocol that this server does not support.
    pub(crate) fn unsupported(name: &str, supported: &str) -> Self {
        let message = format!("field `{name}`: not supported; {supported}");
        Self::invalid("unsupported_value", message).about(name)
    }

    /// What was asked for does not exist.
    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", code, message)
    }

    /// What was asked for contradicts what is recorded.
    pub(crate) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict_error", code, message)
    }

    /// Another status of the client's making.
    pub(crate) fn with_status(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    /// Nobody who may ask anything asked.
    pub(crate) fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message)
    }

    /// Somebody asked who may ask something else.
    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    /// A client asks more often than it may.
    pub(crate) fn too_often(code: &'static str, message: impl Into<String>, wait: Duration) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message);
        let seconds = wait.as_secs_f64().ceil().clamp(1.0, 3600.0);
        Self { retry_after_s: Some(seconds as u32), ..refusal }
    }

    /// As many requests as the server takes at a time are already there.
    pub(crate) fn queue_full(jobs_max: usize) -> Self {
        let message = format!("{jobs_max} requests are running or waiting; try again");
        Self::too_often("queue_full", message, Duration::from_secs(1))
    }

    /// The server is going away or its engine is gone.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", code, message);
        Self { retry_after_s: Some(5), ..refusal }
    }

    /// The request took longer than it may.
    pub(crate) fn too_slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", "request_timeout", message)
    }

    /// Something failed that the client cannot help.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }

    /// Names the field at fault.
    pub(crate) fn about(mut self, param: &str) -> Self {
        self.param = Some(quoted(param));
        self
    }

    /// `{"error": {"message", "type", "param", "code"}}`, also what a stream ends with when it fails.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A client's text, cut to a readable length.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARACTERS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}
