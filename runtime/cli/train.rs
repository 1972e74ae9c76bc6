//! `fsq train`: one stage of a run file, or all of them in order; each resumes where it was killed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use fsq_checkpoint::Checkpoint;
use fsq_environments::AnyWorld;
use fsq_trainer::stages::run::{Report, StageRun};
use fsq_trainer::stages::{base, fc_rl, sft, text};
use fsq_trainer::{Recipe, RecipeError};

use crate::failure::{Outcome, Refusal};
use crate::progress::Progress;
use crate::{Globals, output};

/// Arguments of `fsq train`.
#[derive(Args)]
pub(crate) struct TrainArguments {
    /// A run file
    recipe: PathBuf,
    /// Only this stage; without it every stage that the run file has, in order
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// The checkpoint that the first stage starts from; not for a base
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The folder to write to; each stage gets a folder of its own in it
    #[arg(long, value_name = "DIR", required_unless_present = "dump_config")]
    out: Option<PathBuf>,
    /// A setting over what the run file says, such as `sft.lora.rank=16`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print the run file with all settings and defaults in it, and train nothing
    #[arg(long)]
    dump_config: bool,
}

/// The stages, and the base they start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    Base,
    WmAmt,
    Control,
    Sft,
    FeSft,
    FcRl,
}

impl Stage {
    /// In the order in which a run takes them. The control replaces WM-AMT, so it runs only when asked for.
    const IN_ORDER: [Self; 5] = [Self::Base, Self::WmAmt, Self::Sft, Self::FeSft, Self::FcRl];

    /// The name of its folder.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::WmAmt => "wm-amt",
            Self::Control => "control",
            Self::Sft => "sft",
            Self::FeSft => "fe-sft",
            Self::FcRl => "fc-rl",
        }
    }

    /// What people call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::WmAmt => "WM-AMT",
            Self::Control => "control",
            Self::Sft => "SFT",
            Self::FeSft => "FE-SFT",
            Self::FcRl => "FC-RL",
        }
    }

    fn is_in(self, recipe: &Recipe) -> bool {
        match self {
            Self::Base => recipe.base.is_some(),
            Self::WmAmt => recipe.wm_amt.is_some(),
            Self::Control => recipe.control.is_some(),
            Self::Sft => recipe.sft.is_some(),
            Self::FeSft => recipe.fe_sft.is_some(),
            Self::FcRl => recipe.fc_rl.is_some(),
        }
    }
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &TrainArguments) -> anyhow::Result<Outcome> {
    let shown = arguments.recipe.display().to_string();
    let recipe = read_recipe(&arguments.recipe, &arguments.settings)?;
    if arguments.dump_config {
        output::print(&recipe.resolved())?;
        return Ok(Outcome::Done);
    }
    // The parser has seen to it that there is one.
    let out = arguments.out.as_deref().context("--out: expected a folder, found nothing")?;
    let stages: Vec<Stage> = match arguments.stage {
        Some(stage) if !stage.is_in(&recipe) => {
            let refusal = Refusal::new(format!("{shown}: stage `{}`: expected a table, found nothing", stage.folder()));
            return Err(refusal.hint(format!("add [{}] to the run file", stage.folder())).into());
        }
        Some(stage) => vec![stage],
        None => Stage::IN_ORDER.into_iter().filter(|it| it.is_in(&recipe)).collect(),
    };
    let place = arguments.recipe.parent().unwrap_or(Path::new(""));
    let own = recipe.environment.as_ref().map(|it| it.open(place)).transpose()?;
    output::make_folder(out)?;
    let progress = Progress::new();
    let mut from = arguments.from.clone();
    for stage in stages {
        let folder = out.join(stage.folder());
        let start = match (&from, stage) {
            (_, Stage::Base) => None,
            (Some(path), _) => Some(Checkpoint::open(path)?),
            (None, _) => {
                let refusal = Refusal::new(format!("{}: expected a checkpoint to start from", stage.title()));
                return Err(refusal.hint("name it with --from DIR").into());
            }
        };
        let own = own.as_ref();
        from = Some(run_stage(stage, &recipe, own, start.as_ref(), &folder, globals.threads(), &progress)?);
    }
    progress.finish();
    if let Some(last) = from {
        output::print(&format!("{}\n", last.display()))?;
    }
    Ok(Outcome::Done)
}

/// A run file with settings over it.
fn read_recipe(path: &Path, settings: &[String]) -> anyhow::Result<Recipe> {
    let shown = path.display().to_string();
    let written = std::fs::read_to_string(path).with_context(|| shown.clone())?;
    Ok(Recipe::parse_with(&written, settings).map_err(|error| {
        let refusal = Refusal::new(format!("{shown}: {error}"));
        match error {
            RecipeError::Toml { nearest: Some(key), .. } => refusal.hint(format!("did you mean `{key}`?")),
            _ => refusal,
        }
    })?)
}

/// Runs one stage in a folder and returns where its merged checkpoint lies. `own` is the run's own world, if it has one.
pub(crate) fn run_stage(
    stage: Stage,
    recipe: &Recipe,
    own: Option<&AnyWorld>,
    from: Option<&Checkpoint>,
    folder: &Path,
    threads: usize,
    progress: &Progress,
) -> anyhow::Result<PathBuf> {
    let mut run = StageRun::open(folder)?;
    if recipe.tensorboard {
        run.write_events();
    }
    let mut begun = false;
    let mut watch = |report: &Report| {
        if !begun {
            progress.stage(stage.title(), report.steps as u64);
            begun = true;
        }
        progress.note(report.text.clone());
        progress.set(report.step as u64);
    };
    let seed = recipe.seed;
    let start = || from.with_context(|| format!("{}: expected a checkpoint to start from", stage.title()));
    let missing = || Refusal::new(format!("the run file has no table [{}]", stage.folder()));
    match stage {
        Stage::Base => {
            base::run(recipe.base.as_ref().ok_or_else(missing)?, &mut run, own, seed, threads, &mut watch)?;
        }
        Stage::WmAmt | Stage::Control | Stage::FeSft => {
            let config = match stage {
                Stage::WmAmt => &recipe.wm_amt,
                Stage::Control => &recipe.control,
                _ => &recipe.fe_sft,
            };
            text::run(config.as_ref().ok_or_else(missing)?, start()?, &mut run, own, seed, threads, &mut watch)?;
        }
        Stage::Sft => {
            sft::run(recipe.sft.as_ref().ok_or_else(missing)?, start()?, &mut run, seed, threads, &mut watch)?;
        }
        Stage::FcRl => {
            let config = recipe.fc_rl.as_ref().ok_or_else(missing)?;
            fc_rl::run(config, start()?, &mut run, own, seed, threads, &mut watch)?;
        }
    }
    Ok(run.merged())
}
