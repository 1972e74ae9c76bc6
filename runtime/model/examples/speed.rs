//! Tokens per second of a GGUF file on this machine's processor: prompts, and decoding in batches.
//!
//! `cargo run --release -p fsq-model --example speed -- FILE [THREADS]`
#![allow(clippy::print_stdout, reason = "an example's output is its purpose")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use fsq_gguf::Gguf;
use fsq_model::{
    Decode, Decoder, DecoderOptions, KvFormat, LogitsFor, Request, Sampling, Step, TokenId, generate_batch,
};

/// Tokens of each prompt; decoding goes on from there.
const PROMPT_TOKENS: usize = 128;
const DECODED_TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: speed FILE [THREADS]")?;
    let threads = arguments.next().map_or(Ok(2), |it| it.parse())?;
    let started = Instant::now();
    let gguf = Gguf::open(Path::new(&file))?;
    let options = DecoderOptions { threads, context_tokens: 1024, kv: KvFormat::F16, max_sequences: 96 };
    let mut decoder = Decoder::load(&gguf, options)?;
    drop(gguf);
    println!("{} on {threads} threads, loaded in {:.2?}", decoder.backend().path(), started.elapsed());
    for batch in std::env::args().nth(3).map_or(vec![1, 8, 96], |it| vec![it.parse().unwrap_or(1)]) {
        measure(&mut decoder, batch)?;
    }
    Ok(())
}

/// The best of three runs, so that other work on the machine disturbs as little as possible.
fn measure(decoder: &mut Decoder<fsq_kernels::Cpu>, batch: usize) -> Result<(), Box<dyn Error>> {
    let vocab = decoder.vocab() as TokenId;
    let prompts: Vec<Vec<TokenId>> = (0..batch as TokenId)
        .map(|row| (0..PROMPT_TOKENS as TokenId).map(|it| (row * 31 + it * 7) % vocab).collect())
        .collect();
    let (mut prefill, mut decode, mut sampled) = (0.0f64, 0.0f64, 0.0f64);
    for _ in 0..3 {
        let sequences: Vec<_> = prompts.iter().map(|_| decoder.open_sequence()).collect();
        let started = Instant::now();
        for (prompts, sequences) in prompts.chunks(4).zip(sequences.chunks(4)) {
            let step = |(sequence, tokens): (_, &'_ Vec<TokenId>)| (sequence, tokens.clone());
            let owned: Vec<_> = sequences.iter().copied().zip(prompts).map(step).collect();
            decoder.forward(&steps(&owned))?;
        }
        prefill = prefill.max((batch * PROMPT_TOKENS) as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        for token in 0..DECODED_TOKENS as TokenId {
            let owned: Vec<_> = sequences.iter().map(|it| (*it, vec![token % vocab])).collect();
            decoder.forward(&steps(&owned))?;
        }
        decode = decode.max((batch * DECODED_TOKENS) as f64 / started.elapsed().as_secs_f64());
        sequences.into_iter().for_each(|it| decoder.close(it));

        let request = |seed: usize| Request::new(vec![1], DECODED_TOKENS, Sampling::temperature(1.0, seed as u64));
        let requests: Vec<Request> = (0..batch).map(request).collect();
        let started = Instant::now();
        generate_batch(decoder, &requests)?;
        sampled = sampled.max((batch * DECODED_TOKENS) as f64 / started.elapsed().as_secs_f64());
    }
    println!("batch {batch:2}: prompts {prefill:8.0}, decode {decode:8.0}, short samples {sampled:8.0} tokens/s");
    Ok(())
}

fn steps<'a>(owned: &'a [(fsq_model::SequenceId, Vec<TokenId>)]) -> Vec<Step<'a>> {
    let step = |(sequence, tokens): &'a (_, Vec<TokenId>)| Step {
        sequence: *sequence,
        tokens,
        logits: LogitsFor::Last,
        adapter: None,
    };
    owned.iter().map(step).collect()
}
