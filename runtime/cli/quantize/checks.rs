//! What a file must have in common with its checkpoint before any number about quality means something.
//!
//! Conversion goes wrong in a few known ways: the chat template, the tokens that end a turn, words cut otherwise, a
//! vocabulary of another length, a head that got lost, a 16-bit float that is too narrow. Each is looked at here, by
//! the file's own metadata on one side and Hugging Face's tokenizer on the other. Greedy texts are compared in
//! `parity`, which needs a second forward pass.

use fsq_gguf::Gguf;
use fsq_model::{ChatTemplate, LoadedPolicy, Message, Special, TokenId, Tokenizer};
use fsq_quantizer::f16_underflow;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::document::TensorRecord;
use super::maker::{Candidate, Inputs};
use crate::failure::Refusal;

/// Texts that tokenizers are known to cut differently. All are in normal form C: Qwen's tokenizer makes them so, and
/// llama.cpp leaves texts as they are.
const CORPUS: [&str; 10] = [
    "The quick brown fox doesn't jump; it's WE'LL who'd've.",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F 2026-11-21",
    "a  b   c    d\te\n\nf\r\n   g ",
    "fn main() {\n    let x: Vec<u8> = vec![1; 10]; // ok\n}\n",
    "def f(x):\n\treturn {'a': x ** 2, \"b\": [i for i in range(3)]}",
    "Die Größe übersteigt naïve Erwartungen — «déjà vu», señor.",
    "人工智能模型量化后仍能预见未来。東京は晴れ。한국어 텍스트",
    "Привет, мир! Γειά σου Κόσμε שלום مرحبا नमस्ते",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 \u{fb01} \u{200b}",
    "https://example.org/a?b=c&d=%20#e user@example.org <tag attr=\"1\">&amp;</tag>",
];
/// Of an F16 tensor's squared weights, the share that a BF16 source may lose to numbers that are too small.
const UNDERFLOW_ERROR_MAX: f64 = 1e-4;

/// One check that a file passed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// What was looked at, and what could not be.
    pub(crate) told: String,
}

/// Runs the checks that need no forward pass.
///
/// # Errors
/// The first that the file does not pass.
pub(super) fn check(inputs: &Inputs, candidate: &Candidate) -> anyhow::Result<Vec<Check>> {
    let gguf = Gguf::open(&candidate.file)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let source = Tokenizer::from_json(&inputs.checkpoint.tokenizer_json);
    let failed = |name: &str, why: String| {
        Refusal::new(format!("{}: {name}: {why}", inputs.checkpoint.path.display())).hint(format!(
            "this would show up as a loss of quality that no format explains; {} was not written",
            candidate.mix.name()
        ))
    };
    let checks: [(&'static str, Result<String, String>); 6] = [
        ("chat template", template(inputs, &gguf, &tokenizer, source.as_ref().ok())),
        (
            "words",
            match &source {
                Ok(source) => words(&gguf, &tokenizer, source),
                Err(error) => Ok(format!("not compared: {error}")),
            },
        ),
        ("vocabulary", vocabulary(&gguf)),
        ("tied embeddings", tied(inputs, &gguf)),
        ("16-bit floats", floats(inputs, &candidate.told.tensors)?),
        ("rows", Ok(rows(&candidate.told.tensors))),
    ];
    let mut passed = Vec::with_capacity(checks.len());
    for (name, told) in checks {
        passed.push(Check { name, told: told.map_err(|it| failed(name, it))? });
    }
    Ok(passed)
}

/// Five conversations as templates meet them: the messages, and further variables.
fn conversations() -> [(Vec<Message>, Map<String, Value>); 5] {
    let turns = |turns: &[(&str, &str)]| turns.iter().map(|it| Message::new(it.0, it.1)).collect::<Vec<_>>();
    let tool = json!({"type": "function", "function": {"name": "search", "description": "Search the corpus.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}});
    let mut called =
        turns(&[("user", "Where is it?"), ("assistant", ""), ("tool", "in the box"), ("assistant", "There.")]);
    let call = json!([{"id": "call00001", "type": "function",
        "function": {"name": "search", "arguments": {"query": "where"}}}]);
    called[1].more.insert("tool_calls".into(), call);
    called[2].more.insert("tool_call_id".into(), "call00001".into());
    called[2].more.insert("name".into(), "search".into());
    let tools = Map::from_iter([("tools".to_owned(), json!([tool]))]);
    [
        (turns(&[("user", "What is 2 + 2?")]), Map::new()),
        (turns(&[("system", "Be brief."), ("user", "Größe in m²?")]), Map::new()),
        (
            turns(&[("user", "Hi."), ("assistant", "Hello!\n\nYes?"), ("user", "Bye."), ("assistant", "See you.")]),
            Map::new(),
        ),
        (turns(&[("user", "Where is it?")]), tools.clone()),
        (called, tools),
    ]
}

/// Conversations through the file's template have the ids of the checkpoint's, begin once, and end as they must.
fn template(inputs: &Inputs, gguf: &Gguf, tokenizer: &Tokenizer, source: Option<&Tokenizer>) -> Result<String, String> {
    let Some(own) = &inputs.checkpoint.chat_template else {
        return Ok("not compared: the checkpoint has no chat template".into());
    };
    let ours = LoadedPolicy::template(gguf, tokenizer).map_err(|it| it.to_string())?;
    let special = |id: Option<TokenId>| id.map_or_else(String::new, |it| tokenizer.decode_with_special(&[it]));
    let (bos, eos) = (special(inputs.checkpoint.bos), special(inputs.checkpoint.eos.first().copied()));
    // One time for both, since templates may write the date.
    let (theirs, ours) = (ChatTemplate::new(own, &bos, &eos).map_err(|it| it.to_string())?.at(0), ours.at(0));
    let mut n_rendered = 0;
    for (number, (messages, variables)) in conversations().into_iter().enumerate() {
        let ends = messages.last().is_some_and(|it| it.role == "assistant");
        let expected = theirs.render_with(&messages, !ends, variables.clone());
        let found = ours.render_with(&messages, !ends, variables);
        // Many templates refuse a system message or tools; they must then do so in both.
        let (Ok(expected), found) = (expected, found) else { continue };
        let found = found.map_err(|it| format!("conversation {number}: {it}"))?;
        let ids = tokenizer.encode(&found, Special::Parse);
        let of_source = source.map_or_else(|| ids.clone(), |it| it.encode(&expected, Special::Parse));
        if ids != of_source {
            let at = ids.iter().zip(&of_source).take_while(|it| it.0 == it.1).count();
            let (expected, found) = (of_source.get(at), ids.get(at));
            return Err(format!("conversation {number}, token {at}: expected {expected:?}, found {found:?}"));
        }
        check_ends(tokenizer, &ids, &messages, &found).map_err(|it| format!("conversation {number}: {it}"))?;
        n_rendered += 1;
    }
    match n_rendered {
        0 => Err("expected it to render a conversation, found that it refuses all of them".into()),
        n => Ok(format!("{n} of 5 conversations that it renders have equal ids, one beginning, and a listed end")),
    }
}

/// At most one beginning, and an end that the file lists after what the assistant said last.
fn check_ends(tokenizer: &Tokenizer, ids: &[TokenId], messages: &[Message], text: &str) -> Result<(), String> {
    let n_begin = ids.iter().take_while(|it| tokenizer.bos() == Some(**it)).count();
    if n_begin > 1 {
        return Err(format!("expected one token of beginning, found {n_begin}"));
    }
    let Some(last) = messages.last().filter(|it| it.role == "assistant") else { return Ok(()) };
    let Some(at) = text.rfind(&last.content) else { return Ok(()) };
    let rest = &text[at + last.content.len()..];
    if tokenizer.encode(rest, Special::Parse).iter().any(|it| tokenizer.is_end(*it)) {
        return Ok(());
    }
    let known: Vec<String> = tokenizer.ends().iter().map(|it| tokenizer.decode_with_special(&[*it])).collect();
    Err(format!("expected the assistant's turn to end with one of {}, found {rest:?}", known.join(" ")))
}

/// The corpus has the ids of Hugging Face's tokenizer, and comes back whole.
fn words(gguf: &Gguf, tokenizer: &Tokenizer, source: &Tokenizer) -> Result<String, String> {
    let pre = gguf.metadata().str("tokenizer.ggml.pre").unwrap_or_default();
    let is_bytes = gguf.metadata().str("tokenizer.ggml.model") == Some("gpt2");
    if is_bytes && !Tokenizer::pre_tokenizers().any(|it| it == pre) {
        return Err(format!("`tokenizer.ggml.pre`: expected a name that llama.cpp knows, found {pre:?}"));
    }
    for text in CORPUS {
        let (ours, theirs) = (tokenizer.encode(text, Special::Escape), source.encode(text, Special::Escape));
        if ours != theirs {
            return Err(format!("{text:?}: expected {theirs:?}, found {ours:?}"));
        }
        let (ours, theirs) = (tokenizer.decode(&ours), source.decode(&theirs));
        if ours != theirs {
            return Err(format!("{text:?} decoded: expected {theirs:?}, found {ours:?}"));
        }
    }
    Ok(format!("{} texts of digits, code, spaces and other scripts have equal ids and come back alike", CORPUS.len()))
}

/// A token for each row of the embedding.
fn vocabulary(gguf: &Gguf) -> Result<String, String> {
    let n_tokens = gguf.metadata().str_array("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
    let n_rows = gguf.tensor("token_embd.weight").map_or(0, |it| it.rows());
    if n_tokens == n_rows {
        Ok(format!("{n_tokens} tokens and as many rows"))
    } else {
        Err(format!("expected a token for each of {n_rows} rows of the embedding, found {n_tokens}"))
    }
}

/// A policy whose head is its embedding has one of them in the file; and has no other head in the checkpoint.
fn tied(inputs: &Inputs, gguf: &Gguf) -> Result<String, String> {
    const HEAD: &str = "lm_head.weight";
    let checkpoint = &inputs.checkpoint;
    let has_head = gguf.tensor("output.weight").is_some();
    if checkpoint.dimensions.tied == has_head {
        return Err(format!("expected `output.weight` in the file to be there: {}, found {has_head}", !has_head));
    }
    if checkpoint.dimensions.tied && checkpoint.shape(HEAD).is_some() {
        let bytes = |name: &str| checkpoint.tensor_bytes(name).map_err(|it| it.to_string());
        if bytes(HEAD)? != bytes("model.embed_tokens.weight")? {
            let why = "`tie_word_embeddings` is set, so it would be left out";
            return Err(format!("expected `{HEAD}` to equal the embedding, found another: {why}"));
        }
    }
    Ok(if has_head { "a head of its own" } else { "one tensor for embedding and head" }.into())
}

/// A source of wider range than F16 lost nothing that counts in it.
fn floats(inputs: &Inputs, tensors: &[TensorRecord]) -> anyhow::Result<Result<String, String>> {
    let narrow: Vec<&TensorRecord> = tensors.iter().filter(|it| it.format == "F16").collect();
    if narrow.is_empty() {
        return Ok(Ok("no F16 in the file".into()));
    }
    let (mut n_lost, mut n_weights) = (0, 0);
    for tensor in narrow {
        let Some(lost) = f16_underflow(&inputs.checkpoint, &tensor.name)? else { continue };
        (n_lost, n_weights) = (n_lost + lost, n_weights + tensor.n_weights);
        if tensor.relative_error > UNDERFLOW_ERROR_MAX {
            let error = 100.0 * tensor.relative_error;
            return Ok(Err(format!(
                "`{}`: {lost} weights are too small for F16, which takes {error:.3} %",
                tensor.name
            )));
        }
    }
    Ok(Ok(match n_weights {
        0 => "the checkpoint has no BF16 that F16 could lose".into(),
        _ => format!("{n_lost} of {n_weights} BF16 weights are too small for F16, and none too large"),
    }))
}

/// What got another format than its recipe's, by the width of its rows.
fn rows(tensors: &[TensorRecord]) -> String {
    let others: Vec<String> = tensors
        .iter()
        .filter(|it| it.format != it.wanted)
        .map(|it| format!("{} ({} for {})", it.name, it.format, it.wanted))
        .collect();
    match &others[..] {
        [] => "every row is whole blocks of its recipe's format".into(),
        _ => format!("{} tensors have rows that are not whole blocks: {}", others.len(), others.join(", ")),
    }
}
