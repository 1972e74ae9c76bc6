//! What is fuzzed: bytes that claim to be a policy, through everything that reads one. Nothing here may panic.
//!
//! `cargo fuzz` calls these from `fuzz_targets/`; `tests/it/hostile` calls them with mutations and hostile files.

use fsq_gguf::{Gguf, flaws};
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LogitsFor, Special, Step, Tokenizer};

/// Opens bytes and, if they open, reads them to the last one.
pub(crate) fn open(bytes: &[u8]) -> Option<Gguf> {
    let gguf = Gguf::from_bytes(bytes).ok()?;
    for view in gguf.views() {
        let n_bytes = view.format.row_bytes(view.cols()).map(|it| it * view.rows());
        assert_eq!(Some(view.bytes.len()), n_bytes, "{}", view.name);
    }
    for (key, value) in gguf.metadata().iter() {
        // Not by equality: of floats one may be no number.
        assert!(gguf.metadata().get(key).is_some_and(|it| it.type_id() == value.type_id()), "{key}");
    }
    // Decodes every block of every tensor, and looks at every byte between them.
    flaws(&gguf);
    Some(gguf)
}

/// Opens bytes as a policy and lets it tokenize, read and score a text, as far as it gets; whether that is all.
pub(crate) fn run(bytes: &[u8]) -> bool {
    let Some(gguf) = open(bytes) else { return false };
    let tokenizer = Tokenizer::from_gguf(&gguf).ok();
    let tokens = tokenizer.map(|it| {
        let tokens = it.encode("the bytes \u{0}\u{ffff} <|end|>", Special::Parse);
        it.decode_with_special(&tokens);
        tokens
    });
    let options = DecoderOptions { threads: 1, context_tokens: 8, kv: KvFormat::F16, max_sequences: 1 };
    let Ok(mut decoder) = Decoder::<Cpu>::load(&gguf, options) else { return false };
    let sequence = decoder.open_sequence();
    let mut tokens = tokens.unwrap_or_else(|| vec![0]);
    tokens.truncate(4);
    let step = Step { sequence, tokens: &tokens, adapter: None, logits: LogitsFor::All };
    decoder.forward(&[step]).is_ok()
}
