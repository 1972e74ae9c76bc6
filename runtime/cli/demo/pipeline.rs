//! Stages, files, gates: what the demo does before it serves.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use fsq_calibrate::gates::Report;
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_checkpoint::{Adapter, Checkpoint};
use fsq_environments::Split;
use fsq_episodes::Format;
use fsq_quantizer::{Importance, Mix, Plan as Allocation, Provenance, quantize};
use fsq_trainer::Recipe;
use fsq_trainer::stages::fc_rl;
use fsq_trainer::stages::run::StageRun;
use fsq_trainer::stages::text::TextStep;

use super::ArmName;
use crate::base;
use crate::evaluate::{Plan, Played, World, forecasts, observe_file, play_file, row};
use crate::failure::Outcome;
use crate::gate::{gate_runs, judge_worlds, outcome_of, profile, worst};
use crate::output;
use crate::policy::Kv;
use crate::progress::Progress;
use crate::report::record::{Arm, GateRun, Loss, RlStep, Row, StageSeconds};
use crate::stamp::stamp;
use crate::train::{Stage, run_stage};

/// The formats that the trained policy is brought to.
const FORMATS: [Mix; 2] = [Mix::Q8_0, Mix::Q4_K_M];
/// Seed of held-out tasks: the same for every policy, so that all comparisons are paired.
const TASKS_SEED: u64 = 1;
/// What the files are called.
const NAME: &str = "fsq-demo";

/// How much is played.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Held-out episodes in each world.
    test: usize,
    /// Episodes behind each recalibration map, in each world.
    calibration: usize,
    /// Episodes behind the importance of each matrix's columns, in each world.
    observed: usize,
}

impl Sizes {
    /// Enough for the demo's gates to decide.
    pub(super) const FULL: Self = Self { test: 1000, calibration: 800, observed: 200 };
    /// Enough to see that everything runs.
    pub(super) const QUICK: Self = Self { test: 96, calibration: 60, observed: 32 };
}

/// One run of the demo.
pub(super) struct Demo<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) out: &'a Path,
    pub(super) arm: ArmName,
    pub(super) sizes: Sizes,
    pub(super) threads: usize,
    pub(super) progress: &'a Progress,
}

/// What came of it.
pub(super) struct Finished {
    pub(super) arm: Arm,
    pub(super) outcome: Outcome,
    /// The smallest file that passed.
    pub(super) best_file: Option<PathBuf>,
    pub(super) notes: Vec<String>,
}

impl Demo<'_> {
    /// Runs the stages, makes the files and judges them.
    pub(super) fn run(&self) -> anyhow::Result<Finished> {
        let base_folder = self.out.join("base");
        let start = base::open(&base_folder)?;
        let stages = [self.arm.mid_stage(), Stage::FeSft, Stage::FcRl];
        let mut rows = self.rows_of("base", &start)?;
        let mut seconds = Vec::new();
        let mut from = start;
        for stage in stages {
            let begun = Instant::now();
            let folder = self.stage_folder(stage);
            let merged = run_stage(stage, self.recipe, None, Some(&from), &folder, self.threads, self.progress)?;
            seconds.push(StageSeconds { stage: stage.title().into(), seconds: begun.elapsed().as_secs_f64() });
            from = Checkpoint::open(&merged)?;
            match stage {
                Stage::FcRl => {}
                // With a map of its own, so that what FC-RL adds to recalibration can be seen.
                Stage::FeSft => {
                    rows.append(&mut self.judged_file(stage.title(), &Source::of(&from), Mix::F16)?.rows(false)?)
                }
                _ => rows.append(&mut self.rows_of(stage.title(), &from)?),
            }
        }
        let mut files = self.files(&base_folder, &stages)?;
        rows.append(&mut files.rows);
        let (losses, rl) = self.curves(&stages)?;
        let arm =
            Arm { name: self.arm.name().into(), rows, gates: files.gates, losses, rl, seconds_per_stage: seconds };
        Ok(Finished { arm, outcome: files.outcome, best_file: files.best, notes: files.notes })
    }

    fn arm_folder(&self) -> PathBuf {
        self.out.join(self.arm.name())
    }

    fn stage_folder(&self, stage: Stage) -> PathBuf {
        self.arm_folder().join(stage.folder())
    }

    /// Rows of a checkpoint that does not foresee yet, played from its 16-bit file.
    fn rows_of(&self, policy: &str, checkpoint: &Checkpoint) -> anyhow::Result<Vec<Row>> {
        let file = self.draft_file(policy, &Source::of(checkpoint), Mix::F16)?;
        let mut rows = Vec::new();
        for played in self.play_all(policy, &file, Split::Test, Format::Plain)? {
            rows.push(row(policy, &played, None, None));
        }
        Ok(rows)
    }

    /// A file in the work folder, made unless it is there.
    fn draft_file(&self, name: &str, source: &Source<'_>, mix: Mix) -> anyhow::Result<PathBuf> {
        let path = self.arm_folder().join("work").join(format!("{name}-{}.gguf", mix.name()));
        if path.exists() {
            return Ok(path);
        }
        output::make_folder(&self.arm_folder().join("work"))?;
        let Source { checkpoint, adapters, importance } = *source;
        self.progress.stage(format!("encode {name} as {}", mix.name()), checkpoint.dimensions.parameters() as u64);
        let provenance = Provenance::of(concat!("fsq ", env!("CARGO_PKG_VERSION")), checkpoint, adapters, importance)?;
        let plan = Allocation { name: Some(NAME.into()), ..Allocation::new(mix) };
        let mut watch = |done: usize, _: usize| self.progress.set(done as u64);
        let encoded = quantize(checkpoint, adapters, &plan, importance, &provenance, &path, &mut watch)?;
        encoded.draft.publish()?;
        Ok(path)
    }

    /// Episodes of a file in every world, from the folder where they are already.
    fn play_all(&self, policy: &str, file: &Path, split: Split, format: Format) -> anyhow::Result<Vec<Played>> {
        let mut all = Vec::new();
        for world in World::ALL {
            let (label, episodes) = match split {
                Split::Calibration => ("calibration", self.sizes.calibration),
                Split::Train | Split::Test => ("test", self.sizes.test),
            };
            let kept = self.arm_folder().join("work").join(format!("{policy}-{}-{label}.json", world.name()));
            if let Ok(text) = std::fs::read_to_string(&kept) {
                all.push(serde_json::from_str(&text).with_context(|| kept.display().to_string())?);
                continue;
            }
            self.progress.stage(format!("play {policy} in {} ({label})", world.name()), episodes as u64);
            let plan = greedy_plan(world, split, episodes, format);
            let mut watch = |done: usize| self.progress.set(done as u64);
            let (played, _) = play_file(file, &plan, self.threads, &mut watch)?;
            output::write_whole(&kept, serde_json::to_string(&played)?.as_bytes())?;
            all.push(played);
        }
        Ok(all)
    }

    /// Merges all adapters into the base in f32, encodes, recalibrates, judges, and publishes what passes.
    fn files(&self, base_folder: &Path, stages: &[Stage]) -> anyhow::Result<Files> {
        let checkpoint = Checkpoint::open(base_folder)?;
        let adapters = stages.iter().map(|it| Adapter::open(&self.stage_folder(*it).join("adapter")));
        let adapters: Vec<Adapter> = adapters.collect::<Result<_, _>>()?;
        let mut files = Files::default();
        let trained = Source { checkpoint: &checkpoint, adapters: &adapters, importance: None };
        let reference = self.judged_file("FC-RL", &trained, Mix::F16)?;
        files.rows.append(&mut reference.rows(true)?);
        let importance = self.importance(&reference.file)?;
        let observed = Source { importance: Some(&importance), ..trained };
        let limits = profile("demo")?;
        for mix in FORMATS {
            let candidate = self.judged_file(mix.name(), &observed, mix)?;
            files.rows.append(&mut candidate.rows(true)?);
            let reports = judge_worlds(
                (&reference.test, Some(&reference.maps)),
                (&candidate.test, Some(&candidate.maps)),
                &limits,
            )?;
            files.gates.append(&mut gate_runs("FC-RL", mix.name(), &reports)?);
            let outcome = outcome_of(reports.iter().map(|it| it.1.verdict()));
            let path = self.out.join(match self.arm {
                ArmName::WmAmt => format!("{NAME}-{}.gguf", mix.name()),
                ArmName::SftOnly => format!("{NAME}-sft-only-{}.gguf", mix.name()),
            });
            match publish(&candidate, reports, &path)? {
                true => files.best = Some(path),
                false => files.notes.push(format!("{} did not pass its gates, so it has no file", mix.name())),
            }
            files.outcome = worst(files.outcome, outcome);
        }
        Ok(files)
    }

    /// What the matrices of a file read while it plays tasks that no gate sees, from the folder where it is already.
    fn importance(&self, file: &Path) -> anyhow::Result<Importance> {
        let path = self.arm_folder().join("work").join("importance.gguf");
        if path.exists() {
            return Ok(Importance::open(&path)?);
        }
        let plans = World::ALL.map(|it| greedy_plan(it, Split::Calibration, self.sizes.observed, Format::Foresight));
        self.progress.stage("observe what matrices read", (plans.len() * self.sizes.observed) as u64);
        let importance = observe_file(file, &plans, self.threads, &mut |done| self.progress.set(done as u64))?;
        let names: Vec<String> = World::ALL.iter().map(|it| it.name().into()).collect();
        importance.write(&path, &names)?.publish()?;
        // As the file has it, so that a run that goes on encodes the same bytes.
        Ok(Importance::open(&path)?)
    }

    fn judged_file(&self, name: &str, source: &Source<'_>, mix: Mix) -> anyhow::Result<JudgedFile> {
        let file = self.draft_file(name, source, mix)?;
        let calibration = self.play_all(name, &file, Split::Calibration, Format::Foresight)?;
        let outcomes = calibration.iter().map(|it| (it.environment.clone(), forecasts(&it.records, None))).collect();
        let maps = RecalibrationMaps::fit(&outcomes)?;
        let test = self.play_all(name, &file, Split::Test, Format::Foresight)?;
        Ok(JudgedFile { name: name.into(), file, test, maps })
    }

    /// Losses and reinforcement steps, for the report.
    fn curves(&self, stages: &[Stage]) -> anyhow::Result<(Vec<Loss>, Vec<RlStep>)> {
        let (mut losses, mut rl) = (Vec::new(), Vec::new());
        for stage in stages {
            let run = StageRun::open(&self.stage_folder(*stage))?;
            if *stage == Stage::FcRl {
                rl = run.metrics::<fc_rl::RlStep>()?.iter().map(rl_step).collect();
                continue;
            }
            let steps = run.metrics::<TextStep>()?;
            losses.extend(steps.iter().map(|it| Loss {
                stage: stage.title().into(),
                step: it.step as u64,
                value: f64::from(it.loss),
            }));
        }
        Ok((losses, rl))
    }
}

fn rl_step(step: &fc_rl::RlStep) -> RlStep {
    RlStep {
        step: step.step as u64,
        success: step.success[0],
        stated_mean: Some(step.stated[0]),
        brier: Some(step.brier),
        adherence: Some(step.adherence),
        entropy: Some(step.entropy),
        alarms: step.alarms.clone(),
    }
}

fn greedy_plan(world: World, split: Split, episodes: usize, format: Format) -> Plan {
    Plan { world, split, episodes, seed: TASKS_SEED, temperature: 0.0, format, kv: Kv::F16 }
}

/// What a file is made from.
#[derive(Clone, Copy)]
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    adapters: &'a [Adapter],
    importance: Option<&'a Importance>,
}

impl<'a> Source<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, adapters: &[], importance: None }
    }
}

/// A file with what it showed, and the maps fitted on tasks that no gate sees.
struct JudgedFile {
    name: String,
    file: PathBuf,
    test: Vec<Played>,
    maps: RecalibrationMaps,
}

impl JudgedFile {
    /// Rows, with the size where the file is one that could be served.
    fn rows(&self, with_size: bool) -> anyhow::Result<Vec<Row>> {
        let bytes = std::fs::metadata(&self.file).with_context(|| self.file.display().to_string())?.len();
        let bytes = with_size.then_some(bytes);
        let row = |it: &Played| row(&self.name, it, Some(self.maps.of(Some(&it.environment))), bytes);
        Ok(self.test.iter().map(row).collect())
    }
}

/// What came of all files.
struct Files {
    rows: Vec<Row>,
    gates: Vec<GateRun>,
    outcome: Outcome,
    best: Option<PathBuf>,
    notes: Vec<String>,
}

impl Default for Files {
    fn default() -> Self {
        Self { rows: Vec::new(), gates: Vec::new(), outcome: Outcome::Done, best: None, notes: Vec::new() }
    }
}

/// Gives a file its name, with its map and verdicts inside, if every world's gates passed.
fn publish(candidate: &JudgedFile, reports: Vec<(String, Report)>, path: &Path) -> anyhow::Result<bool> {
    let mut passes = Vec::new();
    for (environment, report) in reports {
        match report.passed() {
            Some(passed) => passes.push((environment, passed)),
            None => {
                // A file of an earlier run must not be taken for one that passed now.
                if path.exists() {
                    std::fs::remove_file(path).with_context(|| path.display().to_string())?;
                }
                return Ok(false);
            }
        }
    }
    stamp(&candidate.file, Some(&candidate.maps), &passes, path)?;
    Ok(true)
}
