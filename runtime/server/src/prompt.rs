//! Messages of a request, and their tokens: no message's text can end its turn or begin another.

use fsq_calibrate::foresight::TAGS;
use fsq_model::{ModelError, Part, Special, TokenId, Tokenizer};
use serde_json::Value;

use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::server::Shared;

/// Messages of one chat (reference: the limits that servers of this kind set).
const MESSAGES_MAX: usize = 512;
/// Parts that one message's content may be split into.
const PARTS_MAX: usize = 64;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            _ => None,
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) content: String,
}

/// Reads the field `messages`.
pub(crate) fn take_messages(fields: &mut Fields) -> Result<Option<Vec<Turn>>, Refusal> {
    let Some(messages) = fields.list("messages", MESSAGES_MAX)? else { return Ok(None) };
    if messages.is_empty() {
        return Err(Refusal::field("messages", "at least one message", &Value::Array(messages)));
    }
    let turn = |(index, value)| turn(&format!("messages[{index}]"), value);
    messages.into_iter().enumerate().map(turn).collect::<Result<Vec<_>, _>>().map(Some)
}

fn turn(path: &str, value: Value) -> Result<Turn, Refusal> {
    let mut fields = Fields::of(path, value)?;
    let role_name = fields.name("role");
    let role = fields.take("role").unwrap_or_default();
    let expected = "`system`, `developer`, `user` or `assistant`";
    let known = role.as_str().and_then(Role::from_name);
    let role = known.ok_or_else(|| Refusal::field(&role_name, expected, &role))?;
    let content_name = fields.name("content");
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) if parts.len() <= PARTS_MAX => joined_parts(&content_name, parts)?,
        other => {
            return Err(Refusal::field(&content_name, "a string or text parts", &other.unwrap_or_default()));
        }
    };
    // What clients send back with an assistant's message; none of it reaches the template.
    let is_empty = |it: &Value| it.as_array().is_some_and(Vec::is_empty);
    for field in ["tool_calls", "function_call", "audio", "refusal", "annotations"] {
        fields.neutral(field, "leave it out", is_empty)?;
    }
    fields.ignore(&["name", "fsq"]);
    fields.finish()?;
    Ok(Turn { role, content })
}

fn joined_parts(path: &str, parts: Vec<Value>) -> Result<String, Refusal> {
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut fields = Fields::of(&format!("{path}[{index}]"), part)?;
        fields.neutral("type", "only text parts are", |it| it == "text")?;
        let name = fields.name("text");
        let part = fields.text("text")?;
        text.push_str(&part.ok_or_else(|| Refusal::field(&name, "a string", &Value::Null))?);
        fields.finish()?;
    }
    Ok(text)
}

/// The tokens of a chat up to where the policy's answer begins. A user's text is only ever text; what the policy said
/// earlier may hold the tags of foresight, and nothing else.
pub(crate) fn encode_chat(shared: &Shared, turns: &[Turn]) -> Result<Vec<TokenId>, Refusal> {
    let (tokenizer, template) = (&shared.tokenizer, &shared.template);
    shared.check_text(turns.iter().map(|it| it.content.len()).sum())?;
    let turns: Vec<fsq_model::Turn<'_>> = turns.iter().map(|it| it.ready(tokenizer)).collect();
    let broken = |it: ModelError| Refusal::invalid("chat_template", it.to_string()).about("messages");
    template.encode(tokenizer, &turns).map_err(broken)
}

impl Turn {
    fn ready(&self, tokenizer: &Tokenizer) -> fsq_model::Turn<'_> {
        let said = match self.role {
            _ if self.content.is_empty() => Vec::new(),
            Role::Assistant => tagged(tokenizer, &self.content),
            Role::System | Role::User => vec![Part::Text(&self.content, Special::Escape)],
        };
        fsq_model::Turn { role: self.role.name(), said }
    }
}

/// The tokens of what a policy said: the tags of foresight are tags, everything else is only text.
pub(crate) fn encode_tagged(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    tokenizer.encode_parts(&tagged(tokenizer, text))
}

fn tagged<'a>(tokenizer: &Tokenizer, text: &'a str) -> Vec<Part<'a>> {
    let tags: Vec<(&str, TokenId)> =
        TAGS.iter().filter_map(|tag| tokenizer.token_id(tag).map(|id| (*tag, id))).collect();
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let next = tags.iter().filter_map(|(tag, id)| rest.find(tag).map(|at| (at, *tag, *id))).min();
        let Some((at, tag, id)) = next else { break };
        parts.push(Part::Text(&rest[..at], Special::Escape));
        parts.push(Part::Token(id));
        rest = &rest[at + tag.len()..];
    }
    parts.push(Part::Text(rest, Special::Escape));
    parts
}
