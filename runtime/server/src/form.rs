//! Forms that a request holds answers to: JSON schemas, grammars, calls of tools. Reads and writes them; what may come
//! next by one of them is `grammar`'s business.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use crate::calls::CallForm;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::tools::{Choice, SCHEMA_BYTES_MAX, Tool, Tools, check_schema};

/// Of brackets in a grammar's text: its parser calls itself for each.
const DEPTH_MAX: usize = 64;
/// Calls that an answer which has to call may make beside each other.
const FORCED_CALLS_MAX: usize = 8;

/// What an answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// JSON that a schema allows.
    Schema { field: &'static str, schema: Value },
    /// llguidance's Lark syntax.
    Lark { field: &'static str, text: String },
}

impl Form {
    /// The field of the request that asks for it.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Schema { field, .. } | Self::Lark { field, .. } => field,
        }
    }

    /// Takes `response_format` and `grammar`, of which a request may have one.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>, Refusal> {
        let format = match fields.take("response_format") {
            Some(format) => Self::of_format(Fields::of("response_format", format)?, "response_format")?,
            None => None,
        };
        let grammar = match fields.text("grammar")? {
            Some(text) => Some(Self::of_lark(text)?),
            None => None,
        };
        if format.is_some() && grammar.is_some() {
            let message = "field `grammar`: expected without `response_format`, since an answer has one form";
            return Err(Refusal::invalid("conflicting_fields", message).about("grammar"));
        }
        Ok(format.or(grammar))
    }

    /// `{"type": "text" | "json_object" | "json_schema", …}`; the schema lies under `json_schema` in chats and beside
    /// the type in responses.
    pub(crate) fn of_format(mut fields: Fields, field: &'static str) -> Result<Option<Self>, Refusal> {
        let kind_name = fields.name("type");
        let kind = fields.take("type").unwrap_or_default();
        let expected = "`text`, `json_object` or `json_schema`";
        let form = match kind.as_str() {
            Some("text") => None,
            Some("json_object") => Some(Self::Schema { field, schema: compact(json!({"type": "object"})) }),
            Some("json_schema") => {
                let outer_name = fields.name("json_schema");
                match fields.take("json_schema") {
                    Some(inner) => {
                        let mut inner = Fields::of(&outer_name, inner)?;
                        let schema = take_schema(&mut inner)?;
                        inner.finish()?;
                        Some(Self::Schema { field, schema })
                    }
                    None => Some(Self::Schema { field, schema: take_schema(&mut fields)? }),
                }
            }
            _ => return Err(Refusal::field(&kind_name, expected, &kind)),
        };
        fields.finish()?;
        Ok(form)
    }

    fn of_lark(text: String) -> Result<Self, Refusal> {
        if text.len() > SCHEMA_BYTES_MAX {
            let message = format!("field `grammar`: expected at most {SCHEMA_BYTES_MAX} bytes, found {}", text.len());
            return Err(Refusal::invalid("grammar_too_large", message).about("grammar"));
        }
        let (mut depth, mut deepest) = (0_usize, 0);
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        if deepest > DEPTH_MAX {
            let message = format!("field `grammar`: expected at most {DEPTH_MAX} levels of brackets, found {deepest}");
            return Err(Refusal::invalid("grammar_too_deep", message).about("grammar"));
        }
        Ok(Self::Lark { field: "grammar", text })
    }

    /// What holds an answer to calls that `tools` asks for; `None` where the policy is free to call or not, and in
    /// whatever arguments. `list_token` is the control token that begins a list of calls, where the policy has one.
    pub(crate) fn of_tools(tools: &Tools, form: CallForm, list_token: Option<u32>) -> Option<Self> {
        let callable = tools.callable();
        let is_forced = matches!(tools.choice, Choice::Required | Choice::Named(_));
        if !is_forced && !callable.iter().any(|it| it.is_strict) {
            return None;
        }
        let is_single = !tools.is_parallel || matches!(tools.choice, Choice::Named(_));
        let more = if is_single { 0 } else { FORCED_CALLS_MAX - 1 };
        let repeated = |separator: &str, call: &str| match more {
            0 => String::new(),
            n => format!(" ({separator} {call}){{0,{n}}}"),
        };
        let open = literal("<tool_call>\n");
        let close = literal("\n</tool_call>");
        let mut text = match (form, is_forced) {
            (CallForm::Tagged, true) => {
                let more = repeated(&literal("\n"), "call");
                format!("start: call{more}\ncall: {open} body {close}\n")
            }
            (CallForm::Tagged, false) => format!(
                "start: (before \"\\n\"? body \"\\n\"? {})* WORDS\nbefore[lazy]: /(.|\\n)*<tool_call>/\n\
                 WORDS: /(.|\\n)*/\n",
                literal("</tool_call>")
            ),
            (CallForm::Listed, _) => {
                let begin = list_token.map_or_else(|| literal("[TOOL_CALLS]"), |it| format!("<[{it}]>"));
                let more = repeated(&literal(", "), "body");
                let words = if is_forced { "" } else { " | WORDS" };
                let rule = if is_forced { "" } else { "WORDS: /[^\\[](.|\\n)*/\n" };
                format!("start: calls{words}\ncalls: {begin} {} body{more} {}\n{rule}", literal("["), literal("]"))
            }
            (CallForm::Bare, true) => "start: body\n".to_owned(),
            (CallForm::Bare, false) => "start: body | WORDS\nWORDS: /[^{](.|\\n)*/\n".to_owned(),
        };
        let names: Vec<String> = (0..callable.len()).map(|it| format!("body_{it}")).collect();
        text.push_str(&format!("body: {}\n", names.join(" | ")));
        for (index, tool) in callable.iter().enumerate() {
            text.push_str(&body(index, tool, form, is_forced));
        }
        Some(Self::Lark { field: "tools", text })
    }
}

/// One tool's call, with arguments as its schema says: in strict tools and forced calls to the letter, else any.
fn body(index: usize, tool: &Tool, form: CallForm, is_forced: bool) -> String {
    let key = if form == CallForm::Bare { "parameters" } else { "arguments" };
    let begin = format!("{{\"name\": {}, \"{key}\": ", json!(tool.name));
    let nothing = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let schema = match tool.is_strict || is_forced {
        true => tool.parameters.clone().unwrap_or_else(nothing),
        false => json!({"type": "object"}),
    };
    format!(
        "body_{index}: {} arguments_{index} {}\narguments_{index}: %json {}\n",
        literal(&begin),
        literal("}"),
        compact(schema)
    )
}

/// A text as Lark writes it.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

fn take_schema(fields: &mut Fields) -> Result<Value, Refusal> {
    let name = fields.name("schema");
    let schema = fields.take("schema").unwrap_or_default();
    check_schema(&name, &schema)?;
    // Every answer keeps to the schema, strict or not.
    fields.boolean("strict")?;
    fields.ignore(&["name", "description"]);
    Ok(compact(schema))
}

/// A schema whose answers are laid out as Python's `json.dumps` does it: a policy that is unsure must not go on with
/// white space for ever.
fn compact(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        let layout = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        map.insert("x-guidance".to_owned(), layout);
    }
    schema
}

/// Where what goes wrong with a form while an answer grows is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault(Arc<OnceLock<String>>);

impl Fault {
    /// The first to tell is heard.
    #[cfg_attr(not(feature = "grammar"), allow(dead_code, reason = "only a grammar fails"))]
    pub(crate) fn tell(&self, reason: String) {
        let _ = self.0.set(reason);
    }

    /// Refuses an answer that could not be held to its form.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match self.0.get() {
            None => Ok(()),
            Some(reason) => {
                let message = format!("the answer could not be held to its form: {reason}");
                Err(Refusal::invalid("grammar_failed", message))
            }
        }
    }
}

/// The format that `/v1/responses` repeats.
pub(crate) fn shown(form: Option<&Form>) -> Value {
    match form {
        Some(Form::Schema { schema, .. }) => {
            let mut schema = schema.as_object().cloned().unwrap_or_else(Map::new);
            schema.shift_remove("x-guidance");
            json!({"type": "json_schema", "name": "answer", "schema": schema, "strict": true})
        }
        _ => json!({"type": "text"}),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn taken(body: Value) -> Result<Option<Form>, String> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        Form::take(&mut fields).map_err(|it| it.body()["error"]["code"].as_str().unwrap().to_owned())
    }

    #[test]
    fn forms_are_read_and_bounded() {
        assert_eq!(taken(json!({"response_format": {"type": "text"}})), Ok(None));
        let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}});
        let Ok(Some(Form::Schema { schema, .. })) = taken(json!({"response_format": schema})) else { panic!() };
        assert_eq!(schema["type"], "integer");
        let long = "x".repeat(SCHEMA_BYTES_MAX + 1);
        let large = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": long}}});
        let cases = [
            (json!({"response_format": {"type": "xml"}}), "invalid_value"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}), "invalid_value"),
            (json!({"response_format": {"type": "json_object", "more": 1}}), "unknown_field"),
            (json!({"response_format": large}), "schema_too_large"),
            (json!({"grammar": long}), "grammar_too_large"),
            (json!({"grammar": "(".repeat(65)}), "grammar_too_deep"),
            (json!({"grammar": "start: \"a\"", "response_format": {"type": "json_object"}}), "conflicting_fields"),
        ];
        for (body, code) in cases {
            assert_eq!(taken(body), Err(code.to_owned()));
        }
    }
}
