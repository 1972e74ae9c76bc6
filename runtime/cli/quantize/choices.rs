//! How codes and formats of a file are chosen, beyond its recipe: what the options say, as a plan.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
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
pub(crate) struct ChoiceArguments {
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
    /// Formats from a file, as each run leaves one beside what it writes
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

/// What a plan is made for.
pub(crate) struct Subject<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) adapters: &'a [Adapter],
    pub(crate) importance: Option<&'a Importance>,
    pub(crate) provenance: &'a Provenance,
}

impl ChoiceArguments {
    /// Refuses options that cannot be met before anything is read.
    pub(crate) fn check(&self, importance: Option<&Importance>) -> anyhow::Result<()> {
        let has_products = importance.is_some_and(|it| !it.moments.is_empty());
        if self.codes == Codes::ErrorFeedback && !has_products {
            let refusal = Refusal::new("--codes error_feedback: expected importance with products of columns");
            return Err(refusal.hint("`fsq importance FILE --products` observes them").into());
        }
        if self.target_bpw.is_some_and(|it| !(1.0..=32.0).contains(&it)) {
            return Err(Refusal::new("--target-bpw: expected from 1 to 32 bits").into());
        }
        Ok(())
    }

    /// A recipe with what the options say of codes and formats, and what each matrix loses where that was looked at.
    pub(crate) fn apply(
        &self,
        mut plan: Plan,
        subject: &Subject<'_>,
        progress: &Progress,
    ) -> anyhow::Result<(Plan, Option<Sensitivities>)> {
        plan.codes = self.codes;
        if let Some(path) = &self.plan {
            // What is given on the command line counts more than what stands in the file.
            plan.overrides = read_plan(path)?.into_iter().chain(plan.overrides).collect();
            return Ok((plan, None));
        }
        let Some(budget) = self.budget(subject)? else { return Ok((plan, None)) };
        progress.stage("what each format loses", subject.checkpoint.dimensions.n_layers as u64);
        let sensitivities = Sensitivities::measure(
            subject.checkpoint,
            subject.adapters,
            subject.importance,
            self.codes,
            &mut |_, _| {},
        )?;
        let weighted = subject.importance.is_some();
        let plan = sensitivities.fit(subject.checkpoint, &plan, weighted, subject.provenance, budget)?;
        Ok((plan, Some(sensitivities)))
    }

    fn budget(&self, subject: &Subject<'_>) -> anyhow::Result<Option<u64>> {
        let weighted = subject.importance.is_some();
        Ok(match (self.target_size, self.target_bpw) {
            (Some(Size::Bytes(bytes)), _) => Some(bytes),
            (Some(Size::Of(mix)), _) => {
                Some(file_bytes(subject.checkpoint, &Plan::new(mix), weighted, subject.provenance)?)
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a size, checked to be in range"
            )]
            (None, Some(bits)) => Some((subject.checkpoint.dimensions.parameters() as f64 * bits / 8.0) as u64),
            (None, None) => None,
        })
    }
}

/// Writes the plan of a file beside it, to be read, changed and given back.
pub(crate) fn write_plan(
    path: &Path,
    plan: &Plan,
    subject: &Subject<'_>,
    sensitivities: Option<&Sensitivities>,
) -> anyhow::Result<()> {
    let allocations = plan.allocate(&subject.checkpoint.dimensions, subject.importance.is_some())?;
    let text = plan_text(&allocations, sensitivities);
    output::write_whole(path, text.as_bytes()).with_context(|| path.display().to_string())
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
