//! Calls of tools in an answer's text, in the forms that chat templates teach policies; knows no HTTP.

use serde_json::{Map, Value};

/// How a policy writes that it calls a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallForm {
    /// Each call between `<tool_call>` and `</tool_call>`, as `{"name", "arguments"}` (Hermes, Qwen 2.5 and 3).
    Tagged,
    /// All calls as one list after `[TOOL_CALLS]`, a control token in most files (Mistral).
    Listed,
    /// The whole answer is `{"name", "parameters"}`, after `<|python_tag|>` or not (Llama 3.1 to 3.3).
    Bare,
}

const OPENING: &str = "<tool_call>";
const CLOSING: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";

impl CallForm {
    /// The form that a chat template shows; `None` where it shows none that is known here.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        // Qwen 3 Coder and its like write parameters as tags of their own.
        if source.contains("<function=") || source.contains("<arg_key>") {
            None
        } else if source.contains(OPENING) {
            Some(Self::Tagged)
        } else if source.contains(LIST) {
            Some(Self::Listed)
        } else if source.contains(PYTHON) || source.contains("\"parameters\"") {
            Some(Self::Bare)
        } else {
            None
        }
    }

    /// What every call begins with, as text.
    fn opening(self) -> &'static str {
        match self {
            Self::Tagged => OPENING,
            Self::Listed => LIST,
            Self::Bare => PYTHON,
        }
    }

    /// A name for a call; Mistral's templates insist on nine letters or digits.
    pub(crate) fn call_id(self) -> String {
        let random = format!("{:032x}", rand::random::<u128>());
        match self {
            Self::Listed => random[..9].to_owned(),
            Self::Tagged | Self::Bare => format!("call_{}", &random[..24]),
        }
    }
}

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON, an object.
    pub(crate) arguments: String,
}

/// Tells an answer's words from its calls while it grows.
#[derive(Clone, Debug)]
pub(crate) struct CallReader {
    form: CallForm,
    names: Vec<String>,
    calls_max: usize,
    /// Text that is or may be the beginning of a call.
    held: String,
    has_shown: bool,
    is_call: bool,
}

/// An answer, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) words: String,
    pub(crate) calls: Vec<Call>,
}

impl CallReader {
    /// For a policy that writes calls in `form` and knows tools of these names.
    pub(crate) fn new(form: CallForm, names: Vec<String>, calls_max: usize) -> Self {
        Self { form, names, calls_max, held: String::new(), has_shown: false, is_call: false }
    }

    /// Takes text in; what is surely words comes back.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if self.is_call {
            return String::new();
        }
        let n_words = self.n_words();
        let rest = self.held.split_off(n_words);
        let words = std::mem::replace(&mut self.held, rest);
        self.has_shown |= !words.is_empty();
        words
    }

    /// How many bytes of the held text cannot belong to a call.
    fn n_words(&mut self) -> usize {
        let opening = self.form.opening();
        if let Some(at) = self.held.find(opening) {
            self.is_call = true;
            return self.held[..at].trim_end().len();
        }
        let begun = self.held.trim_start();
        // A control token leaves no text behind, so a list or an object may be all there is to see of a call.
        let bare = match self.form {
            CallForm::Tagged => None,
            CallForm::Listed => Some('['),
            CallForm::Bare => Some('{'),
        };
        if !self.has_shown && bare.is_some_and(|it| begun.is_empty() || begun.starts_with(it)) {
            self.is_call = !begun.is_empty();
            return 0;
        }
        let n_suspect = (1..opening.len()).rev().find(|n| self.held.ends_with(&opening[..*n])).unwrap_or(0);
        self.held[..self.held.len() - n_suspect].trim_end().len()
    }

    /// What is left at the end: calls, or words that only looked like one.
    pub(crate) fn finish(self) -> Said {
        let found = self.is_call.then(|| self.calls()).flatten().filter(|it| !it.is_empty());
        match found {
            Some(mut calls) => {
                calls.truncate(self.calls_max);
                Said { words: String::new(), calls }
            }
            None => Said { words: self.held, calls: Vec::new() },
        }
    }

    /// `None` where any of it is not a call of a known tool.
    fn calls(&self) -> Option<Vec<Call>> {
        let text = self.held.trim();
        let values = match self.form {
            CallForm::Tagged => text
                .split(OPENING)
                .map(|it| it.trim().trim_end_matches(CLOSING).trim())
                .filter(|it| !it.is_empty())
                .map(|it| serde_json::from_str(it).ok())
                .collect::<Option<Vec<Value>>>()?,
            CallForm::Listed => {
                let list = text.strip_prefix(LIST).unwrap_or(text).trim();
                serde_json::from_str::<Vec<Value>>(list).ok()?
            }
            CallForm::Bare => {
                let object = text.strip_prefix(PYTHON).unwrap_or(text);
                let several = serde_json::Deserializer::from_str(object).into_iter::<Value>();
                several.collect::<Result<Vec<_>, _>>().ok()?
            }
        };
        values.into_iter().map(|it| self.call(it)).collect()
    }

    fn call(&self, value: Value) -> Option<Call> {
        let Value::Object(mut fields) = value else { return None };
        let name = fields.get("name")?.as_str()?.to_owned();
        let arguments = fields.shift_remove("arguments").or_else(|| fields.shift_remove("parameters"));
        let arguments = match arguments.unwrap_or_else(|| Value::Object(Map::new())) {
            Value::String(text) => serde_json::from_str(&text).ok()?,
            other => other,
        };
        let is_known = self.names.contains(&name) && arguments.is_object();
        is_known.then(|| Call { id: self.form.call_id(), name, arguments: arguments.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words, and names with arguments, whatever the pieces in which the text arrives.
    fn read(form: CallForm, text: &str) -> (String, Vec<(String, String)>) {
        let whole = read_in(form, text, usize::MAX);
        for n in 1..4 {
            assert_eq!(read_in(form, text, n), whole, "{text}");
        }
        whole
    }

    fn read_in(form: CallForm, text: &str, n: usize) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new(form, vec!["look".into(), "go".into()], 8);
        let characters: Vec<char> = text.chars().collect();
        let mut words = String::new();
        for piece in characters.chunks(n.min(characters.len().max(1))) {
            words.push_str(&reader.push(&piece.iter().collect::<String>()));
        }
        let Said { words: rest, calls } = reader.finish();
        (words + &rest, calls.into_iter().map(|it| (it.name, it.arguments)).collect())
    }

    fn calls(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect()
    }

    #[test]
    fn tagged_calls_follow_words() {
        let (words, found) = read(
            CallForm::Tagged,
            "Let me see.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"ä<b\"}}\n</tool_call>\n\
             <tool_call>{\"name\": \"go\", \"arguments\": {}}</tool_call>",
        );
        assert_eq!(words, "Let me see.");
        assert_eq!(found, calls(&[("look", "{\"at\":\"ä<b\"}"), ("go", "{}")]));
    }

    #[test]
    fn lists_and_bare_objects_are_calls_where_they_begin_an_answer() {
        let one = calls(&[("look", "{\"n\":1}")]);
        for text in [
            "[TOOL_CALLS][{\"name\": \"look\", \"arguments\": {\"n\": 1}}]",
            " [{\"name\": \"look\", \"arguments\": {\"n\": 1}}]",
        ] {
            assert_eq!(read(CallForm::Listed, text), (String::new(), one.clone()));
        }
        let text = "<|python_tag|>{\"name\": \"look\", \"parameters\": {\"n\": 1}}";
        assert_eq!(read(CallForm::Bare, text), (String::new(), one.clone()));
        assert_eq!(read(CallForm::Bare, &text[14..]), (String::new(), one));
        let prose = "In JSON: {\"name\": \"look\"}";
        assert_eq!(read(CallForm::Bare, prose), (prose.to_owned(), Vec::new()));
    }

    #[test]
    fn what_is_no_call_of_a_known_tool_stays_words() {
        for text in [
            "<tool_call>{\"name\": \"steal\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"look\", \"arguments\": 3}</tool_call>",
            "<tool_call>{\"name\": \"look\"",
            "a < b <tool",
            "",
        ] {
            assert_eq!(read(CallForm::Tagged, text), (text.to_owned(), Vec::new()));
        }
        assert_eq!(read(CallForm::Bare, "{\"a\": 1}"), ("{\"a\": 1}".to_owned(), Vec::new()));
    }

    #[test]
    fn the_form_is_read_off_the_template() {
        assert_eq!(CallForm::of_template("… <tool_call>\n{\"name\": …"), Some(CallForm::Tagged));
        assert_eq!(CallForm::of_template("{{ '[TOOL_CALLS] ' }}"), Some(CallForm::Listed));
        assert_eq!(CallForm::of_template("{\"name\": f, \"parameters\": d}"), Some(CallForm::Bare));
        assert_eq!(CallForm::of_template("<tool_call><function={{ name }}>"), None);
        assert_eq!(CallForm::of_template("{{ messages }}"), None);
    }
}
