//! `fsq inspect --strict`: what a file may lack or hide and open all the same. Runs nothing.

use fsq_checkpoint::{Architecture, Dimensions, TensorName, tensor_names};
use fsq_gguf::{Gguf, flaws};
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LoadedPolicy, Tokenizer, read_dimensions};

use crate::failure::Refusal;

/// Faults told in one refusal.
const SHOWN_MAX: usize = 20;
/// Where a file has its chat template, if it has one.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";
/// What llama.cpp's converter writes for every architecture that is run here, behind the architecture's name.
const KEYS: [&str; 8] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
];

/// Refuses a file that opens but is not what a sound one is.
pub(super) fn check(gguf: &Gguf) -> Result<(), Refusal> {
    let mut faults: Vec<String> = flaws(gguf).iter().map(ToString::to_string).collect();
    // Adapters and importance are GGUF files too, with keys of their own.
    if gguf.metadata().str("general.type").is_none_or(|it| it == "model") {
        meaning(gguf, &mut faults);
    }
    if faults.is_empty() {
        return Ok(());
    }
    let (n_faults, file) = (faults.len(), gguf.path().display());
    faults.truncate(SHOWN_MAX);
    let more = if n_faults > SHOWN_MAX { format!("; and {} more", n_faults - SHOWN_MAX) } else { String::new() };
    let plural = if n_faults == 1 { "" } else { "s" };
    Err(Refusal::new(format!("{file}: {n_faults} fault{plural}: {}{more}", faults.join("; "))))
}

/// What the runtime would refuse, and what it would run without but no converter leaves out.
fn meaning(gguf: &Gguf, faults: &mut Vec<String>) {
    let metadata = gguf.metadata();
    if let Some(architecture) = metadata.str("general.architecture").filter(|it| Architecture::from_gguf(it).is_some())
    {
        let keys = KEYS.iter().map(|it| format!("{architecture}.{it}"));
        let absent = keys.filter(|it| metadata.get(it).is_none());
        faults.extend(absent.map(|it| format!("metadata `{it}`: not in the file")));
    }
    if metadata.get("general.quantization_version").is_none()
        && gguf.tensors().iter().any(|it| it.format.block_weights() > 1)
    {
        faults.push("metadata `general.quantization_version`: not in the file".into());
    }
    match read_dimensions(gguf) {
        Ok(dimensions) => tensors(gguf, &dimensions, faults),
        Err(error) => faults.push(error.to_string()),
    }
    match Tokenizer::from_gguf(gguf) {
        Ok(tokenizer) if metadata.get(TEMPLATE_KEY).is_some() => {
            faults.extend(LoadedPolicy::template(gguf, &tokenizer).err().map(|it| it.to_string()));
        }
        Ok(_) => {}
        Err(error) => faults.push(error.to_string()),
    }
    if faults.is_empty() {
        // Whatever else the runtime refuses is said in its own words.
        let options = DecoderOptions { threads: 1, context_tokens: 1, kv: KvFormat::F16, max_sequences: 1 };
        faults.extend(Decoder::<Cpu>::load(gguf, options).err().map(|it| it.to_string()));
    }
}

fn tensors(gguf: &Gguf, dimensions: &Dimensions, faults: &mut Vec<String>) {
    // Of what lacks most tensors the first few say enough; a file may claim millions of layers.
    for expected in tensors_of_layers(dimensions, gguf.tensors().len()) {
        let (name, shape) = (expected.gguf, expected.shape);
        match gguf.tensor(&name).map(|it| it.shape.iter().rev().copied().collect::<Vec<_>>()) {
            Some(found) if found == shape => {}
            Some(found) => faults.push(format!("tensor `{name}`: expected shape {shape:?}, found {found:?}")),
            None => faults.push(format!("tensor `{name}`: not in the file")),
        }
    }
}

/// The tensors of a policy, of at most one layer more than the file can have.
fn tensors_of_layers(dimensions: &Dimensions, n_in_file: usize) -> Vec<TensorName> {
    let n_layers = dimensions.n_layers.min(n_in_file + 1);
    tensor_names(&Dimensions { n_layers, ..dimensions.clone() })
}
