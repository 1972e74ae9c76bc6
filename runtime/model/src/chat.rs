//! Renders messages with a policy's own chat template (Jinja). Knows no tokens.
//!
//! Templates come from files, so they run on a budget and see nothing but their arguments.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// Instructions that one rendering may run; a long chat needs a few thousand.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat";

/// One message of a chat. What else a client sends with it (tool calls, names) reaches the template as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Such as `system`, `user`, `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Further fields.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), more: serde_json::Map::new() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts that it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`ModelError::ChatTemplate`] when it does not compile.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|it| template_error(&it))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_string()).map_err(|it| template_error(&it))?;
        Ok(Self { environment, bos: bos.to_string(), eos: eos.to_string() })
    }

    /// The prompt of a chat; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// [`ModelError::ChatTemplate`] with the template's own words when it raised an exception.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        self.render_with(messages, add_generation_prompt, serde_json::Map::new())
    }

    /// As [`ChatTemplate::render`], with further variables such as `tools`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, ModelError> {
        let own = minijinja::context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let context = minijinja::context! { ..own, ..Value::from(Serde(&variables)) };
        let template = self.environment.get_template(NAME).map_err(|it| template_error(&it))?;
        template.render(context).map_err(|it| template_error(&it))
    }
}

/// What templates call to refuse a chat.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps` as transformers sets it up: no HTML escapes, `", "` and `": "` unless indented.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and without effect: keys keep their order, text stays as it is.
    let _: Option<Value> = options.get("ensure_ascii")?;
    let _: Option<Value> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let broken = |it: serde_json::Error| Error::new(ErrorKind::BadSerialization, it.to_string());
    let mut text = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, pretty)).map_err(broken)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)).map_err(broken)?,
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&text).into_owned()))
}

/// JSON on one line with a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn template_error(error: &Error) -> ModelError {
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it runs too long".to_string(),
        (_, Some(detail)) => detail.to_string(),
        _ => error.to_string(),
    };
    let line = error.line().map(|it| format!(" (line {it})")).unwrap_or_default();
    ModelError::ChatTemplate { reason: reason + &line }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const CHAT: &str = "{{ bos_token }}{% for message in messages %}\
        {% if message.role == 'user' %}<|user|>{{ message['content'].strip() }}\
        {% elif message.role == 'assistant' %}<|assistant|>{{ message.content }}{{ eos_token }}\
        {% else %}{{ raise_exception('no role ' + message.role) }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% endif %}";

    #[test]
    fn renders_a_chat_with_python_methods() {
        let template = ChatTemplate::new(CHAT, "<|bos|>", "<|end|>").unwrap();
        let chat = [Message::new("user", " hi "), Message::new("assistant", "yes"), Message::new("user", "go")];
        let text = template.render(&chat, true).unwrap();
        assert_eq!(text, "<|bos|><|user|>hi<|assistant|>yes<|end|><|user|>go<|assistant|>");
    }

    #[test]
    fn refusals_loops_without_end_and_broken_templates_are_errors() {
        let template = ChatTemplate::new(CHAT, "", "").unwrap();
        let error = template.render(&[Message::new("judge", "x")], false).unwrap_err().to_string();
        assert!(error.contains("no role judge"), "{error}");
        let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
        let error = ChatTemplate::new(endless, "", "").unwrap().render(&[], false).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
        assert!(ChatTemplate::new("{% for %}", "", "").is_err());
    }

    #[test]
    fn json_is_spaced_as_python_does() {
        let template = ChatTemplate::new("{{ tools | tojson }}", "", "").unwrap();
        let tools = serde_json::json!({"tools": [{"name": "a<b", "args": [1, 2]}]});
        let text = template.render_with(&[], false, tools.as_object().unwrap().clone()).unwrap();
        assert_eq!(text, r#"[{"name": "a<b", "args": [1, 2]}]"#);
    }
}
