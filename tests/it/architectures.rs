//! Every architecture from `config.json` to logits: what transformers and stock llama.cpp compute, ours must.
//!
//! Weights come from a generator that `tests/fixtures/architectures/make.py` has too, so only logits are recorded.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fsq_checkpoint::{Checkpoint, CheckpointFiles, Dimensions, NamedTensor, StoredType, tensor_names};
use fsq_gguf::Gguf;
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LogitsFor, Step};
use fsq_quantizer::{Mix, Plan, Provenance, quantize};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::oracle::{greedy, last_rows, last_rows_with};
use crate::recorded::{relative_distance, tensors};
use crate::tree::root;

/// How far logits may be from transformers', whose attention is in f32 where ours rounds keys and weights to f16.
const DISTANCE_MAX: f64 = 1e-3;
/// The same from llama.cpp's, which rounds alike in `F32` files.
const STOCK_DISTANCE_MAX: f64 = 1e-3;
/// And in quantized files, where both round activations to 8 bits too: a last bit of a sum tips a level over, and the
/// policies are so small that one level is seen. Further away than that only as far as llama.cpp with flash attention
/// is from itself without.
const STOCK_QUANTIZED_DISTANCE_MAX: f64 = 1e-2;

/// Where llama.cpp's two best logits are closer than this part of the logits' root mean square, either token is right:
/// of `F16` files it rounds activations to 16 bits, too (2⁻¹¹ of each, at some ten products on the way), and ours does
/// not.
const TIE: f64 = 5e-3;
/// Of all greedy tokens, the part that must not be such ties.
const CLEAR_MIN: f64 = 0.97;
/// Tokens of a prompt that greedy tokens follow.
const PROMPT_TOKENS: usize = 6;
/// Fewer greedy tokens than this show nothing.
const GREEDY_TOKENS_MIN: usize = 16;

/// One policy of the fixture.
pub(crate) struct Case {
    pub(crate) name: String,
    config: Value,
    pub(crate) tokens: Vec<u32>,
    /// Tokens that stock llama.cpp computes alike.
    pub(crate) stock_tokens: usize,
    /// What the decoder is asked for, in tokens.
    pub(crate) context: usize,
    /// `[tokens, vocabulary]`, by transformers.
    logits: Vec<f32>,
}

pub(crate) fn cases() -> Vec<Case> {
    let folder = root().join("tests/fixtures/architectures");
    let listed: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let mut logits = tensors(&folder.join("logits.safetensors"));
    assert_eq!(listed.len(), logits.len());
    let number = |it: &Value| usize::try_from(it.as_u64().unwrap()).unwrap();
    let case = |it: Value| {
        let name = it["name"].as_str().unwrap().to_string();
        Case {
            config: it["config"].clone(),
            tokens: serde_json::from_value(it["tokens"].clone()).unwrap(),
            stock_tokens: number(&it["stock_tokens"]),
            context: number(&it["context"]),
            logits: logits.remove(&name).unwrap(),
            name,
        }
    };
    listed.into_iter().map(case).collect()
}

/// Numbers from -1 to 1: SplitMix64 from the FNV-1a hash of a name.
pub(crate) fn numbers(name: &str, n: usize) -> Vec<f32> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let number = |index: u64| {
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (1..=n as u64).map(number).collect()
}

/// A tensor as `make.py` makes it: norms around what leaves activations as they are, matrices that keep their size.
fn tensor(name: &str, shape: &[usize], norm: f32) -> Vec<f32> {
    let values = numbers(name, shape.iter().product());
    let (offset, scale) = match shape {
        _ if name.ends_with(".bias") => (0.0, 0.5),
        [_] => (norm, 0.25),
        _ if name.contains("embed_tokens") => (0.0, 1.0),
        _ => (0.0, 0.5f32.powi((shape[1].ilog2() / 2).try_into().unwrap())),
    };
    values.into_iter().map(|it| it * scale + offset).collect()
}

/// A letter for each token but the last two.
fn tokenizer(vocabulary: usize) -> String {
    let letters = (b'0'..=b'z').filter(u8::is_ascii_alphanumeric).map(|it| char::from(it).to_string());
    let vocab: serde_json::Map<String, Value> = letters.zip((0..vocabulary - 2).map(Value::from)).collect();
    assert_eq!(vocab.len(), vocabulary - 2);
    let special = |content: &str, id: usize| json!({"id": id, "content": content, "special": true});
    json!({
        "added_tokens": [special("<|bos|>", vocabulary - 2), special("<|end|>", vocabulary - 1)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
    .to_string()
}

/// Writes a checkpoint of the case's weights.
pub(crate) fn write_checkpoint(case: &Case, folder: &Path) -> Checkpoint {
    let path = folder.join(&case.name);
    let dimensions = Dimensions::from_config(Path::new(&case.name), &case.config).unwrap();
    let like = CheckpointFiles {
        config: case.config.to_string().into(),
        weights: Cow::Borrowed(&[]),
        tokenizer: tokenizer(dimensions.vocab).into(),
        chat_template: None,
    };
    let norm = if case.name.starts_with("gemma") { 0.0 } else { 1.0 };
    let made = |it: fsq_checkpoint::TensorName| NamedTensor {
        values: tensor(&it.hf, &it.shape, norm).into(),
        name: it.hf,
        shape: it.shape,
    };
    let tensors: Vec<_> = tensor_names(&dimensions).into_iter().map(made).collect();
    Checkpoint::write(&path, &like, &dimensions, (62, 63), StoredType::F32, &tensors).unwrap();
    Checkpoint::open(&path).unwrap()
}

pub(crate) fn convert(checkpoint: &Checkpoint, mix: Mix) -> PathBuf {
    let provenance = Provenance::of("test", checkpoint, &[], None).unwrap();
    let path = checkpoint.path.join(format!("{}.gguf", mix.name()));
    // llama.cpp expects certain tokens of whatever has `phi3` in its name.
    let plan = Plan { name: Some("random".into()), ..Plan::new(mix) };
    let encoded = quantize(checkpoint, &[], &plan, None, &provenance, &path, &mut |_, _| {}).unwrap();
    encoded.draft.publish().unwrap()
}

pub(crate) fn decoder(file: &Path, context_tokens: usize) -> Decoder<Cpu> {
    let options = DecoderOptions { threads: 2, context_tokens, kv: KvFormat::F16, max_sequences: 4 };
    Decoder::load(&Gguf::open(file).unwrap(), options).unwrap()
}

/// Logits after every token, read in pieces of so many.
pub(crate) fn in_pieces(decoder: &mut Decoder<Cpu>, tokens: &[u32], piece: usize) -> Vec<f32> {
    let sequence = decoder.open_sequence();
    let mut rows = Vec::new();
    for tokens in tokens.chunks(piece) {
        let step = Step { sequence, tokens, logits: LogitsFor::All, adapter: None };
        rows.extend_from_slice(decoder.forward(&[step]).unwrap().rows(0));
    }
    decoder.close(sequence);
    rows
}

/// The same while two other sequences, ahead and behind, are read in the same passes.
fn in_company(decoder: &mut Decoder<Cpu>, tokens: &[u32]) -> Vec<f32> {
    let (ahead, own, behind) = (decoder.open_sequence(), decoder.open_sequence(), decoder.open_sequence());
    let reversed: Vec<u32> = tokens.iter().rev().copied().collect();
    let step = |sequence, tokens, logits| Step { sequence, tokens, logits, adapter: None };
    decoder.forward(&[step(ahead, &reversed[..17], LogitsFor::None)]).unwrap();
    let mut rows = Vec::new();
    for (index, piece) in tokens.chunks(5).enumerate() {
        let other = &reversed[index..=index];
        let steps = [
            step(ahead, other, LogitsFor::Last),
            step(own, piece, LogitsFor::All),
            step(behind, &reversed[..3], LogitsFor::None),
        ];
        rows.extend_from_slice(decoder.forward(&steps).unwrap().rows(1));
    }
    [ahead, own, behind].into_iter().for_each(|it| decoder.close(it));
    rows
}

#[test]
fn logits_equal_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    for case in cases() {
        let file = convert(&write_checkpoint(&case, folder.path()), Mix::F32);
        let mut decoder = decoder(&file, case.context);
        let whole = in_pieces(&mut decoder, &case.tokens, case.tokens.len());
        let apart = relative_distance(&whole, &case.logits);
        println!("{}: {apart:.1e} from transformers", case.name);
        if apart.is_nan() || apart > DISTANCE_MAX {
            far.push(format!("{} {apart:.1e}", case.name));
        }
        assert_eq!(in_pieces(&mut decoder, &case.tokens, 1), whole, "{}, token by token", case.name);
        assert_eq!(in_pieces(&mut decoder, &case.tokens, 7), whole, "{}, in pieces", case.name);
        assert_eq!(in_company(&mut decoder, &case.tokens), whole, "{}, in company", case.name);
    }
    assert!(far.is_empty(), "{far:?}");
}

#[test]
fn stock_llama_cpp_loads_every_file_and_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    for case in cases() {
        let file = convert(&write_checkpoint(&case, folder.path()), Mix::F32);
        let rows = in_pieces(&mut decoder(&file, case.context), &case.tokens, case.tokens.len());
        far.extend(far_from_stock(&case, Mix::F32, &file, &rows, STOCK_DISTANCE_MAX));
    }
    assert!(far.is_empty(), "{far:?}");
}

/// The case, if logits after all of its tokens are further from llama.cpp's than that.
fn far_from_stock(case: &Case, mix: Mix, file: &Path, rows: &[f32], limit: f64) -> Option<String> {
    let n = case.stock_tokens;
    let ends: Vec<usize> = [1, 2, n / 2, n].into_iter().filter(|it| *it == 1 || *it <= n && *it > 0).collect();
    let texts: Vec<Vec<u32>> = ends.iter().map(|it| case.tokens[..*it].to_vec()).collect();
    let theirs = last_rows(file, &texts).concat();
    let vocabulary = rows.len() / case.tokens.len();
    let row = |end: &usize| &rows[(end - 1) * vocabulary..end * vocabulary];
    let ours: Vec<f32> = ends.iter().flat_map(row).copied().collect();
    let apart = relative_distance(&ours, &theirs);
    println!("{} {}: {apart:.1e} from llama.cpp", case.name, mix.name());
    // Where it computes no token alike, that it loads the file is all there is to see.
    if n == 0 || apart <= limit {
        return None;
    }
    let with_flash = last_rows_with(file, &texts, &json!({"flash": true})).concat();
    let from_itself = relative_distance(&with_flash, &theirs);
    println!("{} {}: llama.cpp with flash attention is {from_itself:.1e} from itself", case.name, mix.name());
    let allowed = mix != Mix::F32 && apart <= from_itself;
    (!allowed).then(|| format!("{} {} {apart:.1e}", case.name, mix.name()))
}

/// The case with rows of whole super-blocks, where its heads do not depend on the width.
pub(crate) fn widened(mut case: Case) -> Case {
    if let Some(config) = case.config.as_object_mut().filter(|it| it.contains_key("head_dim")) {
        // llama.cpp loads a Qwen2 only where its heads together are as wide as the stream.
        let is_bound = config["model_type"] == "qwen2";
        let widths: &[&str] = if is_bound { &[] } else { &["hidden_size", "moe_intermediate_size"] };
        for key in widths.iter().chain(&["intermediate_size"]) {
            if let Some(width) = config.get_mut(*key) {
                *width = width.as_u64().unwrap().next_multiple_of(256).into();
            }
        }
    }
    case
}

#[test]
fn quantized_files_give_the_logits_of_llama_cpp_however_work_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    for case in cases().into_iter().map(widened) {
        let checkpoint = write_checkpoint(&case, folder.path());
        for mix in [Mix::Q8_0, Mix::Q4_K_M] {
            let file = convert(&checkpoint, mix);
            let mut decoder = decoder(&file, case.context);
            let whole = in_pieces(&mut decoder, &case.tokens, case.tokens.len());
            assert_eq!(in_pieces(&mut decoder, &case.tokens, 1), whole, "{}, token by token", case.name);
            assert_eq!(in_pieces(&mut decoder, &case.tokens, 7), whole, "{}, in pieces", case.name);
            assert_eq!(in_company(&mut decoder, &case.tokens), whole, "{}, in company", case.name);
            far.extend(far_from_stock(&case, mix, &file, &whole, STOCK_QUANTIZED_DISTANCE_MAX));
        }
    }
    assert!(far.is_empty(), "{far:?}");
}

/// Cuts a checkpoint's file into two shards with an index, as those of large policies come.
fn cut_in_two(checkpoint: &Checkpoint) -> Checkpoint {
    let whole_path = checkpoint.path.join("model.safetensors");
    let bytes = std::fs::read(&whole_path).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.sort_by(|left, right| left.0.cmp(&right.0));
    let mut places = serde_json::Map::new();
    for (index, tensors) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let shard = format!("model-{:05}-of-00002.safetensors", index + 1);
        places.extend(tensors.iter().map(|it| (it.0.clone(), shard.clone().into())));
        let views = tensors.iter().map(|(name, view)| (name, view));
        safetensors::serialize_to_file(views, None, &checkpoint.path.join(shard)).unwrap();
    }
    let index = json!({"weight_map": places}).to_string();
    std::fs::write(checkpoint.path.join("model.safetensors.index.json"), index).unwrap();
    std::fs::remove_file(whole_path).unwrap();
    Checkpoint::open(&checkpoint.path).unwrap()
}

/// The lowest id among the largest logits.
fn best(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, it| if logits[it] > logits[best] { it } else { best }) as u32
}

/// Of every architecture: the file in 16 bits says what stock llama.cpp says. Ours reads the tokens that llama.cpp
/// wrote, so that a tie hides nothing that comes after it.
#[test]
fn greedy_tokens_of_16_bit_files_equal_those_of_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let family = |it: &Case| it.config["model_type"].as_str().unwrap().to_owned();
    let mut missing: BTreeSet<String> = cases().iter().map(family).collect();
    assert_eq!(missing.len(), 7, "{missing:?}");
    let (mut n_tokens, mut n_clear, mut wrong) = (0, 0, Vec::new());
    for case in cases() {
        let n = case.stock_tokens.saturating_sub(PROMPT_TOKENS);
        if n < GREEDY_TOKENS_MIN {
            continue;
        }
        missing.remove(&family(&case));
        let checkpoint = write_checkpoint(&case, folder.path());
        let file = convert(&checkpoint, Mix::F16);
        let whole = Gguf::open(&file).unwrap().file_sha256();
        let of_shards = Gguf::open(&convert(&cut_in_two(&checkpoint), Mix::F16)).unwrap().file_sha256();
        assert_eq!(whole, of_shards, "{} from shards", case.name);
        let mut decoder = decoder(&file, case.context);
        let prompts: Vec<&[u32]> = case.tokens.chunks_exact(PROMPT_TOKENS).collect();
        let theirs = greedy(&file, &prompts.iter().map(|it| json!(it)).collect::<Vec<_>>(), n);
        for (prompt, theirs) in prompts.iter().zip(&theirs) {
            assert_eq!(theirs.token_ids.len(), n, "{}", case.name);
            let read = [prompt, &theirs.token_ids[..n - 1]].concat();
            let rows = in_pieces(&mut decoder, &read, read.len());
            let logits = rows.chunks_exact(rows.len() / read.len()).skip(prompt.len() - 1);
            for (at, (logits, (token, margin))) in logits.zip(theirs.token_ids.iter().zip(&theirs.margins)).enumerate()
            {
                let square: f64 = logits.iter().map(|it| f64::from(*it).powi(2)).sum();
                n_tokens += 1;
                if *margin <= TIE * (square / logits.len() as f64).sqrt() {
                    continue;
                }
                n_clear += 1;
                if best(logits) != *token {
                    wrong.push(format!("{} after {at} tokens, where the margin is {margin:.1e}", case.name));
                }
            }
        }
    }
    println!("{n_clear} of {n_tokens} greedy tokens are no ties");
    assert!(missing.is_empty(), "no greedy tokens of {missing:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(f64::from(n_clear) >= CLEAR_MIN * f64::from(n_tokens), "{n_clear} of {n_tokens}");
}
