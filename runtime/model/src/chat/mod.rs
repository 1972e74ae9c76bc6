//! Renders messages with a policy's own chat template (Jinja). Only `turns` knows of tokens.
//!
//! Templates come from files, so they run on a budget and see nothing but their arguments and the time. What they
//! may call is what transformers gives them (`utils/chat_template_utils.py`).

mod python;
mod turns;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::ModelError;

pub use turns::{Surroundings, Turn, is_plain};

/// Instructions that one rendering may run; a long chat needs a few thousand.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat";
/// Longest indentation of one level of JSON, so that a template cannot make one line of it fill the memory.
const INDENT_MAX: usize = 16;

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
    source: String,
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
        environment.add_function("strftime_now", |format: &str| strftime_now(format, now));
        environment.add_filter("tojson", tojson);
        for name in ["length", "count"] {
            environment.add_filter(name, length);
        }
        environment.add_test("iterable", |it: &Value| !it.is_none() && it.try_iter().is_ok());
        environment.add_template_owned(NAME, without_marks(source)).map_err(|it| template_error(&it))?;
        Ok(Self { environment, source: source.to_string(), bos: bos.to_string(), eos: eos.to_string() })
    }

    /// Stops the clock that templates see as `strftime_now`, so that a rendering can be repeated.
    ///
    /// `seconds` are those since 1970, in UTC.
    #[must_use]
    pub fn at(mut self, seconds: i64) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| strftime_now(format, || seconds));
        self
    }

    /// What it was compiled from; it shows in which form this policy writes calls of tools.
    pub fn source(&self) -> &str {
        &self.source
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

/// What is not defined has no elements, as in Jinja2; templates ask it of tools that nobody gave.
fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        Some(n) => Ok(n),
        None if value.is_undefined() => Ok(0),
        None => Err(Error::new(ErrorKind::InvalidOperation, format!("{} has no length", value.kind()))),
    }
}

/// The time in UTC, written as a format of Python's `strftime` says.
fn strftime_now(format: &str, seconds: impl Fn() -> i64) -> Result<String, Error> {
    python::strftime(format, seconds())
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: cannot follow `{format}`")))
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|it| it.as_secs());
    since.ok().and_then(|it| i64::try_from(it).ok()).unwrap_or(0)
}

/// Python's `json.dumps` as transformers sets it up: no HTML escapes, text as it is.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let broken = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    if value.is_undefined() {
        return Err(broken("tojson of a value that is not defined".into()));
    }
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|it| !it.is_none()) {
        None => None,
        Some(it) => Some(match (it.as_str(), it.as_i64()) {
            (Some(text), _) => text.chars().take(INDENT_MAX).collect(),
            (None, Some(n_spaces)) => " ".repeat(n_spaces.clamp(0, INDENT_MAX as i64) as usize),
            (None, None) => return Err(broken(format!("tojson: an indent of {it}"))),
        }),
    };
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(it) if !it.is_none() => Some((text_at(&it, 0)?, text_at(&it, 1)?)),
        _ => None,
    };
    let between = if indent.is_some() { "," } else { ", " };
    let layout = python::Layout {
        separators: separators.unwrap_or_else(|| (between.into(), ": ".into())),
        indent,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|it| broken(it.to_string()))?;
    Ok(Value::from_safe_string(python::dumps(&value, &layout)))
}

fn text_at(pair: &Value, index: usize) -> Result<String, Error> {
    let item = pair.get_item_by_index(index)?;
    item.as_str()
        .map(str::to_string)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "tojson: expected two texts as separators".to_string()))
}

/// A template without the marks around what an assistant says (`{% generation %}`), which change no text: what they
/// enclose is put under a condition that always holds.
fn without_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let n_open = 2 + usize::from(tag[2..].starts_with(['-', '+']));
        let word = tag[n_open..].trim_start();
        let name = &word[..word.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(word.len())];
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                text.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        };
        text.push_str(&tag[..n_open]);
        text.push(' ');
        text.push_str(replacement);
        rest = &word[name.len()..];
    }
    text + rest
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
    #[test]
    fn templates_may_ask_for_the_time_leave_loops_and_mark_answers() {
        let source = "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}\
            {%- generation -%} {{ m.content }} {%- endgeneration %}{% if loop.index0 == 2 %}{% break %}{% endif %}\
            {% endfor %} {{ strftime_now('%d %b %Y') }}";
        let template = ChatTemplate::new(source, "", "").unwrap().at(1_700_000_000);
        let chat = ["a", "b", "c", "d"].map(|it| Message::new("user", it));
        assert_eq!(template.render(&chat, false).unwrap(), "ac 14 Nov 2023");
        let error = ChatTemplate::new("{{ strftime_now('%Q') }}", "", "").unwrap().render(&[], false).unwrap_err();
        assert!(error.to_string().contains("%Q"), "{error}");
        assert!(
            ChatTemplate::new("{{ strftime_now('%Y') }}", "", "").unwrap().render(&[], false).unwrap() >= "2024".into()
        );
    }

    #[test]
    fn json_can_be_laid_out() {
        let render = |source: &str| ChatTemplate::new(source, "", "").unwrap().render(&[Message::new("é", "b")], false);
        assert_eq!(
            render("{{ messages | tojson(indent=1) }}").unwrap(),
            "[\n {\n  \"role\": \"é\",\n  \"content\": \"b\"\n }\n]"
        );
        let dense = render("{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}");
        assert_eq!(dense.unwrap(), r#"{"content":"b","role":"\u00e9"}"#);
        assert!(render("{{ missing | tojson }}").is_err());
        assert!(render("{{ messages | tojson(separators=1) }}").is_err());
        assert!(render("{{ messages | tojson(colour=1) }}").is_err());
    }
}
