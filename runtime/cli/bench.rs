//! `fsq bench`: how fast a file runs on this machine, and how much of what the machine could do that is.

mod load;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use fsq_gguf::Gguf;
use fsq_kernels::{Backend, Cpu};
use fsq_model::{Decoder, DecoderOptions, LogitsFor, SequenceId, Step, TokenId};
use serde::Serialize;

use crate::failure::{Outcome, Refusal};
use crate::output::{bytes_text, columns};
use crate::progress::Progress;
use crate::{Globals, output, policy};
use load::Watch;

/// Tokens of one forward pass while a prompt is read in.
const BATCH_TOKENS: usize = 512;
/// Foreign work above which a run is called disturbed, in cores.
const DISTURBED_CORES: f64 = 0.1;

/// Arguments of `fsq bench`.
#[derive(Args)]
pub(crate) struct BenchArguments {
    /// GGUF files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Tokens of the prompt
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that each sequence generates
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// Sequences that generate at once; several numbers make several rows
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: Vec<u16>,
    /// Tokens that stand before what is generated, read in untimed behind the prompt; several numbers make several rows
    /// [default: the prompt's]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    context: Vec<u32>,
    /// Times that each is measured; the first, which warms up, is not counted
    #[arg(short = 'r', long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    repetitions: u8,
    /// How keys and values are stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: policy::Kv,
}

/// One file with one batch size and one context. The shape is stable.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    measured: Measured,
    roofline: Roofline,
}

impl Row {
    fn new(measured: Measured, read_bytes_per_s: f64) -> Self {
        let steps_per_s = measured.decode_tokens_per_s.median / measured.batch as f64;
        let share = measured.step_bytes as f64 * steps_per_s / read_bytes_per_s;
        let roofline = Roofline { read_bytes_per_s, step_bytes: measured.step_bytes, share };
        Self { measured, roofline }
    }
}

/// What a row tells without the machine's limits.
#[derive(Serialize)]
struct Measured {
    file: String,
    /// The format that most of the file's bytes are in.
    format: &'static str,
    device: &'static str,
    backend: &'static str,
    /// Instructions that the kernels run on.
    path: String,
    threads: usize,
    n_prompt: usize,
    n_gen: usize,
    batch: usize,
    /// Tokens that stand before the first generated one.
    context: usize,
    /// How keys and values are stored.
    kv: &'static str,
    /// What they take at most, all sequences full.
    kv_bytes: u64,
    prefill_tokens_per_s: Spread,
    decode_tokens_per_s: Spread,
    load_s: f64,
    /// Largest resident memory while the row was measured; `null` where the system does not tell.
    rss_bytes_max: Option<u64>,
    file_bytes: u64,
    /// Work of other processes meanwhile, in cores; `null` where the system does not tell.
    other_cores: Option<f64>,
    #[serde(skip)]
    step_bytes: u64,
}

/// Of several measurements.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Serialize)]
struct Roofline {
    /// What the machine reads from memory at best, measured behind everything else.
    read_bytes_per_s: f64,
    /// What a decode step reads of weights, keys and values.
    step_bytes: u64,
    /// Of the first, how much the median decode step reaches.
    share: f64,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &BenchArguments) -> anyhow::Result<Outcome> {
    let contexts = contexts(arguments)?;
    let progress = Progress::new();
    let mut measured = Vec::new();
    for file in &arguments.files {
        for batch in &arguments.batch {
            let bench =
                Bench { globals, arguments, contexts: &contexts, progress: &progress, batch: usize::from(*batch) };
            measured.append(&mut bench.run(file).with_context(|| file.display().to_string())?);
        }
    }
    // Last, since an allocator may keep what the probe has touched, and it would count as the policy's.
    progress.stage("memory's bandwidth", 1);
    let read_bytes_per_s = Cpu::new(globals.threads()).read_bytes_per_s()?;
    let rows: Vec<Row> = measured.into_iter().map(|it| Row::new(it, read_bytes_per_s)).collect();
    progress.finish();
    if globals.json {
        output::print_json(&rows)?;
    } else {
        output::print(&text(&rows))?;
    }
    Ok(Outcome::Done)
}

/// Where generation is measured, the shortest context first.
fn contexts(arguments: &BenchArguments) -> anyhow::Result<Vec<usize>> {
    if let Some(short) = arguments.context.iter().find(|it| **it < arguments.prompt) {
        let prompt = arguments.prompt;
        return Err(
            Refusal::new(format!("--context: expected at least the prompt's {prompt} tokens, found {short}")).into()
        );
    }
    let mut contexts: Vec<usize> = arguments.context.iter().map(|it| *it as usize).collect();
    contexts.sort_unstable();
    contexts.dedup();
    Ok(if contexts.is_empty() { vec![arguments.prompt as usize] } else { contexts })
}

/// A file with one batch size: as many rows as there are contexts.
struct Bench<'a> {
    globals: &'a Globals,
    arguments: &'a BenchArguments,
    contexts: &'a [usize],
    progress: &'a Progress,
    batch: usize,
}

impl Bench<'_> {
    fn run(&self, file: &std::path::Path) -> anyhow::Result<Vec<Measured>> {
        let n_gen = self.arguments.generate as usize;
        let watch = Watch::begin();
        let begun = Instant::now();
        let gguf = policy::open(file)?;
        let room = self.contexts.last().copied().unwrap_or(0) + n_gen;
        let options = DecoderOptions {
            threads: self.globals.threads(),
            context_tokens: room,
            kv: self.arguments.kv.into(),
            max_sequences: self.batch + 1,
        };
        let mut decoder = Decoder::load(&gguf, options)?;
        let load_s = begun.elapsed().as_secs_f64();
        let limit = decoder.options().context_tokens;
        if limit < room {
            let message = format!("--context (or -p) and -n: expected at most {limit} tokens together");
            return Err(Refusal::new(format!("{message}, the file's context, found {room}")).into());
        }
        let (format, file_bytes) = (main_format(&gguf), gguf.n_bytes() as u64);
        let step_bytes = self.contexts.iter().map(|it| step_bytes(&gguf, &decoder, it + n_gen / 2, self.batch));
        let step_bytes: Vec<u64> = step_bytes.collect();
        drop(gguf);
        let timings = self.repeat(&mut decoder, file)?;
        let (other_cores, rss_bytes_max) = watch.end();
        let rows =
            self.contexts.iter().zip(step_bytes).zip(timings.decode).map(|((context, step_bytes), decode)| Measured {
                file: file.display().to_string(),
                format,
                device: "cpu",
                backend: Cpu::NAME,
                path: decoder.backend().path(),
                threads: decoder.backend().threads(),
                n_prompt: self.arguments.prompt as usize,
                n_gen,
                batch: self.batch,
                context: *context,
                kv: decoder.options().kv.name(),
                kv_bytes: decoder.kv_bytes(),
                prefill_tokens_per_s: spread(timings.prefill.clone()),
                decode_tokens_per_s: spread(decode),
                load_s,
                rss_bytes_max,
                file_bytes,
                other_cores,
                step_bytes,
            });
        Ok(rows.collect())
    }

    /// Measures as often as is asked for, behind one run that is not counted and sees the shortest context only.
    fn repeat(&self, decoder: &mut Decoder<Cpu>, file: &std::path::Path) -> anyhow::Result<Timings> {
        let repetitions = usize::from(self.arguments.repetitions);
        self.progress.stage(format!("{} × {}", file.display(), self.batch), repetitions as u64);
        self.measure(decoder, &self.contexts[..1])?;
        let mut timings = Timings { prefill: Vec::new(), decode: vec![Vec::new(); self.contexts.len()] };
        for repetition in 1..=repetitions {
            let (read, written) = self.measure(decoder, self.contexts)?;
            timings.prefill.push(f64::from(self.arguments.prompt) / read);
            for (all, seconds) in timings.decode.iter_mut().zip(written) {
                all.push(self.batch as f64 * f64::from(self.arguments.generate) / seconds);
            }
            self.progress.set(repetition as u64);
        }
        Ok(timings)
    }

    /// Seconds to read a prompt, and to write with all sequences of a batch behind each context.
    fn measure(&self, decoder: &mut Decoder<Cpu>, contexts: &[usize]) -> anyhow::Result<(f64, Vec<f64>)> {
        let vocab = decoder.config().vocab as u64;
        // Any tokens cost the same; these are spread over the vocabulary.
        let token = |index: usize| TokenId::try_from(index as u64 * 2_654_435_761 % vocab).unwrap_or(0);
        let first = decoder.open_sequence();
        let read_on = |decoder: &mut Decoder<Cpu>, from: usize, to: usize| {
            let prompt: Vec<TokenId> = (from..to).map(token).collect();
            prompt.chunks(BATCH_TOKENS).try_for_each(|tokens| {
                decoder.forward(&[Step { sequence: first, tokens, logits: LogitsFor::Last, adapter: None }]).map(drop)
            })
        };
        let mut context = self.arguments.prompt as usize;
        let begun = Instant::now();
        read_on(decoder, 0, context)?;
        let read = begun.elapsed().as_secs_f64();
        let mut written = Vec::with_capacity(contexts.len());
        for longer in contexts {
            read_on(decoder, context, *longer)?;
            context = *longer;
            written.push(self.generate(decoder, first, token)?);
        }
        decoder.close(first);
        Ok((read, written))
    }

    /// Seconds to write with a batch of sequences that begin as `first` does; it stays as it is.
    fn generate(
        &self,
        decoder: &mut Decoder<Cpu>,
        first: SequenceId,
        token: impl Fn(usize) -> TokenId,
    ) -> anyhow::Result<f64> {
        let sequences = (0..self.batch).map(|_| decoder.fork(first)).collect::<Result<Vec<_>, _>>()?;
        let begun = Instant::now();
        for index in 0..self.arguments.generate as usize {
            let tokens: Vec<[TokenId; 1]> = (0..self.batch).map(|it| [token(index * self.batch + it)]).collect();
            let step = |(sequence, tokens)| Step { sequence, tokens, logits: LogitsFor::Last, adapter: None };
            let steps: Vec<Step<'_>> =
                sequences.iter().copied().zip(tokens.iter().map(|it| &it[..])).map(step).collect();
            decoder.forward(&steps)?;
        }
        let written = begun.elapsed().as_secs_f64();
        sequences.into_iter().for_each(|it| decoder.close(it));
        Ok(written)
    }
}

/// What was measured: of the prompt once a repetition, of writing once for each context.
struct Timings {
    /// Tokens a second, `[repetition]`
    prefill: Vec<f64>,
    /// Tokens a second, `[context][repetition]`
    decode: Vec<Vec<f64>>,
}

/// What one decode step has to read: all matrices once, of an embedding that is not the output too only some rows,
/// and the keys and values of each sequence.
fn step_bytes(gguf: &Gguf, decoder: &Decoder<Cpu>, positions: usize, batch: usize) -> u64 {
    let sizes = decoder.config();
    let is_read = |name: &str| name != "token_embd.weight" || sizes.tied;
    let weights: usize = gguf.views().filter(|it| is_read(it.name)).map(|it| it.bytes.len()).sum();
    let keys_and_values = 2 * sizes.n_layers * sizes.n_kv_heads * decoder.options().kv.head_bytes(sizes.head_dim);
    (weights + keys_and_values * positions * batch) as u64
}

/// The format of most bytes.
fn main_format(gguf: &Gguf) -> &'static str {
    let mut sizes = std::collections::BTreeMap::new();
    for view in gguf.views() {
        *sizes.entry(view.format.name()).or_insert(0) += view.bytes.len();
    }
    sizes.into_iter().max_by_key(|it| it.1).map_or("none", |it| it.0)
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let middle = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    let half = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { middle(half) } else { (middle(half.saturating_sub(1)) + middle(half)) / 2.0 };
    Spread { median, min: middle(0), max: middle(values.len().saturating_sub(1)) }
}

fn text(rows: &[Row]) -> String {
    let heading = [
        "file",
        "format",
        "batch",
        "context",
        "prefill tokens/s",
        "decode tokens/s",
        "GB/s",
        "of roofline",
        "load",
        "memory",
        "kv",
    ];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    let around = |it: Spread| format!("{:.1} [{:.1}, {:.1}]", it.median, it.min, it.max);
    for Row { measured: row, roofline } in rows {
        let bytes_per_s = roofline.share * roofline.read_bytes_per_s;
        cells.push(vec![
            row.file.clone(),
            row.format.into(),
            row.batch.to_string(),
            row.context.to_string(),
            around(row.prefill_tokens_per_s),
            around(row.decode_tokens_per_s),
            format!("{:.1}", bytes_per_s / 1e9),
            format!("{:.0} %", 100.0 * roofline.share),
            format!("{:.2} s", row.load_s),
            row.rss_bytes_max.map_or_else(|| "not available".into(), bytes_text),
            format!("{} {}", row.kv, bytes_text(row.kv_bytes)),
        ]);
    }
    let mut text = columns(&cells);
    if let Some(Row { measured: row, roofline }) = rows.first() {
        let roofline = roofline.read_bytes_per_s / 1e9;
        text += &format!(
            "\n{} threads on {}; memory reads at {roofline:.1} GB/s at best; median [least, most] of {} tokens read \
             and {} written\n",
            row.threads, row.path, row.n_prompt, row.n_gen
        );
    }
    let others = rows.iter().filter_map(|it| it.measured.other_cores).fold(0.0, f64::max);
    if others > DISTURBED_CORES {
        text += &format!("disturbed: other processes used up to {others:.1} cores meanwhile\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let found = spread(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((found.median, found.min, found.max), (2.5, 1.0, 4.0));
        assert!(spread(Vec::new()).median.is_nan());
    }
}
