//! `fsq study gap`: measures the format-capability gap arm by arm and seed by seed, and judges registered predictions.
//!
//! Every stage, every play and every cell leaves its result in a file of its own, so a killed study goes on where it
//! was; the report is made from the cells alone.

mod arms;
mod judged;
mod measure;
mod plan;
mod predictions;
mod report;
mod results;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use fsq_checkpoint::Checkpoint;
use fsq_trainer::Recipe as RunFile;
use fsq_trainer::stages::fc_rl::{self, RlStep};
use fsq_trainer::stages::run::{Report, StageRun};
use fsq_trainer::stages::text::{self, TextStep};
use serde::{Deserialize, Serialize};

use crate::evaluate::World;
use crate::failure::{Outcome, Refusal};
use crate::progress::{Progress, duration_text};
use crate::{Globals, base, output};
use arms::{Arm, Budget};
use judged::{Judging, judged, loaded};
use plan::{Plan, PlannedCell, Recipe, Spent, Stage, Status, base_digest};
use results::{After, Cell, Played, StageRecord};

/// Budgets by name, with the instances that each is judged on.
const BUDGETS: [(&str, &str, usize); 2] = [
    ("smoke", include_str!("../../finetune/recipes/study-smoke.toml"), 24),
    ("t1-lite", include_str!("../../finetune/recipes/study-t1-lite.toml"), 400),
];
/// Instances where neither the command nor a preset says how many.
const INSTANCES: usize = 400;
/// Countdown has a few more held-out instances than this.
const INSTANCES_MAX: usize = 1000;

/// Arguments of `fsq study`.
#[derive(Args)]
pub(crate) struct StudyArguments {
    #[command(subcommand)]
    study: Study,
}

#[derive(Subcommand)]
enum Study {
    /// Whether a policy that writes foresight has any: arms with and without world-model training, side by side
    Gap(GapArguments),
}

/// Arguments of `fsq study gap`.
#[derive(Args)]
struct GapArguments {
    /// The folder of the work: trained policies of every stage
    #[arg(long, value_name = "DIR", default_value = "fsq-study-gap")]
    out: PathBuf,
    /// The folder of raw results and report [default: that of the work]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// The arms, A to J
    #[arg(long, value_name = "ARMS", value_delimiter = ',', default_value = "A,B,D,E,F,I")]
    arms: Vec<String>,
    /// The seeds: `1..5` are five, `1,3` two
    #[arg(long, value_name = "SEEDS", default_value = "1..5")]
    seeds: String,
    /// The environments that are trained and judged
    #[arg(long, value_enum, value_delimiter = ',', default_value = "countdown,dochop")]
    environments: Vec<World>,
    /// How much is trained: `smoke`, `t1-lite`, or a run file with [wm-amt], [fe-sft] and [fc-rl]
    #[arg(long, value_name = "PRESET|FILE", default_value = "t1-lite")]
    budget: String,
    /// Held-out instances in each environment [default: the preset's, or 400]
    #[arg(long, value_name = "N")]
    tasks: Option<usize>,
    /// The checkpoint that every arm starts from [default: the shipped base]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Say how far the study is, and run nothing
    #[arg(long, conflicts_with = "report")]
    status: bool,
    /// Make the report from the cells that are there, and run nothing
    #[arg(long)]
    report: bool,
}

/// What a folder was begun with: its cells are only comparable if all of it is the same. Arms and seeds may be added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    tool_version: String,
    environments: Vec<String>,
    instances: usize,
    /// Of the checkpoint that every arm starts from.
    base: String,
    is_shipped_base: bool,
    /// A preset's name, or the file's.
    budget: String,
    /// The run file, defaults included.
    run_file: String,
}

impl Settings {
    /// Refuses to go on with other settings than a folder was begun with.
    fn check(&self, found: &Self, path: &Path) -> anyhow::Result<()> {
        let (wanted, found) = (serde_json::to_value(self)?, serde_json::to_value(found)?);
        let fields = wanted.as_object().into_iter().flatten();
        let Some((field, wanted)) = fields.into_iter().find(|it| found[it.0] != *it.1) else { return Ok(()) };
        let found = &found[field];
        let refusal = Refusal::new(format!("{}: {field}: expected {wanted}, found {found}", path.display()));
        Err(refusal.hint("this folder was begun with other settings: choose another with --out").into())
    }
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &StudyArguments) -> anyhow::Result<Outcome> {
    let Study::Gap(arguments) = &arguments.study;
    let results = arguments.results.clone().unwrap_or_else(|| arguments.out.clone());
    if arguments.report {
        return reported(globals, &results);
    }
    let study = Gap::open(globals, arguments, results)?;
    if arguments.status {
        let status = study.status()?;
        if globals.json {
            output::print_json(&status)?;
        } else {
            output::print(&status_text(&status))?;
        }
        return Ok(Outcome::Done);
    }
    study.run()?;
    reported(globals, &study.results)
}

fn reported(globals: &Globals, results: &Path) -> anyhow::Result<Outcome> {
    let settings = read_settings(results)?.with_context(|| {
        Refusal::new(format!("{}: expected the study.json of a study", results.join("study.json").display()))
    })?;
    let report = report::made(results, &settings, &read_spent(results)?)?;
    report::write(results, &report)?;
    if globals.json {
        output::print_json(&report)?;
    } else {
        output::print(&report::text(&report))?;
    }
    Ok(Outcome::Done)
}

/// One study.
struct Gap<'a> {
    globals: &'a Globals,
    out: PathBuf,
    results: PathBuf,
    base: Checkpoint,
    worlds: Vec<World>,
    instances: usize,
    settings: Settings,
    plan: Plan,
}

impl<'a> Gap<'a> {
    fn open(globals: &'a Globals, arguments: &GapArguments, results: PathBuf) -> anyhow::Result<Self> {
        let arms = arguments.arms.iter().map(|it| Arm::of(it)).collect::<Result<Vec<_>, _>>()?;
        let seeds = seeds(&arguments.seeds)?;
        let (run_file, instances) = budget(&arguments.budget)?;
        let instances = arguments.tasks.unwrap_or(instances);
        if !(2..=INSTANCES_MAX).contains(&instances) {
            return Err(Refusal::new(format!("--tasks {instances}: expected 2 to {INSTANCES_MAX}")).into());
        }
        // In the order of reports, each once.
        let worlds: Vec<World> = World::ALL.into_iter().filter(|it| arguments.environments.contains(it)).collect();
        let budget = Budget::of(&run_file, &worlds)?;
        let base = match &arguments.from {
            Some(path) => Checkpoint::open(path)?,
            None => base::open(&arguments.out.join("base"))?,
        };
        let digest = base_digest(&base)?;
        let settings = Settings {
            tool_version: env!("CARGO_PKG_VERSION").into(),
            environments: worlds.iter().map(|it| it.name().into()).collect(),
            instances,
            base: digest.clone(),
            is_shipped_base: arguments.from.is_none(),
            budget: arguments.budget.clone(),
            run_file: run_file.resolved(),
        };
        if let Some(found) = read_settings(&results)? {
            settings.check(&found, &results.join("study.json"))?;
        }
        let plan = Plan::new(&arms, &seeds, &budget, &digest, &arguments.out)?;
        Ok(Self { globals, out: arguments.out.clone(), results, base, worlds, instances, settings, plan })
    }

    fn status(&self) -> anyhow::Result<Status> {
        let n_played = |it: &PlannedCell| {
            let plays = self.plays(it);
            let missing = plays.iter().filter(|(path, _, _)| !path.exists());
            missing.map(|(_, _, judging)| judging.instances * (1 + usize::from(judging.shuffles))).sum::<usize>()
        };
        let open = self.plan.cells.iter().filter(|it| !Cell::path(&self.results, it.arm.name, it.seed).exists());
        let episodes = open.map(n_played).sum();
        Ok(Status::of(&self.plan, &self.results, episodes, &read_spent(&self.results)?))
    }

    /// Runs every cell that is not there yet.
    fn run(&self) -> anyhow::Result<()> {
        output::make_folder(&self.results)?;
        let _lock = lock(&self.out)?;
        let written = serde_json::to_string_pretty(&self.settings)? + "\n";
        output::write_whole(&self.results.join("study.json"), written.as_bytes())?;
        let progress = Progress::new();
        for (index, cell) in self.plan.cells.iter().enumerate() {
            if Cell::path(&self.results, cell.arm.name, cell.seed).exists() {
                continue;
            }
            progress.finish();
            let status = self.status()?;
            let left = status.seconds_left.map_or(String::new(), |it| format!(", about {} left", shown_seconds(it)));
            let (arm, seed, n) = (cell.arm.name, cell.seed, self.plan.cells.len());
            progress.say(&format!("cell {} of {n}: arm {arm}, seed {seed}{left}", index + 1));
            self.cell(cell, &progress)?;
        }
        progress.finish();
        Ok(())
    }

    /// Trains what a cell needs, judges it and writes its results.
    fn cell(&self, cell: &PlannedCell, progress: &Progress) -> anyhow::Result<()> {
        let mut from = None;
        let mut records = Vec::new();
        for stage in &cell.stages {
            self.train(stage, from.as_ref(), progress)?;
            records.push(record(stage, &self.base)?);
            from = Some(Checkpoint::open(&stage.merged())?);
        }
        let mut played = Vec::new();
        for (path, stage, judging) in self.plays(cell) {
            played.append(&mut self.played(&path, stage, &judging, progress)?);
        }
        Cell::new(cell.arm.name, cell.seed, records, played).write(&self.results)
    }

    fn train(&self, stage: &Stage, from: Option<&Checkpoint>, progress: &Progress) -> anyhow::Result<()> {
        if stage.is_done() {
            return Ok(());
        }
        let from = from.unwrap_or(&self.base);
        let mut run = StageRun::open(&stage.folder)?;
        let (begun, threads) = (Instant::now(), self.globals.threads());
        let mut first = None;
        let mut watch = |report: &Report| {
            if first.is_none() {
                first = Some(report.step);
                progress.stage(format!("{} {}", stage.name, stage.seed), report.steps as u64);
            }
            progress.note(report.text.clone());
            progress.set(report.step as u64);
        };
        match &stage.recipe {
            Recipe::Text(config) => text::run(config, from, &mut run, None, stage.seed, threads, &mut watch)?,
            Recipe::Rl(config) => {
                fc_rl::run(config, from, &mut run, None, stage.seed, threads, &mut watch)?;
                // As large as the policy itself, and of no more use.
                let sampling = stage.folder.join("sampling-F32.gguf");
                std::fs::remove_file(&sampling).with_context(|| sampling.display().to_string())?;
            }
        }
        let units = first.map_or(0, |it| stage.steps() + 1 - it);
        self.spend(Spent { what: stage.name.into(), units, seconds: begun.elapsed().as_secs_f64() })
    }

    /// What is played of a cell: where it is kept, the stage that made the policy, and how. Cells that share a stage
    /// share what it played.
    fn plays<'b>(&self, cell: &'b PlannedCell) -> Vec<(PathBuf, &'b Stage, Judging)> {
        let mut plays = Vec::new();
        for (stage, after) in [(cell.tuned(), After::Sft), (cell.reinforced(), After::Rl)] {
            for world in &self.worlds {
                let format = cell.arm.turns().format();
                let shuffles = after == After::Rl && format == fsq_episodes::Format::Foresight;
                let path = stage.folder.join(format!("played-{}-{format:?}.jsonl", world.name()).to_lowercase());
                plays.push((
                    path,
                    stage,
                    Judging { world: *world, instances: self.instances, format, after, shuffles },
                ));
            }
        }
        plays
    }

    /// Plays a stage's policy, or reads what it played.
    fn played(
        &self,
        path: &Path,
        stage: &Stage,
        judging: &Judging,
        progress: &Progress,
    ) -> anyhow::Result<Vec<Played>> {
        if path.exists() {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let refuse = |(line, what)| Refusal::new(format!("{}:{line}: {what}", path.display()));
            return Ok(Played::parse_all(&text).map_err(refuse)?);
        }
        let units = judging.instances * (1 + usize::from(judging.shuffles));
        progress.stage(format!("{} {} in {}", stage.name, stage.seed, judging.world.name()), units as u64);
        let begun = Instant::now();
        let mut policy = loaded(&stage.merged(), &self.out.join("work"), self.globals.threads())?;
        let (mut before, mut last) = (0, 0);
        let played = judged(&mut policy, judging, &mut |done| {
            // The second time counts from one again.
            if done < last {
                before += last;
            }
            last = done;
            progress.set((before + done) as u64);
        })?;
        let text = played.iter().map(Played::text).collect::<anyhow::Result<String>>()?;
        output::write_whole(path, text.as_bytes())?;
        self.spend(Spent { what: "episodes".into(), units, seconds: begun.elapsed().as_secs_f64() })?;
        Ok(played)
    }

    fn spend(&self, spent: Spent) -> anyhow::Result<()> {
        let path = self.results.join("times.jsonl");
        let line = serde_json::to_string(&spent)? + "\n";
        let file = File::options().create(true).append(true).open(&path);
        file.and_then(|mut it| it.write_all(line.as_bytes())).with_context(|| path.display().to_string())
    }
}

/// What is known of a finished stage.
fn record(stage: &Stage, base: &Checkpoint) -> anyhow::Result<StageRecord> {
    let run = StageRun::open(&stage.folder)?;
    let mut record = StageRecord {
        stage: stage.name.into(),
        digest: stage.digest.clone(),
        steps: 0,
        tokens: None,
        set_tokens: None,
        alarms: None,
    };
    match &stage.recipe {
        Recipe::Text(config) => {
            let steps = run.metrics::<TextStep>()?;
            record.steps = steps.len();
            record.tokens = Some(steps.iter().map(|it| it.tokens).sum());
            record.set_tokens = Some(text::set_tokens(config, base, stage.seed)?).filter(|it| *it > 0);
        }
        Recipe::Rl(_) => {
            let steps = run.metrics::<RlStep>()?;
            record.steps = steps.len();
            record.alarms = Some(steps.iter().filter(|it| !it.alarms.is_empty()).count());
        }
    }
    Ok(record)
}

fn budget(name: &str) -> anyhow::Result<(RunFile, usize)> {
    if let Some((_, text, instances)) = BUDGETS.into_iter().find(|it| it.0 == name) {
        return Ok((RunFile::parse(text)?, instances));
    }
    let path = Path::new(name);
    if !path.exists() {
        let names = BUDGETS.map(|it| it.0).join(", ");
        return Err(Refusal::new(format!("--budget {name}: expected {names}, or a run file")).into());
    }
    let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
    let parsed = RunFile::parse(&text).map_err(|it| Refusal::new(format!("{name}: {it}")))?;
    Ok((parsed, INSTANCES))
}

/// `1..5` with both ends, or numbers with commas.
fn seeds(text: &str) -> Result<Vec<u64>, Refusal> {
    let wrong = || Refusal::new(format!("--seeds {text}: expected seeds such as `1..5` or `1,3`"));
    let number = |it: &str| it.trim().parse::<u64>().map_err(|_| wrong());
    let seeds: Vec<u64> = match text.split_once("..") {
        Some((first, last)) => (number(first)?..=number(last.trim_start_matches('='))?).take(100).collect(),
        None => text.split(',').map(number).collect::<Result<_, _>>()?,
    };
    if seeds.is_empty() { Err(wrong()) } else { Ok(seeds) }
}

/// Two processes in one folder would overwrite each other's states. Let go of when the process ends, however it does.
fn lock(out: &Path) -> anyhow::Result<File> {
    output::make_folder(out)?;
    let path = out.join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => {
            let refusal = Refusal::new(format!("{}: another study runs in this folder", path.display()));
            Err(refusal.hint("`--status` says how far it is").into())
        }
    }
}

fn read_settings(results: &Path) -> anyhow::Result<Option<Settings>> {
    let path = results.join("study.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(Some(serde_json::from_str(&text).map_err(|it| Refusal::new(format!("{}: {it}", path.display())))?))
}

fn read_spent(results: &Path) -> anyhow::Result<Vec<Spent>> {
    let path = results.join("times.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(Vec::new()) };
    // A kill may have cut the last line: what it said is only used for rough times.
    Ok(text.lines().filter_map(|it| serde_json::from_str(it).ok()).collect())
}

fn shown_seconds(seconds: f64) -> String {
    duration_text(Duration::from_secs_f64(seconds.max(0.0)))
}

fn status_text(status: &Status) -> String {
    let mut rows = vec![["arm", "seed", "stages", "cell"].map(String::from).to_vec()];
    for cell in &status.rows {
        let stages: Vec<String> = cell.stages.iter().map(|(name, done, all)| format!("{name} {done}/{all}")).collect();
        let state = if cell.is_done { "done" } else { "open" };
        rows.push(vec![cell.arm.into(), cell.seed.to_string(), stages.join("  "), state.into()]);
    }
    let left = match status.seconds_left {
        Some(_) if status.cells_done == status.cells => "nothing left".into(),
        Some(seconds) => format!("about {} left", shown_seconds(seconds)),
        None => "what is left is not known before a stage of each kind has run".into(),
    };
    let spent = shown_seconds(status.seconds_spent);
    let summary = format!("{} of {} cells, {spent} so far, {left}\n", status.cells_done, status.cells);
    output::columns(&rows) + &summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_ranges_or_lists() {
        assert_eq!(seeds("1..5").ok(), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(seeds("7, 3").ok(), Some(vec![7, 3]));
        for wrong in ["", "a", "5..1", "1..", "1,,2"] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn presets_parse_and_others_are_refused() {
        for (name, _, instances) in BUDGETS {
            assert_eq!(budget(name).ok().map(|it| it.1), Some(instances), "{name}");
        }
        assert!(budget("enormous").is_err_and(|it| it.to_string().contains("smoke, t1-lite")));
    }
}
