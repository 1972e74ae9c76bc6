//! Every operation on every instruction set against a naive reference, each case with its own tolerance.
//!
//! The measure is NMSE = Σ(a−b)² / Σa². Where a tolerance is zero, the numbers must be equal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;

use super::*;
use crate::{KvFormat, PAGE_TOKENS, RotaryPairs};

/// Numbers from -1 to 1 that look random; the same for the same seed.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// On every set of instructions, alone and with other threads.
fn every_backend(mut check: impl FnMut(&Cpu)) {
    for choice in Choice::available() {
        for threads in [1, 3] {
            check(&Cpu::with_choice(threads, choice));
        }
    }
}

fn nmse(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let pairs = || expected.iter().zip(found).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let error: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = pairs().map(|(a, _)| a * a).sum();
    if error == 0.0 { 0.0 } else { error / size }
}

fn agree(what: &str, cpu: &Cpu, expected: &[f32], found: &[f32], tolerance: f64) {
    let nmse = nmse(expected, found);
    assert!(nmse <= tolerance, "{what} on {} with {} threads: nmse {nmse:e}", cpu.path(), cpu.threads());
}

fn buffer(cpu: &Cpu, values: &[f32]) -> CpuBuffer {
    let mut buffer = cpu.buffer(values.len()).unwrap();
    cpu.write(values, &mut buffer);
    buffer
}

fn encoded(format: Format, weights: &[f32], cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(cols).unwrap() * weights.len() / cols];
    format.encode(weights, None, &mut bytes);
    bytes
}

fn load(cpu: &Cpu, format: Format, bytes: &[u8], rows: usize, cols: usize) -> CpuMatrix {
    cpu.load(WeightView { name: "w", format, rows, cols, bytes }).unwrap()
}

/// Rows that are no multiple of a tile, and so many tokens that every block of rows is used.
const SHAPES: [(usize, usize, usize); 5] = [(1, 16, 256), (3, 33, 512), (15, 48, 256), (8, 7, 256), (45, 130, 512)];

#[test]
fn every_format_has_tiles() {
    every_backend(|cpu| assert!(Format::ALL.iter().all(|it| cpu.reads(*it))));
}

#[test]
fn matmul_equals_the_formats_own_dot_product() {
    every_backend(|cpu| {
        for &format in Format::ALL.iter().filter(|it| cpu.reads(**it)) {
            for (tokens, rows, cols) in SHAPES {
                let bytes = encoded(format, &numbers(1, rows * cols), cols);
                let x = numbers(2, tokens * cols);
                let row_bytes = format.row_bytes(cols).unwrap();
                let dot = |at: usize| {
                    let row = &bytes[at % rows * row_bytes..][..row_bytes];
                    format.dot(row, &x[at / rows * cols..][..cols])
                };
                let expected: Vec<f32> = (0..tokens * rows).map(dot).collect();
                let mut out = cpu.buffer(tokens * rows).unwrap();
                cpu.matmul(&load(cpu, format, &bytes, rows, cols), &buffer(cpu, &x), tokens, &mut out);
                // The reference rounds ties of activations away from zero, the kernels, like llama.cpp on x86, to even:
                // one level in some thousand differs by one.
                let tolerance = if format == Format::Q8_0 || format.block_weights() == 32 { 1e-6 } else { 1e-11 };
                agree(format.name(), cpu, &expected, out.values(), tolerance);
            }
        }
    });
}

#[test]
fn a_token_gets_the_same_bits_in_any_company() {
    every_backend(|cpu| {
        for &format in Format::ALL.iter().filter(|it| cpu.reads(**it)) {
            let (tokens, rows, cols) = (23, 40, 512);
            let matrix = load(cpu, format, &encoded(format, &numbers(3, rows * cols), cols), rows, cols);
            let x = numbers(4, tokens * cols);
            let mut together = cpu.buffer(tokens * rows).unwrap();
            cpu.matmul(&matrix, &buffer(cpu, &x), tokens, &mut together);
            let mut alone = cpu.buffer(rows).unwrap();
            for token in 0..tokens {
                cpu.matmul(&matrix, &buffer(cpu, &x[token * cols..(token + 1) * cols]), 1, &mut alone);
                assert_eq!(alone.values(), &together.values()[token * rows..(token + 1) * rows], "{}", format.name());
            }
        }
    });
}

/// Trials choose among these by time alone, which is right only as long as it changes no number.
#[test]
fn products_have_the_same_bits_on_every_set_with_vectors() {
    for &format in Format::ALL {
        for tokens in [1, 14] {
            let (rows, cols) = (72, 512);
            let bytes = encoded(format, &numbers(8, rows * cols), cols);
            let x = numbers(9, tokens * cols);
            let product = |choice: Choice| {
                let cpu = Cpu::with_choice(2, choice);
                let mut out = cpu.buffer(tokens * rows).unwrap();
                cpu.matmul(&load(&cpu, format, &bytes, rows, cols), &buffer(&cpu, &x), tokens, &mut out);
                out.values().to_vec()
            };
            let choices = Choice::with_vectors();
            let found: Vec<_> = choices.iter().map(|it| product(*it)).collect();
            for (choice, pair) in choices.iter().zip(found.windows(2)) {
                assert_eq!(pair[0], pair[1], "{} on {} and on the next", format.name(), choice.name());
            }
        }
    }
}

#[test]
fn matrices_that_share_their_rows_are_multiplied_as_each_alone() {
    every_backend(|cpu| {
        for tokens in [1, 14] {
            let cols = 256;
            let load = |format: Format, rows: usize| {
                load(cpu, format, &encoded(format, &numbers(rows as u64, rows * cols), cols), rows, cols)
            };
            // Both roundings, one of them twice, and none.
            let matrices = [(Format::Q4_K, 80), (Format::Q8_0, 7), (Format::Q6_K, 33), (Format::F16, 48)];
            let matrices = matrices.map(|(format, rows)| load(format, rows));
            let x = buffer(cpu, &numbers(7, tokens * cols));
            let mut together: Vec<_> = matrices.iter().map(|it| cpu.buffer(tokens * it.rows()).unwrap()).collect();
            let [a, b, c, d] = &mut together[..] else { panic!("four results") };
            cpu.matmuls(matrices.each_ref(), &x, tokens, [a, b, c, d]);
            for (matrix, together) in matrices.iter().zip(&together) {
                let mut alone = cpu.buffer(tokens * matrix.rows()).unwrap();
                cpu.matmul(matrix, &x, tokens, &mut alone);
                assert_eq!(alone.values(), together.values());
            }
        }
    });
}

#[test]
fn embed_equals_the_formats_own_decoding() {
    every_backend(|cpu| {
        for &format in Format::ALL.iter().filter(|it| cpu.reads(**it)) {
            let (rows, cols) = (37, 512);
            let bytes = encoded(format, &numbers(5, rows * cols), cols);
            let mut expected = vec![0.0; rows * cols];
            format.decode(&bytes, &mut expected);
            let tokens: Vec<u32> = (0..rows as u32).collect();
            let mut out = cpu.buffer(rows * cols).unwrap();
            cpu.embed(&load(cpu, format, &bytes, rows, cols), &tokens, &mut out);
            agree(format.name(), cpu, &expected, out.values(), 0.0);
        }
    });
}

#[test]
fn all_zero_rows_and_activations_give_zeroes() {
    every_backend(|cpu| {
        for &format in Format::ALL.iter().filter(|it| cpu.reads(**it)) {
            let matrix = load(cpu, format, &encoded(format, &[0.0; 512], 256), 2, 256);
            for x in [vec![0.0; 256], numbers(6, 256)] {
                let mut out = buffer(cpu, &[1.0, 1.0]);
                cpu.matmul(&matrix, &buffer(cpu, &x), 1, &mut out);
                assert_eq!(out.values(), [0.0, 0.0], "{}", format.name());
            }
        }
    });
}

#[test]
fn add_low_rank_adds_to_its_tokens_only() {
    every_backend(|cpu| {
        let (tokens, rows, cols, rank) = (11, 40, 64, 6);
        let (a, b) = (numbers(7, rank * cols), numbers(8, rows * rank));
        let (x, start) = (numbers(9, tokens * cols), numbers(10, tokens * rows));
        let mut expected = start.clone();
        for token in 3..9 {
            for row in 0..rows {
                let middle = |r: usize| (0..cols).map(|c| a[r * cols + c] * x[token * cols + c]).sum::<f32>();
                let sum: f32 = (0..rank).map(|r| b[row * rank + r] * middle(r)).sum();
                expected[token * rows + row] += 0.5 * sum;
            }
        }
        let update = LowRank {
            a: load(cpu, Format::F32, bytemuck::cast_slice(&a), rank, cols),
            b: load(cpu, Format::F32, bytemuck::cast_slice(&b), rows, rank),
            scale: 0.5,
        };
        let mut out = buffer(cpu, &start);
        cpu.add_low_rank(&update, &buffer(cpu, &x), 3..9, &mut out);
        agree("add_low_rank", cpu, &expected, out.values(), 1e-12);
    });
}

#[test]
fn rms_norm_and_its_fusion() {
    every_backend(|cpu| {
        for (rows, width) in [(1, 7), (5, 64), (300, 130)] {
            let (x, weight, more) = (numbers(11, rows * width), numbers(12, width), numbers(13, rows * width));
            let norm = |x: &[f32]| -> Vec<f32> {
                let row = |row: &[f32]| {
                    let mean = row.iter().map(|it| f64::from(it * it)).sum::<f64>() / width as f64;
                    let scale = 1.0 / (mean + 1e-5).sqrt();
                    row.iter().zip(&weight).map(|(x, w)| (f64::from(*x) * scale) as f32 * w).collect::<Vec<_>>()
                };
                x.chunks(width).flat_map(row).collect()
            };
            let weights = buffer(cpu, &weight);
            let mut out = cpu.buffer(rows * width).unwrap();
            cpu.rms_norm(&buffer(cpu, &x), &weights, 1e-5, rows, &mut out);
            agree("rms_norm", cpu, &norm(&x), out.values(), 1e-12);
            let sum: Vec<f32> = x.iter().zip(&more).map(|(a, b)| a + b).collect();
            let mut into = buffer(cpu, &x);
            cpu.add_rms_norm(&buffer(cpu, &more), &mut into, &weights, 1e-5, (rows, width), &mut out);
            agree("add", cpu, &sum, into.values(), 0.0);
            agree("add_rms_norm", cpu, &norm(&sum), out.values(), 1e-12);
        }
    });
}

#[test]
fn rope_turns_pairs() {
    every_backend(|cpu| {
        // The whole of each head, and the first part of it.
        for (n_heads, dim, turned) in [(2, 8, 8), (3, 16, 12)] {
            let tokens = 3;
            let x = numbers(14, tokens * n_heads * dim);
            let turns: Vec<f64> = (0..tokens * turned / 2).map(|it| it as f64 * 0.7).collect();
            let by_token = |token: usize| &turns[token * turned / 2..(token + 1) * turned / 2];
            let angles = |token| {
                let cosines = by_token(token).iter().map(|it| it.cos() as f32);
                cosines.chain(by_token(token).iter().map(|it| it.sin() as f32)).collect::<Vec<_>>()
            };
            let angles: Vec<f32> = (0..tokens).flat_map(angles).collect();
            for (pairs, place) in [
                (RotaryPairs::Adjacent, (|pair, side, _| 2 * pair + side) as fn(usize, usize, usize) -> usize),
                (RotaryPairs::Halves, |pair, side, half| side * half + pair),
            ] {
                let mut expected = x.clone();
                for (index, head) in expected.chunks_mut(dim).enumerate() {
                    for (pair, turn) in by_token(index / n_heads).iter().enumerate() {
                        let (i, j) = (place(pair, 0, turned / 2), place(pair, 1, turned / 2));
                        let (a, b) = (f64::from(head[i]), f64::from(head[j]));
                        head[i] = (a * turn.cos() - b * turn.sin()) as f32;
                        head[j] = (a * turn.sin() + b * turn.cos()) as f32;
                    }
                }
                let mut out = buffer(cpu, &x);
                let heads = RotaryHeads { n_heads, head_dim: dim, rotary_dim: turned, pairs };
                cpu.rope(&mut out, &buffer(cpu, &angles), tokens, heads);
                agree("rope", cpu, &expected, out.values(), 1e-13);
            }
        }
    });
}

#[test]
fn gates_and_gathering() {
    every_backend(|cpu| {
        let n = 40_001;
        let (gate, up) = (numbers(15, n).iter().map(|it| it * 12.0).collect::<Vec<_>>(), numbers(16, n));
        let silu = |x: f32| (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32;
        let expected: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| silu(*gate) * up).collect();
        let mut fused = buffer(cpu, &gate);
        cpu.swiglu(&mut fused, &buffer(cpu, &up), n);
        agree("swiglu", cpu, &expected, fused.values(), 1e-12);
        let mut composed = buffer(cpu, &gate);
        cpu.silu(&mut composed, n);
        cpu.multiply(&buffer(cpu, &up), n, &mut composed);
        agree("silu and multiply", cpu, &expected, composed.values(), 1e-12);
        let mut rows = cpu.buffer(6).unwrap();
        cpu.gather(&buffer(cpu, &up), &[4, 0, 4], 2, &mut rows);
        assert_eq!(rows.values(), [up[8], up[9], up[0], up[1], up[8], up[9]]);
    });
}

#[test]
fn gelu_caps_and_scales() {
    every_backend(|cpu| {
        let n = 40_001;
        let x: Vec<f32> = numbers(22, n).iter().map(|it| it * 9.0).collect();
        let up = numbers(23, n);
        let slope = (2.0 / std::f64::consts::PI).sqrt();
        let gelu = |x: f64| x / 2.0 * (1.0 + (slope * (x + 0.044_715 * x * x * x)).tanh());
        let expected: Vec<f32> = x.iter().map(|it| gelu(f64::from(*it)) as f32).collect();
        let gated: Vec<f32> = expected.iter().zip(&up).map(|(x, up)| x * up).collect();
        let (mut plain, mut fused) = (buffer(cpu, &x), buffer(cpu, &x));
        cpu.gelu(&mut plain, n);
        agree("gelu", cpu, &expected, plain.values(), 1e-12);
        cpu.geglu(&mut fused, &buffer(cpu, &up), n);
        agree("geglu", cpu, &gated, fused.values(), 1e-12);
        let mut capped = buffer(cpu, &x);
        cpu.cap(&mut capped, n, 3.0);
        let expected: Vec<f32> = x.iter().map(|it| (3.0 * (f64::from(*it) / 3.0).tanh()) as f32).collect();
        agree("cap", cpu, &expected, capped.values(), 1e-12);
        let mut scaled = buffer(cpu, &x);
        cpu.scale(&mut scaled, n - 1, 1.5);
        let expected: Vec<f32> = x.iter().enumerate().map(|(at, x)| if at < n - 1 { x * 1.5 } else { *x }).collect();
        agree("scale", cpu, &expected, scaled.values(), 0.0);
    });
}

#[test]
fn rows_are_added_where_they_belong() {
    every_backend(|cpu| {
        let (width, start, x) = (5, numbers(24, 4 * 5), numbers(25, 2 * 5));
        let mut expected = start.clone();
        for (index, (row, weight)) in [(3, 0.5), (1, -2.0)].into_iter().enumerate() {
            for column in 0..width {
                expected[row * width + column] += weight * x[index * width + column];
            }
        }
        let mut into = buffer(cpu, &start);
        cpu.add_rows(&buffer(cpu, &x), &[3, 1], &[0.5, -2.0], width, &mut into);
        agree("add_rows", cpu, &expected, into.values(), 1e-14);
    });
}

#[test]
fn a_bias_is_added_to_every_row() {
    every_backend(|cpu| {
        for (rows, width) in [(1, 5), (3, 48), (400, 130)] {
            let (x, bias) = (numbers(20, rows * width), numbers(21, width));
            let expected: Vec<f32> = x.iter().enumerate().map(|(at, it)| it + bias[at % width]).collect();
            let mut into = buffer(cpu, &x);
            cpu.add_bias(&buffer(cpu, &bias), rows, &mut into);
            agree("add_bias", cpu, &expected, into.values(), 0.0);
        }
    });
}

/// Rounds to f16 and back, as the cache does.
fn halved(values: &[f32]) -> Vec<f32> {
    values.iter().map(|it| half::f16::from_f32(*it).to_f32()).collect()
}

/// Rounds to 8 bits and back as the cache does, heads of `dim` numbers: a head's last block is filled up with zeroes.
fn rounded_to_levels(values: &[f32], dim: usize) -> Vec<f32> {
    let of_block = |block: &[f32]| {
        let mut padded = [0.0; 32];
        padded[..block.len()].copy_from_slice(block);
        let bytes = encoded(Format::Q8_0, &padded, 32);
        Format::Q8_0.decode(&bytes, &mut padded);
        padded[..block.len()].to_vec()
    };
    values.chunks(dim).flat_map(|head| head.chunks(32)).flat_map(of_block).collect()
}

/// What a cache of a format keeps of numbers, and queries are rounded to before they meet keys.
fn kept(format: KvFormat, values: &[f32], dim: usize) -> Vec<f32> {
    match format {
        KvFormat::F16 => halved(values),
        KvFormat::Q8_0 => rounded_to_levels(values, dim),
    }
}

/// Attention of one query over all keys and values, `[positions, dim]`, in f64.
fn attend_naively(
    (attending, format): (&Attending, KvFormat),
    query: &[f32],
    keys: &[&[f32]],
    values: &[&[f32]],
) -> Vec<f32> {
    let dim = query.len();
    let dot = |key: &&[f32]| key.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|it| dot(it) * f64::from(attending.scale)).collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|it| (it - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    // Weights meet values in f16 where values are in f16.
    let rounded = |weight: f64| if format == KvFormat::F16 { half::f16::from_f64(weight).to_f64() } else { weight };
    let weights: Vec<f64> = weights.iter().map(|it| rounded(it / total)).collect();
    let out = |d: usize| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>();
    (0..dim).map(|d| out(d) as f32).collect()
}

/// What the tokens of one sequence see of each other; `tokens` are its rows of queries, keys and values.
fn attend_sequence(
    (attending, format): (&Attending, KvFormat),
    (n_kv_heads, dim): (usize, usize),
    tokens: Range<usize>,
    [queries, keys, values]: [&[f32]; 3],
) -> Vec<f32> {
    let mut out = Vec::new();
    for token in tokens.clone() {
        for head in 0..attending.n_heads {
            let row = |token: usize| (token * n_kv_heads + head * n_kv_heads / attending.n_heads) * dim;
            let start = attending.window.map_or(tokens.start, |it| tokens.start.max((token + 1).saturating_sub(it)));
            let keys: Vec<&[f32]> = (start..=token).map(|it| &keys[row(it)..][..dim]).collect();
            let values: Vec<&[f32]> = (start..=token).map(|it| &values[row(it)..][..dim]).collect();
            let query = &queries[(token * attending.n_heads + head) * dim..][..dim];
            out.extend(attend_naively((attending, format), query, &keys, &values));
        }
    }
    out
}

/// Sequences of these lengths in pages of one cache, against a list; then one token from a copy of its last page.
fn check_attention(
    cpu: &Cpu,
    format: KvFormat,
    attending: Attending,
    (n_kv_heads, dim): (usize, usize),
    lengths: &[usize],
) {
    let n_heads = attending.n_heads;
    let total: usize = lengths.iter().sum();
    let keys = numbers(17, total * n_kv_heads * dim);
    let values = numbers(18, total * n_kv_heads * dim);
    let queries: Vec<f32> = numbers(19, total * n_heads * dim).iter().map(|it| it * 3.0).collect();
    let shape = CacheShape { format, n_layers: 2, n_pages: 16, n_kv_heads, head_dim: dim };
    let mut cache = cpu.cache(shape).unwrap();
    // What another sequence left behind must not matter.
    let dirt = buffer(cpu, &vec![f32::NAN; 16 * PAGE_TOKENS * n_kv_heads * dim]);
    let everywhere: Vec<Slot> =
        (0..16 * PAGE_TOKENS as u32).map(|it| Slot { page: it / 32, offset: it % 32 }).collect();
    cpu.store(&mut cache, 1, &dirt, &dirt, &everywhere);
    let (mut pages, mut slots, mut next) = (Vec::new(), Vec::new(), 15);
    for length in lengths {
        let own: Vec<u32> = (0..length.div_ceil(PAGE_TOKENS) as u32).map(|it| next - it).collect();
        next -= own.len() as u32;
        slots.extend((0..*length).map(|it| Slot { page: own[it / PAGE_TOKENS], offset: (it % PAGE_TOKENS) as u32 }));
        pages.push(own);
    }
    cpu.store(&mut cache, 1, &buffer(cpu, &keys), &buffer(cpu, &values), &slots);
    let seen = [&queries, &keys, &values].map(|it| kept(format, it, dim));
    let seen = [seen[0].as_slice(), &seen[1], &seen[2]];
    let (mut spans, mut expected, mut first) = (Vec::new(), Vec::new(), 0);
    for (length, pages) in lengths.iter().zip(&pages) {
        spans.push(Span { first_token: first, n_tokens: *length, position: 0, pages });
        expected.extend(attend_sequence((&attending, format), (n_kv_heads, dim), first..first + length, seen));
        first += length;
    }
    let queries = buffer(cpu, &queries);
    let mut out = cpu.buffer(total * n_heads * dim).unwrap();
    cpu.attend(&cache, 1, &queries, attending, &spans, &mut out);
    // A weight that lies between two halves may go either way; and a level, since the reference rounds ties away from
    // zero and by the inverse of the scale.
    let tolerance = if format == KvFormat::F16 { 1e-9 } else { 1e-6 };
    agree(&format!("attend {} {dim}", format.name()), cpu, &expected, out.values(), tolerance);

    let (length, own) = (lengths[0], &pages[0]);
    cpu.copy_page(&mut cache, own[own.len() - 1], 0);
    let mut copied = own.clone();
    *copied.last_mut().unwrap() = 0;
    let span = Span { first_token: length - 1, n_tokens: 1, position: length - 1, pages: &copied };
    let mut again = cpu.buffer(total * n_heads * dim).unwrap();
    cpu.attend(&cache, 1, &queries, attending, &[span], &mut again);
    let row = (length - 1) * n_heads * dim..length * n_heads * dim;
    assert_eq!(again.values()[row.clone()], out.values()[row]);
}

#[test]
fn attention_over_pages_equals_attention_over_a_list() {
    every_backend(|cpu| {
        for (n_heads, n_kv_heads, dim, window, lengths) in [
            (4, 2, 64, None, vec![70, 1, 33]),
            (8, 1, 32, None, vec![32, 40]),
            (3, 3, 16, None, vec![5]),
            (4, 2, 48, Some(9), vec![70, 1, 33]),
            (2, 2, 16, Some(40), vec![101, 40]),
            (2, 1, 16, Some(1), vec![34]),
            (8, 2, 80, None, vec![45, 2]),
            (4, 4, 96, Some(20), vec![45]),
            (8, 1, 128, None, vec![67, 3]),
        ] {
            for format in KvFormat::ALL {
                let scale = if window.is_some() { 0.3 } else { 1.0 / (dim as f32).sqrt() };
                check_attention(cpu, format, Attending { n_heads, scale, window }, (n_kv_heads, dim), &lengths);
            }
        }
    });
}

#[test]
fn a_cache_in_8_bits_is_little_more_than_half_as_large() {
    let shape = |format| CacheShape { format, n_layers: 3, n_pages: 5, n_kv_heads: 2, head_dim: 64 };
    let n = 2 * 3 * 5 * PAGE_TOKENS * 2 * 64;
    assert_eq!(shape(KvFormat::F16).bytes(), Some(2 * n));
    assert_eq!(shape(KvFormat::Q8_0).bytes(), Some(n + n / 16));
    assert_eq!(KvFormat::Q8_0.head_bytes(80), 80 + 6);
}

#[test]
fn wrong_weights_are_errors_that_name_them() {
    let cpu = Cpu::new(1);
    let view = WeightView { name: "blk.0.ffn_up.weight", format: Format::Q4_K, rows: 2, cols: 128, bytes: &[] };
    let error = cpu.load(view).unwrap_err().to_string();
    assert!(error.contains("blk.0.ffn_up.weight") && error.contains("256"), "{error}");
    let error = cpu.load(WeightView { cols: 256, bytes: &[0; 100], ..view }).unwrap_err().to_string();
    assert!(error.contains("144 bytes, found 100"), "{error}");
    let huge = CacheShape { format: KvFormat::Q8_0, n_layers: usize::MAX, n_pages: 2, n_kv_heads: 2, head_dim: 16 };
    assert!(matches!(cpu.cache(huge), Err(KernelError::OutOfMemory { .. })));
}
