//! How codes and formats of a file are chosen, beyond its recipe: what the options say, as a plan.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Checkpoint};
use fsq_quantizer::{Codes, Importance, Mix, Plan, Provenance, Sensitivities, file_bytes, plan_text, read_plan};

use crate::failure::Refusal;
use crate::output;
use crate::progress::Progress;

/// What a file may take.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    Bytes(u64),
    /// As much as the file of a recipe would.
    Of(Mix),
}

/// Options of `fsq quantize`.
#[derive(Args)]
pub(super) struct ChoiceArguments {
    /// How codes are chosen: as ggml does, by descent to less error, or with errors fed back (needs --importance with
    /// products)
    #[arg(long, value_name = "stock|descent|error_feedback", value_parser = codes, default_value = "stock")]
    codes: Codes,
    /// Choose the format of each matrix so that the file loses least at no more than this size, such as 3.5GiB, or
    /// q4_k_m for that of the recipe
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["target_bpw", "plan"])]
    target_size: Option<Size>,
    /// The same by bits of the file for each weight
    #[arg(long, value_name = "BITS", conflicts_with = "plan")]
    target_bpw: Option<f64>,
    /// Formats from a file, as a run with --target-size leaves one beside what it writes
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

fn codes(text: &str) -> Result<Codes, String> {
    let known = || Codes::ALL.map(Codes::name).join(", ");
    Codes::ALL.into_iter().find(|it| it.name() == text).ok_or_else(|| format!("expected one of {}", known()))
}

fn size(text: &str) -> Result<Size, String> {
    if let Some(mix) = Mix::from_name(text) {
        return Ok(Size::Of(mix));
    }
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => f64::from(1 << 10),
        "MiB" => f64::from(1 << 20),
        "GiB" => f64::from(1 << 30),
        unit => {
            return Err(format!("expected bytes, kB, MB, GB, KiB, MiB, GiB or a format such as q4_k_m, found {unit}"));
        }
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("expected a number, found {digits:?}"))?;
    if !(number > 0.0 && number * unit < 1e15) {
        return Err(format!("expected a size, found {text}"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(Size::Bytes((number * unit) as u64))
}

/// What the options chose, once for a run.
pub(super) struct Chosen {
    pub(super) codes: Codes,
    /// For the format that was asked for: its plan, and what is known of what each matrix loses.
    pub(super) plan: Option<(Mix, Plan, Option<Sensitivities>)>,
}

/// What is quantized.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) merged: &'a [Adapter],
    pub(super) importance: Option<&'a Importance>,
    pub(super) provenance: &'a Provenance,
}

impl ChoiceArguments {
    /// Whether nothing is left to choose: every file has the formats of its recipe and the codes of the stock encoders.
    pub(super) fn are_stock(&self) -> bool {
        self.codes == Codes::Stock && !self.choose_formats()
    }

    fn choose_formats(&self) -> bool {
        self.target_size.is_some() || self.target_bpw.is_some() || self.plan.is_some()
    }

    /// Refuses what contradicts itself before anything is read.
    pub(super) fn check(&self, mixes: &[Mix]) -> anyhow::Result<()> {
        if self.choose_formats() && mixes.len() != 1 {
            let message = format!(
                "--to: expected one format beside --target-size, --target-bpw or --plan, found {}",
                mixes.len()
            );
            return Err(Refusal::new(message).into());
        }
        if let Some(bits) = self.target_bpw.filter(|it| !(1.0..=32.0).contains(it)) {
            return Err(Refusal::new(format!("--target-bpw: expected from 1 to 32 bits, found {bits}")).into());
        }
        Ok(())
    }

    /// Chooses, with the user's own formats of single tensors as given.
    pub(super) fn choose(
        &self,
        mixes: &[Mix],
        subject: Subject<'_>,
        tensor_types: &[(String, Format)],
    ) -> anyhow::Result<Chosen> {
        let codes = self.codes;
        if codes == Codes::ErrorFeedback && subject.importance.is_none_or(|it| it.moments.is_empty()) {
            let refusal = Refusal::new("--codes error_feedback: expected --importance with products of columns");
            return Err(refusal.hint("`fsq importance FILE --products` observes them").into());
        }
        let Some(mix) = mixes.first().copied().filter(|_| self.choose_formats()) else {
            return Ok(Chosen { codes, plan: None });
        };
        let (weighted, recipe) = (subject.importance.is_some(), Plan { codes, ..Plan::new(mix) });
        if let Some(path) = &self.plan {
            // What is given on the command line counts more than what stands in the file.
            let overrides = read_plan(path)?.into_iter().chain(tensor_types.iter().cloned()).collect();
            let plan = Plan { overrides, ..recipe };
            plan.allocate(&subject.checkpoint.dimensions, weighted).with_context(|| path.display().to_string())?;
            return Ok(Chosen { codes, plan: Some((mix, plan, None)) });
        }
        let Subject { checkpoint, merged, importance, provenance } = subject;
        let budget = self.budget(subject)?;
        let progress = Progress::new();
        progress.stage("what each format loses", 0);
        let sensitivities = Sensitivities::measure(checkpoint, merged, importance, codes, &mut |_, _| {})?;
        progress.finish();
        let recipe = Plan { overrides: tensor_types.to_vec(), ..recipe };
        let plan = sensitivities.fit(checkpoint, &recipe, weighted, provenance, budget)?;
        Ok(Chosen { codes, plan: Some((mix, plan, Some(sensitivities))) })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a size, checked to be in range"
    )]
    fn budget(&self, subject: Subject<'_>) -> anyhow::Result<u64> {
        let Subject { checkpoint, importance, provenance, .. } = subject;
        Ok(match (self.target_size, self.target_bpw) {
            (Some(Size::Bytes(bytes)), _) => bytes,
            (Some(Size::Of(mix)), _) => file_bytes(checkpoint, &Plan::new(mix), importance.is_some(), provenance)?,
            (None, bits) => (checkpoint.dimensions.parameters() as f64 * bits.unwrap_or(32.0) / 8.0) as u64,
        })
    }
}

impl Chosen {
    /// Writes the plan, if formats were chosen, to be read, changed and given back.
    pub(super) fn write_plan(&self, out: &Path, name: &str, subject: Subject<'_>) -> anyhow::Result<()> {
        let Some((mix, plan, sensitivities)) = &self.plan else { return Ok(()) };
        let allocations = plan.allocate(&subject.checkpoint.dimensions, subject.importance.is_some())?;
        let path = out.join(format!("{name}-{}.plan.toml", mix.name()));
        let text = plan_text(&allocations, sensitivities.as_ref());
        output::write_whole(&path, text.as_bytes()).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_units_or_recipes() {
        assert_eq!(size("q4_k_m"), Ok(Size::Of(Mix::Q4_K_M)));
        assert_eq!(size("1000"), Ok(Size::Bytes(1000)));
        assert_eq!(size("1.5MiB"), Ok(Size::Bytes(3 << 19)));
        assert_eq!(size("2 GB"), Ok(Size::Bytes(2_000_000_000)));
        for wrong in ["", "GB", "-1GB", "1 parsec", "nan", "1e30", "q9_k"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
