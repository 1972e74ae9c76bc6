//! `fsq gate`: judges a file against the one it was made from, by episodes of both on the same tasks.

use std::path::{Path, PathBuf};

use clap::Args;
use fsq_calibrate::gates::{Evaluation, GateProfile, Look, Report, Verdict, judge, judge_look, looks};
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_environments::Split;
use fsq_episodes::Format;
use fsq_gguf::Gguf;

use crate::evaluate::{Plan, Played, World, maps_of, n_distinct_tasks, play_rest};
use crate::failure::{Outcome, Refusal};
use crate::policy::Kv;
use crate::progress::Progress;
use crate::report::record::GateRun;
use crate::{Globals, output};

/// Arguments of `fsq gate`.
#[derive(Args)]
pub(crate) struct GateArguments {
    /// The file to judge
    candidate: PathBuf,
    /// The file it must not be worse than
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// An environment to play in: countdown, dochop, dagmath, slipgrid; the first two if none is named
    #[arg(long, value_name = "NAME", value_parser = crate::environment::ours)]
    environment: Vec<World>,
    /// Episodes in each environment [default: as many as the profile wants, or twice that with --sequential]
    #[arg(long, short = 'n')]
    episodes: Option<usize>,
    /// Judge up to four times while playing, more strictly, and stop as soon as the verdict is clear
    #[arg(long)]
    sequential: bool,
    /// The limits: a shipped profile, or a TOML file
    #[arg(long, default_value = "demo")]
    profile: String,
    /// Seed of the tasks
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command: exit code 0 for pass, 2 for fail, 3 for inconclusive.
pub(crate) fn execute(globals: &Globals, arguments: &GateArguments) -> anyhow::Result<Outcome> {
    let profile = profile(&arguments.profile)?;
    let worlds = if arguments.environment.is_empty() { World::ALL.to_vec() } else { arguments.environment.clone() };
    let files = [&arguments.reference, &arguments.candidate];
    let [reference, candidate] = files.map(|it| Contestant::open(it));
    let [reference, candidate] = [reference?, candidate?];
    let (names, sides) = ((reference.name.clone(), candidate.name.clone()), [reference, candidate]);
    let progress = Progress::new();
    let mut reports = Vec::new();
    let mut left_out = Vec::new();
    for world in worlds {
        let is_clear = reports.iter().any(|it: &(String, Report)| it.1.verdict() == Verdict::Fail);
        if arguments.sequential && is_clear {
            left_out.push(world.name());
        } else {
            let report = judge_world(world, &sides, &profile, arguments, globals.threads(), &progress)?;
            reports.push((world.name().to_owned(), report));
        }
    }
    progress.finish();
    let runs = gate_runs(&names.0, &names.1, &reports)?;
    if globals.json {
        output::print_json(&runs)?
    } else {
        output::print(&text(&reports, &left_out))?
    }
    Ok(outcome_of(reports.iter().map(|it| it.1.verdict())))
}

/// A file that plays.
struct Contestant<'a> {
    file: &'a Path,
    name: String,
    maps: Option<RecalibrationMaps>,
}

impl<'a> Contestant<'a> {
    fn open(file: &'a Path) -> anyhow::Result<Self> {
        let name = file.file_stem().map_or_else(String::new, |it| it.to_string_lossy().into_owned());
        Ok(Self { file, name, maps: maps_of(&Gguf::open(file)?)? })
    }
}

/// Plays both files in one world and judges, once or at every look until the verdict is clear.
fn judge_world(
    world: World,
    sides: &[Contestant<'_>; 2],
    profile: &GateProfile,
    arguments: &GateArguments,
    threads: usize,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let wanted = usize::try_from(profile.episodes_min)?;
    let asked = arguments.episodes.unwrap_or(if arguments.sequential { 2 * wanted } else { wanted });
    // A greedy policy plays a task that comes again as it did before, which tells nothing.
    let episodes_max = n_distinct_tasks(&plan(world, asked, arguments.seed));
    if episodes_max < asked {
        progress.say(&format!("{} has {episodes_max} tasks to judge by, not {asked}", world.name()));
    }
    // With fewer episodes than any verdict may rest on there is nothing to look at early.
    let early = arguments.sequential && episodes_max >= wanted;
    let looks = if early { looks(episodes_max as u64).into_iter().map(Some).collect() } else { vec![None] };
    let mut played: [Option<Played>; 2] = [None, None];
    let mut last = None;
    for look in looks {
        let episodes = look.map_or(Ok(episodes_max), |it: Look| usize::try_from(it.tasks))?;
        for (side, played) in sides.iter().zip(&mut played) {
            let n_played = played.as_ref().map_or(0, |it| it.records.len());
            progress.stage(format!("{} in {}", side.name, world.name()), (episodes - n_played) as u64);
            let plan = plan(world, episodes, arguments.seed);
            let more = play_rest(side.file, &plan, n_played, threads, &mut |it| progress.set(it as u64))?;
            match played {
                Some(played) => played.records.extend(more.records),
                None => *played = Some(more),
            }
        }
        let [Some(reference), Some(candidate)] = &played else { anyhow::bail!("two sides were played") };
        let reference = evaluation(reference, sides[0].maps.as_ref());
        let candidate = evaluation(candidate, sides[1].maps.as_ref());
        let report = match look {
            Some(look) => judge_look(&reference, &candidate, profile, &look)?,
            None => judge(&reference, &candidate, profile)?,
        };
        let is_clear = !matches!(report.verdict(), Verdict::Inconclusive { .. });
        last = Some(report);
        if is_clear {
            break;
        }
    }
    last.ok_or_else(|| anyhow::anyhow!("at least one look was taken"))
}

fn plan(world: World, episodes: usize, seed: u64) -> Plan {
    let format = Format::Foresight;
    Plan { world, split: Split::Test, episodes, seed, temperature: 0.0, format, kv: Kv::F16 }
}

/// A shipped profile by name, or one from a file.
pub(crate) fn profile(name: &str) -> anyhow::Result<GateProfile> {
    let read = if name.ends_with(".toml") {
        let text = std::fs::read_to_string(name).map_err(|it| Refusal::new(format!("{name}: {it}")))?;
        fsq_profiles::GateProfile::parse(&text, name)?
    } else {
        fsq_profiles::GateProfile::shipped(name)?
    };
    // The two types have the same fields; profiles import nothing of ours, so the conversion is here.
    let profile: GateProfile = serde_json::from_value(serde_json::to_value(&read)?)?;
    profile.check()?;
    Ok(profile)
}

/// What one side showed, and its own recalibration maps.
pub(crate) type Side<'a> = (&'a [Played], Option<&'a RecalibrationMaps>);

/// Judges world by world.
pub(crate) fn judge_worlds(
    reference: Side<'_>,
    candidate: Side<'_>,
    profile: &GateProfile,
) -> anyhow::Result<Vec<(String, Report)>> {
    judge_worlds_sharing(reference, candidate, profile, 1.0)
}

/// The same for one of several candidates, with its share of the error that all of them may make.
pub(crate) fn judge_worlds_sharing(
    reference: Side<'_>,
    candidate: Side<'_>,
    profile: &GateProfile,
    share: f64,
) -> anyhow::Result<Vec<(String, Report)>> {
    let look = Look::sharing(profile.episodes_min, share);
    let mut reports = Vec::new();
    for (ours, theirs) in candidate.0.iter().zip(reference.0) {
        let report = judge_look(&evaluation(theirs, reference.1), &evaluation(ours, candidate.1), profile, &look)?;
        reports.push((ours.environment.clone(), report));
    }
    Ok(reports)
}

/// Records with the map of their environment.
fn evaluation(played: &Played, maps: Option<&RecalibrationMaps>) -> Evaluation {
    let recalibration = maps.map(|it| it.of(Some(&played.environment)).clone());
    Evaluation { episodes: played.records.clone(), recalibration }
}

/// The judgements as reports hold them.
pub(crate) fn gate_runs(
    reference: &str,
    candidate: &str,
    reports: &[(String, Report)],
) -> anyhow::Result<Vec<GateRun>> {
    let run = |(environment, report): &(String, Report)| {
        Ok(GateRun {
            candidate: candidate.into(),
            reference: reference.into(),
            environment: environment.clone(),
            report: serde_json::to_value(report)?,
            verdict: report.verdict().name().into(),
        })
    };
    reports.iter().map(run).collect()
}

/// The worse of two ends.
pub(crate) fn worst(a: Outcome, b: Outcome) -> Outcome {
    match (a, b) {
        (Outcome::Failed, _) | (_, Outcome::Failed) => Outcome::Failed,
        (Outcome::Inconclusive, _) | (_, Outcome::Inconclusive) => Outcome::Inconclusive,
        _ => Outcome::Done,
    }
}

/// Fails if one fails; inconclusive if one is.
pub(crate) fn outcome_of(verdicts: impl Iterator<Item = Verdict>) -> Outcome {
    let outcome = |it: Verdict| match it {
        Verdict::Pass => Outcome::Done,
        Verdict::Fail => Outcome::Failed,
        Verdict::Inconclusive { .. } => Outcome::Inconclusive,
    };
    verdicts.map(outcome).fold(Outcome::Done, worst)
}

fn text(reports: &[(String, Report)], left_out: &[&str]) -> String {
    let mut text = String::new();
    for (environment, report) in reports {
        let (verdict, n, look) = (report.verdict(), report.n(), report.look());
        text += &format!("{environment}: {} on {n} tasks under profile {}", verdict.name(), report.profile());
        if look.of > 1 {
            text += &format!(", look {} of {}", look.number, look.of);
        }
        text += &match (verdict, report.episodes_missing()) {
            (Verdict::Inconclusive { .. }, Some(missing)) => format!("; about {missing} more episodes would decide\n"),
            (Verdict::Inconclusive { .. }, None) => "; more episodes of the same would not decide\n".to_owned(),
            _ => "\n".to_owned(),
        };
        for gate in report.gates() {
            text += &format!("  {:<13} {}\n", gate.verdict.name(), gate.sentence);
        }
    }
    for environment in left_out {
        text += &format!("{environment}: not played, as the verdict is clear\n");
    }
    text
}
