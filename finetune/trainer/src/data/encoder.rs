//! Records to token sequences, with the policy's own tokenizer and template.

use std::path::PathBuf;

use fsq_calibrate::foresight;
use fsq_checkpoint::Checkpoint;
use fsq_model::{ChatTemplate, Message, Part, Special, TokenId, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::{self, Origin, Piece};
use super::{Fault, Record};
use crate::{Sequence, TrainError};

/// What happens to a sequence that is longer than is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// It is a reject.
    Reject,
    /// Its end is cut off.
    Cut,
}

/// Which of an assistant's messages are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// All.
    All,
    /// The last of each conversation.
    Last,
}

/// How records become sequences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Tokens of the longest sequence.
    pub max_tokens: usize,
    /// What happens to longer ones.
    #[serde(default = "EncoderConfig::reject")]
    pub too_long: TooLong,
    /// Which of an assistant's messages are learnt.
    #[serde(default = "EncoderConfig::all_turns")]
    pub turns: Turns,
    /// Weight of what an environment answered in an episode. The default is ECHO's (arXiv 2605.24517).
    #[serde(default = "EncoderConfig::echo")]
    pub environment_weight: f32,
}

impl EncoderConfig {
    /// Sequences of at most so many tokens, the rest as it is by default.
    #[must_use]
    pub fn new(max_tokens: usize) -> Self {
        let (too_long, turns) = (Self::reject(), Self::all_turns());
        Self { max_tokens, too_long, turns, environment_weight: Self::echo() }
    }

    fn reject() -> TooLong {
        TooLong::Reject
    }

    fn all_turns() -> Turns {
        Turns::All
    }

    fn echo() -> f32 {
        0.05
    }
}

/// One sequence of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The file that it comes from.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// Tokens with their weights.
    pub sequence: Sequence,
    /// Tokens that were cut off.
    pub n_cut: usize,
}

/// Records to sequences.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Texts of added tokens that only steer.
    control: Vec<String>,
    /// Added tokens that an assistant may write, by their texts.
    tags: Vec<(String, TokenId)>,
    /// Texts of the tokens that end a turn.
    ends: Vec<String>,
    /// What a text begins with, where the tokenizer says so.
    bos: Option<TokenId>,
    vocab: usize,
    config: EncoderConfig,
}

impl Encoder {
    /// For a checkpoint.
    ///
    /// # Errors
    /// When its tokenizer or template cannot be read, or the configuration makes no sense.
    pub fn new(checkpoint: &Checkpoint, config: EncoderConfig) -> Result<Self, TrainError> {
        if config.max_tokens < 2 || config.max_tokens > checkpoint.dimensions.context {
            let expected = format!("2 to {}, the checkpoint's context", checkpoint.dimensions.context);
            let (field, found) = ("max_tokens".into(), config.max_tokens.to_string());
            return Err(TrainError::Config { field, expected, found });
        }
        let mut tokenizer = Tokenizer::from_json(&checkpoint.tokenizer_json)?;
        if let Some(bos) = checkpoint.bos {
            tokenizer = tokenizer.with_bos(bos);
        }
        for eos in &checkpoint.eos {
            tokenizer = tokenizer.with_eos(*eos);
        }
        let json: Value =
            serde_json::from_str(&checkpoint.tokenizer_json).map_err(|it| TrainError::Tokenizer(it.to_string()))?;
        let named = |id: Option<TokenId>| id.map_or_else(String::new, |it| tokenizer.decode_with_special(&[it]));
        let source = checkpoint.chat_template.as_deref();
        let template =
            source.map(|it| ChatTemplate::new(it, &named(tokenizer.bos()), &named(tokenizer.eos()))).transpose()?;
        let added = json["added_tokens"].as_array().into_iter().flatten();
        let added =
            added.filter_map(|it| Some((it["content"].as_str()?, tokenizer.token_id(it["content"].as_str()?)?)));
        // Some tokenizers call the tags of foresight special; an assistant writes them all the same.
        let steers = |(text, id): (&str, TokenId)| {
            (tokenizer.is_control(id) || tokenizer.is_end(id)) && !foresight::TAGS.contains(&text)
        };
        let (control, tags): (Vec<_>, Vec<_>) = added.partition(|it| steers(*it));
        Ok(Self {
            template,
            control: control.into_iter().map(|it| it.0.to_string()).collect(),
            tags: tags.into_iter().map(|it| (it.0.to_string(), it.1)).collect(),
            ends: tokenizer.ends().iter().map(|it| tokenizer.decode_with_special(&[*it])).collect(),
            bos: tokenizer.bos().filter(|_| adds_bos(&json)),
            vocab: checkpoint.dimensions.vocab,
            tokenizer,
            config,
        })
    }

    /// A record's sequence.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub fn encode(&self, record: &Record) -> Result<Example, Fault> {
        let mut sequence = match record {
            Record::Chat { messages, tools, learnt_from, .. } => self.chat(messages, tools.as_ref(), *learnt_from)?,
            Record::Completion { prompt, completion } => {
                let piece = |text: &String, origin, learnt| Piece { text: text.clone(), origin, learnt };
                self.text(&[piece(prompt, Origin::Other, false), piece(completion, Origin::Assistant, true)])?
            }
            Record::Text(text) => {
                self.text(&[Piece { text: text.clone(), origin: Origin::Assistant, learnt: true }])?
            }
            Record::Tokens { tokens, weights } => Sequence { tokens: tokens.clone(), weights: weights.clone() },
            Record::Episode { tokens, policy, environment, success } => {
                // What follows from an action is learnt from everyone, how to act from what succeeded.
                let own = if *success { 1.0 } else { 0.0 };
                let weight = |(policy, environment): (&bool, &bool)| match (policy, environment) {
                    (true, _) => own,
                    (false, true) => self.config.environment_weight,
                    (false, false) => 0.0,
                };
                Sequence { tokens: tokens.clone(), weights: policy.iter().zip(environment).map(weight).collect() }
            }
        };
        if let Some(place) = sequence.tokens.iter().position(|it| *it as usize >= self.vocab) {
            let (field, expected) = (format!("token_ids[{place}]"), format!("an id below {}", self.vocab));
            return Err(Fault::new(field, expected, sequence.tokens[place].to_string()));
        }
        let (n_tokens, max) = (sequence.tokens.len(), self.config.max_tokens);
        if n_tokens > max && self.config.too_long == TooLong::Reject {
            return Err(Fault::new("", format!("at most {max} tokens"), format!("{n_tokens} tokens")));
        }
        sequence.tokens.truncate(max);
        sequence.weights.truncate(max);
        // The first token is never predicted.
        if sequence.weights.iter().skip(1).all(|it| *it == 0.0) {
            return Err(Fault::new("", "something to learn", "no token that weighs anything"));
        }
        let n_cut = n_tokens - sequence.tokens.len();
        Ok(Example { file: PathBuf::new(), line: 0, sequence, n_cut })
    }

    /// A sequence's text in pieces of whole characters, each with its weight.
    #[must_use]
    pub fn shown(&self, sequence: &Sequence) -> Vec<(String, f32)> {
        let mut shown = Vec::new();
        let mut bytes: Vec<u8> = Vec::new();
        for (token, weight) in sequence.tokens.iter().zip(&sequence.weights) {
            bytes.extend_from_slice(self.tokenizer.token_bytes(*token).unwrap_or_default());
            if let Ok(text) = std::str::from_utf8(&bytes) {
                shown.push((text.to_string(), *weight));
                bytes.clear();
            }
        }
        if !bytes.is_empty() {
            let weight = sequence.weights.last().copied().unwrap_or(0.0);
            shown.push((String::from_utf8_lossy(&bytes).into_owned(), weight));
        }
        shown
    }

    fn chat(&self, messages: &[Message], tools: Option<&Value>, learnt_from: usize) -> Result<Sequence, Fault> {
        let Some(template) = &self.template else {
            return Err(Fault::new("messages", "a chat template in the checkpoint", "none"));
        };
        self.refuse_steering(messages, tools)?;
        let last = messages.iter().rposition(|it| it.role == "assistant");
        let is_learnt = |index: usize| index >= learnt_from && (self.config.turns == Turns::All || Some(index) == last);
        let pieces = chat::pieces(template, messages, tools, &self.ends, is_learnt)?;
        Ok(self.pieces(&pieces, Vec::new()))
    }

    /// Tools and calls reach the template as they are; a control token in them could end a turn.
    fn refuse_steering(&self, messages: &[Message], tools: Option<&Value>) -> Result<(), Fault> {
        let steers = |text: &str| chat::holds_marks(text) || self.control.iter().any(|it| text.contains(it.as_str()));
        let more = messages.iter().enumerate().find_map(|(index, it)| {
            let more = it.more.iter();
            more.into_iter().find_map(|(name, it)| chat::find_text(&format!("messages[{index}].{name}"), it, &steers))
        });
        let found = more.or_else(|| chat::find_text("tools", tools?, &steers));
        if let Some((field, text)) = found {
            return Err(Fault::new(field, "text without control tokens", text));
        }
        match messages.iter().position(|it| chat::holds_marks(&it.content)) {
            Some(index) => {
                Err(Fault::new(format!("messages[{index}].content"), "text without U+E000 and U+E001", "one of them"))
            }
            None => Ok(()),
        }
    }

    /// Texts without a template, with what begins and ends a text around them.
    fn text(&self, pieces: &[Piece]) -> Result<Sequence, Fault> {
        let mut sequence = self.pieces(pieces, self.bos.into_iter().map(Part::Token).collect());
        match self.tokenizer.eos() {
            Some(eos) => sequence.extend(&[eos], 1.0),
            None => return Err(Fault::new("", "a checkpoint that names the token that ends a text", "none")),
        }
        Ok(sequence)
    }

    /// Tokens of pieces one behind another. Where something learnt begins or ends a token ends too, as it does where
    /// the policy is served: it goes on from the prompt's tokens.
    fn pieces<'a>(&self, pieces: &'a [Piece], before: Vec<Part<'a>>) -> Sequence {
        let mut sequence = Sequence::default();
        let mut parts = before;
        for group in pieces.chunk_by(|a, b| a.learnt == b.learnt) {
            let start = parts.len();
            group.iter().for_each(|it| self.push_parts(it, &mut parts));
            let weight = if group[0].learnt { 1.0 } else { 0.0 };
            let all = self.tokenizer.encode_parts(&parts);
            match all.strip_prefix(sequence.tokens.as_slice()) {
                Some(own) => sequence.extend(own, weight),
                None => sequence.extend(&self.tokenizer.encode_parts(&parts[start..]), weight),
            }
        }
        sequence
    }

    fn push_parts<'a>(&self, piece: &'a Piece, parts: &mut Vec<Part<'a>>) {
        match piece.origin {
            Origin::Template => parts.push(Part::Text(&piece.text, Special::Parse)),
            Origin::Other => parts.push(Part::Text(&piece.text, Special::Escape)),
            Origin::Assistant => {
                let mut rest = piece.text.as_str();
                loop {
                    let found =
                        self.tags.iter().filter_map(|(tag, id)| rest.find(tag.as_str()).map(|it| (it, tag, id)));
                    // Of those that begin at one place the longest.
                    let Some((at, tag, id)) = found.min_by_key(|it| (it.0, usize::MAX - it.1.len())) else { break };
                    parts.extend([Part::Text(&rest[..at], Special::Escape), Part::Token(*id)]);
                    rest = &rest[at + tag.len()..];
                }
                parts.push(Part::Text(rest, Special::Escape));
            }
        }
    }
}

/// Whether the tokenizer puts its first token before a text.
fn adds_bos(json: &Value) -> bool {
    let processor = &json["post_processor"];
    let several = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    several.iter().any(|it| it["type"] == "TemplateProcessing" && it.pointer("/single/0/SpecialToken").is_some())
}
