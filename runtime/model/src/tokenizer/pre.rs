//! How text is cut into words before pairs are merged, by the tag that GGUF files carry. Knows no vocabulary.
//!
//! Source of tags, flags and patterns: llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_bpe` and
//! `llama_vocab::impl::load`, and `src/unicode.cpp`, which runs some of the patterns by hand. Where llama.cpp cuts
//! otherwise than the `tokenizer.json` that a tag stands for, the rows here cut as llama.cpp does: it tells letters
//! apart by case only in ASCII, and it glues what precedes a number to the number's first digits (`afmoe`).
//!
//! Its flag `clean_spaces`, which changes decoded text, is left out: a policy's text is what it wrote.

use crate::ModelError;

/// One row: how text is cut, and what else the tag says.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    tags: &'static [&'static str],
    /// Applied one after the other; each match becomes a piece of its own, and so does what lies between matches.
    pub(super) patterns: &'static [&'static str],
    /// A word that is itself in the vocabulary skips the merges.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the first token unless the file says otherwise.
    pub(super) adds_bos: bool,
    /// How tokens are written.
    pub(super) words: Words,
}

/// How the tokens of a vocabulary are written, and what becomes of characters that have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// In the byte alphabet, which has a character for each byte.
    Bytes,
    /// As characters, `U+2581` for a space; a character without a token becomes its bytes, such as `<0x0A>`.
    Characters,
    /// As [`Words::Characters`], and a run of line ends that is a token skips the merges.
    CharactersAndLines,
}

impl PreTokenizer {
    const fn new(tags: &'static [&'static str], patterns: &'static [&'static str]) -> Self {
        Self { tags, patterns, ignore_merges: false, adds_bos: false, words: Words::Bytes }
    }

    const fn ignoring_merges(mut self) -> Self {
        self.ignore_merges = true;
        self
    }

    const fn adding_bos(mut self) -> Self {
        self.adds_bos = true;
        self
    }

    const fn written(mut self, words: Words) -> Self {
        self.words = words;
        self
    }
}

/// English contractions, in any case. Spelled out, because `(?i)` would also take `U+017F` for an `s`.
macro_rules! contractions {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
/// White space: up to its last line end, else all but its last character, else all.
macro_rules! spaces {
    () => {
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}
/// Letters of which the first may be any character but a line end or number, and what follows them in most patterns.
macro_rules! words {
    ($numbers:literal) => {
        concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|", $numbers, r"| ?[^\s\p{L}\p{N}]+[\r\n]*|", spaces!())
    };
}
/// Capitals, then small letters. Only letters of ASCII have a case here.
macro_rules! cased {
    ($letter:literal, $rest:literal, {$($ending:tt)*}) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[", $letter, r"&&[^a-z]]*[", $letter, r"&&[^A-Z]]+", $($ending)*,
            r"|[^\r\n\p{L}\p{N}]?[", $letter, r"&&[^a-z]]+[", $letter, r"&&[^A-Z]]*", $($ending)*,
            "|", $rest, r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|", spaces!()
        )
    };
}
/// Letters and their marks, then as [`cased`] without cases.
macro_rules! marked {
    ($rest:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            contractions!(),
            "?|",
            $rest,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
            spaces!()
        )
    };
}
/// Punctuation with letters of ASCII after it, words with their marks, runs of punctuation.
macro_rules! punctuated {
    ($($rest:tt)*) => {
        concat!(
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+",
            $($rest)*
        )
    };
}
/// Ideographs of Unicode's blocks (`unicode_cpt_is_han`).
macro_rules! han {
    () => {
        concat!(
            r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}",
            r"\x{2B820}-\x{2CEAF}\x{2CEB0}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
        )
    };
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_3: &str = concat!(contractions!(), "|", words!(r"\p{N}{1,3}"));
const QWEN_2: &str = concat!(contractions!(), "|", words!(r"\p{N}"));
const QWEN_35: &str =
    concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|", spaces!());
const JAIS_2: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|",
    r"\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
);
/// Letters with a case.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}",
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}",
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}",
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}",
    r"\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}",
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}",
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}",
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}",
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}",
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}",
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}",
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    "]+"
);
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+";
/// From Samaritan to the end of the ideographs, and Hangul.
const DEEPSEEK_IDEOGRAPHS: &str = r"[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}&&\S]+";
const IDEOGRAPHS_AND_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const DEEPSEEK_3: &str = punctuated!(concat!(r"[\r\n]*|", spaces!()));
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+";
const YOUTU_SCRIPTS: &str = concat!(
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}",
    r"\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
);
/// Threes of digits from the right; what precedes a number stays with its first ones.
const DIGITS_FROM_RIGHT: &str = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
const AFMOE_SCRIPTS: &str = concat!(
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}",
    r"\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}",
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
);
const KIMI: &str = concat!(
    "[",
    han!(),
    r"]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^",
    han!(),
    "]]+",
    contractions!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    spaces!()
);
const EXAONE_MOE: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
);
const BAILING: &str = concat!(
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);
const SEED_CODER: &str =
    concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|", spaces!());
const LINES: &str = r"[^\n]+|[\n]+";

const TABLE: &[PreTokenizer] = &[
    PreTokenizer::new(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    PreTokenizer::new(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT_2],
    ),
    PreTokenizer::new(
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        &[LLAMA_3],
    )
    .ignoring_merges()
    .adding_bos(),
    PreTokenizer::new(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA_3]),
    PreTokenizer::new(&["glm4", "glm5"], &[LLAMA_3]).ignoring_merges(),
    PreTokenizer::new(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN_2],
    ),
    PreTokenizer::new(&["qwen35"], &[QWEN_35]),
    PreTokenizer::new(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT_2],
    ),
    PreTokenizer::new(&["jais-2"], &[JAIS_2]),
    PreTokenizer::new(
        &["deepseek-llm"],
        &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_IDEOGRAPHS, r"\p{N}+"],
    ),
    PreTokenizer::new(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_IDEOGRAPHS, r"\p{N}"]),
    PreTokenizer::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[r"\p{N}{1,3}", IDEOGRAPHS_AND_KANA, DEEPSEEK_3],
    ),
    PreTokenizer::new(
        &["spark2_5"],
        &[r"\p{N}{1,3}", IDEOGRAPHS_AND_KANA, punctuated!(r"|[\r\n]|\s+(?!\S)|\s+"), r"\p{N}"],
    ),
    PreTokenizer::new(&["youtu"], &[YOUTU_SCRIPTS, marked!(r"\p{N}")]).ignoring_merges(),
    PreTokenizer::new(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, "[0-9][0-9][0-9]"]),
    PreTokenizer::new(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    PreTokenizer::new(&["viking"], &[BLOOM, r"\p{N}"]),
    PreTokenizer::new(&["tekken"], &[cased!(r"\p{L}", r"\p{N}", { "" })]).ignoring_merges().adding_bos(),
    PreTokenizer::new(
        &["chameleon"],
        &["<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT_2],
    )
    .adding_bos(),
    PreTokenizer::new(
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &[cased!(r"\p{L}", r"\p{N}{1,3}", { concat!(contractions!(), "?") })],
    ),
    PreTokenizer::new(
        &["granite-embed-multi-97m"],
        &[cased!(r"[\p{L}\p{M}]", r"\p{N}{1,3}", { concat!(contractions!(), "?") })],
    )
    .ignoring_merges(),
    PreTokenizer::new(&["tiny_aya", "cohere2moe"], &[DIGITS_FROM_RIGHT, marked!(r"\p{N}{1,3}")]),
    PreTokenizer::new(&["kimi-k2"], &[KIMI]),
    PreTokenizer::new(&["superbpe"], &[r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))"]),
    PreTokenizer::new(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    PreTokenizer::new(&["seed-coder"], &[SEED_CODER]),
    PreTokenizer::new(&["ufakzeka"], &[words!(r"\p{N}")]),
    PreTokenizer::new(&["afmoe"], &[DIGITS_FROM_RIGHT, AFMOE_SCRIPTS, DEEPSEEK_3]),
    PreTokenizer::new(&["laguna"], &[LINES, QWEN_2]),
    PreTokenizer::new(&["exaone-moe"], &[EXAONE_MOE]),
    PreTokenizer::new(&["minicpm5"], &[r"\p{N}{1,3}", concat!(contractions!(), "|", words!(r"\p{N}+"))])
        .ignoring_merges(),
    PreTokenizer::new(&["gemma4", "granite-embed-multi-311m"], &[LINES])
        .adding_bos()
        .written(Words::CharactersAndLines),
    PreTokenizer::new(&["sarvam-moe"], &[LINES]).written(Words::Characters),
];

/// The row of a tag.
pub(super) fn find(tag: &str) -> Result<&'static PreTokenizer, ModelError> {
    TABLE
        .iter()
        .find(|it| it.tags.contains(&tag))
        .ok_or_else(|| ModelError::UnknownPreTokenizer { found: tag.to_string(), known: tags().collect() })
}

/// Every tag.
pub(super) fn tags() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|it| it.tags).copied()
}
