//! Fields that several routes take: how answers are sampled, how many there are, where they stop, how they are sent.

use fsq_model::{Adjustments, Sampling, TokenId};
use serde_json::{Map, Value, json};

use crate::fields::Fields;
use crate::refusal::{Refusal, quoted};
use crate::server::Shared;

/// Answers to one prompt.
const ANSWERS_MAX: u64 = 16;
const STOP_TEXTS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 256;
const TEMPERATURE_MAX: f64 = 2.0;
/// As OpenAI's, for both of its penalties.
const PENALTY_MAX: f64 = 2.0;
const REPETITION_MIN: f64 = 0.1;
const REPETITION_MAX: f64 = 10.0;
/// As OpenAI's: enough to forbid a token, or to force it.
const BIAS_MAX: f64 = 100.0;
const BIASES_MAX: usize = 1024;

/// How answers are sampled, the same for every route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Common {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    /// Drawn at random where the request has none.
    pub(crate) seed: u64,
    pub(crate) adjustments: Adjustments,
    pub(crate) tokens_max: Option<usize>,
}

impl Common {
    pub(crate) fn take(fields: &mut Fields, shared: &Shared) -> Result<Self, Refusal> {
        check_model(fields, shared)?;
        // Seeds are any 64-bit numbers, and clients write them with a sign.
        let seed_value = fields.take("seed");
        let read_seed = |it: &Value| it.as_u64().or_else(|| it.as_i64().map(|it| it as u64));
        let seed = match &seed_value {
            Some(it) => read_seed(it).ok_or_else(|| Refusal::field("seed", "a whole number of 64 bits", it))?,
            // Few enough bits that every JSON reader can give it back.
            None => rand::random::<u64>() >> 11,
        };
        fields.ignore(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
        Ok(Self {
            temperature: fields.number("temperature", 0.0..=TEMPERATURE_MAX)?.unwrap_or(1.0) as f32,
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32,
            top_k: fields.integer("top_k", 0..=1_000_000)?.unwrap_or(0) as usize,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            seed,
            adjustments: take_adjustments(fields, shared)?,
            tokens_max: take_tokens_max(fields, shared.context_tokens as u64)?,
        })
    }

    pub(crate) fn temperature(&self) -> f32 {
        self.temperature
    }

    pub(crate) fn top_p(&self) -> f32 {
        self.top_p
    }

    /// The sampling of the request's answer `index`, which has a random stream of its own.
    pub(crate) fn sampling(&self, index: u64) -> Sampling {
        let Self { temperature, top_p, top_k, min_p, seed, .. } = *self;
        Sampling { temperature, top_k, top_p, min_p, seed: seed.wrapping_add(index) }
    }
}

/// Takes the field `model`, which may only name the one that is here.
pub(crate) fn check_model(fields: &mut Fields, shared: &Shared) -> Result<(), Refusal> {
    match fields.text("model")? {
        Some(model) if model != shared.facts.name => {
            let message = format!("model `{}`: this server has `{}`", quoted(&model), shared.facts.name);
            Err(Refusal::not_found("model_not_found", message).about("model"))
        }
        _ => Ok(()),
    }
}

fn take_tokens_max(fields: &mut Fields, context_tokens: u64) -> Result<Option<usize>, Refusal> {
    let (old_name, new_name) = ("max_tokens", "max_completion_tokens");
    let old = fields.integer(old_name, 1..=context_tokens)?;
    let new = fields.integer(new_name, 1..=context_tokens)?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!("field `{new_name}`: expected the same as `{old_name}` ({old}), found {new}");
        return Err(Refusal::invalid("conflicting_fields", message).about(new_name));
    }
    Ok(new.or(old).map(|it| it as usize))
}

fn take_adjustments(fields: &mut Fields, shared: &Shared) -> Result<Adjustments, Refusal> {
    let mut penalty = |name: &str| -> Result<f32, Refusal> {
        Ok(fields.number(name, -PENALTY_MAX..=PENALTY_MAX)?.unwrap_or(0.0) as f32)
    };
    let (presence, frequency) = (penalty("presence_penalty")?, penalty("frequency_penalty")?);
    let repetition = fields.number("repetition_penalty", REPETITION_MIN..=REPETITION_MAX)?.unwrap_or(1.0) as f32;
    let bias = match fields.take("logit_bias") {
        Some(Value::Object(biases)) if biases.len() <= BIASES_MAX => read_biases(&biases, shared.vocab)?,
        Some(other) => {
            let expected = format!("an object of at most {BIASES_MAX} token ids with numbers");
            return Err(Refusal::field("logit_bias", &expected, &other));
        }
        None => Vec::new(),
    };
    Ok(Adjustments { bias, presence, frequency, repetition, constraint: None })
}

fn read_biases(biases: &Map<String, Value>, vocab: usize) -> Result<Vec<(TokenId, f32)>, Refusal> {
    let read = |(name, value): (&String, &Value)| {
        let token = name.parse().ok().filter(|it: &TokenId| (*it as usize) < vocab);
        let bias = value.as_f64().filter(|it| it.abs() <= BIAS_MAX);
        token.zip(bias).map(|(token, bias)| (token, bias as f32)).ok_or_else(|| {
            let expected = format!("a token id below {vocab} with a number from -{BIAS_MAX} to {BIAS_MAX}");
            let mut found = Map::new();
            found.insert(name.clone(), value.clone());
            Refusal::field("logit_bias", &expected, &Value::Object(found))
        })
    };
    biases.iter().map(read).collect()
}

/// How many answers each prompt gets.
pub(crate) fn take_n(fields: &mut Fields) -> Result<u64, Refusal> {
    Ok(fields.integer("n", 1..=ANSWERS_MAX)?.unwrap_or(1))
}

/// What ends an answer before it.
pub(crate) fn take_stop(fields: &mut Fields) -> Result<Vec<String>, Refusal> {
    let expected = format!("a string, or at most {STOP_TEXTS_MAX}, of 1 to {STOP_BYTES_MAX} bytes");
    let Some(value) = fields.take("stop") else { return Ok(Vec::new()) };
    let values = match &value {
        Value::Array(values) if values.len() <= STOP_TEXTS_MAX => values.as_slice(),
        Value::String(_) => std::slice::from_ref(&value),
        _ => return Err(Refusal::field("stop", &expected, &value)),
    };
    let text = |it: &Value| it.as_str().filter(|it| (1..=STOP_BYTES_MAX).contains(&it.len())).map(str::to_owned);
    values.iter().map(|it| text(it).ok_or_else(|| Refusal::field("stop", &expected, it))).collect()
}

/// How answers are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) is_streamed: bool,
    pub(crate) includes_usage: bool,
}

impl Delivery {
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, Refusal> {
        let is_streamed = fields.boolean("stream")?.unwrap_or(false);
        if fields.has("stream_options") && !is_streamed {
            let message = "field `stream_options`: expected only with `stream`";
            return Err(Refusal::invalid("conflicting_fields", message).about("stream_options"));
        }
        let includes_usage = match fields.take("stream_options") {
            Some(options) => {
                let mut options = Fields::of("stream_options", options)?;
                let includes_usage = options.boolean("include_usage")?.unwrap_or(false);
                options.ignore(&["include_obfuscation"]);
                options.finish()?;
                includes_usage
            }
            None => false,
        };
        Ok(Self { is_streamed, includes_usage })
    }
}

/// Takes fields of the protocol that are only accepted where they ask for nothing.
pub(crate) fn refuse_unsupported(fields: &mut Fields) -> Result<(), Refusal> {
    let is_empty = |it: &Value| it.as_array().is_some_and(Vec::is_empty) || it.as_object().is_some_and(Map::is_empty);
    fields.neutral("functions", "`tools` are", is_empty)?;
    fields.neutral("function_call", "`tool_choice` is", |it| it == "none" || it == "auto")?;
    fields.neutral("modalities", "only `[\"text\"]` is", |it| *it == json!(["text"]))?;
    fields.neutral("store", "only false is", |it| *it == json!(false))?;
    fields.neutral("service_tier", "only `auto` and `default` are", |it| it == "auto" || it == "default")
}
