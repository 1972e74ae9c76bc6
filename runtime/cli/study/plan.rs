//! The plan of a study: its cells, the stages that they share, and how far each has come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use fsq_checkpoint::Checkpoint;
use fsq_trainer::stages::fc_rl::RlConfig;
use fsq_trainer::stages::text::TextConfig;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::arms::{Arm, Budget};
use super::results::Cell;

/// What a stage does.
#[derive(Clone, Debug)]
pub(super) enum Recipe {
    Text(TextConfig),
    Rl(RlConfig),
}

/// One stage with one seed, shared by every arm that has the same stages up to it.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) seed: u64,
    pub(super) recipe: Recipe,
    /// Of recipe, seed and everything before: the same digest is the same policy.
    pub(super) digest: String,
    pub(super) folder: PathBuf,
}

/// One arm with one seed.
#[derive(Clone, Debug)]
pub(super) struct PlannedCell {
    pub(super) arm: Arm,
    pub(super) seed: u64,
    /// In order; the last is reinforcement.
    pub(super) stages: Vec<Stage>,
}

/// Cells, seed by seed, so that every seed is whole before the next begins.
pub(super) struct Plan {
    pub(super) cells: Vec<PlannedCell>,
}

impl Stage {
    fn new(name: &'static str, seed: u64, recipe: Recipe, before: &str, stages: &Path) -> anyhow::Result<Self> {
        let written = match &recipe {
            Recipe::Text(config) => serde_json::to_string(config)?,
            Recipe::Rl(config) => serde_json::to_string(config)?,
        };
        let digest = digest_of([before, name, &seed.to_string(), &written].map(str::as_bytes));
        let folder = stages.join(format!("{seed}-{name}-{digest}"));
        Ok(Self { name, seed, recipe, digest, folder })
    }

    pub(super) fn steps(&self) -> usize {
        match &self.recipe {
            Recipe::Text(config) => config.steps,
            Recipe::Rl(config) => config.steps,
        }
    }

    /// Where the policy lies that the stage hands on.
    pub(super) fn merged(&self) -> PathBuf {
        self.folder.join("merged")
    }

    pub(super) fn is_done(&self) -> bool {
        self.merged().join("model.safetensors").exists()
    }

    /// Steps done, as its metrics tell.
    pub(super) fn steps_done(&self) -> usize {
        if self.is_done() {
            return self.steps();
        }
        std::fs::read(self.folder.join("metrics.jsonl")).map_or(0, |it| it.iter().filter(|it| **it == b'\n').count())
    }
}

impl PlannedCell {
    /// The stage after which the arm is judged first.
    pub(super) fn tuned(&self) -> &Stage {
        &self.stages[self.stages.len() - 2]
    }

    /// The last stage.
    pub(super) fn reinforced(&self) -> &Stage {
        &self.stages[self.stages.len() - 1]
    }
}

impl Plan {
    /// Every arm with every seed.
    pub(super) fn new(arms: &[Arm], seeds: &[u64], budget: &Budget, base: &str, out: &Path) -> anyhow::Result<Self> {
        let stages = out.join("stages");
        let mut cells = Vec::new();
        for seed in seeds {
            for arm in arms {
                let mid = Recipe::Text(budget.mid(arm.mid));
                let mut own = vec![Stage::new(arm.mid.name(), *seed, mid, base, &stages)?];
                if let Some(tuning) = arm.tuning {
                    let recipe = Recipe::Text(budget.tuning(tuning));
                    own.push(Stage::new(tuning.name(), *seed, recipe, &own[0].digest, &stages)?);
                }
                let before = own[own.len() - 1].digest.clone();
                own.push(Stage::new(arm.reward.name(), *seed, Recipe::Rl(budget.rl(arm)), &before, &stages)?);
                cells.push(PlannedCell { arm: *arm, seed: *seed, stages: own });
            }
        }
        Ok(Self { cells })
    }

    /// Every stage once, in the order in which they run.
    pub(super) fn stages(&self) -> Vec<&Stage> {
        let mut seen = std::collections::BTreeSet::new();
        self.cells.iter().flat_map(|it| &it.stages).filter(|it| seen.insert(it.digest.clone())).collect()
    }
}

/// What tells a base from another: its weights and its tokenizer.
pub(super) fn base_digest(base: &Checkpoint) -> anyhow::Result<String> {
    let read = |name: &str| {
        let path = base.path.join(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    Ok(digest_of([&*read("model.safetensors")?, &*read("tokenizer.json")?]))
}

fn digest_of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(6).map(|it| format!("{it:02x}")).collect()
}

/// How long something took, as `times.jsonl` holds it: the rest is reckoned from these.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spent {
    pub(super) what: String,
    /// Steps, or episodes.
    pub(super) units: usize,
    pub(super) seconds: f64,
}

/// How far the study is.
#[derive(Serialize)]
pub(super) struct Status {
    pub(super) cells_done: usize,
    pub(super) cells: usize,
    pub(super) rows: Vec<CellStatus>,
    /// Of training and play so far.
    pub(super) seconds_spent: f64,
    /// Of what is left; nothing before one stage of each kind has run.
    pub(super) seconds_left: Option<f64>,
}

/// How far one cell is.
#[derive(Serialize)]
pub(super) struct CellStatus {
    pub(super) arm: &'static str,
    pub(super) seed: u64,
    pub(super) is_done: bool,
    /// Stage, steps done, steps in all.
    pub(super) stages: Vec<(&'static str, usize, usize)>,
}

impl Status {
    /// Looks at what is there; `episodes` is how many are left to play.
    pub(super) fn of(plan: &Plan, results: &Path, episodes: usize, spent: &[Spent]) -> Self {
        let is_done = |it: &PlannedCell| Cell::path(results, it.arm.name, it.seed).exists();
        let steps = |it: &Stage, done: bool| (it.name, if done { it.steps() } else { it.steps_done() }, it.steps());
        let rows: Vec<CellStatus> = plan
            .cells
            .iter()
            .map(|it| CellStatus {
                arm: it.arm.name,
                seed: it.seed,
                is_done: is_done(it),
                stages: it.stages.iter().map(|stage| steps(stage, is_done(it))).collect(),
            })
            .collect();
        let open: Vec<&PlannedCell> = plan.cells.iter().filter(|it| !is_done(it)).collect();
        let needed = plan
            .stages()
            .into_iter()
            .filter(|stage| open.iter().any(|cell| cell.stages.iter().any(|it| it.digest == stage.digest)));
        let mut left: BTreeMap<&str, usize> = BTreeMap::from([("episodes", episodes)]);
        for stage in needed {
            *left.entry(stage.name).or_default() += stage.steps() - stage.steps_done().min(stage.steps());
        }
        let rate = |what: &str| {
            let of = || spent.iter().filter(|it| it.what == what && it.units > 0);
            let units: usize = of().map(|it| it.units).sum();
            #[expect(clippy::cast_precision_loss, reason = "a rough time")]
            (units > 0).then(|| of().map(|it| it.seconds).sum::<f64>() / units as f64)
        };
        #[expect(clippy::cast_precision_loss, reason = "a rough time")]
        let seconds_left =
            left.iter().filter(|it| *it.1 > 0).map(|(what, units)| Some(rate(what)? * *units as f64)).sum();
        Self {
            cells_done: rows.iter().filter(|it| it.is_done).count(),
            cells: rows.len(),
            rows,
            seconds_spent: spent.iter().map(|it| it.seconds).sum(),
            seconds_left,
        }
    }
}
