//! Tools of a request: their definitions, which of them may or must be called, and calls in the chat's history.

use fsq_calibrate::foresight::TAGS;
use fsq_model::is_plain;
use serde_json::{Map, Value, json};

use crate::calls::{Call, CallForm, CallReader};
use crate::fields::Fields;
use crate::refusal::{Refusal, quoted};
use crate::server::Shared;

/// Tools of one request, as many as OpenAI's.
const TOOLS_MAX: usize = 128;
/// Calls of one message.
const CALLS_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 64;
const DESCRIPTION_BYTES_MAX: usize = 16 << 10;
/// Of a JSON schema, as text.
pub(crate) const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// One function that the policy may ask for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    description: Option<String>,
    /// A JSON schema; `None` for a function without parameters.
    pub(crate) parameters: Option<Value>,
    pub(crate) is_strict: bool,
}

/// Which tools may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// None.
    None,
    /// Any, or none.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tools {
    pub(crate) list: Vec<Tool>,
    pub(crate) choice: Choice,
    pub(crate) is_parallel: bool,
}

/// Which of OpenAI's two protocols writes them: under `function` in chats, flat in responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Nested,
    Flat,
}

impl Tools {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`.
    pub(crate) fn take(fields: &mut Fields, layout: Layout) -> Result<Self, Refusal> {
        let list = fields.list("tools", TOOLS_MAX)?.unwrap_or_default();
        let read = |(index, it): (usize, Value)| Tool::read(&format!("tools[{index}]"), it, layout);
        let list = list.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        if let Some(index) = (1..list.len()).find(|it| list[..*it].iter().any(|tool| tool.name == list[*it].name)) {
            let message = format!("field `tools[{index}]`: the name `{}` is there twice", quoted(&list[index].name));
            return Err(Refusal::invalid("duplicate_tool", message).about("tools"));
        }
        let choice = take_choice(fields, &list, layout)?;
        let is_parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        Ok(Self { list, choice, is_parallel })
    }

    /// Whether the answer may hold calls.
    pub(crate) fn may_call(&self) -> bool {
        !self.list.is_empty() && self.choice != Choice::None
    }

    /// The tools that may be called.
    pub(crate) fn callable(&self) -> Vec<&Tool> {
        let is_open = |it: &&Tool| match &self.choice {
            Choice::None => false,
            Choice::Auto | Choice::Required => true,
            Choice::Named(name) => it.name == *name,
        };
        self.list.iter().filter(is_open).collect()
    }

    /// How calls in answers are read; `None` where there are none.
    pub(crate) fn reader(&self, shared: &Shared) -> Result<Option<CallReader>, Refusal> {
        if !self.may_call() {
            return Ok(None);
        }
        let names = self.callable().into_iter().map(|it| it.name.clone()).collect();
        Ok(Some(CallReader::new(form(shared)?, names, if self.is_parallel { CALLS_MAX } else { 1 })))
    }

    /// What the chat template sees of them: nothing where none may be called, as OpenAI's do it.
    pub(crate) fn variables(&self, shared: &Shared) -> Result<Map<String, Value>, Refusal> {
        let mut variables = Map::new();
        if self.may_call() {
            let tools: Vec<Value> = self.list.iter().map(Tool::shown).collect();
            tools.iter().try_for_each(|it| check_plain(shared, "tools", it))?;
            variables.insert("tools".to_owned(), Value::Array(tools));
        }
        Ok(variables)
    }
}

impl Tool {
    fn read(path: &str, value: Value, layout: Layout) -> Result<Self, Refusal> {
        let mut outer = Fields::of(path, value)?;
        outer.neutral("type", "only `function` is", |it| it == "function")?;
        let (mut fields, rest) = match layout {
            Layout::Flat => (outer, None),
            Layout::Nested => {
                let name = outer.name("function");
                (Fields::of(&name, outer.take("function").unwrap_or_default())?, Some(outer))
            }
        };
        rest.map_or(Ok(()), Fields::finish)?;
        let name = read_name(&mut fields, "name")?;
        let description = fields.text("description")?;
        if description.as_ref().is_some_and(|it| it.len() > DESCRIPTION_BYTES_MAX) {
            let message =
                format!("field `{}`: expected at most {DESCRIPTION_BYTES_MAX} bytes", fields.name("description"));
            return Err(Refusal::invalid("invalid_value", message).about("tools"));
        }
        let parameters_name = fields.name("parameters");
        let parameters = fields.take("parameters");
        if let Some(parameters) = &parameters {
            check_schema(&parameters_name, parameters)?;
        }
        let is_strict = fields.boolean("strict")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self { name, description, parameters, is_strict })
    }

    /// As chat templates expect tools.
    fn shown(&self) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        let none = || json!({"type": "object", "properties": {}});
        function["parameters"] = self.parameters.clone().unwrap_or_else(none);
        json!({"type": "function", "function": function})
    }

    /// As `/v1/responses` repeats it.
    pub(crate) fn flat(&self) -> Value {
        json!({
            "type": "function", "name": self.name, "description": self.description,
            "parameters": self.parameters, "strict": self.is_strict,
        })
    }
}

/// Refuses what is no schema, or too long to be one.
pub(crate) fn check_schema(name: &str, schema: &Value) -> Result<(), Refusal> {
    if !schema.is_object() {
        return Err(Refusal::field(name, "a JSON schema, which is an object", schema));
    }
    let n_bytes = schema.to_string().len();
    if n_bytes > SCHEMA_BYTES_MAX {
        let message = format!("field `{name}`: expected at most {SCHEMA_BYTES_MAX} bytes, found {n_bytes}");
        return Err(Refusal::invalid("schema_too_large", message).about(name));
    }
    Ok(())
}

fn read_name(fields: &mut Fields, field: &str) -> Result<String, Refusal> {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '_' | '-');
    let name = fields.name(field);
    let found = fields.text(field)?.unwrap_or_default();
    if found.is_empty() || found.len() > NAME_BYTES_MAX || !found.chars().all(is_plain) {
        let expected = format!("1 to {NAME_BYTES_MAX} of `a-z A-Z 0-9 . _ -`");
        return Err(Refusal::field(&name, &expected, &Value::String(found)));
    }
    Ok(found)
}

fn take_choice(fields: &mut Fields, list: &[Tool], layout: Layout) -> Result<Choice, Refusal> {
    let expected = "`none`, `auto`, `required`, or `{\"type\": \"function\", …}` with the name of a tool";
    let choice = match fields.take("tool_choice") {
        None => return Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Choice::None,
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            _ => return Err(Refusal::field("tool_choice", expected, &Value::String(word))),
        },
        Some(value @ Value::Object(_)) => {
            let mut outer = Fields::of("tool_choice", value)?;
            outer.neutral("type", "only `function` is", |it| it == "function")?;
            let name = match layout {
                Layout::Flat => read_name(&mut outer, "name")?,
                Layout::Nested => {
                    let inner = outer.take("function").unwrap_or_default();
                    let mut inner = Fields::of("tool_choice.function", inner)?;
                    let name = read_name(&mut inner, "name")?;
                    inner.finish()?;
                    name
                }
            };
            outer.finish()?;
            Choice::Named(name)
        }
        Some(other) => return Err(Refusal::field("tool_choice", expected, &other)),
    };
    let is_there = match &choice {
        Choice::None | Choice::Auto => true,
        Choice::Required => !list.is_empty(),
        Choice::Named(name) => list.iter().any(|it| it.name == *name),
    };
    if !is_there {
        let message = "field `tool_choice`: asks for a tool that `tools` does not have";
        return Err(Refusal::invalid("unknown_tool", message).about("tool_choice"));
    }
    Ok(choice)
}

/// In which form this policy calls tools.
pub(crate) fn form(shared: &Shared) -> Result<CallForm, Refusal> {
    CallForm::of_template(shared.template.source()).ok_or_else(|| {
        let message = "the chat template of this policy shows no form of tool calls that is known here";
        Refusal::unsupported("tools", message)
    })
}

/// Reads the calls that an assistant's message in the history made.
pub(crate) fn read_calls(path: &str, values: Vec<Value>) -> Result<Vec<Call>, Refusal> {
    if values.len() > CALLS_MAX {
        let message = format!("field `{path}`: expected at most {CALLS_MAX} entries, found {}", values.len());
        return Err(Refusal::invalid("too_many_entries", message).about(path));
    }
    let read = |(index, value): (usize, Value)| {
        let mut outer = Fields::of(&format!("{path}[{index}]"), value)?;
        outer.neutral("type", "only `function` is", |it| it == "function")?;
        let id = read_name(&mut outer, "id")?;
        outer.ignore(&["index"]);
        let name = outer.name("function");
        let mut fields = Fields::of(&name, outer.take("function").unwrap_or_default())?;
        outer.finish()?;
        let call = read_call(&mut fields, id)?;
        fields.finish()?;
        Ok(call)
    };
    values.into_iter().enumerate().map(read).collect()
}

/// Takes `name` and `arguments`, a text that holds a JSON object.
pub(crate) fn read_call(fields: &mut Fields, id: String) -> Result<Call, Refusal> {
    let name = read_name(fields, "name")?;
    let arguments_name = fields.name("arguments");
    let arguments = fields.text("arguments")?.filter(|it| !it.is_empty()).unwrap_or_else(|| "{}".to_owned());
    let is_object = serde_json::from_str::<Map<String, Value>>(&arguments).is_ok();
    if !is_object {
        let expected = "a text that is a JSON object";
        return Err(Refusal::field(&arguments_name, expected, &Value::String(arguments)));
    }
    Ok(Call { id, name, arguments })
}

/// A call's name, as those that told of it repeat it.
pub(crate) fn read_call_id(fields: &mut Fields, field: &str) -> Result<String, Refusal> {
    read_name(fields, field)
}

/// The fields of a message as chat templates expect them.
pub(crate) fn call_fields(shared: &Shared, calls: &[Call]) -> Result<Map<String, Value>, Refusal> {
    let mut fields = Map::new();
    if calls.is_empty() {
        return Ok(fields);
    }
    let shown = |it: &Call| {
        let arguments: Value = serde_json::from_str(&it.arguments).unwrap_or_else(|_| json!({}));
        json!({"id": it.id, "type": "function", "function": {"name": it.name, "arguments": arguments}})
    };
    let calls: Vec<Value> = calls.iter().map(shown).collect();
    calls.iter().try_for_each(|it| check_plain(shared, "messages", it))?;
    fields.insert("tool_calls".to_owned(), Value::Array(calls));
    Ok(fields)
}

/// Refuses texts in tools or calls that would become control tokens: a template writes them as its own.
pub(crate) fn check_plain(shared: &Shared, name: &str, value: &Value) -> Result<(), Refusal> {
    // The tags of foresight are the policy's own, and no control tokens.
    let is_text = |text: &str| is_plain(&shared.tokenizer, text) && !TAGS.iter().any(|it| text.contains(it));
    let check = |text: &str| match is_text(text) {
        true => Ok(()),
        false => {
            let message = format!("field `{name}`: `{}` holds what is a token of its own to this policy", quoted(text));
            Err(Refusal::invalid("control_text", message).about(name))
        }
    };
    match value {
        Value::String(text) => check(text),
        Value::Array(values) => values.iter().try_for_each(|it| check_plain(shared, name, it)),
        Value::Object(map) => map.iter().try_for_each(|(key, it)| {
            check(key)?;
            check_plain(shared, name, it)
        }),
        _ => Ok(()),
    }
}
