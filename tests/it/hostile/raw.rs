//! A GGUF file put together byte by byte, so that anything can be wrong with it; whole unless a row makes it otherwise.

/// What tensors are aligned to where a file does not say.
const ALIGNMENT: usize = 32;
/// ggml's numbers of two formats.
pub(super) const F32: u32 = 0;
pub(super) const Q8_0: u32 = 8;

/// A value with its type, as bytes.
#[derive(Clone)]
pub(super) struct Typed(pub(super) u32, pub(super) Vec<u8>);

pub(super) fn u32(it: u32) -> Typed {
    Typed(4, it.to_le_bytes().into())
}

pub(super) fn i32(it: i32) -> Typed {
    Typed(5, it.to_le_bytes().into())
}

pub(super) fn f32(it: f32) -> Typed {
    Typed(6, it.to_le_bytes().into())
}

pub(super) fn boolean(it: u8) -> Typed {
    Typed(7, vec![it])
}

pub(super) fn text(it: &str) -> Typed {
    Typed(8, string(it.as_bytes()))
}

/// An array of elements of a type, so many of them by what it says.
pub(super) fn array(type_id: u32, n: u64, elements: Vec<u8>) -> Typed {
    Typed(9, [type_id.to_le_bytes().as_slice(), &n.to_le_bytes(), &elements].concat())
}

pub(super) fn texts<T: AsRef<str>>(them: &[T]) -> Typed {
    array(8, them.len() as u64, them.iter().flat_map(|it| string(it.as_ref().as_bytes())).collect())
}

pub(super) fn i32s(them: &[i32]) -> Typed {
    array(5, them.len() as u64, them.iter().flat_map(|it| it.to_le_bytes()).collect())
}

pub(super) fn string(it: &[u8]) -> Vec<u8> {
    [(it.len() as u64).to_le_bytes().as_slice(), it].concat()
}

/// What a header says of a tensor, and the bytes that lie there.
#[derive(Clone)]
pub(super) struct RawTensor {
    /// Its name with the length before it.
    pub(super) name: Vec<u8>,
    pub(super) n_dimensions: u32,
    pub(super) shape: Vec<u64>,
    pub(super) format: u32,
    pub(super) offset: u64,
    n_bytes: usize,
}

/// The file.
#[derive(Clone)]
pub(super) struct Raw {
    pub(super) magic: [u8; 4],
    pub(super) version: u32,
    /// What the counts say is this more than there are.
    pub(super) more_tensors: i64,
    pub(super) more_entries: i64,
    /// Keys with their lengths, and values.
    pub(super) entries: Vec<(Vec<u8>, Typed)>,
    pub(super) tensors: Vec<RawTensor>,
    pub(super) data: Vec<u8>,
}

impl Raw {
    pub(super) fn new() -> Self {
        let (entries, tensors, data) = (Vec::new(), Vec::new(), Vec::new());
        Self { magic: *b"GGUF", version: 3, more_tensors: 0, more_entries: 0, entries, tensors, data }
    }

    /// A policy of one layer that loads, tokenizes and runs.
    pub(super) fn policy() -> Self {
        let mut raw = Self::new().set("general.architecture", text("llama"));
        let sizes = [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 16),
        ];
        for (key, size) in sizes {
            raw = raw.set(&format!("llama.{key}"), u32(size));
        }
        raw = raw.set("llama.attention.layer_norm_rms_epsilon", f32(1e-5));
        raw = raw.set("llama.rope.freq_base", f32(10_000.0)).set("general.quantization_version", u32(2));
        let (tokens, kinds) = vocabulary();
        raw = raw.set("tokenizer.ggml.model", text("gpt2")).set("tokenizer.ggml.pre", text("gpt-2"));
        raw = raw.set("tokenizer.ggml.tokens", texts(&tokens)).set("tokenizer.ggml.token_type", i32s(&kinds));
        raw = raw.set("tokenizer.ggml.merges", texts(&["t h", "th e"]));
        raw = raw.set("tokenizer.ggml.bos_token_id", u32(258)).set("tokenizer.ggml.eos_token_id", u32(259));
        raw = raw.tensor("token_embd.weight", &[32, 260], Q8_0, 260 * 34).tensor("output_norm.weight", &[32], F32, 128);
        for (name, rows) in
            [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_gate", 32), ("ffn_up", 32)]
        {
            raw = raw.tensor(&format!("blk.0.{name}.weight"), &[32, rows], Q8_0, rows as usize * 34);
        }
        raw = raw.tensor("blk.0.ffn_down.weight", &[32, 32], Q8_0, 32 * 34);
        raw.tensor("blk.0.attn_norm.weight", &[32], F32, 128).tensor("blk.0.ffn_norm.weight", &[32], F32, 128)
    }

    /// Sets a key, in its place if it is there.
    pub(super) fn set(mut self, key: &str, value: Typed) -> Self {
        let key = string(key.as_bytes());
        match self.entries.iter_mut().find(|it| it.0 == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
        self
    }

    /// Adds an entry whatever is there.
    pub(super) fn entry(mut self, key: Vec<u8>, value: Typed) -> Self {
        self.entries.push((key, value));
        self
    }

    pub(super) fn without(mut self, key: &str) -> Self {
        self.entries.retain(|it| it.0 != string(key.as_bytes()));
        self
    }

    /// Appends a tensor and its bytes, of a pattern that is a small number in every format.
    pub(super) fn tensor(mut self, name: &str, shape: &[u64], format: u32, n_bytes: usize) -> Self {
        let offset = self.data.len() as u64;
        self.data.resize(self.data.len() + n_bytes, 0x11);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        let (name, n_dimensions) = (string(name.as_bytes()), shape.len() as u32);
        self.tensors.push(RawTensor { name, n_dimensions, shape: shape.into(), format, offset, n_bytes });
        self
    }

    pub(super) fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|it| it.name != string(name.as_bytes()));
        self
    }

    /// The file with some of its tensors only.
    pub(super) fn only(&self, range: std::ops::Range<usize>) -> Self {
        let mut raw = Self { tensors: Vec::new(), data: Vec::new(), ..self.clone() };
        for tensor in &self.tensors[range] {
            let offset = raw.data.len() as u64;
            raw.data.extend(&self.data[tensor.offset as usize..][..tensor.n_bytes]);
            raw.data.resize(raw.data.len().next_multiple_of(ALIGNMENT), 0);
            raw.tensors.push(RawTensor { offset, ..tensor.clone() });
        }
        raw
    }

    /// Changes what the header says of a tensor.
    pub(super) fn retold(mut self, name: &str, change: impl Fn(&mut RawTensor)) -> Self {
        self.tensors.iter_mut().filter(|it| it.name == string(name.as_bytes())).for_each(change);
        self
    }

    /// Changes the bytes of a tensor.
    pub(super) fn damaged(mut self, name: &str, change: impl Fn(&mut [u8])) -> Self {
        for tensor in self.tensors.iter().filter(|it| it.name == string(name.as_bytes())) {
            change(&mut self.data[tensor.offset as usize..][..tensor.n_bytes]);
        }
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.marked().0
    }

    /// The file, cut one byte behind the beginning of the first field of a kind.
    pub(super) fn cut_in(&self, field: &str) -> Vec<u8> {
        let (mut bytes, marks) = self.marked();
        let mark = marks.iter().find(|it| it.0 == field).unwrap_or_else(|| panic!("no field {field}"));
        bytes.truncate(mark.1 + 1);
        bytes
    }

    /// The file and where its fields begin.
    fn marked(&self) -> (Vec<u8>, Vec<(&'static str, usize)>) {
        let mut marks = Vec::new();
        let mut out = Vec::new();
        let mut put = |field: &'static str, bytes: &[u8], out: &mut Vec<u8>| {
            marks.push((field, out.len()));
            out.extend(bytes);
        };
        let count = |n: usize, more: i64| (n as i64).wrapping_add(more).to_le_bytes();
        put("magic", &self.magic, &mut out);
        put("version", &self.version.to_le_bytes(), &mut out);
        put("tensor count", &count(self.tensors.len(), self.more_tensors), &mut out);
        put("entry count", &count(self.entries.len(), self.more_entries), &mut out);
        for (key, Typed(type_id, value)) in &self.entries {
            put("key length", &key[..8.min(key.len())], &mut out);
            put("key", &key[8.min(key.len())..], &mut out);
            put("value type", &type_id.to_le_bytes(), &mut out);
            match type_id {
                8 => {
                    put("string length", &value[..8.min(value.len())], &mut out);
                    put("string", &value[8.min(value.len())..], &mut out);
                }
                9 => {
                    put("element type", &value[..4], &mut out);
                    put("element count", &value[4..12], &mut out);
                    put("elements", &value[12..], &mut out);
                }
                _ => put("value", value, &mut out),
            }
        }
        for tensor in &self.tensors {
            put("name length", &tensor.name[..8], &mut out);
            put("name", &tensor.name[8..], &mut out);
            put("dimension count", &tensor.n_dimensions.to_le_bytes(), &mut out);
            put("dimensions", &tensor.shape.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>(), &mut out);
            put("format", &tensor.format.to_le_bytes(), &mut out);
            put("offset", &tensor.offset.to_le_bytes(), &mut out);
        }
        let padding = out.len().next_multiple_of(ALIGNMENT) - out.len();
        put("padding", &vec![0; padding], &mut out);
        put("data", &self.data, &mut out);
        (out, marks)
    }
}

/// Every byte, two merged pieces and two control tokens.
fn vocabulary() -> (Vec<String>, Vec<i32>) {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others: Vec<u8> = (0..=255).filter(|it| !is_printable(*it)).collect();
    // The alphabet of byte-level tokenizers: printable bytes for themselves, the others from U+0100 on.
    let letter = |byte: u8| others.iter().position(|it| *it == byte).map_or(u32::from(byte), |it| 0x100 + it as u32);
    let letters = (0..=255u8).map(|it| char::from_u32(letter(it)).unwrap().to_string());
    let tokens = letters.chain(["th", "the", "<|bos|>", "<|end|>"].map(String::from)).collect();
    (tokens, [vec![1; 258], vec![3; 2]].concat())
}
