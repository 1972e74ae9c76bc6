//! Logistic fits for the parametric families: Newton's method on counts per distinct probability.

use super::{Family, RecalibrationError};
use crate::metrics::Tally;

/// Fewest outcomes a logistic fit is tried on.
pub(super) const OUTCOMES_MIN: usize = 10;
/// Logarithms are taken of probabilities no closer to 0 and 1 than this: a policy that writes 0 or
/// 100 % means "less than the next level", not certainty, and one such outcome must not rule the fit.
const CLIP: f64 = 0.01;
/// Pull towards the identity, in outcomes' worth of curvature: decides only what the data leave open.
const RIDGE: f64 = 1e-4;
const ITERATIONS_MAX: usize = 100;

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `[ln q, -ln(1 - q)]`, clipped; their sum is the logit.
pub(super) fn features(q: f64) -> [f64; 2] {
    let q = q.clamp(CLIP, 1.0 - CLIP);
    [q.ln(), -(1.0 - q).ln()]
}

/// One distinct probability: features, outcomes and the successes to aim at.
struct Row {
    features: [f64; 3],
    n: f64,
    target: f64,
}

/// Parameters `[slope, slope of failure (beta only), offset]`. Slopes that would turn the order of
/// statements around are held at 0 and the others fitted again, as in the beta calibration paper.
pub(super) fn fit(family: Family, tally: &Tally) -> Result<[f64; 3], RecalibrationError> {
    let rows = rows(family, tally);
    let (mut free, identity) = match family {
        Family::Temperature => ([true, false, false], [1.0, 0.0, 0.0]),
        Family::Beta => ([true, true, true], [1.0, 1.0, 0.0]),
        _ => ([true, false, true], [1.0, 0.0, 0.0]),
    };
    loop {
        let parameters = newton(&rows, free, identity)
            .ok_or(RecalibrationError::NotConverged { family, iterations: ITERATIONS_MAX })?;
        match (0..2).filter(|&at| free[at]).find(|&at| parameters[at] < 0.0) {
            Some(at) => free[at] = false,
            None => return Ok(parameters),
        }
    }
}

fn rows(family: Family, tally: &Tally) -> Vec<Row> {
    let (n, successes) = tally.levels().fold((0.0, 0.0), |sum, (_, n, successes)| (sum.0 + n, sum.1 + successes));
    // Platt's targets: a success counts as a little less than 1, so that outcomes which a threshold
    // separates perfectly still have a finite best fit.
    let success = (successes + 1.0) / (successes + 2.0);
    let failure = 1.0 / (n - successes + 2.0);
    let row = |(q, n, won): (f64, f64, f64)| {
        let [ln_success, ln_failure] = features(q);
        let features = match family {
            Family::Beta => [ln_success, ln_failure, 1.0],
            _ => [ln_success + ln_failure, 0.0, 1.0],
        };
        Row { features, n, target: won * success + (n - won) * failure }
    };
    tally.levels().map(row).collect()
}

/// Minimises the penalised cross-entropy over the free parameters; those not free stay 0.
fn newton(rows: &[Row], free: [bool; 3], identity: [f64; 3]) -> Option<[f64; 3]> {
    let start = |at: usize| if free[at] { identity[at] } else { 0.0 };
    let mut parameters = [start(0), start(1), start(2)];
    let mut loss = penalised_loss(rows, parameters, free, identity);
    for _ in 0..ITERATIONS_MAX {
        let step = newton_step(rows, parameters, free, identity)?;
        let mut scale = 1.0;
        let (next, next_loss) = loop {
            let next: [f64; 3] = std::array::from_fn(|at| parameters[at] - scale * step[at]);
            let next_loss = penalised_loss(rows, next, free, identity);
            if next_loss <= loss || scale < 1e-6 {
                break (next, next_loss);
            }
            scale *= 0.5;
        };
        let moved = step.iter().fold(0.0, |most: f64, it| most.max(it.abs())) * scale;
        // A step that no longer lowers the loss is rounding at the minimum.
        if next_loss > loss {
            return Some(parameters);
        }
        (parameters, loss) = (next, next_loss);
        if !loss.is_finite() {
            return None;
        }
        if moved < 1e-10 {
            return Some(parameters);
        }
    }
    None
}

fn score(features: &[f64; 3], parameters: [f64; 3]) -> f64 {
    features.iter().zip(parameters).map(|(x, w)| x * w).sum()
}

fn penalised_loss(rows: &[Row], parameters: [f64; 3], free: [bool; 3], identity: [f64; 3]) -> f64 {
    let fit: f64 = rows
        .iter()
        .map(|row| {
            let z = score(&row.features, parameters);
            // ln(1 + e^z), without overflow.
            row.n * (z.max(0.0) + (-z.abs()).exp().ln_1p()) - row.target * z
        })
        .sum();
    let pull = (0..3).filter(|&at| free[at]).map(|at| (parameters[at] - identity[at]).powi(2));
    fit + 0.5 * RIDGE * pull.sum::<f64>()
}

/// Inverse Hessian times gradient; 0 for parameters that are not free.
fn newton_step(rows: &[Row], parameters: [f64; 3], free: [bool; 3], identity: [f64; 3]) -> Option<[f64; 3]> {
    let mut system = [[0.0; 4]; 3];
    for row in rows {
        let p = sigmoid(score(&row.features, parameters));
        for (x, line) in row.features.iter().zip(&mut system) {
            for (y, cell) in row.features.iter().zip(line.iter_mut()) {
                *cell += row.n * p * (1.0 - p) * x * y;
            }
            line[3] += (row.n * p - row.target) * x;
        }
    }
    for at in 0..3 {
        if free[at] {
            system[at][at] += RIDGE;
            system[at][3] += RIDGE * (parameters[at] - identity[at]);
        } else {
            system.iter_mut().for_each(|line| line[at] = 0.0);
            system[at] = [0.0; 4];
            system[at][at] = 1.0;
        }
    }
    solve(system)
}

/// Gaussian elimination with pivoting on a 3 x 3 system with its right side as fourth column.
fn solve(mut system: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let pivot = (column..3).max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))?;
        system.swap(column, pivot);
        let lead = system[column];
        if lead[column] == 0.0 || !lead[column].is_finite() {
            return None;
        }
        for (row, line) in system.iter_mut().enumerate() {
            if row != column {
                let factor = line[column] / lead[column];
                line.iter_mut().zip(lead).for_each(|(cell, from)| *cell -= factor * from);
            }
        }
    }
    let solution = std::array::from_fn(|at| system[at][3] / system[at][at]);
    solution.iter().all(|it: &f64| it.is_finite()).then_some(solution)
}
