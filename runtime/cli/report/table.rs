//! The one table that a demo ends with in the terminal: policies by metrics, an environment after the other.

use super::record::{Arm, DemoReport, Measured, Row};
use crate::output::bytes_text;

/// Wide enough for all but the oddest cells, which push the rest of their line to the right.
const WIDTHS: [usize; 9] = [8, 12, 10, 10, 10, 21, 16, 13, 11];

/// The table. Shares are in percent, gaps in points; brackets hold 95 % intervals.
pub(crate) fn table(report: &DemoReport) -> String {
    let mut text = String::new();
    for arm in &report.arms {
        for environment in arm.environments() {
            if !text.is_empty() {
                text.push('\n');
            }
            text += &block(arm, environment, report.arms.len() > 1);
        }
    }
    text += "\nshares in percent, gap in points, 95 % intervals in brackets; (const): Brier of always saying the \
             base rate\n`+ map`: after the policy's own recalibration map, fitted on other tasks\n";
    text
}

fn block(arm: &Arm, environment: &str, name_arm: bool) -> String {
    let rows: Vec<&Row> = arm.rows_in(environment).collect();
    let horizon = rows.iter().map(|it| it.fidelity.len()).max().unwrap_or(0);
    let n = rows.iter().map(|it| it.n).max().unwrap_or(0);
    let title = if name_arm { format!("{environment}, arm {}", arm.name) } else { environment.to_owned() };
    let mut text = format!("{title}: {n} held-out tasks\n");
    let last = format!("fidelity@{}", horizon.max(1));
    let heads = ["", "adherence", "fidelity@1", &last, "success", "Brier (const)", "Brier skill", "AUROC", "gap"];
    text += &line(&heads.map(str::to_owned));
    text += &"─".repeat(WIDTHS.iter().sum::<usize>() + WIDTHS.len() - 1);
    text.push('\n');
    for row in rows {
        text += &line(&cells(row));
        if let Some(estimate) = &row.estimate {
            let mut cells = [const { String::new() }; 9];
            cells[0] = "  + map".into();
            cells[5] = brier(estimate.brier);
            cells[6] = decimals(estimate.brier_skill, true);
            cells[7] = decimals(estimate.auroc, false);
            cells[8] = points(estimate.signed_gap);
            text += &line(&cells);
        }
    }
    for row in arm.rows_in(environment) {
        if let Some(bytes) = row.file_bytes {
            text += &format!("{}: {}, {:.0} tokens/s\n", row.policy, bytes_text(bytes), row.tokens_per_s);
        }
    }
    text
}

fn cells(row: &Row) -> [String; 9] {
    let brier = match row.brier_constant {
        Some(constant) => format!("{} ({})", brier(row.brier), without_zero(format!("{constant:.3}"))),
        None => brier(row.brier),
    };
    [
        row.policy.clone(),
        percent(row.adherence),
        percent(row.fidelity.first().copied().flatten()),
        percent(row.fidelity_last()),
        percent(Some(row.success)),
        brier,
        decimals(row.brier_skill, true),
        decimals(row.auroc, false),
        points(row.signed_gap),
    ]
}

fn line(cells: &[String; 9]) -> String {
    let mut line = String::new();
    for (column, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        line += &if column == 0 { format!("{cell:<width$}") } else { format!(" {cell:>width$}") };
    }
    line.trim_end().to_owned() + "\n"
}

fn dash() -> String {
    "–".into()
}

/// `61 [55,67]`
fn percent(measured: Option<Measured>) -> String {
    let whole = |it: f64| format!("{:.0}", 100.0 * it);
    measured.map_or_else(dash, |it| format!("{} [{},{}]", whole(it.value), whole(it.low), whole(it.high)))
}

/// `+12 [8,16]`
fn points(measured: Option<Measured>) -> String {
    // Adding 0 makes -0 a 0.
    let whole = |it: f64| format!("{:.0}", (100.0 * it).round() + 0.0);
    let cell =
        |it: Measured| format!("{:+.0} [{},{}]", (100.0 * it.value).round() + 0.0, whole(it.low), whole(it.high));
    measured.map_or_else(dash, cell)
}

/// `.342 [.32,.36]`
fn brier(measured: Option<Measured>) -> String {
    let short = |it: f64| without_zero(format!("{it:.2}"));
    let value = |it: f64| without_zero(format!("{it:.3}"));
    measured.map_or_else(dash, |it| format!("{} [{},{}]", value(it.value), short(it.low), short(it.high)))
}

/// `.71` of `0.71`, `-.71` of `-0.71`.
fn without_zero(number: String) -> String {
    if number.trim_start_matches('-').starts_with("0.") { number.replacen("0.", ".", 1) } else { number }
}

/// `.71 [.67,.75]`
fn decimals(measured: Option<Measured>, signed: bool) -> String {
    let short = |it: f64| without_zero(format!("{it:.2}"));
    let sign = |it: f64| if signed && it >= 0.0 { "+" } else { "" };
    let cell = |it: Measured| format!("{}{} [{},{}]", sign(it.value), short(it.value), short(it.low), short(it.high));
    measured.map_or_else(dash, cell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// Characters of a line: what fits beside each other on most screens.
    const WIDTH_MAX: usize = 120;

    #[test]
    fn the_table_fits_and_says_all() {
        let text = table(&sample::report());
        let widest = text.lines().map(|it| it.chars().count()).max();
        assert!(widest.is_some_and(|it| it <= WIDTH_MAX), "{widest:?}\n{text}");
        for word in ["Countdown", "DocHop", "base", "WM-AMT", "FE-SFT", "FC-RL", "Q8_0", "Q4_K_M", "+ map"] {
            assert!(text.contains(word), "{word}");
        }
        insta::assert_snapshot!(text.lines().take(12).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn cells_are_short() {
        let measured = Some(Measured { value: -0.214, low: -1.0, high: 0.15 });
        assert_eq!(decimals(measured, true), "-.21 [-1.00,.15]");
        assert_eq!(percent(Some(Measured { value: 1.0, low: 0.99, high: 1.0 })), "100 [99,100]");
        assert_eq!(points(Some(Measured { value: 0.12, low: 0.08, high: 0.16 })), "+12 [8,16]");
    }
}
