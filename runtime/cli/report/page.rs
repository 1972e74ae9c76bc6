//! The page of a demo: a record in, one self-contained HTML file out. No script, no network.

use anyhow::Context;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use serde_json::Value;

use super::charts::{self, Axis, Bin, Dots, Horizons, Style, Told};
use super::gates::Gates;
use super::record::{Arm, DemoReport, GateRun, Measured, Row, STAGES, Served};
use super::scope::{Scope, scope};
use super::summary::{self, Summary};
use super::training::TrainingPart;
use crate::output::bytes_text;
use crate::progress::duration_text;

const PAGE: &str = include_str!("demo.html.jinja");
pub(super) const STYLE: &str = include_str!("page.css");

/// The page.
///
/// # Errors
/// When the template does not render, which a test rules out for any report.
pub(crate) fn render_html(report: &DemoReport) -> anyhow::Result<String> {
    let page = Page::of(report);
    render("demo.html", PAGE, &page)
}

/// Renders a template of ours; everything in it that is not a diagram is escaped.
pub(super) fn render(name: &str, template: &str, context: &impl Serialize) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let rendered = environment.render_named_str(name, template, Serde(context));
    rendered.with_context(|| format!("page {name}"))
}

#[derive(Serialize)]
struct Page<'a> {
    style: &'static str,
    report: &'a DemoReport,
    summary: Summary,
    scope: Option<Scope>,
    memory: String,
    arms: Vec<ArmFacts<'a>>,
    has_other: bool,
    environments: Vec<EnvironmentPart>,
    training: Vec<TrainingPart>,
    served: Option<ServedPart>,
    tables: Vec<TablePart>,
}

#[derive(Serialize)]
struct ArmFacts<'a> {
    name: &'a str,
    stages: Vec<(&'a str, String)>,
}

/// A diagram with what stands above and below it.
#[derive(Serialize)]
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) caption: String,
    pub(super) svg: String,
}

/// One entry of a legend.
#[derive(Serialize)]
pub(super) struct LegendKey {
    pub(super) label: String,
    pub(super) svg: String,
}

#[derive(Serialize)]
struct EnvironmentPart {
    name: String,
    reliability: Vec<Figure>,
    fidelity: Option<Figure>,
    fidelity_legend: Vec<LegendKey>,
    dots: Vec<Figure>,
    dots_legend: Vec<LegendKey>,
    gates: Option<Gates>,
    files: Vec<FilePart>,
}

#[derive(Serialize)]
struct FilePart {
    name: String,
    class: String,
    size: String,
    share_percent: f64,
    tokens_per_s: String,
}

#[derive(Serialize)]
struct ServedPart {
    asked: String,
    plans: Vec<PlanPart>,
    /// Why the server chose no plan, where it did not.
    reason: Option<String>,
    outcome: String,
    success: bool,
    request: String,
    response: String,
}

#[derive(Serialize)]
struct PlanPart {
    number: usize,
    rollout: Vec<String>,
    stated: Option<String>,
    estimate: Option<String>,
    percent: f64,
    action: String,
    /// What is wrong with a malformed one.
    error: Option<String>,
    is_chosen: bool,
}

#[derive(Serialize)]
struct TablePart {
    title: String,
    horizons: Vec<usize>,
    /// Values with their intervals, which may be empty.
    rows: Vec<Vec<(String, String)>>,
}

impl<'a> Page<'a> {
    fn of(report: &'a DemoReport) -> Self {
        let main = report.main_arm();
        let other = report.other_arm();
        let environments = main.map(Arm::environments).unwrap_or_default();
        let part = |(index, name): (usize, &&str)| main.map(|arm| environment(index, name, arm, other));
        Self {
            style: STYLE,
            report,
            summary: summary::summary(report),
            scope: main.and_then(|it| scope(&it.gates.iter().collect::<Vec<_>>())),
            memory: bytes_text(report.machine.memory_bytes),
            arms: report.arms.iter().map(arm_facts).collect(),
            has_other: other.is_some(),
            environments: environments.iter().enumerate().filter_map(part).collect(),
            training: report.arms.iter().enumerate().map(|(index, arm)| TrainingPart::of(index, arm)).collect(),
            served: report.served.as_ref().map(served),
            tables: report.arms.iter().flat_map(|arm| arm.environments().into_iter().map(|it| full(arm, it))).collect(),
        }
    }
}

fn arm_facts(arm: &Arm) -> ArmFacts<'_> {
    let stage =
        |it: &'_ super::record::StageSeconds| duration_text(std::time::Duration::from_secs_f64(it.seconds.max(0.0)));
    ArmFacts {
        name: &arm.name,
        stages: arm.seconds_per_stage.iter().map(|it| (it.stage.as_str(), stage(it))).collect(),
    }
}

/// How a policy is drawn wherever it appears.
fn style(arm: &Arm, policy: &str, is_other: bool) -> Style {
    let place = STAGES.iter().position(|it| *it == policy).unwrap_or_else(|| {
        let mut files: Vec<&str> = Vec::new();
        for row in arm.rows.iter().filter(|it| it.is_file()) {
            if !files.contains(&row.policy.as_str()) {
                files.push(&row.policy);
            }
        }
        STAGES.len() + files.iter().position(|it| *it == policy).unwrap_or(0) % 2
    });
    Style { class: format!("p{place}"), marker: place, is_other }
}

fn environment(index: usize, name: &str, arm: &Arm, other: Option<&Arm>) -> EnvironmentPart {
    let rows: Vec<&Row> = arm.rows_in(name).collect();
    let (fidelity, fidelity_legend) = fidelity(index, name, arm, other);
    let curves = rows.iter().filter(|it| !it.reliability.is_empty());
    let legend = [("as stated", false), ("after the recalibration map", true)];
    let key = |(label, is_other): (&str, bool)| {
        let style = Style { class: "p-ink".into(), marker: 0, is_other };
        LegendKey { label: label.into(), svg: charts::key(&style) }
    };
    let n_bytes_max = rows.iter().filter_map(|it| it.file_bytes).max().unwrap_or(1).max(1);
    let runs: Vec<&GateRun> = arm.gates.iter().filter(|it| it.environment == name).collect();
    EnvironmentPart {
        name: name.into(),
        reliability: curves
            .enumerate()
            .map(|(place, row)| reliability(&format!("r{index}-{place}"), arm, row))
            .collect(),
        fidelity,
        fidelity_legend,
        dots: dot_plots(index, arm, &rows),
        dots_legend: legend.map(key).into(),
        gates: Gates::of(index, &runs),
        files: rows.iter().filter_map(|it| file(arm, it, n_bytes_max)).collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a bar's length")]
fn file(arm: &Arm, row: &Row, n_bytes_max: u64) -> Option<FilePart> {
    let bytes = row.file_bytes?;
    Some(FilePart {
        name: row.policy.clone(),
        class: style(arm, &row.policy, false).class,
        size: bytes_text(bytes),
        share_percent: 100.0 * bytes as f64 / n_bytes_max as f64,
        tokens_per_s: format!("{:.0}", row.tokens_per_s),
    })
}

fn reliability(id: &str, arm: &Arm, row: &Row) -> Figure {
    let bins: Vec<Bin> = row
        .reliability
        .iter()
        .map(|it| Bin { stated: it.stated_mean, observed: it.observed, low: it.low, high: it.high, n: it.n })
        .collect();
    let told: Vec<String> = bins
        .iter()
        .map(|it| format!("{:.0} % stated, {:.0} % came true", 100.0 * it.stated, 100.0 * it.observed))
        .collect();
    let title = format!("Reliability of {} in {}", row.policy, row.environment);
    let gap = row.signed_gap.map_or_else(String::new, |it| format!("gap {}", summary::points(it.value)));
    let skill = row.brier_skill.map_or_else(String::new, |it| format!(" · skill {:+.2}", it.value).replace('-', "−"));
    Figure {
        svg: charts::reliability(
            &Told { id, title: &title, text: &told.join("; ") },
            &style(arm, &row.policy, false),
            &bins,
        ),
        title: row.policy.clone(),
        caption: gap + &skill,
    }
}

/// The policies whose rollouts are drawn: after each stage that has them, and the smallest file.
fn fidelity(index: usize, name: &str, arm: &Arm, other: Option<&Arm>) -> (Option<Figure>, Vec<LegendKey>) {
    let (mut series, mut legend) = (Vec::new(), Vec::new());
    let imagines = |row: &&Row| row.fidelity.iter().any(Option::is_some);
    let mut add = |row: &Row, is_other: bool, label: String| {
        let style = style(arm, &row.policy, is_other);
        legend.push(LegendKey { label, svg: charts::key(&style) });
        series.push(Horizons { style, values: row.fidelity.clone() });
    };
    if let Some((other, row)) = other.and_then(|it| Some((it, it.row("FE-SFT", name).filter(imagines)?))) {
        add(row, true, format!("FE-SFT in the arm {}", other.name));
    }
    for row in arm.rows_in(name).filter(imagines) {
        add(row, false, row.policy.clone());
    }
    if series.is_empty() {
        return (None, legend);
    }
    let title = format!("Rollout fidelity by horizon in {name}");
    let last = |it: &Horizons| it.values.last().copied().flatten().map_or_else(|| "–".into(), interval_text);
    let told: Vec<String> = legend
        .iter()
        .zip(&series)
        .map(|(key, it)| format!("{} at the longest horizon: {}", key.label, last(it)))
        .collect();
    let id = format!("h{index}");
    let svg = charts::horizons(&Told { id: &id, title: &title, text: &told.join("; ") }, &series);
    let caption = "Share of imagined states that came true, with 95 % intervals.".into();
    (Some(Figure { title, caption, svg }), legend)
}

/// Success, Brier skill, AUROC and signed gap of every policy.
fn dot_plots(index: usize, arm: &Arm, rows: &[&Row]) -> Vec<Figure> {
    type Pick = fn(&Row) -> (Option<Measured>, Option<Measured>);
    let percent = |values: &[f64]| values.iter().map(|it| (*it, format!("{:.0}", 100.0 * it))).collect();
    let plain = |values: &[f64]| values.iter().map(|it| (*it, format!("{it:.1}").replace('-', "−"))).collect();
    let signed = |values: &[f64]| values.iter().map(|it| (*it, summary::points(*it))).collect();
    let success: Pick = |it| (Some(it.success), None);
    let skill: Pick = |it| (it.brier_skill, it.estimate.as_ref().and_then(|it| it.brier_skill));
    let auroc: Pick = |it| (it.auroc, it.estimate.as_ref().and_then(|it| it.auroc));
    let gap: Pick = |it| (it.signed_gap, it.estimate.as_ref().and_then(|it| it.signed_gap));
    let axis = |from: f64, to: f64, ticks: Vec<(f64, String)>, reference| Axis { from, to, ticks, reference };
    let lowest_skill = rows.iter().filter_map(|it| it.brier_skill).map(|it| it.low).fold(-0.2, f64::min).max(-1.0);
    let skill_ticks: &[f64] = if lowest_skill < -0.5 { &[-1.0, -0.5, 0.0, 0.5] } else { &[-0.5, -0.2, 0.0, 0.2, 0.5] };
    let skill_ticks: Vec<f64> = skill_ticks.iter().copied().filter(|it| *it >= lowest_skill - 0.01).collect();
    let plots: [(&str, &str, Axis, Pick); 4] = [
        ("Tasks solved, %", "", axis(0.0, 1.0, percent(&[0.0, 0.25, 0.5, 0.75, 1.0]), None), success),
        (
            "Brier skill",
            "Right of the dashed line: better than always saying the base rate.",
            axis(lowest_skill, 0.6, plain(&skill_ticks), Some(0.0)),
            skill,
        ),
        (
            "AUROC",
            "The dashed line is chance: odds that tell no plan from another.",
            axis(0.4, 1.0, plain(&[0.4, 0.6, 0.8, 1.0]), Some(0.5)),
            auroc,
        ),
        (
            "Signed gap, points",
            "Right of the dashed line: overconfident.",
            axis(-0.4, 0.4, signed(&[-0.4, -0.2, 0.0, 0.2, 0.4]), Some(0.0)),
            gap,
        ),
    ];
    let plots = plots.into_iter().enumerate();
    plots
        .filter_map(|(place, (title, caption, axis, pick))| {
            let rows: Vec<Dots> = rows.iter().map(|row| dot_row(arm, row, pick(row))).collect();
            let told =
                rows.iter().filter_map(|row| Some(format!("{} {}", row.name, interval_text(row.values.first()?.1))));
            let told = told.collect::<Vec<_>>().join("; ");
            let id = format!("d{index}-{place}");
            let svg = charts::dots(&Told { id: &id, title, text: &told }, &axis, &rows);
            (!rows.is_empty()).then(|| Figure { title: title.into(), caption: caption.into(), svg })
        })
        .collect()
}

fn dot_row(arm: &Arm, row: &Row, (stated, mapped): (Option<Measured>, Option<Measured>)) -> Dots {
    let mut values: Vec<_> = stated.into_iter().map(|it| (style(arm, &row.policy, false), it)).collect();
    values.extend(mapped.map(|it| (style(arm, &row.policy, true), it)));
    Dots { name: row.policy.clone(), values }
}

fn served(served: &Served) -> ServedPart {
    let plans = served.response.get("plans").and_then(Value::as_array).into_iter().flatten();
    let messages = served.request.get("messages").and_then(Value::as_array).and_then(|it| it.last());
    let asked = served.request.get("state").or(messages.and_then(|it| it.get("content"))).and_then(Value::as_str);
    ServedPart {
        asked: asked.unwrap_or_default().to_owned(),
        plans: plans.enumerate().map(|(index, it)| plan(index, it, served.chosen == index)).collect(),
        reason: served.response.get("reason").and_then(Value::as_str).map(str::to_owned),
        outcome: served.outcome_text.clone(),
        success: served.success,
        request: pretty(&served.request),
        response: pretty(&served.response),
    }
}

fn plan(index: usize, plan: &Value, is_chosen: bool) -> PlanPart {
    let number = |key: &str| plan.get(key).and_then(|it| it.as_f64().or_else(|| it.get("value")?.as_f64()));
    let percent = |it: f64| format!("{:.0} %", 100.0 * it);
    let rollout = match plan.get("rollout") {
        Some(Value::Array(lines)) => lines.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(text)) => text.lines().map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let (stated, estimate) = (number("stated_expectation").or(number("stated")), number("estimate"));
    PlanPart {
        number: index + 1,
        rollout,
        percent: 100.0 * estimate.or(stated).unwrap_or(0.0).clamp(0.0, 1.0),
        stated: stated.map(percent),
        estimate: estimate.map(percent),
        action: plan.get("action").and_then(Value::as_str).unwrap_or_default().to_owned(),
        error: plan.get("error").and_then(Value::as_str).map(str::to_owned),
        is_chosen,
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn full(arm: &Arm, environment: &str) -> TablePart {
    let rows: Vec<&Row> = arm.rows_in(environment).collect();
    let horizon = rows.iter().map(|it| it.fidelity.len()).max().unwrap_or(0);
    let plain = |text: String| (text, String::new());
    let none = || ("–".to_owned(), String::new());
    let share = |it: Option<Measured>| {
        let whole = |it: f64| format!("{:.0}", 100.0 * it);
        it.map_or_else(none, |it| {
            (format!("{} %", whole(it.value)), format!("{} to {}", whole(it.low), whole(it.high)))
        })
    };
    let decimal = |it: Option<Measured>| {
        let short = |it: f64| format!("{it:.3}").replace('-', "−");
        it.map_or_else(none, |it| (short(it.value), format!("{} to {}", short(it.low), short(it.high))))
    };
    let cells = |row: &&Row| {
        let mut cells = vec![plain(row.policy.clone()), plain(row.n.to_string()), share(row.adherence)];
        cells.extend((0..horizon).map(|it| share(row.fidelity.get(it).copied().flatten())));
        let estimate = row.estimate.as_ref();
        cells.extend([
            share(Some(row.success)),
            decimal(row.brier),
            row.brier_constant.map_or_else(none, |it| plain(format!("{it:.3}"))),
            decimal(row.brier_skill),
            decimal(row.auroc),
            decimal(row.signed_gap),
            decimal(estimate.and_then(|it| it.brier)),
            decimal(estimate.and_then(|it| it.brier_skill)),
            decimal(estimate.and_then(|it| it.signed_gap)),
            plain(format!("{:.0}", row.tokens_per_s)),
        ]);
        cells
    };
    TablePart {
        title: format!("{environment}, arm {}", arm.name),
        horizons: (1..=horizon).collect(),
        rows: rows.iter().map(cells).collect(),
    }
}

/// `61 % [55, 67]`
fn interval_text(it: Measured) -> String {
    format!("{:.0} % [{:.0}, {:.0}]", 100.0 * it.value, 100.0 * it.low, 100.0 * it.high)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

    use super::*;
    use crate::report::sample;

    #[test]
    fn the_page_stands_alone() {
        let html = render_html(&sample::report()).unwrap();
        for word in ["http:", "https:", "<script", "src=", "@import", "url("] {
            assert!(!html.contains(word), "{word}");
        }
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        assert!(html.matches("<svg").count() > 30);
        // Left where a person can look at it.
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("report.html"), html).unwrap();
        std::fs::write(folder.join("report.json"), serde_json::to_vec_pretty(&sample::report()).unwrap()).unwrap();
    }

    #[test]
    fn ids_are_unique() {
        let html = render_html(&sample::report()).unwrap();
        let ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|it| it.split('"').next()).collect();
        let unique: std::collections::HashSet<&&str> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
    }

    #[test]
    fn text_of_a_policy_cannot_become_markup() {
        let mut report = sample::report();
        report.notes.push("<script>alert(1)</script>".into());
        report.arms[0].rows[0].policy = "<b>base".into();
        let html = render_html(&report).unwrap();
        assert!(!html.contains("<script") && !html.contains("<b>base"));
    }

    #[test]
    fn a_report_of_nothing_renders() {
        let mut report = sample::report();
        report.arms.clear();
        report.served = None;
        report.notes.clear();
        assert!(render_html(&report).unwrap().contains("Nothing was measured"));
        let mut report = sample::report();
        report.arms.truncate(1);
        report.arms[0].gates[0].report = Value::Null;
        report.arms[0].rl.clear();
        report.arms[0].losses.clear();
        assert!(render_html(&report).is_ok());
    }
}
