//! What one line says: the kinds of records, told apart by their fields. Knows no tokens of text.

use fsq_model::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Fault;

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `messages`, with `tools` where there are some.
    Messages,
    /// `conversations` of `from` and `value`, as ShareGPT has them.
    ShareGpt,
    /// `instruction`, `input` and `output`, as Alpaca has them.
    Instruction,
    /// `prompt` and `completion`.
    Completion,
    /// `text`.
    Text,
    /// `token_ids`, and what each weighs.
    Tokens,
    /// An episode that was played: its tokens, whose they are, and its outcome.
    Episode,
}

impl Kind {
    /// Its name in messages and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "ShareGPT",
            Self::Instruction => "instruction",
            Self::Completion => "prompt and completion",
            Self::Text => "text",
            Self::Tokens => "token ids",
            Self::Episode => "episode",
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A conversation; what the assistant says from a message on is learnt.
    Chat {
        /// How it was written.
        kind: Kind,
        /// In order.
        messages: Vec<Message>,
        /// What the template gets as `tools`.
        tools: Option<Value>,
        /// The first message that may be learnt.
        learnt_from: usize,
    },
    /// A text that is only read, and one that is learnt.
    Completion {
        /// Read.
        prompt: String,
        /// Learnt.
        completion: String,
    },
    /// A text that is learnt whole.
    Text(String),
    /// Tokens, with the weight of predicting each.
    Tokens {
        /// Token ids.
        tokens: Vec<u32>,
        /// One for each.
        weights: Vec<f32>,
    },
    /// An episode.
    Episode {
        /// Token ids.
        tokens: Vec<u32>,
        /// Which of them the policy wrote.
        policy: Vec<bool>,
        /// Which of them the environment answered.
        environment: Vec<bool>,
        /// Whether it succeeded.
        success: bool,
    },
}

/// What a line may hold, for messages.
const KINDS: &str = "one of `messages`, `conversations`, `prompt` with `completion`, `instruction` with `output`, \
                     `text` or `token_ids`";

impl Record {
    /// Reads a line.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub fn parse(line: &str) -> Result<Self, Fault> {
        let value: Value =
            serde_json::from_str(line).map_err(|it| Fault::new("", "a JSON object", format!("no JSON: {it}")))?;
        let Value::Object(fields) = value else { return Err(Fault::new("", "a JSON object", shown(&value))) };
        let has = |name: &str| fields.contains_key(name);
        if has("messages") {
            let messages = messages(&fields, "messages")?;
            return Ok(Self::Chat { kind: Kind::Messages, messages, tools: tools(&fields)?, learnt_from: 0 });
        }
        if has("conversations") {
            let messages = shared(&fields)?;
            return Ok(Self::Chat { kind: Kind::ShareGpt, messages, tools: tools(&fields)?, learnt_from: 0 });
        }
        if has("prompt") || has("completion") {
            return completion(&fields);
        }
        if has("instruction") {
            return instruction(&fields);
        }
        if has("token_ids") {
            return tokens(&fields);
        }
        if has("text") {
            return Ok(Self::Text(text(&fields, "text")?));
        }
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        Err(Fault::new("", KINDS, format!("the fields {}", names.join(", "))))
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Chat { kind, .. } => *kind,
            Self::Completion { .. } => Kind::Completion,
            Self::Text(_) => Kind::Text,
            Self::Tokens { .. } => Kind::Tokens,
            Self::Episode { .. } => Kind::Episode,
        }
    }
}

/// A value as a message tells it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(it) => it.to_string(),
        Value::Number(it) => it.to_string(),
        Value::String(it) => format!("the text {it:?}"),
        Value::Array(it) => format!("an array of {}", it.len()),
        Value::Object(_) => "an object".into(),
    }
}

fn found(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".into(), shown)
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<String, Fault> {
    match fields.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        other => Err(Fault::new(name, "a text that is not empty", found(other))),
    }
}

fn list<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a [Value], Fault> {
    match fields.get(name) {
        Some(Value::Array(values)) if !values.is_empty() => Ok(values),
        other => Err(Fault::new(name, "an array that is not empty", found(other))),
    }
}

fn tools(fields: &Map<String, Value>) -> Result<Option<Value>, Fault> {
    match fields.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Some(tools @ Value::Array(_)) => Ok(Some(tools.clone())),
        // Data sets that pass through tables hold the list as a text.
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(tools @ Value::Array(_)) => Ok(Some(tools)),
            _ => Err(Fault::new("tools", "an array of tools", shown(&Value::String(text.clone())))),
        },
        other => Err(Fault::new("tools", "an array of tools", found(other))),
    }
}

fn messages(fields: &Map<String, Value>, name: &str) -> Result<Vec<Message>, Fault> {
    list(fields, name)?.iter().enumerate().map(|(index, it)| message(&format!("{name}[{index}]"), it)).collect()
}

fn message(path: &str, value: &Value) -> Result<Message, Fault> {
    let Value::Object(fields) = value else { return Err(Fault::new(path, "an object", shown(value))) };
    let role = match fields.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
        other => return Err(Fault::new(format!("{path}.role"), format!("one of {}", ROLES.join(", ")), found(other))),
    };
    let calls = fields.get("tool_calls").filter(|it| !it.is_null());
    if let Some(calls) = calls
        && !calls.is_array()
    {
        return Err(Fault::new(format!("{path}.tool_calls"), "an array", shown(calls)));
    }
    let has_calls = calls.and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => joined(&format!("{path}.content"), parts)?,
        None | Some(Value::Null) if has_calls => String::new(),
        other => return Err(Fault::new(format!("{path}.content"), "a text", found(other))),
    };
    let more = fields.iter().filter(|it| it.0 != "role" && it.0 != "content" && !it.1.is_null());
    let more = more.map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(Message { role, content, more })
}

/// Who may speak.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Parts of text as one.
fn joined(path: &str, parts: &[Value]) -> Result<String, Fault> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text")) {
            (Some("text") | None, Some(Value::String(part))) => text.push_str(part),
            _ => return Err(Fault::new(format!("{path}[{index}]"), "a part of text", shown(part))),
        }
    }
    Ok(text)
}

/// ShareGPT's names of who speaks.
fn shared(fields: &Map<String, Value>) -> Result<Vec<Message>, Fault> {
    let mut messages = Vec::new();
    for (index, value) in list(fields, "conversations")?.iter().enumerate() {
        let path = format!("conversations[{index}]");
        if value.get("role").is_some() {
            messages.push(message(&path, value)?);
            continue;
        }
        let role = match value.get("from").and_then(Value::as_str) {
            Some("human" | "user") => "user",
            Some("gpt" | "assistant" | "model" | "chatgpt" | "function_call") => "assistant",
            Some("system") => "system",
            Some("tool" | "observation" | "function_response") => "tool",
            _ => {
                let expected = "one of human, gpt, system, observation, function_call";
                return Err(Fault::new(format!("{path}.from"), expected, found(value.get("from"))));
            }
        };
        match value.get("value") {
            Some(Value::String(text)) => messages.push(Message::new(role, text.clone())),
            other => return Err(Fault::new(format!("{path}.value"), "a text", found(other))),
        }
    }
    Ok(messages)
}

fn completion(fields: &Map<String, Value>) -> Result<Record, Fault> {
    if let Some(Value::Array(_)) = fields.get("prompt") {
        let mut all = messages(fields, "prompt")?;
        let learnt_from = all.len();
        match fields.get("completion") {
            Some(Value::String(text)) => all.push(Message::new("assistant", text.clone())),
            _ => all.extend(messages(fields, "completion")?),
        }
        return Ok(Record::Chat { kind: Kind::Completion, messages: all, tools: tools(fields)?, learnt_from });
    }
    let prompt = match fields.get("prompt") {
        Some(Value::String(text)) => text.clone(),
        other => return Err(Fault::new("prompt", "a text, or messages", found(other))),
    };
    Ok(Record::Completion { prompt, completion: text(fields, "completion")? })
}

fn instruction(fields: &Map<String, Value>) -> Result<Record, Fault> {
    let mut asked = text(fields, "instruction")?;
    match fields.get("input") {
        None | Some(Value::Null) => {}
        Some(Value::String(input)) if input.is_empty() => {}
        Some(Value::String(input)) => {
            asked.push_str("\n\n");
            asked.push_str(input);
        }
        other => return Err(Fault::new("input", "a text", found(other))),
    }
    let mut messages = Vec::new();
    if let Some(Value::String(system)) = fields.get("system").filter(|it| *it != "") {
        messages.push(Message::new("system", system.clone()));
    }
    messages.extend([Message::new("user", asked), Message::new("assistant", text(fields, "output")?)]);
    Ok(Record::Chat { kind: Kind::Instruction, messages, tools: None, learnt_from: 0 })
}

/// Fields that only an episode has.
const OF_EPISODES: [&str; 5] = ["outcome", "policy_mask", "environment_mask", "logprobs", "prediction_id"];

fn tokens(fields: &Map<String, Value>) -> Result<Record, Fault> {
    let tokens = numbers(fields, "token_ids", "a token id", |it| u32::try_from(it.as_u64()?).ok())?;
    let as_long = |name: &str, n: usize| match n == tokens.len() {
        true => Ok(()),
        false => Err(Fault::new(name, format!("{} values, one for each token", tokens.len()), n.to_string())),
    };
    if OF_EPISODES.iter().any(|it| fields.contains_key(*it)) {
        let success = match fields.get("outcome") {
            Some(Value::Bool(success)) => *success,
            Some(Value::Number(it)) if it.as_f64() == Some(0.0) || it.as_f64() == Some(1.0) => it.as_f64() == Some(1.0),
            other => return Err(Fault::new("outcome", "0 or 1", found(other))),
        };
        let mask = |name: &str| -> Result<Option<Vec<bool>>, Fault> {
            if !fields.contains_key(name) {
                return Ok(None);
            }
            let mask = numbers(fields, name, "0 or 1", flag)?;
            as_long(name, mask.len()).map(|()| Some(mask))
        };
        let policy =
            mask("policy_mask")?.ok_or_else(|| Fault::new("policy_mask", "0 or 1 for each token", "nothing"))?;
        let environment = mask("environment_mask")?.unwrap_or_else(|| vec![false; tokens.len()]);
        return Ok(Record::Episode { tokens, policy, environment, success });
    }
    let weights = match fields.contains_key("weights") {
        #[expect(clippy::cast_possible_truncation, reason = "a loss is weighed in f32")]
        true => numbers(fields, "weights", "a weight of at least 0", |it| {
            it.as_f64().map(|it| it as f32).filter(|it| it.is_finite() && *it >= 0.0)
        })?,
        false => vec![1.0; tokens.len()],
    };
    as_long("weights", weights.len())?;
    Ok(Record::Tokens { tokens, weights })
}

/// A truth, or 0 or 1.
fn flag(value: &Value) -> Option<bool> {
    match (value.as_bool(), value.as_u64()) {
        (Some(flag), _) => Some(flag),
        (None, Some(number @ 0..=1)) => Some(number == 1),
        _ => None,
    }
}

fn numbers<T>(
    fields: &Map<String, Value>,
    name: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, Fault> {
    let fault = |(index, it): (usize, &Value)| Fault::new(format!("{name}[{index}]"), expected, shown(it));
    list(fields, name)?.iter().enumerate().map(|it| read(it.1).ok_or_else(|| fault(it))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(record: Record) -> Vec<(String, String)> {
        let Record::Chat { messages, .. } = record else { panic!("no chat: {record:?}") };
        messages.into_iter().map(|it| (it.role, it.content)).collect()
    }

    #[test]
    fn kinds_are_told_apart_by_their_fields() {
        let cases = [
            (r#"{"messages": [{"role": "user", "content": "a"}], "id": 3}"#, Kind::Messages),
            (r#"{"conversations": [{"from": "human", "value": "a"}]}"#, Kind::ShareGpt),
            (r#"{"instruction": "a", "input": "", "output": "b"}"#, Kind::Instruction),
            (r#"{"prompt": "a", "completion": "b"}"#, Kind::Completion),
            (r#"{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}"#, Kind::Completion),
            (r#"{"text": "a"}"#, Kind::Text),
            (r#"{"token_ids": [1, 2], "weights": [0, 0.5]}"#, Kind::Tokens),
            (r#"{"token_ids": [1, 2], "policy_mask": [0, 1], "outcome": 1}"#, Kind::Episode),
        ];
        for (line, kind) in cases {
            assert_eq!(Record::parse(line).unwrap().kind(), kind, "{line}");
        }
    }

    #[test]
    fn names_of_speakers_are_those_of_templates() {
        let line = r#"{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "h"},
            {"from": "gpt", "value": "g"}, {"from": "observation", "value": "o"}]}"#;
        let told = roles(Record::parse(line).unwrap());
        assert_eq!(told.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["system", "user", "assistant", "tool"]);
        let line = r#"{"instruction": "do", "input": "this", "output": "done"}"#;
        assert_eq!(roles(Record::parse(line).unwrap())[0], ("user".into(), "do\n\nthis".into()));
    }

    #[test]
    fn what_cannot_be_used_is_told_by_field() {
        let cases = [
            ("[1]", "", "found an array of 1"),
            ("{\"text\": ", "", "found no JSON"),
            (r#"{"note": 1}"#, "", "the fields note"),
            (r#"{"messages": []}"#, "messages", "an array of 0"),
            (r#"{"messages": [{"role": "judge", "content": "x"}]}"#, "messages[0].role", "the text \"judge\""),
            (r#"{"messages": [{"role": "user"}]}"#, "messages[0].content", "expected a text, found nothing"),
            (r#"{"conversations": [{"from": "human", "value": 3}]}"#, "conversations[0].value", "found 3"),
            (r#"{"prompt": "a"}"#, "completion", "nothing"),
            (r#"{"token_ids": [1, -2]}"#, "token_ids[1]", "expected a token id, found -2"),
            (r#"{"token_ids": [1, 2], "weights": [1]}"#, "weights", "expected 2 values, one for each token, found 1"),
            (r#"{"token_ids": [1, 2], "policy_mask": [0, 1]}"#, "outcome", "expected 0 or 1, found nothing"),
            (r#"{"token_ids": [1, 2], "outcome": 0.5}"#, "outcome", "found 0.5"),
            (r#"{"token_ids": [1, 2], "outcome": 1}"#, "policy_mask", "found nothing"),
        ];
        for (line, field, told) in cases {
            let fault = Record::parse(line).unwrap_err();
            assert_eq!(fault.field, field, "{line}");
            let text = format!("expected {}, found {}", fault.expected, fault.found);
            assert!(text.contains(told), "{line}: {text}");
        }
    }
}
