//! A conversation as pieces of text, each with where it comes from and whether it is learnt. Knows no token ids.
//!
//! The template sees a mark in place of each message's text, as where a policy is served, so that nothing in a message
//! can end its turn. What the assistant wrote is learnt, and the token by which the template ends its turn.

use std::ops::Range;

use fsq_model::{ChatTemplate, Message};
use serde_json::{Map, Value};

use super::Fault;

/// Private-use characters around the number of a message.
const MARK_START: char = '\u{E000}';
const MARK_END: char = '\u{E001}';

/// Where a piece of a conversation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The template wrote it: its control tokens are meant.
    Template,
    /// A message of somebody else: text and nothing else.
    Other,
    /// The assistant: tags of its own, no control token.
    Assistant,
}

/// A piece of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) origin: Origin,
    pub(crate) learnt: bool,
}

/// Lays a conversation out. `ends` are the texts of the tokens that end a turn, `is_learnt` says which of the
/// assistant's messages are learnt.
pub(crate) fn pieces(
    template: &ChatTemplate,
    messages: &[Message],
    tools: Option<&Value>,
    ends: &[String],
    is_learnt: impl Fn(usize) -> bool,
) -> Result<Vec<Piece>, Fault> {
    let marked: Vec<Message> = messages.iter().enumerate().map(|(index, it)| marked(index, it)).collect();
    let mut variables = Map::new();
    if let Some(tools) = tools {
        variables.insert("tools".into(), tools.clone());
    }
    let render = |upto: usize, prompt: bool| {
        template
            .render_with(&marked[..upto], prompt, variables.clone())
            .map_err(|it| Fault::new("messages", "what the chat template takes", it.to_string()))
    };
    let whole = render(marked.len(), false)?;
    let mut learnt = Vec::new();
    for (index, message) in messages.iter().enumerate().filter(|it| it.1.role == "assistant" && is_learnt(it.0)) {
        learnt.push(match message.more.contains_key("tool_calls") {
            true => turn_between(index, &whole, &render(index, true)?, &render(index + 1, false)?, ends)?,
            false => turn_of_mark(index, &whole, ends)?,
        });
    }
    cut(&whole, messages, &learnt)
}

/// A message with a mark for its text. An empty text stays empty, so that a template can ask whether there is one.
fn marked(index: usize, message: &Message) -> Message {
    let mut marked = message.clone();
    if !message.content.is_empty() {
        marked.content = mark(index);
    }
    marked
}

fn mark(index: usize) -> String {
    format!("{MARK_START}{index}{MARK_END}")
}

/// From an assistant's text to the token that ends its turn.
fn turn_of_mark(index: usize, whole: &str, ends: &[String]) -> Result<Range<usize>, Fault> {
    let field = || format!("messages[{index}]");
    let mark = mark(index);
    let Some(start) = whole.find(&mark) else {
        return Err(Fault::new(field(), "a message that the chat template writes", "one that it leaves out"));
    };
    let behind = &whole[start + mark.len()..];
    let rest = &behind[..behind.find(MARK_START).unwrap_or(behind.len())];
    let end = ends.iter().filter_map(|it| rest.find(it.as_str()).map(|at| at + it.len())).min();
    match end {
        Some(end) => Ok(start..start + mark.len() + end),
        None => {
            let expected = "a chat template that ends the assistant's turn with a token that ends a turn";
            Err(Fault::new(field(), expected, format!("{rest:?} behind it")))
        }
    }
}

/// What a turn with calls adds to the conversation before it, up to the last token that ends a turn.
fn turn_between(index: usize, whole: &str, before: &str, after: &str, ends: &[String]) -> Result<Range<usize>, Fault> {
    let field = || format!("messages[{index}].tool_calls");
    if !(whole.starts_with(after) && after.starts_with(before)) {
        let expected = "a chat template that leaves earlier turns as they are, so that calls can be found";
        return Err(Fault::new(field(), expected, "one that changes them when a later turn is added"));
    }
    let added = &after[before.len()..];
    let end = ends.iter().filter_map(|it| added.rfind(it.as_str()).map(|at| at + it.len())).max();
    let end = end.ok_or_else(|| Fault::new(field(), "a token that ends the turn", format!("{added:?}")))?;
    Ok(before.len()..before.len() + end)
}

/// Cuts what the template wrote at marks and at the ends of what is learnt.
fn cut(whole: &str, messages: &[Message], learnt: &[Range<usize>]) -> Result<Vec<Piece>, Fault> {
    let mut pieces = Vec::new();
    let push_template = |pieces: &mut Vec<Piece>, range: Range<usize>| {
        let mut start = range.start;
        let bounds = learnt.iter().flat_map(|it| [it.start, it.end]).filter(|it| range.contains(it));
        let mut bounds: Vec<usize> = bounds.chain([range.end]).collect();
        bounds.sort_unstable();
        for end in bounds {
            if end > start {
                let learnt = learnt.iter().any(|it| it.contains(&start));
                pieces.push(Piece { text: whole[start..end].to_string(), origin: Origin::Template, learnt });
                start = end;
            }
        }
    };
    let mut at = 0;
    while let Some(found) = whole[at..].find(MARK_START) {
        let start = at + found;
        push_template(&mut pieces, at..start);
        let inside = &whole[start + MARK_START.len_utf8()..];
        let known = inside.split_once(MARK_END).and_then(|(index, _)| {
            let end = start + MARK_START.len_utf8() + index.len() + MARK_END.len_utf8();
            Some((messages.get(index.parse::<usize>().ok()?)?, end))
        });
        let Some((message, end)) = known else {
            let expected = "a chat template that writes each message's text whole";
            return Err(Fault::new("messages", expected, "one that takes it apart"));
        };
        let origin = if message.role == "assistant" { Origin::Assistant } else { Origin::Other };
        let learnt = learnt.iter().any(|it| it.contains(&start));
        pieces.push(Piece { text: message.content.clone(), origin, learnt });
        at = end;
    }
    push_template(&mut pieces, at..whole.len());
    Ok(pieces)
}

/// The first text inside a record that holds what must not be there, by its path.
pub(crate) fn find_text(path: &str, value: &Value, is_wrong: &impl Fn(&str) -> bool) -> Option<(String, String)> {
    match value {
        Value::String(text) => is_wrong(text).then(|| (path.to_string(), text.clone())),
        Value::Array(values) => {
            values.iter().enumerate().find_map(|(index, it)| find_text(&format!("{path}[{index}]"), it, is_wrong))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, it)| match is_wrong(name) {
            true => Some((path.to_string(), name.clone())),
            false => find_text(&format!("{path}.{name}"), it, is_wrong),
        }),
        _ => None,
    }
}

/// Whether a text holds the marks themselves.
pub(crate) fn holds_marks(text: &str) -> bool {
    text.contains([MARK_START, MARK_END])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
        {% if m.tool_calls %}CALL {{ m.tool_calls[0].name }}{% endif %}<|end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% endif %}";

    fn learnt(source: &str, messages: &[Message], is_learnt: impl Fn(usize) -> bool) -> Result<Vec<String>, Fault> {
        let template = ChatTemplate::new(source, "", "").unwrap();
        let pieces = pieces(&template, messages, None, &["<|end|>".into()], is_learnt)?;
        Ok(pieces.into_iter().filter(|it| it.learnt).map(|it| it.text).collect())
    }

    fn chat() -> Vec<Message> {
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")].map(|it| Message::new(it.0, it.1)).into()
    }

    #[test]
    fn the_assistants_turns_are_learnt_with_their_ends() {
        assert_eq!(learnt(SOURCE, &chat(), |_| true).unwrap(), ["b", "<|end|>", "d", "<|end|>"]);
        assert_eq!(learnt(SOURCE, &chat(), |it| it > 1).unwrap(), ["d", "<|end|>"]);
    }

    #[test]
    fn calls_are_learnt_where_the_template_writes_them() {
        let mut chat = chat();
        let calls = serde_json::json!([{"name": "look"}]);
        chat[1].more.insert("tool_calls".into(), calls);
        assert_eq!(learnt(SOURCE, &chat, |it| it < 2).unwrap(), ["b", "CALL look<|end|>"]);
        let changing = SOURCE.replace("{{ m.content }}", "{{ m.content }}{% if loop.last %}!{% endif %}");
        let fault = learnt(&changing, &chat, |it| it < 2).unwrap_err();
        assert_eq!(fault.field, "messages[1].tool_calls");
    }

    #[test]
    fn templates_that_hide_where_a_turn_ends_are_refused() {
        let endless = SOURCE.replace("<|end|>", "");
        assert!(learnt(&endless, &chat(), |_| true).unwrap_err().expected.contains("ends a turn"));
        let silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
        assert!(learnt(silent, &chat(), |_| true).unwrap_err().found.contains("leaves out"));
        let cutting = "{% for m in messages %}{{ m.content[:1] }}{% endfor %}";
        assert!(learnt(cutting, &chat(), |_| false).unwrap_err().found.contains("takes it apart"));
    }
}
