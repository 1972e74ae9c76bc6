//! `/tokenize` and `/detokenize`, as vLLM has them: what a text or a chat is in token ids, and back.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use fsq_model::{Special, TokenId};
use serde_json::{Value, json};

use crate::asked::check_model;
use crate::completion::{encode, tokens};
use crate::prompt::{encode_chat, take_messages};
use crate::refusal::Refusal;
use crate::routes::read_fields;
use crate::server::Shared;

/// `POST /tokenize`: `prompt` is a text as `/v1/completions` would read it, `messages` a chat as
/// `/v1/chat/completions` would.
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let mut fields = read_fields(&shared, request).await?;
    let reading = shared.read_beside(move |shared| {
        check_model(&mut fields, shared)?;
        let adds_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
        let found = match (take_messages(&mut fields)?, fields.text("prompt")?) {
            (Some(turns), None) => encode_chat(shared, &turns)?,
            (None, Some(text)) if adds_special => encode(shared, &text)?,
            (None, Some(text)) => {
                shared.check_text(text.len())?;
                shared.tokenizer.encode(&text, Special::Escape)
            }
            _ => {
                let message = "expected either `prompt` or `messages`";
                return Err(Refusal::invalid("missing_field", message).about("prompt"));
            }
        };
        let texts = fields.boolean("return_token_strs")?.unwrap_or(false);
        fields.finish()?;
        Ok((found, texts))
    });
    let (found, texts) = reading.await?;
    let text = |it: &TokenId| shared.tokenizer.decode_with_special(&[*it]);
    Ok(Json(json!({
        "count": found.len(),
        "max_model_len": shared.context_tokens,
        "tokens": found,
        "token_strs": texts.then(|| found.iter().map(text).collect::<Vec<_>>()),
    })))
}

/// `POST /detokenize`: the text of `tokens`, control tokens spelled out.
pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let mut fields = read_fields(&shared, request).await?;
    check_model(&mut fields, &shared)?;
    let values = fields.list("tokens", shared.context_tokens)?;
    let values = values.ok_or_else(|| Refusal::field("tokens", "token ids", &Value::Null))?;
    fields.finish()?;
    let tokens = tokens("tokens", &values, shared.tokenizer.vocab())?;
    Ok(Json(json!({"prompt": shared.tokenizer.decode_with_special(&tokens)})))
}
