//! The cell that is told worst: signed gaps by environment, step and difficulty.
//!
//! A mean over everything hides a world that is overconfident behind one that is not.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Outcome;
use crate::intervals::{Interval, mean_clustered};

/// Fewest outcomes of a cell that is judged: below this a gap of ten points is chance.
pub const CELL_OUTCOMES_MIN: usize = 200;

/// Where an outcome belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cell {
    /// The environment.
    pub environment: String,
    /// The step of the episode at which the probability was stated, from 0.
    pub step: u32,
    /// The task's difficulty label.
    pub difficulty: String,
}

/// The gap of one cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellGap {
    /// The cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// Outcomes in it.
    pub n: usize,
    /// Mean probability less base rate; positive is overconfident.
    pub signed_gap: f64,
    /// The gap's interval. Together the intervals of all cells hold at the confidence asked for: each is
    /// as wide as so many comparisons need (Bonferroni). `None` for a cell of one cluster.
    pub interval: Option<Interval>,
}

/// Every cell with at least `n_min` outcomes, the largest gap first; equal gaps in the order of cells.
///
/// The first is the worst group. That it is the worst of many is why its gap seems larger than it is;
/// the interval allows for that.
pub fn cell_gaps(outcomes: &[(Cell, Outcome)], n_min: usize, confidence: f64) -> Vec<CellGap> {
    let mut cells: BTreeMap<&Cell, Vec<(u64, f64)>> = BTreeMap::new();
    for (cell, it) in outcomes {
        let gap = it.probability() - f64::from(u8::from(it.success()));
        cells.entry(cell).or_default().push((it.cluster(), gap));
    }
    cells.retain(|_, gaps| gaps.len() >= n_min.max(1));
    let each = 1.0 - (1.0 - confidence) / cells.len().max(1) as f64;
    let gap = |(cell, mut gaps): (&Cell, Vec<(u64, f64)>)| {
        gaps.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let sum: f64 = gaps.iter().map(|it| it.1).sum();
        let signed_gap = sum / gaps.len() as f64;
        CellGap { cell: cell.clone(), n: gaps.len(), signed_gap, interval: mean_clustered(&gaps, each) }
    };
    let mut gaps: Vec<CellGap> = cells.into_iter().map(gap).collect();
    gaps.sort_by(|a, b| b.signed_gap.abs().total_cmp(&a.signed_gap.abs()));
    gaps
}
