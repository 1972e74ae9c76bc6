//! Reads the fields of a JSON object one by one, each with its type and range, and refuses whatever is left over.
//!
//! A null counts as an absent field, as clients send it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// Levels of nesting in a body; no request here needs ten.
const DEPTH_MAX: usize = 64;
/// Values in a body: long prompts as token ids, and far from what memory suffers from.
const VALUES_MAX: usize = 1 << 18;

/// An object whose fields are being taken out.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Put before field names in errors: empty, or such as `messages[3].`.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object that a request's body is.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        check_shape(body)?;
        let value = serde_json::from_slice(body)
            .map_err(|it| Refusal::invalid("invalid_json", format!("body: expected JSON, found {it}")))?;
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            _ => Err(Refusal::invalid("invalid_json", "body: expected a JSON object")),
        }
    }

    /// An object within a body, at `path`.
    pub(crate) fn of(path: &str, value: Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(map) => Ok(Self { path: format!("{path}."), map }),
            other => Err(Refusal::field(path, "an object", &other)),
        }
    }

    /// The whole name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Whether a field is there and not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(|it| !it.is_null())
    }

    /// A field as it is.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.shift_remove(field).filter(|it| !it.is_null())
    }

    fn take_as<T>(
        &mut self,
        field: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(Refusal::field(&self.name(field), expected, &value)),
        }
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, Refusal> {
        self.take_as(field, "a string", |it| it.as_str().map(str::to_owned))
    }

    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, Refusal> {
        self.take_as(field, "true or false", Value::as_bool)
    }

    pub(crate) fn integer(&mut self, field: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.take_as(field, &expected, |it| it.as_u64().filter(|it| range.contains(it)))
    }

    pub(crate) fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.take_as(field, &expected, |it| it.as_f64().filter(|it| range.contains(it)))
    }

    /// A list of at most `n_max` values.
    pub(crate) fn list(&mut self, field: &str, n_max: usize) -> Result<Option<Vec<Value>>, Refusal> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value {
            Value::Array(values) if values.len() <= n_max => Ok(Some(values)),
            Value::Array(values) => {
                let name = self.name(field);
                let message = format!("field `{name}`: expected at most {n_max} entries, found {}", values.len());
                Err(Refusal::invalid("too_many_entries", message).about(&name))
            }
            other => Err(Refusal::field(&self.name(field), "an array", &other)),
        }
    }

    /// Takes a field that this server only accepts where it asks for nothing.
    pub(crate) fn neutral(
        &mut self,
        field: &str,
        supported: &str,
        asks_for_nothing: impl Fn(&Value) -> bool,
    ) -> Result<(), Refusal> {
        match self.take(field) {
            Some(value) if !asks_for_nothing(&value) => Err(Refusal::unsupported(&self.name(field), supported)),
            _ => Ok(()),
        }
    }

    /// Takes fields that change nothing about an answer.
    pub(crate) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.shift_remove(*field);
        }
    }

    /// Refuses the first field that nobody took.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        match self.map.keys().next() {
            Some(field) => Err(Refusal::unknown_field(&self.name(field))),
            None => Ok(()),
        }
    }
}

/// Refuses what would be read into much more memory than it takes as text: deep nesting, and a great many values.
/// Brackets and commas within strings do not count; whether it is JSON is for the parser to say.
fn check_shape(body: &[u8]) -> Result<(), Refusal> {
    let (mut depth, mut n_values) = (0_usize, 0_usize);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'{' | b'[' => (depth, n_values) = (depth + 1, n_values + 1),
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => n_values += 1,
            _ => {}
        }
        let code = if depth > DEPTH_MAX {
            "json_too_deep"
        } else if n_values > VALUES_MAX {
            "json_too_many_values"
        } else {
            continue;
        };
        let message = format!("body: expected at most {DEPTH_MAX} levels and {VALUES_MAX} values, found more");
        return Err(Refusal::invalid(code, message));
    }
    Ok(())
}
