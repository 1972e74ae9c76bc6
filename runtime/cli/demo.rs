//! `fsq demo`: the whole mission on the shipped small base policy, from three stages to a served request.
//!
//! Every step leaves its result in a file under its own name, so a killed run goes on where it was.

mod pipeline;
mod serving;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, ValueEnum};
use fsq_trainer::Recipe;
use serde::{Deserialize, Serialize};

use crate::failure::{Outcome, Refusal};
use crate::progress::Progress;
use crate::report::record::{Arm, DemoReport, Machine};
use crate::report::{render_html, table};
use crate::train::Stage;
use crate::{Globals, output};

/// Arguments of `fsq demo`.
#[derive(Args)]
pub(crate) struct DemoArguments {
    /// The folder to write to
    #[arg(long, value_name = "DIR", default_value = "fsq-demo")]
    out: PathBuf,
    /// Every part on a small budget: a smoke test, whose numbers say little
    #[arg(long)]
    quick: bool,
    /// With world-model training, or without it
    #[arg(long, value_enum, default_value_t = ArmName::WmAmt)]
    arm: ArmName,
    /// Seed of everything random [default: that of the shipped recipe]
    #[arg(long)]
    seed: Option<u64>,
    /// The port of the server that answers the last request; 0 takes any free one
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// The two ways through the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArmName {
    /// WM-AMT, FE-SFT, FC-RL
    WmAmt,
    /// The same without world-model blocks in mid-training
    SftOnly,
}

impl ArmName {
    /// As files and reports name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WmAmt => "wm-amt",
            Self::SftOnly => "sft-only",
        }
    }

    /// What takes the place of mid-training.
    pub(crate) fn mid_stage(self) -> Stage {
        match self {
            Self::WmAmt => Stage::WmAmt,
            Self::SftOnly => Stage::Control,
        }
    }
}

/// What a folder was begun with: a run only goes on with the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    tool_version: String,
    seed: u64,
    quick: bool,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &DemoArguments) -> anyhow::Result<Outcome> {
    let text = if arguments.quick {
        include_str!("../../finetune/recipes/demo-quick.toml")
    } else {
        include_str!("../../finetune/recipes/demo.toml")
    };
    let mut recipe = Recipe::parse(text)?;
    recipe.seed = arguments.seed.unwrap_or(recipe.seed);
    output::make_folder(&arguments.out)?;
    check_settings(
        &arguments.out,
        &Settings { tool_version: env!("CARGO_PKG_VERSION").into(), seed: recipe.seed, quick: arguments.quick },
    )?;
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let progress = Progress::new();
    let demo = pipeline::Demo {
        recipe: &recipe,
        out: &arguments.out,
        arm: arguments.arm,
        sizes: if arguments.quick { pipeline::Sizes::QUICK } else { pipeline::Sizes::FULL },
        threads: globals.threads(),
        progress: &progress,
    };
    let finished = demo.run()?;
    let served = match &finished.best_file {
        Some(file) => Some(serving::serve_one(file, globals.threads(), arguments.port, recipe.seed)?),
        None => None,
    };
    progress.finish();
    let report = DemoReport {
        tool_version: env!("CARGO_PKG_VERSION").into(),
        seed: recipe.seed,
        quick: arguments.quick,
        command: command_line(arguments),
        machine: machine(globals)?,
        started,
        arms: arms(&arguments.out, finished.arm)?,
        served: served.as_ref().map(|it| it.record.clone()),
        notes: finished.notes,
    };
    write_report(&arguments.out, &report)?;
    if globals.json {
        output::print_json(&report)?;
    } else {
        output::print(&table(&report))?;
        output::print(&format!("\nreport: {}\n", arguments.out.join("report.html").display()))?;
        match served {
            Some(served) => output::print(&served.text)?,
            None => output::print("no file passed its gates, so nothing was served\n")?,
        }
    }
    Ok(finished.outcome)
}

fn check_settings(out: &Path, wanted: &Settings) -> anyhow::Result<()> {
    let path = out.join("demo.json");
    if !path.exists() {
        return output::write_whole(&path, (serde_json::to_string_pretty(wanted)? + "\n").as_bytes());
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let found: Settings =
        serde_json::from_str(&text).map_err(|it| Refusal::new(format!("{}: {it}", path.display())))?;
    if found != *wanted {
        let refusal = Refusal::new(format!("{}: expected {wanted:?}, found {found:?}", path.display()));
        return Err(refusal.hint("this folder was begun with other settings: choose another with --out").into());
    }
    Ok(())
}

/// This run's arm, beside the other one where the folder has it: the format-capability gap needs both.
fn arms(out: &Path, own: Arm) -> anyhow::Result<Vec<Arm>> {
    let path = |name: &str| out.join(name).join("arm.json");
    output::write_whole(&path(&own.name), (serde_json::to_string_pretty(&own)? + "\n").as_bytes())?;
    let mut arms = Vec::new();
    for name in [ArmName::WmAmt, ArmName::SftOnly].map(ArmName::name) {
        if name == own.name {
            arms.push(own.clone());
        } else if let Ok(text) = std::fs::read_to_string(path(name)) {
            arms.push(serde_json::from_str(&text).with_context(|| path(name).display().to_string())?);
        }
    }
    Ok(arms)
}

fn write_report(out: &Path, report: &DemoReport) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report)? + "\n";
    output::write_whole(&out.join("report.json"), json.as_bytes())?;
    output::write_whole(&out.join("report.html"), render_html(report)?.as_bytes())
}

fn command_line(arguments: &DemoArguments) -> String {
    let mut line = format!("fsq demo --out {}", arguments.out.display());
    if arguments.quick {
        line += " --quick";
    }
    if arguments.arm == ArmName::SftOnly {
        line += " --arm sft-only";
    }
    if let Some(seed) = arguments.seed {
        line += &format!(" --seed {seed}");
    }
    line
}

fn machine(globals: &Globals) -> anyhow::Result<Machine> {
    let (cpu, cores, memory_bytes) = crate::devices::summary(globals)?;
    Ok(Machine { cpu, cores, memory_bytes })
}
