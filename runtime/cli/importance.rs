//! `fsq importance`: what a policy's matrices read while it plays or reads a text, to a file that guides quantization.

mod passages;
mod sensitivity;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use fsq_kernels::Cpu;
use fsq_model::{ColumnSums, Decoder, DecoderOptions, KvFormat, LogitsFor, Observing, Step};
use fsq_quantizer::{Importance, Moments, MomentsByTensor};
use serde::Serialize;

use crate::evaluate::World;
use crate::failure::{Outcome, Refusal};
use crate::progress::Progress;
use crate::{Globals, output, policy};
use passages::Passage;

/// Of so many passages one is held out.
const HELD_OUT_EVERY: usize = 5;
/// How much a token counts whose successor the policy did not write: it is still read by those that come later.
const CONTEXT_WEIGHT: f32 = 0.25;

/// Arguments of `fsq importance`.
#[derive(Args)]
pub(crate) struct ImportanceArguments {
    /// A GGUF file, best of 16 bits
    file: PathBuf,
    /// Episodes in this environment: countdown, dochop, dagmath, slipgrid; several are observed one after another
    #[arg(long, value_name = "NAME", value_parser = crate::environment::ours)]
    environment: Vec<World>,
    /// Episodes in each
    #[arg(long, short = 'n', default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    episodes: u32,
    /// Seed of the tasks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The policy writes plain actions, without foresight
    #[arg(long)]
    plain: bool,
    /// A text to read, besides or instead
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// Also the products of columns, which `--codes error_feedback` needs; one passage of five is held out to check it
    #[arg(long)]
    products: bool,
    /// Columns of the widest matrix whose products are summed: 8 bytes times the square of its columns, for each
    #[arg(long, value_name = "N", requires = "products", default_value_t = 4096)]
    product_columns: usize,
    /// Also how much of the policy's divergence each matrix causes for what its outputs are off by; `--target-size`
    /// then knows where bits count. Takes one pass over some episodes for each matrix
    #[arg(long)]
    sensitivity: bool,
    /// The file to write, as `llama-imatrix` writes them
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document {
    out: String,
    n_tensors: usize,
    n_tokens: usize,
    /// Mean divergence of the policy with only that matrix rounded, and what follows for each.
    sensitivity: Vec<sensitivity::Measured>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &ImportanceArguments) -> anyhow::Result<Outcome> {
    let progress = Progress::new();
    let (passages, datasets) = read(globals, arguments, &progress)?;
    let context = passages.iter().map(|it| it.tokens.len()).max().unwrap_or(0);
    if context == 0 {
        return Err(Refusal::new("expected --environment or --text: something to read").into());
    }
    let gguf = policy::open(&arguments.file)?;
    let options =
        DecoderOptions { threads: globals.threads(), context_tokens: context, kv: KvFormat::F16, max_sequences: 1 };
    let load = |gguf| Decoder::<Cpu>::load(gguf, options).with_context(|| arguments.file.display().to_string());
    let mut decoder = load(&gguf)?;
    let n_tokens: usize = passages.iter().map(|it| it.tokens.len()).sum();
    let columns = if arguments.products { arguments.product_columns } else { 0 };
    progress.stage("observe what matrices read", n_tokens as u64);
    let mut importance = observed(&mut decoder, &passages, columns, &mut |it| progress.set(it as u64))?;
    progress.finish();
    drop(decoder);
    let mut measured = Vec::new();
    if arguments.sensitivity {
        measured = sensitivity::measure(&gguf, &importance, &passages, options, &progress)?;
        importance.weights = measured.iter().map(|it| (it.tensor.clone(), it.weight)).collect();
    }
    importance.write(&arguments.out, &datasets)?.publish()?;
    let out = arguments.out.display().to_string();
    let document = Document { out, n_tensors: importance.tensors.len(), n_tokens, sensitivity: measured };
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&format!("{}: {} tensors over {n_tokens} tokens\n", document.out, document.n_tensors))?;
    }
    Ok(Outcome::Done)
}

/// What is read, and what it is called.
fn read(
    globals: &Globals,
    arguments: &ImportanceArguments,
    progress: &Progress,
) -> anyhow::Result<(Vec<Passage>, Vec<String>)> {
    let (mut passages, mut names) = (Vec::new(), Vec::new());
    for world in &arguments.environment {
        let asked = passages::Asked {
            world: *world,
            episodes: arguments.episodes as usize,
            seed: arguments.seed,
            plain: arguments.plain,
        };
        passages.extend(passages::episodes(&arguments.file, asked, globals.threads(), progress)?);
        names.push(world.name().to_owned());
    }
    for path in &arguments.text {
        passages.extend(passages::windows(&arguments.file, path)?);
        names.push(path.file_name().map_or_else(String::new, |it| it.to_string_lossy().into_owned()));
    }
    Ok((passages, names))
}

/// Lets a policy read passages, each token counting by its weight.
fn observed(
    decoder: &mut Decoder<Cpu>,
    passages: &[Passage],
    product_columns_max: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Importance> {
    let (products, observing) = (product_columns_max > 0, Observing { product_columns_max });
    let mut n_done = 0;
    let mut pass = |held_out: bool| -> anyhow::Result<_> {
        decoder.observe(observing);
        for (index, passage) in passages.iter().enumerate() {
            if products && index.is_multiple_of(HELD_OUT_EVERY) != held_out {
                continue;
            }
            let sequence = decoder.open_sequence();
            let weights: Vec<f32> = passage.weights.iter().map(|it| it.max(CONTEXT_WEIGHT)).collect();
            let step = Step { sequence, tokens: &passage.tokens, logits: LogitsFor::All, adapter: None };
            decoder.forward_weighted(step, &weights)?;
            decoder.close(sequence);
            n_done += passage.tokens.len();
            progress(n_done);
        }
        Ok(decoder.observed())
    };
    let fitted = pass(false)?;
    let mut importance = crate::evaluate::importance_of(&fitted);
    if products {
        importance.moments = moments(&fitted)?;
        importance.held_out = moments(&pass(true)?)?;
    }
    Ok(importance)
}

/// Mean products; tensors that read the same share them.
#[expect(clippy::cast_possible_truncation, reason = "files hold 32-bit floats")]
fn moments(sums: &std::collections::BTreeMap<String, ColumnSums>) -> anyhow::Result<MomentsByTensor> {
    let mut moments: Vec<(&Arc<Vec<f64>>, String, Moments)> = Vec::new();
    for (name, sums) in sums {
        let Some(products) = &sums.products else { continue };
        if let Some((_, _, same)) = moments.iter().find(|it| Arc::ptr_eq(it.0, products)) {
            let same = same.clone();
            moments.push((products, name.clone(), same));
            continue;
        }
        let n = sums.n_rows.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let means = Arc::new(products.iter().map(|it| (it / n) as f32).collect());
        moments.push((products, name.clone(), Moments::new(name, products.len().isqrt(), means)?));
    }
    Ok(moments.into_iter().map(|(_, name, it)| (name, it)).collect())
}
