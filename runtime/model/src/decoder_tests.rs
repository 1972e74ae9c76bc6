//! The decoder against a naive forward pass in f64, and against itself under every way of cutting the work.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;

use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Dimensions, Linear, architecture};
use fsq_kernels::Cpu;

use crate::fixtures::{OPTIONS, TINY, Tensors, adapter, decoder, gguf, numbers, prompt, tensors};
use crate::{
    AdapterId, Choices, ColumnSums, Completion, Decode, Decoder, DecoderOptions, Engine, EngineEvent, EngineOptions,
    KvFormat, LogitsFor, ModelError, Observing, Request, Sampling, Step, TokenId, Tokenizer, generate_batch,
    log_softmax, score_continuations,
};

/// Turns the heads of one position.
fn turn(x: &mut [f64], position: usize, dimensions: &Dimensions) {
    let head_dim = dimensions.head_dim;
    for head in x.chunks_mut(head_dim) {
        for (pair, two) in head.chunks_mut(2).enumerate() {
            let turn = position as f64 * f64::from(dimensions.rope_theta).powf(-2.0 * pair as f64 / head_dim as f64);
            let (a, b) = (two[0], two[1]);
            two[0] = a * turn.cos() - b * turn.sin();
            two[1] = a * turn.sin() + b * turn.cos();
        }
    }
}

/// Every position's logits by the textbook, one position and one head at a time; and by matrix, the squares of what it
/// read, summed by column.
fn naive_forward(
    dimensions: &Dimensions,
    tensors: &Tensors,
    tokens: &[TokenId],
) -> (Vec<Vec<f64>>, BTreeMap<String, Vec<f64>>) {
    let Dimensions { hidden, n_heads, n_kv_heads, head_dim, n_layers, vocab, .. } = *dimensions;
    let row = |name: &str, index: usize| -> Vec<f64> {
        tensors[name][index * hidden..(index + 1) * hidden].iter().map(|it| f64::from(*it)).collect()
    };
    let observed: RefCell<BTreeMap<String, Vec<f64>>> = RefCell::default();
    let matmul = |name: &str, x: &[f64]| -> Vec<f64> {
        let mut observed = observed.borrow_mut();
        let sums = observed.entry(name.to_string()).or_insert_with(|| vec![0.0; x.len()]);
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        tensors[name].chunks(x.len()).map(dot).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|it| it * it).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(dimensions.rms_eps)).sqrt();
        x.iter().zip(&tensors[name]).map(|(x, w)| x * scale * f64::from(*w)).collect()
    };
    let mut stream: Vec<Vec<f64>> = tokens.iter().map(|it| row("token_embd.weight", *it as usize)).collect();
    for layer in 0..n_layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in stream.iter_mut().enumerate() {
            let normed = norm(&name("attn_norm"), x);
            let mut query = matmul(&name("attn_q"), &normed);
            let mut key = matmul(&name("attn_k"), &normed);
            turn(&mut query, position, dimensions);
            turn(&mut key, position, dimensions);
            keys.push(key);
            values.push(matmul(&name("attn_v"), &normed));
            let mut heads = vec![0.0; n_heads * head_dim];
            for head in 0..n_heads {
                let own = head * head_dim..(head + 1) * head_dim;
                let kv = head * n_kv_heads / n_heads * head_dim..(head * n_kv_heads / n_heads + 1) * head_dim;
                let dot =
                    |key: &Vec<f64>| query[own.clone()].iter().zip(&key[kv.clone()]).map(|(a, b)| a * b).sum::<f64>();
                let weights: Vec<f64> = keys.iter().map(|it| (dot(it) / (head_dim as f64).sqrt()).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for (out, value) in heads[own.clone()].iter_mut().zip(&value[kv.clone()]) {
                        *out += weight / total * value;
                    }
                }
            }
            let out = matmul(&name("attn_output"), &heads);
            x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
            let normed = norm(&name("ffn_norm"), x);
            let (gate, up) = (matmul(&name("ffn_gate"), &normed), matmul(&name("ffn_up"), &normed));
            let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            let out = matmul(&name("ffn_down"), &inner);
            x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        }
    }
    let output = if dimensions.tied { "token_embd.weight" } else { "output.weight" };
    let logits: Vec<_> = stream.iter().map(|it| matmul(output, &norm("output_norm.weight", it))).collect();
    assert_eq!(logits[0].len(), vocab);
    (logits, observed.into_inner())
}

/// Logits of all positions of one sequence in one pass: `[tokens, vocab]`.
fn all_logits(decoder: &mut Decoder<fsq_kernels::Cpu>, tokens: &[TokenId], adapter: Option<AdapterId>) -> Vec<f32> {
    let sequence = decoder.open_sequence();
    let step = Step { sequence, tokens, logits: LogitsFor::All, adapter };
    let logits = decoder.forward(&[step]).unwrap();
    decoder.close(sequence);
    logits.rows(0).to_vec()
}

fn nmse(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let error: f64 = expected.iter().zip(found).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
    error / expected.iter().map(|it| it * it).sum::<f64>()
}

/// What the format makes of the tensors.
fn decoded(dimensions: &Dimensions, tensors: &Tensors, format: Format) -> Tensors {
    let file = gguf(dimensions, tensors, format);
    file.views().map(|it| (it.name.to_string(), it.to_f32())).collect()
}

#[test]
fn equals_the_naive_forward_pass() {
    // Keys and values are kept in f16; integer formats also round activations to 8 bits.
    for (format, tolerance) in [
        (Format::F32, 1e-6),
        (Format::F16, 1e-6),
        (Format::BF16, 1e-6),
        (Format::Q8_0, 1e-3),
        (Format::Q4_0, 1e-3),
        (Format::Q6_K, 1e-3),
        (Format::Q4_K, 1e-3),
        (Format::Q2_K, 1e-3),
    ] {
        let tokens = prompt(1, 45);
        let weights = decoded(&TINY, &tensors(&TINY), format);
        let expected = naive_forward(&TINY, &weights, &tokens).0.concat();
        let found = all_logits(&mut decoder(format), &tokens, None);
        let nmse = nmse(&expected, &found);
        assert!(nmse < tolerance, "{}: nmse {nmse:e}", format.name());
    }
}

#[test]
fn an_output_matrix_of_its_own_is_used() {
    let dimensions = Dimensions { tied: false, ..TINY };
    let weights = tensors(&dimensions);
    let mut decoder = Decoder::load(&gguf(&dimensions, &weights, Format::F32), OPTIONS).unwrap();
    let expected = naive_forward(&dimensions, &weights, &prompt(2, 9)).0.concat();
    assert!(nmse(&expected, &all_logits(&mut decoder, &prompt(2, 9), None)) < 1e-6);
}

#[test]
fn batching_splitting_and_forking_change_no_bit() {
    for format in [Format::F32, Format::Q8_0, Format::Q4_K] {
        let mut decoder = decoder(format);
        let prompts = [prompt(1, 70), prompt(2, 1), prompt(3, 33)];
        let alone: Vec<_> = prompts.iter().map(|it| all_logits(&mut decoder, it, None)).collect();

        let step = |sequence, tokens| Step { sequence, tokens, logits: LogitsFor::All, adapter: None };
        let sequences = [decoder.open_sequence(), decoder.open_sequence(), decoder.open_sequence()];
        let steps: Vec<_> = sequences.iter().zip(&prompts).map(|(id, it)| step(*id, it)).collect();
        let together = decoder.forward(&steps).unwrap();
        for (index, alone) in alone.iter().enumerate() {
            assert_eq!(together.rows(index), alone);
        }

        let split = decoder.open_sequence();
        let pieces = [&prompts[0][..20], &prompts[0][20..21], &prompts[0][21..70]];
        let joined = pieces.map(|it| decoder.forward(&[step(split, it)]).unwrap().rows(0).to_vec()).concat();
        assert_eq!(joined, alone[0]);

        // Only the last row is asked for: the rows before it are dropped on the way.
        let last = decoder.open_sequence();
        let ask = Step { logits: LogitsFor::Last, ..step(last, &prompts[0]) };
        let mixed = decoder.forward(&[ask, step(sequences[1], &[5])]).unwrap();
        assert_eq!(mixed.last(0), &alone[0][69 * TINY.vocab..]);

        let fork = decoder.fork(split).unwrap();
        decoder.truncate(fork, 50).unwrap();
        let refreshed = decoder.forward(&[step(fork, &prompts[0][50..]), step(split, &[1])]).unwrap();
        assert_eq!(refreshed.rows(0), &alone[0][50 * TINY.vocab..]);
        for sequence in [split, last, fork].into_iter().chain(sequences) {
            decoder.close(sequence);
        }
        assert_eq!(decoder.free_pages(), 8 * 4);
    }
}

/// The tensors with an adapter merged in: `W + scale · B · A`, query and key rows reordered as in the file.
fn merged(tensors: &Tensors, adapter: &Adapter) -> Tensors {
    let mut merged = tensors.clone();
    for layer in 0..TINY.n_layers {
        for linear in Linear::ALL {
            let pair = &adapter.pairs[&linear.hf_path(layer)];
            let mut delta = vec![0.0f32; pair.outputs * pair.inputs];
            for (out, row) in delta.chunks_mut(pair.inputs).enumerate() {
                for rank in 0..pair.rank {
                    let b = pair.b[out * pair.rank + rank] * adapter.scale();
                    row.iter_mut().zip(&pair.a[rank * pair.inputs..]).for_each(|(delta, a)| *delta += b * a);
                }
            }
            let delta = match linear {
                Linear::Q => architecture::permute_rotary_rows(&delta, TINY.n_heads, pair.inputs),
                Linear::K => architecture::permute_rotary_rows(&delta, TINY.n_kv_heads, pair.inputs),
                _ => delta,
            };
            let weight = merged.get_mut(&format!("{}.weight", linear.gguf_path(layer))).unwrap();
            weight.iter_mut().zip(delta).for_each(|(weight, delta)| *weight += delta);
        }
    }
    merged
}

#[test]
fn adapters_at_run_time_equal_merged_weights_even_in_one_batch() {
    let base = tensors(&TINY);
    let mut decoder = decoder(Format::F32);
    let adapters = [adapter(&TINY, 1, 4), adapter(&TINY, 2, 8)];
    let places = [AdapterId(3), AdapterId(1)];
    for (place, adapter) in places.iter().zip(&adapters) {
        decoder.set_adapter(*place, Some(adapter)).unwrap();
    }
    let tokens = prompt(4, 40);
    let ids = [Some(places[0]), None, Some(places[1]), Some(places[0])];
    let sequences: Vec<_> = ids.iter().map(|_| decoder.open_sequence()).collect();
    let logits_for = [LogitsFor::All, LogitsFor::Last, LogitsFor::All, LogitsFor::Last];
    let step = |at: usize| Step { sequence: sequences[at], tokens: &tokens, logits: logits_for[at], adapter: ids[at] };
    let logits = decoder.forward(&[step(0), step(1), step(2), step(3)]).unwrap();
    for (at, tensors) in [(0, merged(&base, &adapters[0])), (2, merged(&base, &adapters[1]))] {
        let expected = naive_forward(&TINY, &tensors, &tokens).0.concat();
        let nmse = nmse(&expected, logits.rows(at));
        assert!(nmse < 1e-6, "{nmse:e}");
    }
    let plain = naive_forward(&TINY, &base, &tokens).0;
    assert!(nmse(&plain[39], logits.last(1)) < 1e-6);
    assert_eq!(logits.last(3), logits.last(0));
    assert!(nmse(&plain[39], logits.last(0)) > 1e-3, "the adapter does something");

    decoder.set_adapter(places[0], None).unwrap();
    decoder.truncate(sequences[0], 0).unwrap();
    assert!(matches!(decoder.forward(&[step(0)]), Err(ModelError::UnknownAdapter { adapter: AdapterId(3) })));
    let mut strange = adapters[0].clone();
    let pair = strange.pairs.pop_first().unwrap().1;
    strange.pairs.insert("model.layers.9.mlp.up_proj".into(), pair);
    let error = decoder.set_adapter(places[0], Some(&strange)).unwrap_err().to_string();
    assert!(error.contains("model.layers.9.mlp.up_proj"), "{error}");
}

#[test]
fn rows_under_several_adapters_are_the_bits_that_each_has_alone() {
    for format in [Format::F32, Format::Q8_0, Format::Q4_K] {
        let mut decoder = decoder(format);
        let adapters = [(AdapterId(7), adapter(&TINY, 1, 4)), (AdapterId(2), adapter(&TINY, 2, 8))];
        for (place, adapter) in &adapters {
            decoder.set_adapter(*place, Some(adapter)).unwrap();
        }
        let ids = [Some(adapters[0].0), None, Some(adapters[1].0), Some(adapters[0].0), None, Some(adapters[1].0)];
        let prompts: Vec<Vec<TokenId>> = (0..6).map(|it| prompt(it, 1 + 9 * it as usize)).collect();
        let sequences: Vec<_> = ids.iter().map(|_| decoder.open_sequence()).collect();
        let step = |at: usize| Step {
            sequence: sequences[at],
            tokens: &prompts[at],
            logits: LogitsFor::All,
            adapter: ids[at],
        };
        let together = decoder.forward(&(0..6).map(step).collect::<Vec<_>>()).unwrap();
        sequences.iter().for_each(|it| decoder.close(*it));
        for at in 0..6 {
            assert_eq!(together.rows(at), all_logits(&mut decoder, &prompts[at], ids[at]), "{at} {}", format.name());
        }
        assert_ne!(together.rows(0), all_logits(&mut decoder, &prompts[0], None));
    }
}

#[test]
fn what_is_kept_gives_the_bits_that_running_it_gives_and_no_adapter_gets_anothers() {
    for (format, kv) in [(Format::F32, KvFormat::F16), (Format::Q4_K, KvFormat::F16), (Format::Q8_0, KvFormat::Q8_0)] {
        let file = gguf(&TINY, &tensors(&TINY), format);
        let mut decoder = Decoder::load(&file, DecoderOptions { kv, ..OPTIONS }).unwrap();
        let place = AdapterId(4);
        decoder.set_adapter(place, Some(&adapter(&TINY, 1, 4))).unwrap();
        let tokens = prompt(1, 100);
        let alone = [None, Some(place)].map(|it| all_logits(&mut decoder, &tokens, it));
        let go_on = |decoder: &mut Decoder<Cpu>, text: &[TokenId], adapter, alone: &[f32]| {
            let sequence = decoder.open_sequence();
            let n_kept = decoder.adopt(sequence, text, adapter);
            let step = Step { sequence, tokens: &text[n_kept..], logits: LogitsFor::All, adapter };
            let logits = decoder.forward(&[step]).unwrap();
            assert_eq!(logits.rows(0), &alone[n_kept * TINY.vocab..text.len() * TINY.vocab], "{}", format.name());
            decoder.keep(sequence);
            decoder.close(sequence);
            n_kept
        };
        for (adapter, alone) in [None, Some(place)].into_iter().zip(&alone) {
            assert_eq!(go_on(&mut decoder, &tokens[..70], adapter, alone), 0);
            assert_eq!(go_on(&mut decoder, &tokens, adapter, alone), 64);
            assert_eq!(go_on(&mut decoder, &tokens, adapter, alone), 96);
        }
        // Another generation in the same place begins with nothing.
        decoder.set_adapter(place, Some(&adapter(&TINY, 2, 4))).unwrap();
        let alone = all_logits(&mut decoder, &tokens, Some(place));
        assert_eq!(go_on(&mut decoder, &tokens, Some(place), &alone), 0);
        // Of what is observed every token counts, so nothing is reused.
        decoder.observe(Observing::default());
        assert!(!decoder.reuses());
        assert_eq!(decoder.free_pages(), 8 * 4);
    }
}

#[test]
fn a_cache_in_8_bits_changes_little_and_is_the_same_however_work_is_cut() {
    let file = gguf(&TINY, &tensors(&TINY), Format::F32);
    let options = DecoderOptions { kv: KvFormat::Q8_0, ..OPTIONS };
    let mut decoder = Decoder::load(&file, options).unwrap();
    assert_eq!(decoder.kv_bytes() * 2 * 32, Decoder::load(&file, OPTIONS).unwrap().kv_bytes() * (32 + 2));
    let tokens = prompt(1, 70);
    let whole = all_logits(&mut decoder, &tokens, None);
    let expected = naive_forward(&TINY, &tensors(&TINY), &tokens).0.concat();
    let nmse = nmse(&expected, &whole);
    // As far as what integer formats make of weights and activations.
    assert!(nmse > 1e-9 && nmse < 1e-3, "{nmse:e}");

    let step = |sequence, tokens| Step { sequence, tokens, logits: LogitsFor::All, adapter: None };
    let (split, other) = (decoder.open_sequence(), decoder.open_sequence());
    let mut joined = Vec::new();
    let company = prompt(2, 5);
    for piece in [&tokens[..20], &tokens[20..21], &tokens[21..40]] {
        let logits = decoder.forward(&[step(other, &company), step(split, piece)]).unwrap();
        joined.extend_from_slice(logits.rows(1));
    }
    // From here on in a copy of the last page, beside the sequence that it was copied from.
    let fork = decoder.fork(split).unwrap();
    let logits = decoder.forward(&[step(split, &tokens[..9]), step(fork, &tokens[40..])]).unwrap();
    joined.extend_from_slice(logits.rows(1));
    assert_eq!(joined, whole);
}

#[test]
fn what_cannot_run_is_refused_and_changes_nothing() {
    let mut decoder = decoder(Format::F32);
    let sequence = decoder.open_sequence();
    let tokens = prompt(5, 100);
    let step = |tokens| Step { sequence, tokens, logits: LogitsFor::Last, adapter: None };
    decoder.forward(&[step(&tokens)]).unwrap();
    let free = decoder.free_pages();
    let full = decoder.forward(&[step(&tokens[..29])]).unwrap_err();
    assert!(matches!(full, ModelError::ContextFull { needed: 129, context_tokens: 128 }));
    assert!(matches!(decoder.forward(&[step(&[300])]), Err(ModelError::UnknownToken { token: 300, vocab: 300 })));
    assert!(matches!(decoder.forward(&[step(&[])]), Err(ModelError::EmptyStep)));
    assert!(matches!(decoder.forward(&[step(&[1]), step(&[1])]), Err(ModelError::SequenceTwice { .. })));
    let more: Vec<_> = (0..8).map(|_| decoder.open_sequence()).collect();
    let all: Vec<_> = more.iter().map(|it| Step { sequence: *it, ..step(&tokens) }).collect();
    assert!(matches!(decoder.forward(&all), Err(ModelError::OutOfPages { needed: 32, free: 28 })));
    assert_eq!(decoder.free_pages(), free);
    assert_eq!(decoder.tokens(sequence).unwrap(), tokens);
    decoder.close(sequence);
    assert!(matches!(decoder.forward(&[step(&[1])]), Err(ModelError::UnknownSequence { .. })));
}

#[test]
fn scores_equal_a_walk_token_by_token() {
    let mut decoder = decoder(Format::F32);
    decoder.set_adapter(AdapterId(0), Some(&adapter(&TINY, 3, 4))).unwrap();
    for adapter in [None, Some(AdapterId(0))] {
        let prefix = decoder.open_sequence();
        let tokens = prompt(6, 37);
        let step = Step { sequence: prefix, tokens: &tokens, logits: LogitsFor::None, adapter };
        decoder.forward(&[step]).unwrap();
        let free = decoder.free_pages();
        let continuations: Vec<Vec<TokenId>> = vec![vec![4, 5, 6], vec![9], prompt(8, 20), vec![4, 5, 7]];
        let scores = score_continuations(&mut decoder, prefix, &continuations, adapter).unwrap();
        assert_eq!((decoder.free_pages(), decoder.tokens(prefix).unwrap()), (free, tokens.as_slice()));
        for (continuation, score) in continuations.iter().zip(scores) {
            let alone = score_continuations(&mut decoder, prefix, std::slice::from_ref(continuation), adapter);
            assert_eq!(alone.unwrap(), [score]);
            let text: Vec<TokenId> = tokens.iter().chain(continuation).copied().collect();
            let logits = all_logits(&mut decoder, &text, adapter);
            let of = |(at, token): (usize, &TokenId)| {
                let row = (tokens.len() - 1 + at) * TINY.vocab;
                log_softmax(&logits[row..row + TINY.vocab])[*token as usize]
            };
            let expected: f32 = continuation.iter().enumerate().map(of).sum();
            assert_eq!(score, expected);
        }
        decoder.close(prefix);
    }
}

#[test]
fn what_cannot_be_scored_is_refused_and_leaves_the_prefix_as_it_was() {
    let mut decoder = decoder(Format::F32);
    let prefix = decoder.open_sequence();
    let error = |decoder: &mut Decoder<_>, continuations: &[Vec<TokenId>]| {
        score_continuations(decoder, prefix, continuations, None).unwrap_err()
    };
    assert!(matches!(error(&mut decoder, &[vec![1]]), ModelError::EmptyStep));
    let tokens = prompt(6, 100);
    decoder.forward(&[Step { sequence: prefix, tokens: &tokens, logits: LogitsFor::None, adapter: None }]).unwrap();
    let free = decoder.free_pages();
    let empty = error(&mut decoder, &[vec![1], vec![]]);
    assert!(matches!(empty, ModelError::EmptyContinuation { index: 1 }), "{empty}");
    // The last token of a continuation is never run, so one more than the context has room for can be scored.
    let long = |n: usize| vec![vec![2], prompt(1, n)];
    assert!(score_continuations(&mut decoder, prefix, &long(29), None).is_ok());
    assert!(matches!(error(&mut decoder, &long(30)), ModelError::ContextFull { needed: 129, context_tokens: 128 }));
    let strange = error(&mut decoder, &[vec![1, TINY.vocab as TokenId]]);
    assert!(matches!(strange, ModelError::UnknownToken { token: 300, vocab: 300 }));
    let many = vec![vec![1, 2, 3]; 29];
    assert!(matches!(error(&mut decoder, &many), ModelError::OutOfPages { needed: 29, free: 28 }));
    assert_eq!((decoder.free_pages(), decoder.tokens(prefix).unwrap()), (free, tokens.as_slice()));
}

#[test]
fn choices_are_scored_alike_with_many_pages_and_with_few() {
    let file = gguf(&TINY, &tensors(&TINY), Format::F32);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let choices = Choices::new(&tokenizer, &["5</a>", "55</a>", "60</a>"], "</a>");
    assert!(choices.single_tokens().is_none(), "a token for each digit");
    let letters = Choices::new(&tokenizer, &["a</a>", "b</a>"], "</a>");
    let tokens = prompt(3, 40);
    let scores = |choices: &Choices, max_sequences: usize| {
        let mut decoder = Decoder::load(&file, DecoderOptions { max_sequences, ..OPTIONS }).unwrap();
        let sequence = decoder.open_sequence();
        decoder.forward(&[Step { sequence, tokens: &tokens, logits: LogitsFor::None, adapter: None }]).unwrap();
        choices.log_probs(&mut decoder, &[sequence], None).unwrap().remove(0)
    };
    let many = scores(&choices, 8);
    assert_eq!(many, scores(&choices, 1));
    assert!(many.iter().all(|it| *it < 0.0) && many.len() == 3);
    // What closes a text is no part of it where its only token says all.
    let row = &all_logits(&mut decoder(Format::F32), &tokens, None)[39 * TINY.vocab..];
    let single = letters.single_tokens().unwrap();
    assert_eq!(scores(&letters, 1), [log_softmax(row)[single[0] as usize], log_softmax(row)[single[1] as usize]]);
    let behind = choices.behind(&tokenizer, "x");
    let encoded = tokenizer.encode("x5</a>", crate::Special::Parse);
    let mut decoder = decoder(Format::F32);
    let sequence = decoder.open_sequence();
    decoder.forward(&[Step { sequence, tokens: &tokens, logits: LogitsFor::None, adapter: None }]).unwrap();
    let expected = score_continuations(&mut decoder, sequence, &[encoded], None).unwrap();
    assert_eq!(behind.log_probs(&mut decoder, &[sequence], None).unwrap()[0][0], expected[0]);
}

#[test]
fn completions_do_not_depend_on_their_company() {
    let mut decoder = decoder(Format::Q8_0);
    let request = |index: u64| {
        let sampling = if index.is_multiple_of(3) { Sampling::greedy() } else { Sampling::temperature(1.0, index) };
        // Prompts that begin alike, of which some are the same.
        let mut request = Request::new(prompt(index % 4, 3 + index as usize / 2 * 8), 5 + index as usize, sampling);
        request.stop = vec![7, 8, 9, 10, 11, 12];
        request
    };
    // More requests than sequences fit, so that finished ones make room.
    let requests: Vec<Request> = (0..20).map(request).collect();
    let together = generate_batch(&mut decoder, &requests).unwrap();
    assert_eq!(decoder.free_pages(), 32);
    for (request, completion) in requests.iter().zip(&together) {
        let alone = generate_batch(&mut self::decoder(Format::Q8_0), std::slice::from_ref(request)).unwrap();
        assert_eq!(alone, std::slice::from_ref(completion));
        assert_eq!(completion.logprobs.len(), completion.tokens.len());
        check_logprobs(&mut decoder, request, completion);
    }
}

#[test]
fn drafts_change_no_token_and_no_bit_of_a_probability() {
    let requests: Vec<Request> = (0..6)
        .map(|index| {
            let sampling = match index {
                0 | 1 => Sampling::greedy(),
                2 => Sampling { top_k: 3, ..Sampling::temperature(0.7, index) },
                _ => Sampling::temperature(0.05 * index as f32, index),
            };
            // What repeats is drafted from.
            let text = prompt(index, 7).repeat(5);
            let mut request = Request::new(text, 50, sampling);
            request.adjustments.frequency = if index == 1 { 0.1 } else { 0.0 };
            request
        })
        .collect();
    let run = |draft_rows_max: usize| {
        let options = EngineOptions { draft_rows_max, ..EngineOptions::new(3) };
        let mut engine = Engine::new(decoder(Format::Q8_0), options);
        for request in &requests {
            engine.submit(request.clone()).unwrap();
        }
        let mut said = BTreeMap::new();
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                let EngineEvent::Token { request, token, logprob, finish, .. } = event else { panic!("{event:?}") };
                said.entry(request).or_insert_with(Vec::new).push((token, logprob.to_bits(), finish));
            }
        }
        assert_eq!(engine.decoder().free_pages(), 32);
        (said, engine.drafts())
    };
    let (plain, none) = run(0);
    let (drafted, drafts) = run(12);
    assert_eq!(drafted, plain);
    assert!(none.n_drafted == 0 && drafts.n_true > 0 && drafts.n_drafted > drafts.n_true, "{drafts:?}");
}

/// What sampling reported is what the policy gives those tokens.
fn check_logprobs(decoder: &mut Decoder<fsq_kernels::Cpu>, request: &Request, completion: &Completion) {
    let text: Vec<TokenId> = request.prompt.iter().chain(&completion.tokens).copied().collect();
    let logits = all_logits(decoder, &text, None);
    for (at, (token, logprob)) in completion.tokens.iter().zip(&completion.logprobs).enumerate() {
        let row = (request.prompt.len() - 1 + at) * TINY.vocab;
        let expected = log_softmax(&logits[row..row + TINY.vocab])[*token as usize];
        assert!((expected - logprob).abs() < 1e-5, "{expected} {logprob}");
    }
}

#[test]
fn a_kept_sequence_saves_work_and_changes_nothing() {
    let mut decoder = decoder(Format::F32);
    let sequence = decoder.open_sequence();
    let mut transcript = prompt(9, 20);
    for turn in 0..3 {
        let mut request = Request::new(transcript.clone(), 6, Sampling::temperature(1.0, turn));
        let fresh = generate_batch(&mut decoder, std::slice::from_ref(&request)).unwrap();
        request.sequence = Some(sequence);
        let kept = generate_batch(&mut decoder, std::slice::from_ref(&request)).unwrap();
        assert_eq!(kept, fresh);
        transcript.extend(&kept[0].tokens);
        assert_eq!(decoder.tokens(sequence).unwrap(), &transcript[..transcript.len() - 1]);
        transcript.extend(prompt(turn, 4));
    }
    decoder.close(sequence);
    assert_eq!(decoder.free_pages(), 32);
}

#[test]
fn hostile_metadata_is_refused_by_name() {
    let weights = tensors(&TINY);
    for (dimensions, named) in
        [(Dimensions { n_kv_heads: 3, ..TINY }, "head_count_kv"), (Dimensions { head_dim: 24, ..TINY }, "key_length")]
    {
        let mut weights = weights.clone();
        for tensor in fsq_checkpoint::tensor_names(&dimensions) {
            weights.insert(tensor.gguf, numbers(1, tensor.shape.iter().product()));
        }
        let error = Decoder::load(&gguf(&dimensions, &weights, Format::F32), OPTIONS).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn what_matrices_read_is_summed_by_column() {
    for tied in [true, false] {
        let dimensions = Dimensions { tied, ..TINY };
        let tensors = tensors(&dimensions);
        let tokens = prompt(9, 11);
        let expected = naive_forward(&dimensions, &tensors, &tokens).1;
        let mut decoder: Decoder<Cpu> = Decoder::load(&gguf(&dimensions, &tensors, Format::F32), OPTIONS).unwrap();
        assert!(decoder.observed().is_empty());
        decoder.observe(Observing { product_columns_max: 1024 });
        let sequence = decoder.open_sequence();
        for tokens in [&tokens[..4], &tokens[4..]] {
            let step = Step { sequence, tokens, adapter: None, logits: LogitsFor::All };
            decoder.forward(&[step]).unwrap();
        }
        let found = decoder.observed();
        assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
        for (name, sums) in &found {
            assert_eq!(sums.n_rows, [tokens.len() as f64], "{name}");
            let apart: f64 = sums.squares.iter().zip(&expected[name]).map(|(a, b)| (a - b).abs()).sum();
            assert!(apart < 1e-3 * expected[name].iter().sum::<f64>(), "{name}: {apart}");
            let (products, width) = (sums.products.as_ref().unwrap(), sums.squares.len());
            for (column, square) in sums.squares.iter().enumerate() {
                assert!((products[column * width + column] - square).abs() < 1e-4 * (1.0 + square), "{name} {column}");
                assert_eq!(products[column * width], products[column]);
            }
        }
        assert!(decoder.observed().is_empty());
        let (q, v) = (&found["blk.0.attn_q.weight"], &found["blk.0.attn_v.weight"]);
        assert!(std::sync::Arc::ptr_eq(q.products.as_ref().unwrap(), v.products.as_ref().unwrap()));
    }
}

#[test]
fn weights_of_tokens_count_what_they_read_so_often() {
    let tensors = tensors(&TINY);
    let tokens = prompt(9, 8);
    let mut decoder: Decoder<Cpu> = Decoder::load(&gguf(&TINY, &tensors, Format::F32), OPTIONS).unwrap();
    let mut observed = |weights: &[f32]| {
        decoder.observe(Observing { product_columns_max: 1024 });
        let sequence = decoder.open_sequence();
        let step = Step { sequence, tokens: &tokens, adapter: None, logits: LogitsFor::Last };
        decoder.forward_weighted(step, weights).unwrap();
        decoder.observed()
    };
    let half = |begins: usize| std::array::from_fn::<f32, 8, _>(|it| if it / 4 == begins { 2.0 } else { 0.0 });
    let (once, first, rest) = (observed(&[1.0; 8]), observed(&half(0)), observed(&half(1)));
    for (name, once) in &once {
        assert_eq!((once.n_rows[0], first[name].n_rows[0]), (8.0, 8.0), "{name}");
        let products = |sums: &ColumnSums| sums.products.as_ref().unwrap().to_vec();
        let halves = products(&first[name]).into_iter().zip(products(&rest[name])).map(|(a, b)| (a + b) / 2.0);
        let largest = products(once).into_iter().fold(0.0, f64::max);
        for (whole, halves) in products(once).into_iter().zip(halves) {
            assert!((whole - halves).abs() < 1e-5 * largest, "{name}: {whole} {halves}");
        }
    }
}
