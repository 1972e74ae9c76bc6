//! A chat and its sequence of tokens. Knows no terminal but whether it asks to stop.

use fsq_calibrate::foresight::{self, Field, Foresight};
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_calibrate::{Estimate, Stated};
use fsq_kernels::Cpu;
use fsq_model::{
    ChatTemplate, Decode, Decoder, Engine, EngineEvent, EngineOptions, Finish, ModelError, Part, Request, Sampling,
    SequenceId, Special, TextStream, TokenId, Tokenizer, Turn,
};
use fsq_server::{GridAnswers, Policy};

use super::terminal::Terminal;

/// A message, or an answer as the tokens that it was made of.
enum Said {
    Message(String),
    Answer(Vec<TokenId>),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Stop,
    Length,
    Context,
    Interrupted,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
            End::Context => "context",
            End::Interrupted => "interrupted",
        }
    }
}

/// An answer that is foresight.
pub(super) struct Foreseen {
    pub(super) foresight: Foresight,
    /// What is stated, read as an expectation, and what such statements have meant.
    pub(super) reading: Option<(Stated, Estimate)>,
}

/// One answer.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) end: End,
    /// Tokens of the whole chat up to where the answer begins.
    pub(super) n_prompt: usize,
    /// Those of them that were not in the cache.
    pub(super) n_read: usize,
    pub(super) n_generated: usize,
    pub(super) foreseen: Option<Foreseen>,
}

/// A chat with a policy.
pub(super) struct Conversation {
    engine: Engine<Decoder<Cpu>>,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    recalibration: RecalibrationMaps,
    answers: GridAnswers,
    sequence: SequenceId,
    system: Option<String>,
    said: Vec<Said>,
}

impl Conversation {
    pub(super) fn new(policy: Policy<Decoder<Cpu>>, system: Option<String>) -> Self {
        let Policy { decoder, tokenizer, template, recalibration, .. } = policy;
        let mut engine = Engine::new(decoder, EngineOptions::new(1));
        let sequence = engine.decoder().open_sequence();
        let answers = GridAnswers::new(&tokenizer);
        Self { engine, tokenizer, template, recalibration, answers, sequence, system, said: Vec::new() }
    }

    /// Forgets everything that was said but the system prompt.
    pub(super) fn reset(&mut self) {
        self.said.clear();
    }

    /// Forgets everything, and begins anew under another system prompt; an empty one is none.
    pub(super) fn set_system(&mut self, text: &str) {
        self.system = (!text.is_empty()).then(|| text.to_owned());
        self.reset();
    }

    /// Tokens that a chat may have.
    pub(super) fn context_tokens(&mut self) -> usize {
        self.engine.decoder().context_tokens()
    }

    /// Answers a message, and shows the text as it comes unless it is foresight. `None` when the message leaves no
    /// room for an answer; it is forgotten then.
    pub(super) fn answer(
        &mut self,
        message: &str,
        n: usize,
        sampling: Sampling,
        terminal: &Terminal,
        show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Answer>> {
        self.said.push(Said::Message(message.to_owned()));
        let prompt = self.prompt()?;
        let n_prompt = prompt.len();
        if n_prompt >= self.context_tokens() {
            self.said.pop();
            return Ok(None);
        }
        let decoder = &*self.engine.decoder();
        let held = decoder.tokens(self.sequence).unwrap_or_default();
        let n_held = held.iter().zip(&prompt).take_while(|(a, b)| a == b).count().min(n_prompt - 1);
        let mut request = Request::new(prompt, n, sampling);
        request.stop = self.tokenizer.ends().to_vec();
        request.sequence = Some(self.sequence);
        let (tokens, text, end) = self.generate(request, terminal, show)?;
        let foreseen = self.foreseen(&text, n_prompt, &tokens)?;
        let n_generated = tokens.len();
        self.said.push(Said::Answer(tokens));
        Ok(Some(Answer { text, end, n_prompt, n_read: n_prompt - n_held, n_generated, foreseen }))
    }

    /// The tokens of the whole chat: answers are the tokens that they were, so that the cache still holds them.
    fn prompt(&self) -> Result<Vec<TokenId>, ModelError> {
        let text = |role, text| Turn { role, said: vec![Part::Text(text, Special::Escape)] };
        let said = self.said.iter().map(|it| match it {
            Said::Message(message) => text("user", message.as_str()),
            Said::Answer(tokens) => Turn { role: "assistant", said: tokens.iter().copied().map(Part::Token).collect() },
        });
        let system = self.system.iter().map(|it| text("system", it.as_str()));
        self.template.encode(&self.tokenizer, &system.chain(said).collect::<Vec<_>>())
    }

    /// Runs a request until it ends or is stopped. Its tokens come back without the one that ended it.
    fn generate(
        &mut self,
        request: Request,
        terminal: &Terminal,
        show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Vec<TokenId>, String, End)> {
        let (mut tokens, mut end) = (Vec::new(), End::Stop);
        let (mut stream, mut shown) = (TextStream::default(), Shown::default());
        let id = self.engine.submit(request)?;
        terminal.begin_answer();
        while !self.engine.is_idle() {
            if terminal.is_interrupted() {
                self.engine.cancel(id);
                end = End::Interrupted;
                break;
            }
            for event in self.engine.step()? {
                let (token, finish) = match event {
                    EngineEvent::Token { token, finish, .. } => (token, finish),
                    EngineEvent::Failed { error, .. } => return Err(error.into()),
                };
                end = match finish {
                    Some(Finish::Length) => End::Length,
                    Some(Finish::Context) => End::Context,
                    Some(Finish::Stop) | None => End::Stop,
                };
                if finish != Some(Finish::Stop) {
                    tokens.push(token);
                    shown.push(&stream.push(&self.tokenizer, token), show)?;
                }
            }
        }
        shown.push(&stream.finish(), show)?;
        Ok((tokens, shown.finish(show)?, end))
    }

    /// An answer read as foresight, where it is.
    fn foreseen(&mut self, text: &str, n_prompt: usize, answer: &[TokenId]) -> anyhow::Result<Option<Foreseen>> {
        let Ok(foresight) = foresight::parse(text) else { return Ok(None) };
        let decoder = self.engine.decoder();
        // Reading cuts the sequence, and the chat goes on with what it holds.
        let branch = decoder.fork(self.sequence)?;
        let read = self.answers.read(decoder, &self.tokenizer, branch, n_prompt, answer);
        decoder.close(branch);
        let stated = read?.map(|it| it.expectation());
        let reading = stated.map(|it| (it, self.recalibration.of(None).apply(it)));
        Ok(Some(Foreseen { foresight, reading }))
    }
}

/// An answer's text, shown as it comes; what may be foresight is held back until it is known whether it is.
#[derive(Default)]
struct Shown {
    text: String,
    n_shown: usize,
}

impl Shown {
    fn push(&mut self, piece: &str, show: &mut dyn FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.text += piece;
        let (begun, tag) = (self.text.trim_start(), Field::Imaginary.opening());
        if begun.starts_with(tag) || tag.starts_with(begun) {
            return Ok(());
        }
        show(&self.text[self.n_shown..])?;
        self.n_shown = self.text.len();
        Ok(())
    }

    /// Shows what was held back and is no foresight.
    fn finish(self, show: &mut dyn FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<String> {
        if foresight::parse(&self.text).is_err() {
            show(&self.text[self.n_shown..])?;
        }
        Ok(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&str]) -> (Vec<String>, String) {
        let (mut seen, mut shown) = (Vec::new(), Shown::default());
        let mut show = |it: &str| {
            seen.push(it.to_owned());
            Ok(())
        };
        for piece in pieces {
            shown.push(piece, &mut show).unwrap();
        }
        let text = shown.finish(&mut show).unwrap();
        (seen, text)
    }

    #[test]
    fn text_is_shown_as_it_comes_and_foresight_is_held_back() {
        let (seen, text) = shown(&["a", "b <imaginary>", "c"]);
        assert_eq!((seen.concat(), text.as_str()), ("ab <imaginary>c".into(), "ab <imaginary>c"));
        assert_eq!(seen[..3], ["a", "b <imaginary>", "c"]);
        let foresight = "<imaginary>x</imaginary><keyword>k</keyword><analysis>a</analysis>\
             <confidence>50</confidence>\n<think>t</think><action>go</action>";
        let (seen, text) = shown(&[&foresight[..4], &foresight[4..]]);
        assert_eq!((seen.len(), text.as_str()), (0, foresight));
        let (seen, _) = shown(&["<imag", "inary>broken"]);
        assert_eq!(seen, ["<imaginary>broken"]);
        assert_eq!(shown(&["<im", "possible"]).0.concat(), "<impossible");
    }
}
