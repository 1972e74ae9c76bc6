//! Every kind of vocabulary against llama.cpp: its own texts and tokens, and live on a corpus of ours.

use std::path::{Path, PathBuf};

use fsq_checkpoint::{
    Architecture, Checkpoint, CheckpointFiles, Dimensions, NamedTensor, Options, StoredType, TensorName, tensor_names,
};
use fsq_gguf::{Draft, Gguf, Metadata, Value};
use fsq_model::{Part, Special, TextStream, Tokenizer};
use fsq_quantizer::{Mix, Plan, Provenance, quantize};
use serde_json::Value as JsonValue;

use crate::oracle;
use crate::tree::root;

/// Vocabularies that come with texts and their tokens.
const RECORDED: &[&str] = &[
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
];
/// Vocabularies without, which are asked live only.
const UNRECORDED: &[&str] = &["baichuan", "nomic-bert-moe"];
/// Vocabularies whose files lack what is needed to read them right, and what the refusal says.
const REFUSED: &[(&str, &str)] =
    &[("aquila", "tokenizer.ggml.pre"), ("gpt-neox", "tokenizer.ggml.pre"), ("bert-bge", "unigram")];

fn path(name: &str) -> PathBuf {
    oracle::vocabularies().join(format!("ggml-vocab-{name}.gguf"))
}

fn open(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn recorded_tokens_are_reproduced() {
    let mut n_texts = 0;
    for name in RECORDED {
        let file = path(name);
        let tokenizer = open(&file);
        let read = |extension: &str| std::fs::read_to_string(format!("{}.{extension}", file.display())).unwrap();
        let (texts, tokens) = (read("inp"), read("out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let tokens: Vec<&str> = tokens.lines().collect();
        // What follows the last separator is no text.
        assert!(texts.len() == tokens.len() || texts.len() == tokens.len() + 1, "{name}");
        for (text, tokens) in texts.iter().zip(tokens) {
            let tokens: Vec<u32> = tokens.split_whitespace().map(|it| it.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, Special::Parse), tokens, "{name}: {text:?}");
            n_texts += 1;
        }
    }
    println!("{} vocabularies, {n_texts} texts, no difference", RECORDED.len());
    assert!(n_texts > 500, "only {n_texts} texts");
}

#[test]
fn vocabularies_that_say_too_little_are_refused() {
    for (name, expected) in REFUSED {
        let message = Tokenizer::from_gguf(&Gguf::open(&path(name)).unwrap()).unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
    }
    let listed = RECORDED.iter().chain(UNRECORDED).chain(REFUSED.iter().map(|it| &it.0));
    let mut listed: Vec<String> = listed.map(|it| format!("ggml-vocab-{it}.gguf")).collect();
    listed.sort();
    let files = std::fs::read_dir(oracle::vocabularies()).unwrap();
    let mut files: Vec<String> = files.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    files.retain(|it| it.ends_with(".gguf"));
    files.sort();
    assert_eq!(files, listed, "a vocabulary that no test reads");
}

#[test]
fn every_vocabulary_reads_the_corpus_as_llama_cpp_does() {
    for name in RECORDED.iter().chain(UNRECORDED) {
        let texts = corpus();
        let n_tokens = compare(name, &path(name), &texts);
        println!("{name}: {} texts, {n_tokens} tokens, no difference", texts.len());
    }
}

/// The same words, cut by each rule: a vocabulary in which any two bytes of a word merge shows where words end.
#[test]
fn every_rule_cuts_as_llama_cpp_does() {
    let folder = tempfile::tempdir().unwrap();
    let texts = corpus();
    let mut n_rules = 0;
    for tag in Tokenizer::pre_tokenizers() {
        // These have no byte alphabet.
        if ["gemma4", "granite-embed-multi-311m", "sarvam-moe"].contains(&tag) {
            continue;
        }
        let file = folder.path().join("pairs.gguf");
        write_pairs(&file, tag);
        compare(tag, &file, &texts);
        n_rules += 1;
    }
    println!("{n_rules} rules, {} texts, no difference", texts.len());
}

#[test]
fn rules_without_byte_alphabet_cut_as_llama_cpp_does() {
    let folder = tempfile::tempdir().unwrap();
    let source = Gguf::open(&path("gemma-4")).unwrap();
    for tag in ["granite-embed-multi-311m", "sarvam-moe"] {
        let mut metadata = source.metadata().clone();
        metadata.insert("tokenizer.ggml.model", "gpt2");
        metadata.insert("tokenizer.ggml.pre", tag);
        let file = folder.path().join("changed.gguf");
        fsq_gguf::rewrite_metadata(&source, &metadata, &file).unwrap().publish().unwrap();
        compare(tag, &file, &corpus());
    }
}

/// Gemma's rule for spaces on the vocabulary of Llama 2, and attributes that only the file's name tells.
#[test]
fn spaces_are_as_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let texts = corpus();
    let changed = |name: &str, key: &str, value: Value| {
        let source = Gguf::open(&path(name)).unwrap();
        let mut metadata = source.metadata().clone();
        metadata.insert(key, value);
        let file = folder.path().join("changed.gguf");
        fsq_gguf::rewrite_metadata(&source, &metadata, &file).unwrap().publish().unwrap();
        compare(key, &file, &texts);
        open(&file)
    };
    let gemma = changed("llama-spm", "tokenizer.ggml.add_space_prefix", Value::from(false));
    let tokens = gemma.encode("Hello", Special::Escape);
    assert_eq!(gemma.decode(&tokens), "Hello");
    let plain = changed("phi-3", "general.name", Value::from("another"));
    let phi = open(&path("phi-3"));
    let text = "<|user|>\n \t hi<|end|>\n";
    assert!(phi.encode(text, Special::Parse).len() < plain.encode(text, Special::Parse).len());
}

/// Compares everything that llama.cpp says, and returns how many tokens it was.
fn compare(what: &str, file: &Path, texts: &[String]) -> usize {
    let gguf = Gguf::open(file).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap_or_else(|error| panic!("{what}: {error}"));
    let expected = oracle::tokens(file, texts);
    let mut ends = tokenizer.ends().to_vec();
    ends.sort_unstable();
    assert_eq!(ends, expected.ends, "{what}: tokens that end a text");
    assert_eq!(tokenizer.eos(), expected.eos, "{what}");
    if tokenizer.bos().is_some() {
        assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (expected.bos, expected.adds_bos), "{what}");
    }
    let tokens: &[String] = gguf.metadata().need("tokenizer.ggml.tokens").unwrap();
    let kinds: Vec<i32> = gguf.metadata().need("tokenizer.ggml.token_type").unwrap();
    let user_defined: Vec<&String> =
        tokens.iter().zip(kinds).filter(|(text, kind)| *kind == 4 && text.chars().count() > 1).map(|it| it.0).collect();
    // What a vocabulary without bytes makes of a character that it lacks; it steers nothing.
    let unknown: Option<u32> = gguf.metadata().read("tokenizer.ggml.unknown_token_id");
    let steers = |tokens: &[u32]| tokens.iter().any(|it| tokenizer.is_control(*it) && Some(*it) != unknown);
    let mut n_tokens = 0;
    for (index, text) in texts.iter().enumerate() {
        let parsed = tokenizer.encode(text, Special::Parse);
        assert_eq!(parsed, expected.parsed[index], "{what}: {text:?}");
        n_tokens += parsed.len();
        let escaped = tokenizer.encode(text, Special::Escape);
        assert!(!steers(&escaped), "{what}: a text steers: {text:?}");
        // llama.cpp finds tokens that users defined in any text, and merges may make control tokens; here neither.
        let has_own = user_defined.iter().any(|it| !it.trim().is_empty() && text.contains(it.as_str()));
        if !steers(&expected.escaped[index]) && !has_own {
            assert_eq!(escaped, expected.escaped[index], "{what}: escaped {text:?}");
        }
        let mut stream = TextStream::default();
        let mut streamed: String = parsed.iter().map(|it| stream.push(&tokenizer, *it)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, tokenizer.decode(&parsed), "{what}: {text:?}");
        // Where llama.cpp takes a space away it does so at the start only.
        if !parsed.iter().any(|it| tokenizer.is_control(*it))
            && gguf.metadata().str("tokenizer.ggml.model") == Some("llama")
        {
            assert_eq!(streamed, expected.decoded[index], "{what}: decoded {text:?}");
            // This vocabulary has no other sign for a space.
            assert_eq!(streamed, text.replace('\u{2581}', " "), "{what}");
        }
    }
    n_tokens
}

#[test]
fn a_prompt_of_parts_is_cut_as_one_text() {
    for name in ["llama-spm", "phi-3", "qwen2", "gemma-4"] {
        let tokenizer = open(&path(name));
        let parts = [
            Part::Text("<s>[INST] <|im_start|>user\n", Special::Parse),
            Part::Text("tell me about ", Special::Escape),
            Part::Text("lla", Special::Escape),
            Part::Text("mas [/INST]", Special::Parse),
        ];
        let text = "<s>[INST] <|im_start|>user\ntell me about llamas [/INST]";
        assert_eq!(tokenizer.encode_parts(&parts), tokenizer.encode(text, Special::Parse), "{name}");
        let end = tokenizer.decode_with_special(&[tokenizer.ends()[0]]);
        let (left, right) = end.split_at(2);
        let parts = [Part::Text(left, Special::Parse), Part::Text(right, Special::Escape)];
        assert!(!tokenizer.encode_parts(&parts).iter().any(|it| tokenizer.is_control(*it)), "{name}");
        let parts = [Part::Token(tokenizer.ends()[0]), Part::Text(&end, Special::Escape)];
        assert_eq!(tokenizer.encode_parts(&parts).iter().filter(|it| tokenizer.is_end(**it)).count(), 1, "{name}");
    }
}

/// What SentencePiece makes of a text; it puts a space before a text that begins with an added token, llama.cpp not.
fn recorded(name: &str) -> Vec<(String, Vec<u32>)> {
    let file = std::fs::read(root().join("tests/fixtures/sentencepiece/tokens.json")).unwrap();
    let answers: JsonValue = serde_json::from_slice(&file).unwrap();
    let answers = answers[name].as_array().unwrap().iter();
    let read = |it: &JsonValue| {
        let tokens = serde_json::from_value(it["tokens"].clone()).unwrap();
        (it["text"].as_str().unwrap().to_string(), tokens)
    };
    answers.map(read).filter(|it| !it.0.starts_with("<tag>")).collect()
}

/// The tokenizer of a quantized checkpoint that has these files.
fn quantized(tokenizer_json: &str, sentencepiece: Option<&str>) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let fixture = root().join("tests/fixtures/sentencepiece");
    let sizes = Dimensions {
        architecture: Architecture::Llama,
        n_layers: 1,
        hidden: 32,
        intermediate: 32,
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: 32,
        vocab: 448,
        context: 32,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied: true,
        options: Options::PLAIN,
    };
    let like = CheckpointFiles {
        config: "".into(),
        weights: (&[] as &[u8]).into(),
        tokenizer: tokenizer_json.to_string().into(),
        chat_template: None,
    };
    let zeros = |it: TensorName| {
        let n = it.shape.iter().product();
        NamedTensor { name: it.hf, shape: it.shape, values: vec![0.5; n].into() }
    };
    let tensors: Vec<NamedTensor<'_>> = tensor_names(&sizes).into_iter().map(zeros).collect();
    let path = folder.path().join("checkpoint");
    Checkpoint::write(&path, &like, &sizes, (1, 2), StoredType::F32, &tensors).unwrap();
    if let Some(name) = sentencepiece {
        std::fs::copy(fixture.join(name), path.join("tokenizer.model")).unwrap();
    }
    let checkpoint = Checkpoint::open(&path).unwrap();
    let provenance = Provenance::of("fsq test", &checkpoint, &[], None).unwrap();
    let (plan, file) = (Plan::new(Mix::F32), folder.path().join("policy.gguf"));
    let encoded = quantize(&checkpoint, &[], &plan, None, &provenance, &file, &mut |_, _| {}).unwrap();
    let file = encoded.draft.publish().unwrap();
    compare(sentencepiece.unwrap_or("tokenizer.json"), &file, &corpus());
    open(&file)
}

#[test]
fn converted_vocabularies_read_as_sentencepiece_does() {
    let fixture = root().join("tests/fixtures/sentencepiece");
    let json = std::fs::read_to_string(fixture.join("tokenizer.json")).unwrap();
    let bpe = recorded("bpe");
    let from_json = Tokenizer::from_json(&json).unwrap();
    let from_scores = quantized(&json, Some("bpe.model"));
    let from_merges = quantized(&json, None);
    let texts = bpe.iter().map(|it| &it.0).chain(&corpus()).cloned().collect::<Vec<String>>();
    for (text, tokens) in &bpe {
        assert_eq!(from_json.encode(text, Special::Parse), *tokens, "{text:?}");
        assert_eq!(from_json.decode(tokens), *text);
        assert_eq!(from_scores.encode(text, Special::Parse), *tokens, "{text:?}");
    }
    for text in texts {
        for special in [Special::Parse, Special::Escape] {
            let tokens = from_json.encode(&text, special);
            assert_eq!(from_scores.encode(&text, special), tokens, "{text:?}");
            assert_eq!(from_merges.encode(&text, special), tokens, "{text:?}");
        }
    }
    // White space behind an added token goes where the file says so.
    assert_eq!(from_json.encode("<tag> \n the", Special::Parse), from_json.encode("<tag>the", Special::Parse));
    assert!(from_json.encode("</s><tag>", Special::Escape).iter().all(|it| *it > 3));

    let unigram =
        r#"{"model": {"type": "Unigram"}, "added_tokens": [{"id": 3, "content": "<tag>", "special": false}]}"#;
    let unigram = quantized(unigram, Some("unigram.model"));
    for (text, tokens) in recorded("unigram") {
        assert_eq!(unigram.encode(&text, Special::Parse), tokens, "{text:?}");
    }
}

/// A vocabulary of all bytes and all pairs of bytes, in an order that has no pattern.
fn write_pairs(file: &Path, tag: &str) {
    let written: Vec<char> = (0..=u8::MAX).map(char_of_byte).collect();
    let mut tokens: Vec<String> = written.iter().map(ToString::to_string).collect();
    let mut merges = Vec::new();
    for index in 0..65536u32 {
        // An odd factor makes it a permutation.
        let pair = index.wrapping_mul(40503).wrapping_add(12345) & 0xFFFF;
        let (left, right) = (written[(pair >> 8) as usize], written[(pair & 0xFF) as usize]);
        tokens.push(format!("{left}{right}"));
        merges.push(format!("{left} {right}"));
    }
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama");
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", tag);
    metadata.insert("tokenizer.ggml.token_type", vec![1i32; tokens.len()]);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.ggml.bos_token_id", 0u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 1u32);
    Draft::create(file, &metadata, &[]).unwrap().finish().unwrap().publish().unwrap();
}

/// GPT-2's alphabet: printable bytes for themselves, the others in order from `U+0100`.
fn char_of_byte(byte: u8) -> char {
    let is_printable = |it: u8| matches!(it, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    char::from_u32(0x100 + (0..byte).filter(|it| !is_printable(*it)).count() as u32).unwrap()
}

/// Written texts, then texts put together at random of parts that the rules treat differently.
fn corpus() -> Vec<String> {
    let mut texts: Vec<String> = WRITTEN.iter().map(ToString::to_string).collect();
    texts.push(" ".repeat(700) + "x");
    texts.push("a".repeat(3000));
    texts.push("0123456789".repeat(30));
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % n
    };
    for _ in 0..400 {
        let n_parts = 1 + next(24);
        texts.push((0..n_parts).map(|_| PARTS[next(PARTS.len())]).collect());
    }
    texts
}

const WRITTEN: &[&str] = &[
    "",
    " ",
    "\n",
    "Hello, world!",
    " leading and trailing ",
    "fn main() {\n    let x = vec![1, 2, 3];\n\tprintln!(\"{x:?}\"); // done\r\n}\n",
    "def f(a: int = 10_000) -> str:\n    return f'{a!r}' if a != 0 else \"\"\n",
    "12345678901234567890 3.14159 1,234,567.89 1e-10 0x7FFF ١٢٣٤ Ⅷ ½ ²",
    "I'm sure they've said we'LL go; it'S he'd won't y'all 'tis 'RE'VE o'ſ",
    "天地玄黄，宇宙洪荒。日月盈昃　辰宿列张。「你好」！",
    "東京タワーへ行きました。ﾊﾝｶｸ カタカナ ひらがな",
    "안녕하세요 세계 ㄱㄴㄷ",
    "สวัสดีครับ ภาษาไทย កាន់តែពិសេស မြန်မာ",
    "नमस्ते दुनिया क्षत्रिय ÉCOLE École ÑANDÚ Straße ŁÓDŹ ĳssel ǅungla",
    "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈 🇨🇭 ✅ x⃗ e\u{301}\u{302} \u{FE0F}",
    "\u{0}\u{1}\u{7f}\u{80}\u{a0}\u{ad}\u{200b}\u{feff}\u{fffd}\u{2028}\u{85}",
    "\u{e000}\u{10ffff}\u{f0000} \u{1d54f}\u{1f9ff}",
    "<s> </s> <unk> [INST] hi [/INST]</s><s>",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<|user|>\n  what?<|end|>\n<|assistant|>  \n so",
    "<bos><start_of_turn>user\n\n\nhi<end_of_turn>\n<|turn>x<turn|><|tool_response>",
    "</ s> <0x0A> <0xFF> ▁▁ ▁ Ġ Ċ <mask> a <mask> b",
    "https://example.org/a/b?c=d&e=%20#frag user@host.tld C:\\dir\\file.txt",
    "=====----- ////// ...... !!!??? ~~~ ``` $$$ ### @@@ ^^^ |||",
    "a\n\n\nb\r\n\r\nc\t\td \n \n e\n",
    "\u{3000}\u{3000}段落　一。　二",
    "<sentinel:12>IMGIMGABCZ IMGIMGABCDEZ    x",
    "a b c d e f g",
    "aaaaabbbbbaaaaa",
    "{\"state\": [8, 7], \"odds\": 0.35}",
];

const PARTS: &[&str] = &[
    "a",
    "b",
    "the",
    "The",
    "THE",
    "é",
    "É",
    "ÉCOLE",
    "ß",
    "ſ",
    "ǅ",
    "ʰ",
    "ª",
    "\u{301}",
    "\u{93e}",
    "क",
    "ก",
    "ā",
    "中",
    "文字",
    "々",
    "〇",
    "ひ",
    "カ",
    "ー",
    "한",
    "ㄱ",
    "ㄅ",
    "٣",
    "1",
    "12",
    "123",
    "1234",
    "1234567",
    "²",
    "Ⅷ",
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{2003}",
    "\u{85}",
    "\u{2028}",
    "\u{b}",
    "\u{c}",
    "\u{1c}",
    "\u{0}",
    "'",
    "'s",
    "'S",
    "'re",
    "'LL",
    "'d",
    "’s",
    "\"",
    ".",
    ",",
    "。",
    "，",
    "!",
    "！",
    "…",
    "?",
    "(",
    ")",
    "|",
    "-",
    "_",
    "/",
    "\\",
    "$",
    "+",
    "<",
    "=",
    ">",
    "^",
    "`",
    "~",
    "€",
    "∑",
    "©",
    "°",
    "🙂",
    "👩‍👧",
    "\u{200d}",
    "\u{fe0f}",
    "\u{ad}",
    "\u{e000}",
    "۔",
    "،",
    "।",
    "<s>",
    "</s>",
    "<|end|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<mask>",
];
