//! How tokens are chosen: the arguments of every command that generates.

use clap::Args;
use fsq_model::Sampling;

/// The options of [`Sampling`].
#[derive(Args)]
pub(crate) struct SamplingArguments {
    /// 0 takes the most probable token each time
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Only the N most probable tokens; 0 keeps all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Only the smallest set of tokens whose probability reaches P
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    top_p: f32,
    /// Only tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    min_p: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArguments {
    /// The options, with a random stream of its own for each answer of a chat.
    pub(crate) fn of_answer(&self, index: u64) -> Sampling {
        let Self { temperature, top_k, top_p, min_p, seed } = *self;
        Sampling { temperature, top_k, top_p, min_p, seed: seed.wrapping_add(index) }
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    let temperature = text.parse::<f32>().ok().filter(|it| (0.0..=100.0).contains(it));
    temperature.ok_or_else(|| "expected a number from 0 to 100".into())
}

fn share(text: &str) -> Result<f32, String> {
    let share = text.parse::<f32>().ok().filter(|it| (0.0..=1.0).contains(it));
    share.ok_or_else(|| "expected a number from 0 to 1".into())
}
