//! Messages of a request, and their tokens: no message's text can end its turn or begin another.
//!
//! Calls of tools and what came of them are messages, too; their texts are as little able to.

use fsq_calibrate::foresight::TAGS;
use fsq_model::{ModelError, Part, Special, Surroundings, TokenId, Tokenizer};
use serde_json::{Map, Value};

use crate::calls::Call;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::server::Shared;
use crate::tools;

/// Messages of one chat (reference: the limits that servers of this kind set).
pub(crate) const MESSAGES_MAX: usize = 512;
/// Parts that one message's content may be split into.
const PARTS_MAX: usize = 64;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) content: String,
    /// What an assistant asked for.
    pub(crate) calls: Vec<Call>,
    /// Which call a tool's message answers, and the name of the tool, where a client tells it.
    pub(crate) answers: Option<(String, Option<String>)>,
}

impl Turn {
    /// A text, without tools.
    pub(crate) fn text(role: Role, content: String) -> Self {
        Self { role, content, calls: Vec::new(), answers: None }
    }
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
    let expected = "`system`, `developer`, `user`, `assistant` or `tool`";
    let known = role.as_str().and_then(Role::from_name);
    let role = known.ok_or_else(|| Refusal::field(&role_name, expected, &role))?;
    let calls_name = fields.name("tool_calls");
    let calls = match (role, fields.take("tool_calls")) {
        (Role::Assistant, Some(Value::Array(calls))) => tools::read_calls(&calls_name, calls)?,
        (_, None) => Vec::new(),
        (_, Some(other)) => return Err(Refusal::field(&calls_name, "an array, of an assistant", &other)),
    };
    let content_name = fields.name("content");
    let content = match fields.take("content") {
        Some(content) => content_text(&content_name, content)?,
        None if !calls.is_empty() => String::new(),
        None => return Err(Refusal::field(&content_name, "a string or text parts", &Value::Null)),
    };
    let answers = match role {
        Role::Tool => Some((tools::read_call_id(&mut fields, "tool_call_id")?, fields.text("name")?)),
        _ => None,
    };
    // What clients send back with an assistant's message; none of it reaches the template.
    for field in ["function_call", "audio", "refusal", "annotations"] {
        fields.neutral(field, "leave it out", |it| it.as_array().is_some_and(Vec::is_empty))?;
    }
    fields.ignore(&["name", "fsq"]);
    fields.finish()?;
    Ok(Turn { role, content, calls, answers })
}

/// A text, or parts of one.
pub(crate) fn content_text(path: &str, content: Value) -> Result<String, Refusal> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) if parts.len() <= PARTS_MAX => joined_parts(path, parts),
        other => Err(Refusal::field(path, "a string or text parts", &other)),
    }
}

fn joined_parts(path: &str, parts: Vec<Value>) -> Result<String, Refusal> {
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut fields = Fields::of(&format!("{path}[{index}]"), part)?;
        let is_text = |it: &Value| ["text", "input_text", "output_text"].iter().any(|name| it == name);
        fields.neutral("type", "only text parts are", is_text)?;
        let name = fields.name("text");
        let part = fields.text("text")?;
        text.push_str(&part.ok_or_else(|| Refusal::field(&name, "a string", &Value::Null))?);
        // What comes with the parts of an answer that is sent back.
        fields.ignore(&["annotations", "logprobs"]);
        fields.finish()?;
    }
    Ok(text)
}

/// The tokens of a chat up to where the policy's answer begins, without tools that it could call.
pub(crate) fn encode_chat(shared: &Shared, turns: &[Turn]) -> Result<Vec<TokenId>, Refusal> {
    encode_with_tools(shared, turns, Map::new())
}

/// The tokens of a chat up to where the policy's answer begins. A user's text is only ever text, and so is a tool's;
/// what the policy said earlier may hold the tags of foresight, and nothing else.
pub(crate) fn encode_with_tools(
    shared: &Shared,
    turns: &[Turn],
    variables: Map<String, Value>,
) -> Result<Vec<TokenId>, Refusal> {
    let (tokenizer, template) = (&shared.tokenizer, &shared.template);
    shared.check_text(turns.iter().map(|it| it.content.len()).sum())?;
    let fields = turns.iter().map(|it| it.fields(shared)).collect::<Result<_, _>>()?;
    let turns: Vec<fsq_model::Turn<'_>> = turns.iter().map(|it| it.ready(tokenizer)).collect();
    let broken = |it: ModelError| Refusal::invalid("chat_template", it.to_string()).about("messages");
    template.encode_within(tokenizer, &turns, &Surroundings { fields, variables }).map_err(broken)
}

impl Turn {
    fn ready(&self, tokenizer: &Tokenizer) -> fsq_model::Turn<'_> {
        let said = match self.role {
            _ if self.content.is_empty() => Vec::new(),
            Role::Assistant => tagged(tokenizer, &self.content),
            Role::System | Role::User | Role::Tool => vec![Part::Text(&self.content, Special::Escape)],
        };
        fsq_model::Turn { role: self.role.name(), said }
    }

    /// What the template sees of it beside its text.
    fn fields(&self, shared: &Shared) -> Result<Map<String, Value>, Refusal> {
        let mut fields = tools::call_fields(shared, &self.calls)?;
        if let Some((id, name)) = &self.answers {
            fields.insert("tool_call_id".to_owned(), Value::String(id.clone()));
            if let Some(name) = name {
                tools::check_plain(shared, "messages", &Value::String(name.clone()))?;
                fields.insert("name".to_owned(), Value::String(name.clone()));
            }
        }
        Ok(fields)
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
