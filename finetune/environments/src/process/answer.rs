//! The answers of an environment program: what each must hold, read once and then trusted.

use serde_json::{Map, Value};

use super::Seen;
use super::error::{ProcessFault, shortened};
use crate::End;

/// The version of the protocol that is spoken here.
pub const PROTOCOL: u64 = 1;
/// Steps that an episode may have: the largest that any program may ask for.
const STEPS_MAX: u64 = 1000;
/// Steps that are imagined, at most.
const HORIZON_MAX: u64 = 8;
/// Steps that are imagined where the program does not say.
const HORIZON: u64 = 3;

/// What a program says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name, as reports show it.
    pub name: String,
    /// Most steps of an episode.
    pub steps_max: usize,
    /// Steps that are imagined and scored.
    pub horizon: usize,
    /// Requests that it answers beside those that every program must: `act`, `harder`.
    pub offers: Vec<String>,
}

/// A JSON object of which fields are asked for by name.
pub(super) struct Answer(Map<String, Value>);

impl Answer {
    /// Reads a line: an object with the number of the request, and no error.
    pub(super) fn read(line: &str, id: u64) -> Result<Self, ProcessFault> {
        let found = || ProcessFault::NotJson { found: format!("`{}`", shortened(line)) };
        let Ok(Value::Object(object)) = serde_json::from_str(line) else { return Err(found()) };
        let answer = Self(object);
        match answer.0.get("id") {
            Some(Value::Number(number)) if number.as_u64() == Some(id) => {}
            other => return Err(field("id", &id.to_string(), other)),
        }
        match answer.0.get("error") {
            None | Some(Value::Null) => Ok(answer),
            Some(error) => Err(ProcessFault::Refused { found: shortened(&shown(error)) }),
        }
    }

    pub(super) fn hello(&self) -> Result<Hello, ProcessFault> {
        match self.0.get("protocol") {
            Some(it) if it.as_u64() == Some(PROTOCOL) => {}
            other => {
                let found = other.map_or("nothing".into(), shown);
                return Err(ProcessFault::Protocol { expected: PROTOCOL, found });
            }
        }
        let name = self.line("name")?;
        if name.len() > 64 || !name.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it)) {
            return Err(field("name", "at most 64 letters, digits, `-`, `_` and `.`", self.0.get("name")));
        }
        let offers = self.texts("offers", true)?;
        let steps_max = self.count("steps_max", 1..=STEPS_MAX, None)?;
        let horizon = self.count("horizon", 1..=HORIZON_MAX, Some(HORIZON))?.min(steps_max);
        Ok(Hello { name, steps_max, horizon, offers })
    }

    /// A state, without what `verify` says of it.
    pub(super) fn seen(&self) -> Result<Seen, ProcessFault> {
        let state = self.0.get("state").filter(|it| !it.is_null());
        let state = state.ok_or_else(|| field("state", "any JSON but null", self.0.get("state")))?.clone();
        let text = match self.0.get("text") {
            Some(Value::String(text)) if !text.trim().is_empty() => text.clone(),
            other => return Err(field("text", "a text that is not empty", other)),
        };
        let rollout = match self.0.get("rollout") {
            None | Some(Value::Null) => one_line(&text),
            Some(Value::Object(fields)) => rollout_text(fields)?,
            other => return Err(field("rollout", "an object of texts, numbers and truth values", other)),
        };
        Ok(Seen { state, text, rollout, hidden: self.texts("hidden", true)?, end: None })
    }

    /// Why an action was refused, if it was.
    pub(super) fn illegal(&self) -> Result<Option<String>, ProcessFault> {
        match self.0.get("illegal") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(reason)) => Ok(Some(shortened(reason))),
            other => Err(field("illegal", "a text that says why", other)),
        }
    }

    pub(super) fn end(&self) -> Result<Option<End>, ProcessFault> {
        match self.0.get("end") {
            Some(Value::Null) => Ok(None),
            Some(Value::String(it)) if it == "success" => Ok(Some(End::Success)),
            Some(Value::String(it)) if it == "failure" => Ok(Some(End::Failure)),
            other => Err(field("end", "null, \"success\" or \"failure\"", other)),
        }
    }

    /// Actions, each a line that a policy can write.
    pub(super) fn actions(&self) -> Result<Vec<String>, ProcessFault> {
        let actions = self.texts("actions", false)?;
        match actions.iter().enumerate().find(|(_, it)| !is_line(it)) {
            None => Ok(actions),
            Some((index, it)) => {
                Err(field(&format!("actions[{index}]"), ACTION_EXPECTED, Some(&Value::String(it.clone()))))
            }
        }
    }

    pub(super) fn action(&self) -> Result<String, ProcessFault> {
        self.line("action")
    }

    /// A label, where there is one.
    pub(super) fn difficulty(&self) -> Result<String, ProcessFault> {
        match self.0.get("difficulty") {
            None | Some(Value::Null) => Ok("all".into()),
            Some(_) => self.line("difficulty"),
        }
    }

    fn line(&self, name: &str) -> Result<String, ProcessFault> {
        match self.0.get(name) {
            Some(Value::String(text)) if is_line(text) => Ok(text.clone()),
            other => Err(field(name, ACTION_EXPECTED, other)),
        }
    }

    fn texts(&self, name: &str, may_be_absent: bool) -> Result<Vec<String>, ProcessFault> {
        let wrong = |found: Option<&Value>| field(name, "a list of texts", found);
        match self.0.get(name) {
            None | Some(Value::Null) if may_be_absent => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let text = |it: &Value| it.as_str().map(str::to_string).ok_or_else(|| wrong(Some(it)));
                items.iter().map(text).collect()
            }
            other => Err(wrong(other)),
        }
    }

    fn count(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: Option<u64>,
    ) -> Result<usize, ProcessFault> {
        let found = match (self.0.get(name), default) {
            (None, Some(default)) => Some(default),
            (found, _) => found.and_then(Value::as_u64),
        };
        let count = found.filter(|it| range.contains(it)).and_then(|it| usize::try_from(it).ok());
        let expected = format!("a number from {} to {}", range.start(), range.end());
        count.ok_or_else(|| field(name, &expected, self.0.get(name)))
    }
}

const ACTION_EXPECTED: &str = "one line of text without blanks at its ends";

fn is_line(text: &str) -> bool {
    !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)
}

/// `name value name value`, as a policy is to imagine it.
fn rollout_text(fields: &Map<String, Value>) -> Result<String, ProcessFault> {
    let mut words = Vec::new();
    for (name, value) in fields {
        let text = match value {
            Value::String(text) => one_line(text),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            other => return Err(field(&format!("rollout.{name}"), "a text, number or truth value", Some(other))),
        };
        words.push(format!("{} {text}", one_line(name)));
    }
    if words.is_empty() {
        return Err(field("rollout", "at least one field", Some(&Value::Object(fields.clone()))));
    }
    Ok(words.join(" "))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn field(name: &str, expected: &str, found: Option<&Value>) -> ProcessFault {
    let found = found.map_or("nothing".into(), |it| shortened(&shown(it)));
    ProcessFault::Field { field: name.into(), expected: expected.into(), found }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault<T: std::fmt::Debug>(line: &str, read: fn(&Answer) -> Result<T, ProcessFault>) -> String {
        let answer = Answer::read(line, 7);
        answer.and_then(|it| read(&it).map(|it| format!("{it:?}"))).unwrap_err().to_string()
    }

    #[test]
    fn answers_say_what_they_must() {
        let hello = r#"{"id": 7, "protocol": 1, "name": "grid", "steps_max": 2}"#;
        let hello = Answer::read(hello, 7).unwrap().hello().unwrap();
        assert_eq!((hello.steps_max, hello.horizon), (2, 2));
        let seen = r#"{"id": 7, "state": [1], "text": "at\n b", "rollout": {"at": "b", "key": false}}"#;
        let seen = Answer::read(seen, 7).unwrap().seen().unwrap();
        assert_eq!(seen.rollout, "at b key false");
        let plain = Answer::read(r#"{"id": 7, "state": [1], "text": "at\n b"}"#, 7).unwrap();
        assert_eq!(plain.seen().unwrap().rollout, "at b");
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (line, read, expected) in [
            ("[]", Answer::hello as fn(&Answer) -> _, "expected one JSON object, found `[]`"),
            ("{\"id\": 6}", Answer::hello, "field `id`: expected 7, found 6"),
            ("{\"id\": 7, \"error\": \"no disk\"}", Answer::hello, "found its error: `no disk`"),
            ("{\"id\": 7, \"protocol\": 2}", Answer::hello, "expected protocol 1, found 2"),
            ("{\"id\": 7, \"protocol\": 1}", Answer::hello, "field `name`: expected one line of text"),
            ("{\"id\": 7, \"protocol\": 1, \"name\": \"a b\"}", Answer::hello, "at most 64 letters"),
            ("{\"id\": 7, \"protocol\": 1, \"name\": \"a\"}", Answer::hello, "field `steps_max`: expected a number"),
        ] {
            assert!(fault(line, read).contains(expected), "{line}: {}", fault(line, read));
        }
        assert!(fault("{\"id\": 7, \"state\": 1, \"text\": 3}", Answer::seen).contains("`text`: expected a text"));
        assert!(fault("{\"id\": 7, \"end\": true}", Answer::end).contains("found true"));
        assert!(fault("{\"id\": 7, \"actions\": [\"a\", \" b\"]}", Answer::actions).contains("`actions[1]`"));
        assert!(fault("{\"id\": 7, \"actions\": [3]}", Answer::actions).contains("expected a list of texts, found 3"));
    }
}
