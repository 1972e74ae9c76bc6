//! A report with made-up numbers, for tests of the page and the table only.

use fsq_calibrate::Stated;
use fsq_calibrate::gates::{EpisodeRecord, Evaluation, GateProfile, judge};
use serde_json::json;

use super::record::{
    Arm, DemoReport, EstimateMetrics, GateRun, Loss, Machine, Measured, ReliabilityPoint, RlStep, Row, Served,
    StageSeconds, StepFormat,
};

fn around(value: f64, half: f64) -> Measured {
    Measured { value, low: value - half, high: value + half }
}

/// Success, fidelity from 1 on, Brier, AUROC, gap.
type Numbers<'a> = (f64, &'a [f64], Option<(f64, f64, f64)>);

fn row(policy: &str, environment: &str, (success, fidelity, odds): Numbers<'_>) -> Row {
    let horizon = if environment == "DocHop" { 3 } else { 4 };
    let constant = success * (1.0 - success);
    let reliability = odds.map_or_else(Vec::new, |(_, _, gap)| {
        (0..10u32)
            .map(|bin| {
                let stated_mean = 0.05 + 0.1 * f64::from(bin);
                let observed = (stated_mean - gap + 0.03 * f64::from(bin % 3)).clamp(0.02, 0.98);
                let n = 20 + 30 * usize::from(bin.abs_diff(6) < 3) + 4 * bin as usize;
                let (low, high) = ((observed - 0.11f64).max(0.0), (observed + 0.11f64).min(1.0));
                ReliabilityPoint { stated_mean, observed, low, high, n }
            })
            .collect()
    });
    let is_mapped = matches!(policy, "FC-RL" | "Q8_0" | "Q4_K_M");
    Row {
        policy: policy.into(),
        environment: environment.into(),
        n: 800,
        format: if odds.is_some() { StepFormat::Foresight } else { StepFormat::Plain },
        adherence: odds.map(|_| Measured { value: 0.993, low: 0.988, high: 0.997 }),
        fidelity: (0..horizon).map(|it| fidelity.get(it).map(|it| around(*it, 0.03))).collect(),
        success: around(success, 0.034),
        base_rate: success,
        brier: odds.map(|it| around(it.0, 0.012)),
        brier_constant: odds.map(|_| constant),
        brier_skill: odds.map(|it| around(1.0 - it.0 / constant, 0.05)),
        auroc: odds.map(|it| around(it.1, 0.035)),
        signed_gap: odds.map(|it| around(it.2, 0.033)),
        estimate: odds.filter(|_| is_mapped).map(|it| EstimateMetrics {
            brier: Some(around(it.0 - 0.008, 0.012)),
            brier_skill: Some(around(1.0 - (it.0 - 0.008) / constant, 0.05)),
            auroc: Some(around(it.1, 0.035)),
            signed_gap: Some(around(0.004, 0.033)),
        }),
        reliability,
        tokens_per_s: 9200.0,
        file_bytes: match policy {
            "Q8_0" => Some(3_120_000),
            "Q4_K_M" => Some(1_890_000),
            "base" => Some(11_400_000),
            _ => None,
        },
    }
}

/// A judgement as the gates make it, of made-up episodes of which some change sides.
fn gate(candidate: &str, environment: &str, every: u64) -> GateRun {
    let episode = |task: u64, flipped: bool| EpisodeRecord {
        task,
        success: (task % 5 < 3) != flipped,
        stated: Stated::new(if task % 5 < 3 { 0.7 } else { 0.35 } + 0.01 * (task % 13) as f64).ok(),
        fidelity: vec![Some(0.97), Some(0.9), Some(0.8), Some(if task.is_multiple_of(4) { 0.2 } else { 0.8 })],
        steps: 3,
        steps_parsed: 3,
        tokens: 120 + (task % 7) as u32,
    };
    let of = |flips: &dyn Fn(u64) -> bool| Evaluation {
        episodes: (0..800).map(|task| episode(task, flips(task))).collect(),
        recalibration: None,
    };
    let profile = GateProfile {
        name: "demo".into(),
        episodes_min: 800,
        resamples: 400,
        seed: 0,
        success_loss_max: 0.04,
        brier_rise_max: 0.02,
        brier_recalibrated_rise_max: 0.02,
        recalibration_excuses_brier: true,
        signed_gap_max: 0.05,
        auroc_loss_max: 0.04,
        fidelity_first_loss_max: 0.04,
        fidelity_last_loss_max: 0.06,
        parse_rate_min: 0.97,
        parse_rate_loss_max: 0.02,
        tokens_growth_max: 0.10,
        usable_brier_skill_min: 0.1,
        usable_auroc_min: 0.65,
    };
    let judged = judge(&of(&|_| false), &of(&|task| task.is_multiple_of(every)), &profile);
    GateRun {
        candidate: candidate.into(),
        reference: "FC-RL".into(),
        environment: environment.into(),
        report: judged.map_or(serde_json::Value::Null, |it| json!(it)),
        verdict: "pass".into(),
    }
}

fn rows(is_main: bool) -> Vec<Row> {
    let lift = if is_main { 0.0 } else { -0.32 };
    let mut rows = Vec::new();
    for (environment, less) in [("Countdown", 0.0), ("DocHop", 0.06)] {
        let far = [0.98, 0.93 + lift / 3.0 - less, 0.84 + lift / 1.5 - less, 0.75 + lift - less];
        let odds = |brier: f64, auroc: f64, gap: f64| Some((brier + less / 4.0, auroc - less, gap));
        rows.push(row("base", environment, (0.58 - less, &[], None)));
        if is_main {
            rows.push(row("WM-AMT", environment, (0.57 - less, &[], None)));
        }
        rows.push(row("FE-SFT", environment, (0.56 - less, &far, odds(0.243, 0.66, 0.17))));
        rows.push(row("FC-RL", environment, (0.62 - less, &far, odds(0.186, 0.78, 0.03))));
        rows.push(row("Q8_0", environment, (0.62 - less, &far, odds(0.187, 0.78, 0.031))));
        rows.push(row("Q4_K_M", environment, (0.61 - less, &far.map(|it| it - 0.012), odds(0.191, 0.77, 0.04))));
    }
    rows
}

fn arm(name: &str, is_main: bool) -> Arm {
    let stages: &[(&str, f64, f64)] = &[("WM-AMT", 2.4, 118.0), ("FE-SFT", 1.6, 96.0)];
    let stages = if is_main { stages } else { &stages[1..] };
    let falling = |stage: &str, from: f64| {
        let stage = stage.to_owned();
        (0..60u64).map(move |step| Loss {
            stage: stage.clone(),
            step: step * 10,
            value: 0.31 + from * (-(step as f64) / 14.0).exp() + 0.02 * ((step * 7) % 5) as f64,
        })
    };
    let rl = (0..40u64).map(|step| {
        let share = step as f64 / 39.0;
        let wobble = 0.015 * ((step * 11) % 7) as f64;
        RlStep {
            step,
            success: 0.55 + 0.07 * share + wobble,
            stated_mean: Some(0.73 - 0.09 * share - wobble / 2.0),
            brier: Some(0.244 - 0.055 * share + wobble / 4.0),
            adherence: Some(0.985 + 0.008 * share),
            entropy: Some(2.1 - 0.4 * share),
            alarms: if step == 17 { vec!["signed gap 0.12 above 0.10".into()] } else { Vec::new() },
        }
    });
    let environments =
        [("Q8_0", "Countdown", 90), ("Q4_K_M", "Countdown", 45), ("Q8_0", "DocHop", 100), ("Q4_K_M", "DocHop", 40)];
    Arm {
        name: name.into(),
        rows: rows(is_main),
        gates: environments.into_iter().map(|(file, environment, every)| gate(file, environment, every)).collect(),
        losses: stages.iter().flat_map(|(stage, from, _)| falling(stage, *from)).collect(),
        rl: rl.collect(),
        seconds_per_stage: stages
            .iter()
            .map(|it| (it.0, it.2))
            .chain([("FC-RL", 171.0), ("quantize and judge", 64.0)])
            .map(|(stage, seconds)| StageSeconds { stage: stage.into(), seconds })
            .collect(),
    }
}

fn plan(lines: &[&str], stated: f64, estimate: f64, action: &str) -> serde_json::Value {
    json!({"rollout": lines, "stated": stated, "stated_expectation": stated, "estimate": estimate, "action": action})
}

/// Both arms, two environments, two files.
pub(super) fn report() -> DemoReport {
    DemoReport {
        tool_version: "0.1.0".into(),
        seed: 7,
        quick: false,
        command: "fsq demo --seed 7 --out demo".into(),
        machine: Machine { cpu: "A processor".into(), cores: 2, memory_bytes: 3_200_000_000 },
        started: "2026-01-01 12:00 UTC".into(),
        arms: vec![arm("wm-amt", true), arm("sft-only", false)],
        served: Some(Served {
            request: json!({"state": "numbers 3 8 7 target 24", "plans": 3}),
            response: json!({"plans": [
                plan(&["8 - 7 leads 1 3", "1 * 3 leads 3"], 0.2, 0.14, "8 - 7"),
                plan(&["3 * 8 leads 24 7", "24 / 7 is not whole"], 0.35, 0.27, "3 * 8"),
                plan(&["7 - 3 leads 4 8", "8 - 4 leads 4"], 0.3, 0.22, "7 - 3"),
            ], "chosen": 1, "reason": null}),
            chosen: 1,
            outcome_text: "3 * 8 led to 24 7; then 24 - 7 led to 17. The target was not reached.".into(),
            success: false,
        }),
        notes: vec!["These numbers are made up: they test the page.".into()],
    }
}

#[test]
fn a_report_survives_json() {
    let report = report();
    let text = serde_json::to_string(&report).unwrap_or_default();
    let read: Option<DemoReport> = serde_json::from_str(&text).ok();
    // A float may lose its last bit on the way, so that only what is shown of it is compared.
    assert_eq!(read.as_ref().map(super::table::table), Some(super::table::table(&report)));
    assert_eq!(read.map(|it| (it.served, it.notes, it.machine)), Some((report.served, report.notes, report.machine)));
}
