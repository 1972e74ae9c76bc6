//! The one grammar of foresight text: parsing, rendering, and where its parts lie in the bytes.
//!
//! ```text
//! foresight    = [blank] world-model ["\n"] policy [blank]
//! world-model  = <imaginary>..</imaginary><keyword>..</keyword><analysis>..</analysis><confidence>N</confidence>
//! policy       = <think>..</think><action>..</action>
//! N            = 0 | 5 | 10 | .. | 100
//! ```
//!
//! White space at the edges of a field is not part of it. No tag of the grammar may occur inside a
//! field. Knows nothing of any environment: what an action or an imagined line means is decided there.

use std::ops::Range;

use serde::Serialize;

pub use crate::stated::{GRID_PERCENT, Stated};

/// One of the six fields of foresight text, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// The rollout: states expected next, one line a step.
    Imaginary,
    /// Words expected to matter later in the episode, separated by commas.
    Keyword,
    /// What is still missing and whether the plan can reach it.
    Analysis,
    /// The stated probability of success, in percent.
    Confidence,
    /// Reasoning that leads to the action.
    Think,
    /// The action itself, in the environment's own words.
    Action,
}

impl Field {
    /// All fields, in the only order the grammar allows.
    pub const ALL: [Field; 6] =
        [Field::Imaginary, Field::Keyword, Field::Analysis, Field::Confidence, Field::Think, Field::Action];

    /// The word inside the tags.
    pub const fn name(self) -> &'static str {
        match self {
            Field::Imaginary => "imaginary",
            Field::Keyword => "keyword",
            Field::Analysis => "analysis",
            Field::Confidence => "confidence",
            Field::Think => "think",
            Field::Action => "action",
        }
    }

    /// The tag before the field.
    pub const fn opening(self) -> &'static str {
        TAGS[self as usize * 2]
    }

    /// The tag after the field.
    pub const fn closing(self) -> &'static str {
        TAGS[self as usize * 2 + 1]
    }
}

/// Every tag of the grammar in the order it occurs; a tokenizer gives each one token.
pub const TAGS: [&str; 12] = [
    "<imaginary>",
    "</imaginary>",
    "<keyword>",
    "</keyword>",
    "<analysis>",
    "</analysis>",
    "<confidence>",
    "</confidence>",
    "<think>",
    "</think>",
    "<action>",
    "</action>",
];

/// What may follow `<confidence>`, in grid order: scored as continuations of [`confidence_prefix`],
/// their log probabilities give the stated probability as an expectation.
pub const CONTINUATIONS: [&str; 21] = [
    "0</confidence>",
    "5</confidence>",
    "10</confidence>",
    "15</confidence>",
    "20</confidence>",
    "25</confidence>",
    "30</confidence>",
    "35</confidence>",
    "40</confidence>",
    "45</confidence>",
    "50</confidence>",
    "55</confidence>",
    "60</confidence>",
    "65</confidence>",
    "70</confidence>",
    "75</confidence>",
    "80</confidence>",
    "85</confidence>",
    "90</confidence>",
    "95</confidence>",
    "100</confidence>",
];

/// Why a text is not foresight text. Offsets are bytes from the start of the text given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForesightError {
    /// The text ends where a tag should stand.
    #[error("field `{field}`: expected {expected}, found the end of the text", field = .field.name())]
    Missing {
        /// The field the tag belongs to.
        field: Field,
        /// The tag that should stand here.
        expected: &'static str,
    },
    /// Another tag of the grammar stands where this one should: left out or out of order.
    #[error("field `{field}`: expected {expected} at byte {offset}, found `{found}`", field = .field.name())]
    Misordered {
        /// The field the expected tag belongs to.
        field: Field,
        /// The tag that should stand here.
        expected: &'static str,
        /// The tag that does.
        found: &'static str,
        /// Where.
        offset: usize,
    },
    /// A field that has already been closed is opened again.
    #[error("field `{field}`: expected {expected} at byte {offset}, found a second `{found}`", field = .field.name())]
    Duplicated {
        /// The field that occurs twice.
        field: Field,
        /// What should stand here: a tag, or the end of the text.
        expected: &'static str,
        /// The tag that occurs again.
        found: &'static str,
        /// Where.
        offset: usize,
    },
    /// A tag inside a field.
    #[error(
        "field `{field}`: expected text up to {expected}, found the tag `{found}` at byte \
         {offset}",
        field = .field.name()
    )]
    Nested {
        /// The field that holds the tag.
        field: Field,
        /// The closing tag of that field.
        expected: &'static str,
        /// The tag inside it.
        found: &'static str,
        /// Where.
        offset: usize,
    },
    /// Text outside every field: before, between or after them.
    #[error("field `{field}`: expected {expected} at byte {offset}, found `{found}`", field = .field.name())]
    Outside {
        /// The field next to the text.
        field: Field,
        /// What should stand here: a tag, or the end of the text.
        expected: &'static str,
        /// The start of the text.
        found: String,
        /// Where.
        offset: usize,
    },
    /// The confidence is not written as a whole percent on the grid.
    #[error("field `confidence`: expected a whole percent among 0, 5, .., 100, found `{found}`")]
    Confidence {
        /// What stands there instead, cut to a readable length.
        found: String,
    },
    /// A field that cannot be written so that reading gives it back (only [`Foresight::check`]).
    #[error("field `{field}`: expected {expected}, found `{found}`", field = .field.name())]
    Unwritable {
        /// The field.
        field: Field,
        /// What it may hold.
        expected: &'static str,
        /// What it holds, cut to a readable length.
        found: String,
    },
}

/// What a policy says before it acts, and the action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Foresight {
    /// The rollout, one line a step, without blank lines.
    pub imaginary: Vec<String>,
    /// Words expected to matter later; no commas or line ends inside one.
    pub keyword: Vec<String>,
    /// Free text.
    pub analysis: String,
    /// The level written; when parsed, one of [`GRID_PERCENT`].
    pub stated: Stated,
    /// Free text.
    pub think: String,
    /// In the environment's own words; may be empty, which no environment calls legal.
    pub action: String,
}

/// The first span alone: what training rewards even when the policy span is broken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorldModel {
    /// As in [`Foresight`].
    pub imaginary: Vec<String>,
    /// As in [`Foresight`].
    pub keyword: Vec<String>,
    /// As in [`Foresight`].
    pub analysis: String,
    /// As in [`Foresight`].
    pub stated: Stated,
}

/// One of the two parts that are trained by different rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Span {
    /// From the start up to and including `</confidence>`.
    WorldModel,
    /// Everything after it.
    Policy,
}

/// Where the parts of a foresight text lie, in bytes. The two spans cover the text without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    /// From the start of the text up to and including `</confidence>`.
    pub world_model: Range<usize>,
    /// From there to the end; begins with the newline between the spans, where there is one.
    pub policy: Range<usize>,
    /// The digits of the confidence, without tags and white space.
    pub confidence: Range<usize>,
}

impl Spans {
    /// The span that holds byte `offset`; `None` past the end.
    pub fn span_at(&self, offset: usize) -> Option<Span> {
        if self.world_model.contains(&offset) {
            Some(Span::WorldModel)
        } else {
            self.policy.contains(&offset).then_some(Span::Policy)
        }
    }
}

/// Reads a whole foresight text.
pub fn parse(text: &str) -> Result<Foresight, ForesightError> {
    let fields = scan::<6>(text)?;
    let WorldModel { imaginary, keyword, analysis, stated } = world_model(text, &fields)?;
    let think = text[fields[4].clone()].to_owned();
    let action = text[fields[5].clone()].to_owned();
    Ok(Foresight { imaginary, keyword, analysis, stated, think, action })
}

/// Reads the world-model span at the start of a text, whatever follows it.
pub fn parse_world_model(text: &str) -> Result<WorldModel, ForesightError> {
    world_model(text, &scan::<4>(text)?)
}

/// Reads the plain format, `<action>..</action>` alone, and gives what stands inside.
pub fn parse_plain_action(text: &str) -> Result<String, ForesightError> {
    let mut cursor = Cursor::new(text);
    let inside = cursor.field(Field::Action, &[])?;
    cursor.end(Field::Action, &[Field::Action])?;
    Ok(text[inside].to_owned())
}

/// Writes an action in the plain format; the inverse of [`parse_plain_action`] for trimmed text
/// without tags.
pub fn render_plain_action(action: &str) -> String {
    format!("<action>{action}</action>")
}

/// Writes foresight text. `parse(&render(it)) == Ok(it)` wherever [`Foresight::check`] has no
/// objection; a stated probability off the grid is written as the nearest level.
pub fn render(foresight: &Foresight) -> String {
    let Foresight { imaginary, keyword, analysis, stated, think, action } = foresight;
    format!(
        "<imaginary>{}</imaginary><keyword>{}</keyword><analysis>{analysis}</analysis>\
         <confidence>{}</confidence>\n<think>{think}</think><action>{action}</action>",
        imaginary.join("\n"),
        keyword.join(", "),
        stated.nearest_percent(),
    )
}

/// Where the two spans and the confidence lie. The text must parse.
pub fn spans(text: &str) -> Result<Spans, ForesightError> {
    let fields = scan::<6>(text)?;
    level(text, &fields[3])?;
    let policy_start = world_model_end(text).unwrap_or(text.len());
    Ok(Spans { world_model: 0..policy_start, policy: policy_start..text.len(), confidence: fields[3].clone() })
}

/// The text up to and including its first `<confidence>`: where [`CONTINUATIONS`] are scored.
/// Also for text that goes wrong later; `None` if the tag does not occur.
pub fn confidence_prefix(text: &str) -> Option<&str> {
    let tag = Field::Confidence.opening();
    text.find(tag).map(|at| &text[..at + tag.len()])
}

/// The byte after the first `</confidence>`, also for text that does not parse: where the
/// world-model span ends. `None` if the tag does not occur.
pub fn world_model_end(text: &str) -> Option<usize> {
    let tag = Field::Confidence.closing();
    text.find(tag).map(|at| at + tag.len())
}

impl Foresight {
    /// Whether [`parse`] gives back exactly this from what [`render`] writes; names the field if not.
    pub fn check(&self) -> Result<(), ForesightError> {
        for line in &self.imaginary {
            let fits = !line.is_empty() && !line.contains('\n') && is_plain(line);
            writable(Field::Imaginary, fits, "lines that are trimmed, not blank and without tags", line)?;
        }
        for word in &self.keyword {
            let fits = !word.is_empty() && !word.contains(['\n', ',']) && is_plain(word);
            writable(Field::Keyword, fits, "trimmed words without commas, line ends and tags", word)?;
        }
        let free = "trimmed text without tags";
        writable(Field::Analysis, is_plain(&self.analysis), free, &self.analysis)?;
        writable(Field::Think, is_plain(&self.think), free, &self.think)?;
        writable(Field::Action, is_plain(&self.action), free, &self.action)?;
        let stated = self.stated.to_string();
        writable(Field::Confidence, self.stated.is_on_grid(), "a level of the grid", &stated)
    }
}

fn is_plain(text: &str) -> bool {
    text.trim() == text && tag_in(text).is_none()
}

fn writable(field: Field, fits: bool, expected: &'static str, found: &str) -> Result<(), ForesightError> {
    if fits { Ok(()) } else { Err(ForesightError::Unwritable { field, expected, found: shortened(found) }) }
}

/// Byte ranges of the first `N` fields, trimmed. For all six, the text must end after the last.
fn scan<const N: usize>(text: &str) -> Result<[Range<usize>; N], ForesightError> {
    let mut cursor = Cursor::new(text);
    let mut fields = [const { 0..0 }; N];
    for (index, field) in Field::ALL.into_iter().take(N).enumerate() {
        if field == Field::Think {
            cursor.skip_newline();
        }
        fields[index] = cursor.field(field, &Field::ALL[..index])?;
    }
    if N == Field::ALL.len() {
        cursor.end(Field::Action, &Field::ALL)?;
    }
    Ok(fields)
}

fn world_model(text: &str, fields: &[Range<usize>]) -> Result<WorldModel, ForesightError> {
    let stated = level(text, &fields[3])?;
    let pieces = |range: &Range<usize>, separators: &[char]| -> Vec<String> {
        let parts = text[range.clone()].split(separators).map(str::trim);
        parts.filter(|it| !it.is_empty()).map(str::to_owned).collect()
    };
    Ok(WorldModel {
        imaginary: pieces(&fields[0], &['\n']),
        keyword: pieces(&fields[1], &[',', '\n']),
        analysis: text[fields[2].clone()].to_owned(),
        stated,
    })
}

/// The level written in `digits`: exactly the text of a grid percent, so `05`, `+5`, `5%` are not.
fn level(text: &str, digits: &Range<usize>) -> Result<Stated, ForesightError> {
    let written = &text[digits.clone()];
    let percent = GRID_PERCENT.into_iter().find(|percent| percent.to_string() == written);
    percent.and_then(Stated::from_percent).ok_or_else(|| ForesightError::Confidence { found: shortened(written) })
}

/// The first tag of the grammar in a text, and where.
fn tag_in(text: &str) -> Option<(usize, &'static str)> {
    text.match_indices('<').find_map(|(at, _)| tag_at(&text[at..]).map(|tag| (at, tag)))
}

/// The tag of the grammar a text starts with.
fn tag_at(text: &str) -> Option<&'static str> {
    TAGS.into_iter().find(|tag| text.starts_with(tag))
}

/// The first characters of a text, for messages.
fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 40;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// Walks over a text tag by tag.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: text.len() - text.trim_start().len() }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_newline(&mut self) {
        if self.rest().starts_with('\n') {
            self.at += 1;
        }
    }

    /// Reads one field with its tags; gives the trimmed range inside. `closed` are the fields before it.
    fn field(&mut self, field: Field, closed: &[Field]) -> Result<Range<usize>, ForesightError> {
        let expected = field.opening();
        if !self.rest().starts_with(expected) {
            return Err(self.wrong_tag(field, expected, closed));
        }
        self.at += expected.len();
        let expected = field.closing();
        let Some((length, found)) = tag_in(self.rest()) else {
            return Err(ForesightError::Missing { field, expected });
        };
        if found != expected {
            let offset = self.at + length;
            return Err(ForesightError::Nested { field, expected, found, offset });
        }
        let inside = &self.text[self.at..self.at + length];
        let start = self.at + (inside.len() - inside.trim_start().len());
        self.at += length + expected.len();
        Ok(start..start + inside.trim().len())
    }

    fn end(&self, last: Field, closed: &[Field]) -> Result<(), ForesightError> {
        if self.rest().trim().is_empty() {
            return Ok(());
        }
        Err(self.wrong_tag(last, "the end of the text", closed))
    }

    /// Why what stands at the cursor is not `expected`.
    fn wrong_tag(&self, field: Field, expected: &'static str, closed: &[Field]) -> ForesightError {
        let (rest, offset) = (self.rest(), self.at);
        if rest.trim().is_empty() {
            return ForesightError::Missing { field, expected };
        }
        match tag_at(rest) {
            None => ForesightError::Outside { field, expected, found: shortened(rest), offset },
            Some(found) => match closed.iter().find(|it| it.opening() == found) {
                Some(&field) => ForesightError::Duplicated { field, expected, found, offset },
                None => ForesightError::Misordered { field, expected, found, offset },
            },
        }
    }
}
