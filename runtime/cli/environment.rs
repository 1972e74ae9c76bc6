//! `fsq environment`: what a user's own environment does, before a policy plays in it; and how commands name one.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use fsq_calibrate::foresight;
use fsq_environments::conformance::{CheckOptions, Conformance, check};
use fsq_environments::{AnyWorld, in_world};
use fsq_trainer::recipe;

use crate::evaluate::World;
use crate::failure::{Outcome, Refusal};
use crate::progress::Progress;
use crate::{Globals, output};

/// Arguments of `fsq environment`.
#[derive(Args)]
pub(crate) struct EnvironmentArguments {
    #[command(subcommand)]
    command: EnvironmentCommand,
}

#[derive(Subcommand)]
enum EnvironmentCommand {
    /// Play random episodes twice and see whether the environment keeps its promises
    Check(CheckArguments),
}

/// Arguments of `fsq environment check`.
#[derive(Args)]
struct CheckArguments {
    /// A run file with a table [environment], or the name of one of our own
    #[arg(value_name = "FILE.toml")]
    environment: Place,
    /// Episodes of each of two splits
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    episodes: usize,
    /// Seed of tasks and actions
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// An environment as a user names it.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// One of ours.
    Ours(World),
    /// The one that a run file describes.
    Own(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.ends_with(".toml") { Ok(Self::Own(text.into())) } else { ours(text).map(Self::Ours) }
    }
}

/// One of our own environments, for commands that can use no other.
pub(crate) fn ours(text: &str) -> Result<World, String> {
    World::from_str(text, false).map_err(|_| {
        let names = AnyWorld::NAMES.join(", ");
        let told = format!("expected one of {names}, found `{text}`");
        match text.ends_with(".toml") {
            true => format!("{told}: a user's own environment is for `fsq eval`, `fsq train` and `fsq environment`"),
            false => told,
        }
    })
}

impl Place {
    /// Opens it: a user's program starts.
    pub(crate) fn open(&self) -> anyhow::Result<AnyWorld> {
        match self {
            Self::Ours(world) => Ok(world.any()),
            Self::Own(path) => open_own(path),
        }
    }
}

fn open_own(path: &Path) -> anyhow::Result<AnyWorld> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
    let config = recipe::environment_of(&text).map_err(|it| Refusal::new(format!("{shown}: {it}")))?;
    let config = config.ok_or_else(|| {
        let refusal = Refusal::new(format!("{shown}: expected a table [environment], found none"));
        refusal.hint("command = [\"python3\", \"environment.py\"] in it names a program; see docs/environments.md")
    })?;
    Ok(config.open(path.parent().unwrap_or(Path::new("")))?)
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &EnvironmentArguments) -> anyhow::Result<Outcome> {
    let EnvironmentCommand::Check(arguments) = &arguments.command;
    let first = arguments.environment.open()?;
    let progress = Progress::new();
    progress.stage(format!("episodes in {}", first.name()), 2 * arguments.episodes as u64);
    // Marks of turns begin with the last of them.
    let tags: Vec<&str> = foresight::TAGS.into_iter().chain(["<|"]).collect();
    let options = CheckOptions { episodes: arguments.episodes, seed: arguments.seed, tags: &tags };
    let found = match (&first, arguments.environment.open()?) {
        // A program of its own for the second time: what it remembers or draws by chance then shows.
        (AnyWorld::Process(first), AnyWorld::Process(second)) => check(&**first, &*second, &options),
        (first, _) => in_world!(first, it => check(it, it, &options)),
    };
    progress.finish();
    if globals.json {
        output::print_json(&found)?;
    } else {
        output::print(&text(&found))?;
    }
    if let Some(error) = found.error {
        return Err(error.into());
    }
    match found.promises.iter().find_map(|it| Some((it.name, it.fault.as_ref()?))) {
        None => Ok(Outcome::Done),
        Some((name, fault)) => {
            let refusal =
                Refusal::new(format!("environment `{}`: expected: {name}; found: {fault}", found.environment));
            Err(refusal.hint("docs/environments.md says what each answer must keep to").into())
        }
    }
}

fn text(found: &Conformance) -> String {
    let Conformance { environment, episodes, steps, random_success, repeated_starts, .. } = found;
    let mut text = format!("{environment}: {episodes} episodes of {steps} steps, each played twice\n");
    let mut rows = vec![vec!["promise".to_string(), "looked at".into(), "found".into()]];
    for it in &found.promises {
        let is_kept = match (&it.fault, it.n) {
            (Some(_), _) => "broken",
            (None, 0) => "not reached",
            (None, _) => "kept",
        };
        rows.push(vec![it.name.into(), it.n.to_string(), is_kept.into()]);
    }
    text += &output::columns(&rows);
    text += &format!("random actions succeed in {:.1} % of the episodes\n", 100.0 * random_success);
    text += &format!("held-out episodes that begin as a training episode does: {repeated_starts}\n");
    if let Some(speed) = &found.speed {
        text += &format!(
            "a step takes {:.2} ms; 99 of 100 at most {:.2} ms, the slowest {:.2} ms\n",
            speed.median_ms, speed.p99_ms, speed.max_ms
        );
    }
    text
}
