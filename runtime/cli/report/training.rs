//! The part of the page about training: losses by stage, and what reinforcement did step by step.

use std::collections::BTreeMap;

use serde::Serialize;

use super::charts::{self, Line, Style, Told};
use super::page::{Figure, LegendKey};
use super::record::{Arm, STAGES};

/// One arm's curves.
#[derive(Serialize)]
pub(super) struct TrainingPart {
    title: String,
    legend: Vec<LegendKey>,
    figures: Vec<Figure>,
    alarms: Vec<String>,
}

impl TrainingPart {
    /// The curves of an arm; `index` keeps ids apart.
    pub(super) fn of(index: usize, arm: &Arm) -> Self {
        let colour = |place: usize| Style { class: format!("p{place}"), marker: place, is_other: false };
        let mut figures = Vec::new();
        let mut by_stage = BTreeMap::<_, (&str, Vec<(f64, f64)>)>::new();
        for loss in &arm.losses {
            let place = STAGES.iter().position(|it| *it == loss.stage).unwrap_or(STAGES.len());
            by_stage.entry(place).or_insert((&loss.stage, Vec::new())).1.push((as_f64(loss.step), loss.value));
        }
        for (place, (stage, points)) in by_stage {
            let top = points.iter().map(|it| it.1).fold(0.0, f64::max);
            let title = format!("{stage}: loss");
            let (id, text) =
                (format!("l{index}-{place}"), format!("from {:.2} to {:.2}", first_y(&points), last_y(&points)));
            let line = [Line { style: colour(place), points }];
            let svg =
                charts::lines(&Told { id: &id, title: &title, text: &text }, &line, (0.0, top.max(0.01)), "step", &[]);
            figures.push(Figure { title, caption: String::new(), svg });
        }
        let mut legend = Vec::new();
        if !arm.rl.is_empty() {
            let series = |pick: fn(&super::record::RlStep) -> Option<f64>| {
                arm.rl.iter().filter_map(|it| pick(it).map(|y| (as_f64(it.step), y))).collect::<Vec<_>>()
            };
            let curves = [
                ("success", 3, series(|it| Some(it.success))),
                ("mean stated", 4, series(|it| it.stated_mean)),
                ("Brier score", 2, series(|it| it.brier)),
            ];
            let told: Vec<String> = curves
                .iter()
                .map(|it| format!("{} from {:.2} to {:.2}", it.0, first_y(&it.2), last_y(&it.2)))
                .collect();
            let lines = curves.map(|(label, place, points)| {
                legend.push(LegendKey { label: label.into(), svg: charts::key(&colour(place)) });
                Line { style: colour(place), points }
            });
            let alarms: Vec<f64> = arm.rl.iter().filter(|it| !it.alarms.is_empty()).map(|it| as_f64(it.step)).collect();
            let (id, title) = (format!("rl{index}"), "FC-RL: success, mean stated, Brier");
            let svg =
                charts::lines(&Told { id: &id, title, text: &told.join("; ") }, &lines, (0.0, 1.0), "step", &alarms);
            let caption = if alarms.is_empty() { String::new() } else { "Triangles mark steps with an alarm.".into() };
            figures.push(Figure { title: title.into(), caption, svg });
        }
        let alarms =
            arm.rl.iter().flat_map(|it| it.alarms.iter().map(move |alarm| format!("step {}: {alarm}", it.step)));
        Self { title: arm.name.clone(), legend, figures, alarms: alarms.take(12).collect() }
    }
}

fn first_y(points: &[(f64, f64)]) -> f64 {
    points.first().map_or(0.0, |it| it.1)
}

fn last_y(points: &[(f64, f64)]) -> f64 {
    points.last().map_or(0.0, |it| it.1)
}

#[expect(clippy::cast_precision_loss, reason = "steps of a run, far below 2^52")]
fn as_f64(step: u64) -> f64 {
    step as f64
}
