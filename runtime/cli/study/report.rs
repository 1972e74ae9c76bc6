//! The study's report: tables as Markdown, plots as SVG, all of it from the cells alone, partial or whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::Settings;
use super::arms::ARMS;
use super::measure::{Measure, Sample, measured};
use super::plan::Spent;
use super::predictions::{Judged, SEEDS_MIN, Verdict, registered};
use super::results::{After, Cell, Played, StageRecord};
use crate::output;
use crate::report::record::Measured;
use crate::report::study::{Dotted, Stepped, dots_file, horizons_file};

/// Fine-tuning's share of mid-training's tokens, at most: with more it could teach the world by itself.
const SET_SHARE_MAX: f64 = 0.02;

/// Everything that a report says.
#[derive(Serialize)]
pub(super) struct StudyReport {
    settings: Settings,
    /// Arm and seed of every cell.
    cells: Vec<(String, u64)>,
    rows: Vec<PolicyRow>,
    predictions: Vec<Judged>,
    data: Data,
    /// Seconds of training and play by kind, with how many cells' worth that was.
    spent: BTreeMap<String, f64>,
}

/// One policy in one environment.
#[derive(Serialize)]
struct PolicyRow {
    environment: String,
    arm: String,
    after: After,
    seeds: usize,
    adherence: Option<Measured>,
    /// By horizon from 1.
    fidelity: Vec<Option<Measured>>,
    success: Option<Measured>,
    brier: Option<Measured>,
    auroc: Option<Measured>,
    signed_gap: Option<Measured>,
    gap_index: Option<Measured>,
    success_growth: Option<Measured>,
    tokens: Option<Measured>,
}

/// Whether the arms were given the same to learn from.
#[derive(Serialize)]
struct Data {
    /// Tokens of each mid-training by seed; equal in every arm if `is_matched`.
    mid_tokens: BTreeMap<u64, BTreeMap<String, usize>>,
    is_matched: bool,
    /// The largest share of mid-training's tokens that any fine-tuning's set has.
    set_share: f64,
    /// Reinforcement steps with an alarm, by arm.
    alarms: BTreeMap<String, usize>,
}

/// Makes the report from the cells in a folder.
pub(super) fn made(results: &Path, settings: &Settings, spent: &[Spent]) -> anyhow::Result<StudyReport> {
    let cells = read_cells(results)?;
    let mut rows = Vec::new();
    let mut predictions = Vec::new();
    for environment in &settings.environments {
        for arm in &ARMS {
            for after in After::ALL {
                rows.extend(policy_row(&cells, environment, arm.name, after));
            }
        }
        for prediction in registered()? {
            predictions.push(prediction.judge(&cells, environment));
        }
    }
    let mut by_kind = BTreeMap::new();
    for it in spent {
        *by_kind.entry(it.what.clone()).or_default() += it.seconds;
    }
    Ok(StudyReport {
        settings: settings.clone(),
        cells: cells.iter().map(|it| (it.arm.clone(), it.seed)).collect(),
        rows,
        predictions,
        data: data(&cells),
        spent: by_kind,
    })
}

/// Every cell of a folder, by arm and seed.
fn read_cells(results: &Path) -> anyhow::Result<Vec<Cell>> {
    let folder = results.join("cells");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut cells = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.extension().is_some_and(|it| it == "jsonl") {
            cells.push(Cell::read(&path)?);
        }
    }
    cells.sort_by(|a, b| (&a.arm, a.seed).cmp(&(&b.arm, b.seed)));
    Ok(cells)
}

fn policy_row(cells: &[Cell], environment: &str, arm: &str, after: After) -> Option<PolicyRow> {
    let own = cells.iter().filter(|it| it.arm == arm);
    let played: Vec<&Played> =
        own.filter_map(|it| it.played.iter().find(|it| it.after == after && it.environment == environment)).collect();
    let sample = Sample::of(&played)?;
    let found = |measure| measured(measure, &sample);
    Some(PolicyRow {
        environment: environment.into(),
        arm: arm.into(),
        after,
        seeds: played.len(),
        adherence: found(Measure::Adherence),
        fidelity: (1..=played.first()?.horizon).map(|it| found(Measure::Fidelity(it))).collect(),
        success: found(Measure::Success),
        brier: found(Measure::Brier),
        auroc: found(Measure::Auroc),
        signed_gap: found(Measure::SignedGap),
        gap_index: found(Measure::GapIndex).filter(|_| after != After::Shuffled),
        success_growth: found(Measure::SuccessGrowth),
        tokens: found(Measure::Tokens),
    })
}

fn data(cells: &[Cell]) -> Data {
    let mut mid_tokens: BTreeMap<u64, BTreeMap<String, usize>> = BTreeMap::new();
    let (mut set_share, mut alarms) = (0.0f64, BTreeMap::new());
    for cell in cells {
        let Some(mid) = cell.stages.first() else { continue };
        let read = mid.tokens.unwrap_or(0);
        mid_tokens.entry(cell.seed).or_default().insert(mid.stage.clone(), read);
        let set = cell.stages.iter().filter_map(|it| it.set_tokens).max().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = set as f64 / read.max(1) as f64;
        set_share = set_share.max(share);
        *alarms.entry(cell.arm.clone()).or_default() +=
            cell.stages.iter().filter_map(|it: &StageRecord| it.alarms).sum::<usize>();
    }
    let is_alike = |it: &BTreeMap<String, usize>| it.values().collect::<BTreeSet<_>>().len() <= 1;
    Data { is_matched: mid_tokens.values().all(is_alike), mid_tokens, set_share, alarms }
}

/// Writes `report.md` and its plots.
pub(super) fn write(results: &Path, report: &StudyReport) -> anyhow::Result<()> {
    let mut plots = Vec::new();
    for environment in &report.settings.environments {
        for (name, title, markup) in self::plots(report, environment) {
            output::write_whole(&results.join(&name), markup.as_bytes())?;
            plots.push((name, title));
        }
    }
    let mut page = text(report);
    if !plots.is_empty() {
        page += "\n## Plots\n\nHollow and dashed: after fine-tuning. Filled: after reinforcement.\n\n";
    }
    for (name, title) in plots {
        let _ = writeln!(page, "![{title}]({name})\n");
    }
    output::write_whole(&results.join("report.md"), (page.trim_end().to_owned() + "\n").as_bytes())
}

/// The report as text.
pub(super) fn text(report: &StudyReport) -> String {
    let mut page = String::from("# The gap study: what came out\n\n");
    page += &opening(report);
    page += &verdicts(report);
    for environment in &report.settings.environments {
        page += &table(report, environment);
    }
    page += &footing(report);
    page
}

fn opening(report: &StudyReport) -> String {
    let settings = &report.settings;
    let mut by_arm: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (arm, seed) in &report.cells {
        by_arm.entry(arm).or_default().push(*seed);
    }
    let fewest = by_arm.values().map(Vec::len).min().unwrap_or(0);
    let is_whole = fewest >= SEEDS_MIN && by_arm.values().all(|it| it.len() == fewest);
    let mut text = String::new();
    if !is_whole {
        let arms: Vec<String> = by_arm.iter().map(|(arm, seeds)| format!("{arm} {}", seeds.len())).collect();
        let counts = if arms.is_empty() { "no cell yet".into() } else { arms.join(", ") };
        let _ = writeln!(
            text,
            "**Partial and provisional**: {SEEDS_MIN} seeds of every arm were registered; seeds so far: {counts}.\n"
        );
    }
    let start = if settings.is_shipped_base {
        "Every arm starts from the shipped base, a policy of 3 million parameters that already plays both worlds and \
         has read bare logs of what follows from a move: what control and WM-AMT start with is much, and one base \
         is no sample of bases."
    } else {
        "Every arm starts from one given checkpoint, which is no sample of bases."
    };
    let _ = writeln!(
        text,
        "Budget `{}`, {} held-out instances in each environment, played greedily. {start}\n\
         Predictions, arms and measures: [predictions.md](predictions.md), written before any run.\n\
         Numbers are percent but for Brier, AUROC and tokens, with 95 % intervals in which seeds and instances both \
         are chance; with one seed they say nothing of other seeds.\n",
        settings.budget, settings.instances
    );
    text
}

fn verdicts(report: &StudyReport) -> String {
    let mut text = String::from("## Predictions\n\n| | prediction | claim |");
    let environments = &report.settings.environments;
    for environment in environments {
        let _ = write!(text, " {environment} | verdict |");
    }
    text += "\n|---|---|---|";
    text += &"---|---|".repeat(environments.len());
    text.push('\n');
    let first = environments.first().map_or("", String::as_str);
    for judged in report.predictions.iter().filter(|it| it.environment == first) {
        let _ = write!(text, "| {} | {} | `{}` |", judged.name, judged.says, judged.claim);
        for environment in environments {
            let it = report.predictions.iter().find(|it| it.name == judged.name && &it.environment == environment);
            let Some(it) = it else { continue };
            let provisional = match it.verdict {
                Verdict::NotRun => String::new(),
                _ if it.seeds < SEEDS_MIN => format!(" ({} of {SEEDS_MIN} seeds)", it.seeds),
                _ => String::new(),
            };
            let _ = write!(text, " {} | {}{provisional} |", decimals(it.measured.as_ref()), it.verdict.name());
        }
        text.push('\n');
    }
    text + "\n"
}

fn table(report: &StudyReport, environment: &str) -> String {
    let rows: Vec<&PolicyRow> = report.rows.iter().filter(|it| it.environment == environment).collect();
    let horizon = rows.iter().map(|it| it.fidelity.len()).max().unwrap_or(0);
    let mut text = format!("## {environment}\n\n| arm | after | seeds | adherence |");
    for h in 1..=horizon {
        let _ = write!(text, " F({h}) |");
    }
    text += " success | Brier | AUROC | signed gap | gap index | hard − easy | tokens |\n|---|---|---|---|";
    text += &"---|".repeat(horizon + 7);
    text.push('\n');
    for row in rows {
        let _ = write!(text, "| {} | {} | {} | {} |", row.arm, row.after.name(), row.seeds, percent(&row.adherence));
        for h in 0..horizon {
            let _ = write!(text, " {} |", percent(row.fidelity.get(h).unwrap_or(&None)));
        }
        let _ = writeln!(
            text,
            " {} | {} | {} | {} | {} | {} | {} |",
            percent(&row.success),
            decimals(row.brier.as_ref()),
            decimals(row.auroc.as_ref()),
            percent(&row.signed_gap),
            percent(&row.gap_index),
            percent(&row.success_growth),
            row.tokens.map_or("–".into(), |it| format!("{:.0}", it.value)),
        );
    }
    text + "\n"
}

fn footing(report: &StudyReport) -> String {
    let Data { mid_tokens, is_matched, set_share, alarms } = &report.data;
    let tokens = mid_tokens.values().flat_map(BTreeMap::values).max().unwrap_or(&0);
    let matched = if *is_matched { "the same in every arm of a seed" } else { "NOT the same in every arm" };
    let within = if *set_share <= SET_SHARE_MAX { "within" } else { "ABOVE" };
    let seconds: Vec<String> = report.spent.iter().map(|(what, it)| format!("{what} {it:.0} s")).collect();
    let alarms: Vec<String> = alarms.iter().filter(|it| *it.1 > 0).map(|(arm, n)| format!("{arm} {n}")).collect();
    let alarms = if alarms.is_empty() { "none".into() } else { alarms.join(", ") };
    let mut text = format!(
        "## What it rests on\n\n- Mid-training read {tokens} tokens, {matched}.\n- Fine-tuning's set is {:.1} % of \
         that, {within} the {:.0} % that were registered.\n- Reinforcement steps with an alarm, which ended no arm: \
         {alarms}.\n",
        100.0 * set_share,
        100.0 * SET_SHARE_MAX
    );
    if !seconds.is_empty() {
        let _ = writeln!(text, "- Time spent, shared stages once: {}.", seconds.join(", "));
    }
    let _ = writeln!(
        text,
        "- Raw results: `cells/`, one JSON line an episode. `fsq study gap --results DIR --report` makes this page \
         again; `fsq study gap --out DIR --budget {}` runs the study.",
        report.settings.budget
    );
    text
}

fn percent(it: &Option<Measured>) -> String {
    it.map_or("–".into(), |it| format!("{:.0} [{:.0}, {:.0}]", 100.0 * it.value, 100.0 * it.low, 100.0 * it.high))
}

fn decimals(it: Option<&Measured>) -> String {
    it.map_or("–".into(), |it| format!("{:.3} [{:.3}, {:.3}]", it.value, it.low, it.high))
}

/// Name, title and markup of an environment's plots.
fn plots(report: &StudyReport, environment: &str) -> Vec<(String, String, String)> {
    let rows = || report.rows.iter().filter(|it| it.environment == environment);
    let place = |arm: &str| ARMS.iter().position(|it| it.name == arm).unwrap_or(0);
    let mut plots = Vec::new();
    let series: Vec<Stepped> = rows()
        .filter(|it| it.after != After::Shuffled && it.fidelity.iter().any(Option::is_some))
        .map(|it| Stepped {
            name: format!("{}/{}", it.arm, it.after.name()),
            place: place(&it.arm),
            is_other: it.after == After::Sft,
            values: it.fidelity.clone(),
        })
        .collect();
    if !series.is_empty() {
        let title = format!("Rollout fidelity in {environment}");
        plots.push((format!("{environment}-fidelity.svg"), title.clone(), horizons_file(&title, &series)));
    }
    type Picked = fn(&PolicyRow) -> Option<Measured>;
    let dotted: [(&str, &str, Picked); 4] = [
        ("success", "Success", |it| it.success),
        ("brier", "Brier score", |it| it.brier),
        ("signed-gap", "Stated less observed", |it| it.signed_gap),
        ("gap-index", "Gap index", |it| it.gap_index),
    ];
    for (name, what, of) in dotted {
        let mut arms: Vec<Dotted> = Vec::new();
        for row in rows().filter(|it| it.after != After::Shuffled) {
            let Some(measured) = of(row) else { continue };
            if arms.last().is_none_or(|it| it.name != row.arm) {
                arms.push(Dotted { name: row.arm.clone(), place: place(&row.arm), values: Vec::new() });
            }
            if let Some(last) = arms.last_mut() {
                last.values.push((row.after == After::Sft, measured));
            }
        }
        if !arms.is_empty() {
            let title = format!("{what} in {environment}");
            plots.push((format!("{environment}-{name}.svg"), title.clone(), dots_file(&title, &arms)));
        }
    }
    plots
}
