//! A decoder that follows a script: what it says depends on the user's text alone, as probably as the script says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fsq_calibrate::foresight::{CONTINUATIONS, TAGS};
use fsq_calibrate::recalibration::{RecalibrationMap, RecalibrationMaps};
use fsq_model::{ChatTemplate, Decode, Logits, LogitsFor, ModelError, SequenceId, Special, Step, TokenId, Tokenizer};
use serde_json::{Map, Value, json};

use crate::{Policy, PolicyFacts};

const TEMPLATE: &str = "<|bos|>{% if tools %}<tool_call> {{ tools | tojson }}{% endif %}{% for message in messages %}\
    {% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}\
    {% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|end|>\
    {% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Logits of what the script does not say.
const NEVER: f32 = -40.0;
const PAGE_TOKENS: usize = 16;
pub(super) const CONTEXT_TOKENS: usize = 600;

/// Whether each grid answer is a token of its own, as in the shipped base, or spelled byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    OneToken,
    Bytes,
}

/// All bytes, the tags of foresight, and the tokens of the chat.
pub(super) fn tokenizer(numbers: Numbers) -> Tokenizer {
    let mut added = Vec::new();
    let mut add = |content: &str, special: bool| {
        added.push(json!({"id": 256 + added.len(), "content": content, "special": special}));
    };
    ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"].iter().for_each(|it| add(it, true));
    TAGS.iter().for_each(|it| add(it, false));
    if numbers == Numbers::OneToken {
        let grid = CONTINUATIONS.iter().map(|it| it.trim_end_matches("</confidence>"));
        grid.filter(|it| it.len() > 1).for_each(|it| add(it, false));
    }
    let vocab: Map<String, Value> = (0..=255u8).map(|it| (char_of_byte(it).to_string(), it.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(&file.to_string()).unwrap()
}

/// GPT-2's alphabet of bytes.
fn char_of_byte(byte: u8) -> char {
    let is_printable = |it: u8| matches!(it, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let rank = (0..byte).filter(|it| !is_printable(*it)).count() as u32;
    if is_printable(byte) { char::from(byte) } else { char::from_u32(0x100 + rank).unwrap() }
}

pub(super) fn template() -> ChatTemplate {
    ChatTemplate::new(TEMPLATE, "<|bos|>", "<|end|>").unwrap()
}

/// Foresight text of one plan.
pub(super) fn plan(action: &str, percent: u8) -> String {
    format!(
        "<imaginary>{action} leads on\nthen done</imaginary><keyword>done</keyword><analysis>fine</analysis>\
         <confidence>{percent}</confidence>\n<think>so be it</think><action>{action}</action>"
    )
}

/// What is told to each user's text: answers with their weights. Any other text is repeated.
pub(super) type Script = HashMap<&'static str, Vec<(f32, String)>>;

/// Plan `a` mostly states 20 %, plan `b` mostly 80 %, and some answers are malformed.
pub(super) fn script() -> Script {
    let plans = vec![
        (3.0, plan("a", 20)),
        (1.0, plan("a", 40)),
        (3.0, plan("b", 80)),
        (1.0, plan("b", 60)),
        (4.0, "<imaginary>c leads astray".to_string()),
    ];
    let unsure = vec![(2.0, plan("a", 50)), (1.0, "no idea".to_string())];
    let greeting = vec![(1.0, "Grüße, wörld! STOP here".to_string())];
    let call = "One moment.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"unit\": \"C\"}}\n\
                </tool_call>";
    let weather = vec![(1.0, call.to_string())];
    let babble = vec![(1.0, "1".to_string()), (1.0, "2".to_string()), (3.0, "x".repeat(400))];
    let broken = vec![(1.0, "<imaginary>never".to_string())];
    HashMap::from([
        ("state", plans),
        ("unsure", unsure),
        ("hello", greeting),
        ("weather", weather),
        ("babble", babble),
        ("broken", broken),
    ])
}

/// What tests look at from outside.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) n_open: AtomicUsize,
    pub(super) n_run: AtomicUsize,
}

pub(super) struct ScriptedDecoder {
    tokenizer: Tokenizer,
    script: HashMap<String, Vec<(f32, Vec<TokenId>)>>,
    sequences: HashMap<SequenceId, Vec<TokenId>>,
    next_sequence: u64,
    delay: Duration,
    n_pages: usize,
    pub(super) watch: Arc<Watch>,
}

impl ScriptedDecoder {
    pub(super) fn new(numbers: Numbers, script: Script) -> Self {
        let tokenizer = tokenizer(numbers);
        let mut encoded = HashMap::new();
        for (user, answers) in script {
            let encode = |it: &String| tokenizer.encode(&format!("{it}<|end|>"), Special::Parse);
            encoded.insert(user.to_string(), answers.iter().map(|it| (it.0, encode(&it.1))).collect());
        }
        let (sequences, watch) = (HashMap::new(), Arc::default());
        Self { tokenizer, script: encoded, sequences, next_sequence: 0, delay: Duration::ZERO, n_pages: 4096, watch }
    }

    pub(super) fn with_delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Almost no pages to spare.
    pub(super) fn with_pages(self, n_pages: usize) -> Self {
        Self { n_pages, ..self }
    }

    /// `[vocab]`, after a history.
    fn logits(&self, history: &[TokenId]) -> Vec<f32> {
        let id = |text: &str| self.tokenizer.token_id(text).unwrap();
        let (user, assistant, end) = (id("<|user|>"), id("<|assistant|>"), id("<|end|>"));
        let mut logits = vec![NEVER; self.vocab()];
        let Some(begin) = history.iter().rposition(|it| *it == assistant) else { return logits };
        let asked = history[..begin].iter().rposition(|it| *it == user).map_or(0, |it| it + 1);
        let asked = self.tokenizer.decode(&history[asked..begin]);
        let said = &history[begin + 1..];
        let echo = || vec![(1.0, self.tokenizer.encode(&format!("You said: {asked}"), Special::Escape))];
        let answers = self.script.get(&asked).cloned().unwrap_or_else(echo);
        let mut weights: HashMap<TokenId, f32> = HashMap::new();
        for (weight, answer) in answers.iter().filter(|it| it.1.starts_with(said)) {
            *weights.entry(answer.get(said.len()).copied().unwrap_or(end)).or_default() += weight;
        }
        if weights.is_empty() {
            weights.insert(end, 1.0);
        }
        weights.into_iter().for_each(|(token, weight)| logits[token as usize] = weight.ln());
        logits
    }

    fn used_pages(&self) -> usize {
        self.sequences.values().map(|it| it.len().div_ceil(PAGE_TOKENS)).sum()
    }

    fn open(&mut self, tokens: Vec<TokenId>) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, tokens);
        self.watch.n_open.store(self.sequences.len(), Ordering::SeqCst);
        id
    }
}

impl Decode for ScriptedDecoder {
    fn vocab(&self) -> usize {
        self.tokenizer.vocab()
    }
    fn context_tokens(&self) -> usize {
        CONTEXT_TOKENS
    }
    fn max_sequences(&self) -> usize {
        8
    }
    fn page_tokens(&self) -> usize {
        PAGE_TOKENS
    }
    fn free_pages(&self) -> usize {
        self.n_pages.saturating_sub(self.used_pages())
    }
    fn open_sequence(&mut self) -> SequenceId {
        self.open(Vec::new())
    }
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, ModelError> {
        let tokens = self.sequences.get(&sequence).ok_or(ModelError::UnknownSequence { sequence })?;
        Ok(self.open(tokens.clone()))
    }
    fn share(&mut self, from: SequenceId, to: SequenceId, len: usize) -> Result<(), ModelError> {
        let tokens = self.sequences.get(&from).ok_or(ModelError::UnknownSequence { sequence: from })?;
        let tokens = tokens[..len].to_vec();
        *self.sequences.get_mut(&to).ok_or(ModelError::UnknownSequence { sequence: to })? = tokens;
        Ok(())
    }
    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
        self.watch.n_open.store(self.sequences.len(), Ordering::SeqCst);
    }
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), ModelError> {
        self.sequences.get_mut(&sequence).ok_or(ModelError::UnknownSequence { sequence })?.truncate(len);
        Ok(())
    }
    fn tokens(&self, sequence: SequenceId) -> Option<&[TokenId]> {
        self.sequences.get(&sequence).map(Vec::as_slice)
    }
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Logits, ModelError> {
        std::thread::sleep(self.delay);
        let (mut values, mut rows) = (Vec::new(), Vec::new());
        for step in steps {
            self.watch.n_run.fetch_add(step.tokens.len(), Ordering::SeqCst);
            let sequence = step.sequence;
            let held = self.sequences.get_mut(&sequence).ok_or(ModelError::UnknownSequence { sequence })?;
            let n_before = held.len();
            held.extend_from_slice(step.tokens);
            let history = held.clone();
            let first = match step.logits {
                LogitsFor::None => history.len(),
                LogitsFor::Last => history.len() - 1,
                LogitsFor::All => n_before,
            };
            let start = values.len() / self.vocab();
            (first..history.len()).for_each(|it| values.extend(self.logits(&history[..=it])));
            rows.push(start..values.len() / self.vocab());
        }
        let free = self.n_pages.checked_sub(self.used_pages());
        assert!(free.is_some(), "the engine or the reading of the confidence took more pages than there are");
        Ok(Logits::new(self.vocab(), values, rows))
    }
}

/// A policy of the script, with a map that was never fitted.
pub(super) fn policy(decoder: ScriptedDecoder) -> Policy<ScriptedDecoder> {
    let tokenizer = tokenizer(Numbers::OneToken);
    let tokenizer = if tokenizer.vocab() > decoder.vocab() { self::tokenizer(Numbers::Bytes) } else { tokenizer };
    let (name, digest) = ("scripted".into(), "0123".into());
    let (confidence_in, thresholds) = (BTreeMap::new(), BTreeMap::new());
    let facts = PolicyFacts { name, digest, confidence: None, confidence_in, gate: None, thresholds };
    let recalibration = RecalibrationMaps::overall(RecalibrationMap::identity());
    Policy { decoder, tokenizer, template: template(), recalibration, facts }
}
