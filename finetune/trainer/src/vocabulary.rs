//! The shipped base's tokenizer: byte-level BPE learned from the environments' own text.
//!
//! Tags and turn marks are added tokens of one id each. Any other policy brings its own `tokenizer.json`.

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, models::TrainerWrapper};

use crate::TrainError;

/// Starts a conversation.
pub const BOS: &str = "<|bos|>";
/// Starts what the environment says.
pub const USER: &str = "<|user|>";
/// Starts what the policy says.
pub const ASSISTANT: &str = "<|assistant|>";
/// Ends a turn.
pub const END: &str = "<|end|>";
/// The tags of the foresight format, opening and closing alike.
pub const TAGS: [&str; 6] = ["imaginary", "keyword", "analysis", "confidence", "think", "action"];
/// How the shipped base lays out a conversation.
pub const CHAT_TEMPLATE: &str = "<|bos|>{% for message in messages %}\
{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>\
{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// A tokenizer with the ids that training needs by name.
pub struct Vocabulary {
    tokenizer: Tokenizer,
}

impl Vocabulary {
    /// Learns merges from some text until the vocabulary has `size` tokens, or until every word is one token.
    ///
    /// # Errors
    /// When the tokenizer library refuses.
    pub fn learn(texts: &[String], size: usize) -> Result<Self, TrainError> {
        let marks = [BOS, USER, ASSISTANT, END].map(|it| AddedToken::from(it, true));
        let trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(size - 2 * TAGS.len())
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(marks.to_vec())
            .build();
        let mut tokenizer = Tokenizer::new(BPE::default());
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
        tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter()).map_err(fault)?;
        let tags: Vec<AddedToken> = TAGS
            .iter()
            .flat_map(|it| [format!("<{it}>"), format!("</{it}>")])
            .map(|it| AddedToken::from(it, false))
            .collect();
        tokenizer.add_tokens(tags).map_err(fault)?;
        Ok(Self { tokenizer })
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn from_json(json: &str) -> Result<Self, TrainError> {
        Ok(Self { tokenizer: json.parse().map_err(fault)? })
    }

    /// The `tokenizer.json`.
    ///
    /// # Errors
    /// When the tokenizer library refuses.
    pub fn to_json(&self) -> Result<String, TrainError> {
        self.tokenizer.to_string(true).map_err(fault)
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Token ids of a text in which marks and tags count as such.
    ///
    /// # Errors
    /// When the tokenizer library refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(fault)?.get_ids().to_vec())
    }

    /// The text of some ids, marks and tags included.
    ///
    /// # Errors
    /// When an id is unknown.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TrainError> {
        self.tokenizer.decode(ids, false).map_err(fault)
    }

    /// The id of a token that must exist.
    ///
    /// # Errors
    /// When it does not.
    pub fn id(&self, token: &str) -> Result<u32, TrainError> {
        self.tokenizer.token_to_id(token).ok_or_else(|| TrainError::Tokenizer(format!("token `{token}` is missing")))
    }
}

fn fault(error: tokenizers::Error) -> TrainError {
    TrainError::Tokenizer(error.to_string())
}
