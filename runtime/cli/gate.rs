//! `fsq gate`: judges a file against the one it was made from, by episodes of both on the same tasks.

use std::path::{Path, PathBuf};

use clap::Args;
use fsq_calibrate::gates::{Evaluation, GateProfile, Report, Verdict, judge};
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_environments::Split;
use fsq_episodes::Format;
use fsq_gguf::Gguf;

use crate::evaluate::{Plan, Played, World, maps_of, play_file};
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
    /// An environment to play in; all of them if none is named
    #[arg(long, value_enum)]
    environment: Vec<World>,
    /// Episodes in each environment
    #[arg(long, short = 'n', default_value_t = 800)]
    episodes: usize,
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
    let progress = Progress::new();
    let mut sides = Vec::new();
    for file in [&arguments.reference, &arguments.candidate] {
        let maps = maps_of(&Gguf::open(file)?)?;
        let mut played = Vec::new();
        for world in &worlds {
            progress.stage(format!("{} in {}", name_of(file), world.name()), arguments.episodes as u64);
            let plan = Plan {
                world: *world,
                split: Split::Test,
                episodes: arguments.episodes,
                seed: arguments.seed,
                temperature: 0.0,
                format: Format::Foresight,
                kv: Kv::F16,
            };
            played.push(play_file(file, &plan, globals.threads(), &mut |it| progress.set(it as u64))?.0);
        }
        sides.push((name_of(file), played, maps));
    }
    progress.finish();
    let [reference, candidate] = &sides[..] else { return Err(anyhow::anyhow!("two sides were played")) };
    let reports = judge_worlds((&reference.1, reference.2.as_ref()), (&candidate.1, candidate.2.as_ref()), &profile)?;
    let runs = gate_runs(&reference.0, &candidate.0, &reports)?;
    if globals.json {
        output::print_json(&runs)?
    } else {
        output::print(&text(&reports))?
    }
    Ok(outcome_of(reports.iter().map(|it| it.1.verdict())))
}

fn name_of(file: &Path) -> String {
    file.file_stem().map_or_else(String::new, |it| it.to_string_lossy().into_owned())
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
    let side = |played: &Played, maps: Option<&RecalibrationMaps>| Evaluation {
        episodes: played.records.clone(),
        recalibration: maps.map(|it| it.of(Some(&played.environment)).clone()),
    };
    let mut reports = Vec::new();
    for (ours, theirs) in candidate.0.iter().zip(reference.0) {
        let report = judge(&side(theirs, reference.1), &side(ours, candidate.1), profile)?;
        reports.push((ours.environment.clone(), report));
    }
    Ok(reports)
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

fn text(reports: &[(String, Report)]) -> String {
    let mut text = String::new();
    for (environment, report) in reports {
        text += &format!(
            "{environment}: {} on {} tasks under profile {}\n",
            report.verdict().name(),
            report.n(),
            report.profile()
        );
        for gate in report.gates() {
            text += &format!("  {:<13} {}\n", gate.verdict.name(), gate.sentence);
        }
    }
    text
}
