//! candle with one GGUF file, measured on demand: the protocol of `llama_worker.py`. Knows nothing of fsq.
//!
//!     candle-worker FILE.gguf THREADS PROMPT GENERATE

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

enum Policy {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
}

impl Policy {
    fn load(path: &str) -> Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let content = Content::read(&mut file)?;
        let architecture = content.metadata.get("general.architecture").ok_or("no architecture")?.to_string()?.clone();
        match architecture.as_str() {
            "llama" => Ok(Self::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)),
            "qwen2" => Ok(Self::Qwen2(quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)),
            other => Err(format!("{path}: expected llama or qwen2, found {other}").into()),
        }
    }

    fn forget(&mut self) {
        match self {
            Self::Llama(it) => it.clear_kv_cache(),
            Self::Qwen2(it) => it.clear_kv_cache(),
        }
    }

    /// Logits of the last token, read to the end so that nothing is left undone; their number.
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<usize> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Self::Llama(it) => it.forward(&tokens, position)?,
            Self::Qwen2(it) => it.forward(&tokens, position)?,
        };
        Ok(logits.flatten_all()?.to_vec1::<f32>()?.len())
    }

    /// Seconds for the prompt in one batch, and for the tokens behind it.
    fn measure(&mut self, n_prompt: usize, n_generate: usize) -> Result<(f64, f64)> {
        self.forget();
        let vocab = self.forward(&[0], 0)?;
        self.forget();
        let token = |index: usize| (index as u64 * 2_654_435_761 % vocab as u64) as u32;
        let prompt: Vec<u32> = (0..n_prompt).map(token).collect();
        let begun = Instant::now();
        self.forward(&prompt, 0)?;
        let read = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for index in 0..n_generate {
            self.forward(&[token(index)], n_prompt + index)?;
        }
        Ok((read, begun.elapsed().as_secs_f64()))
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, threads, prompt, generate] = arguments.as_slice() else {
        return Err("expected FILE.gguf THREADS PROMPT GENERATE".into());
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    let (prompt, generate) = (prompt.parse()?, generate.parse()?);
    let mut policy = Policy::load(file)?;
    // The first fills caches and is not told.
    policy.measure(prompt, generate)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({"version": "candle 0.11"}))?;
    out.flush()?;
    for line in std::io::stdin().lines() {
        line?;
        let (read, written) = policy.measure(prompt, generate)?;
        writeln!(out, "{}", serde_json::json!({"prefill_s": read, "decode_s": written}))?;
        out.flush()?;
    }
    Ok(())
}
