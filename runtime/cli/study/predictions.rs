//! The registered predictions, and the verdict on each: nothing but the table and the interval decides.

use serde::{Deserialize, Serialize};

use super::measure::{Measure, Sample, compared};
use super::results::{After, Cell, Played};
use crate::failure::Refusal;
use crate::report::record::Measured;

/// The table that was written before any run.
const REGISTERED: &str = include_str!("../../../docs/studies/gap/predictions.toml");
/// With fewer a verdict is provisional.
pub(super) const SEEDS_MIN: usize = 5;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    prediction: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    name: String,
    says: String,
    source: String,
    measure: String,
    of: String,
    less: Option<String>,
    share: Option<f64>,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

/// One row of the table.
pub(super) struct Prediction {
    pub(super) name: String,
    pub(super) says: String,
    pub(super) source: String,
    measure: Measure,
    measure_name: String,
    of: Policy,
    less: Option<(Policy, f64)>,
    bound: Bound,
}

/// An arm at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    arm: String,
    after: After,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// What became of a prediction in an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Confirmed,
    Refuted,
    Undecided,
    NotRun,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refuted => "refuted",
            Self::Undecided => "undecided",
            Self::NotRun => "not run",
        }
    }
}

/// A prediction's verdict with what it rests on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Judged {
    pub(super) name: String,
    pub(super) says: String,
    pub(super) source: String,
    pub(super) environment: String,
    /// What is measured of what, and the bound, as text.
    pub(super) claim: String,
    pub(super) measured: Option<Measured>,
    /// Seeds that all named arms have.
    pub(super) seeds: usize,
    pub(super) verdict: Verdict,
}

impl Bound {
    fn verdict(self, it: Measured) -> Verdict {
        let (holds, fails) = match self {
            Self::AtLeast(bound) => (it.low >= bound, it.high < bound),
            Self::AtMost(bound) => (it.high <= bound, it.low > bound),
        };
        match (holds, fails) {
            (true, _) => Verdict::Confirmed,
            (_, true) => Verdict::Refuted,
            _ => Verdict::Undecided,
        }
    }
}

impl Policy {
    fn of(text: &str) -> Option<Self> {
        let (arm, after) = text.split_once('/')?;
        let after = After::ALL.into_iter().find(|it| it.name() == after)?;
        Some(Self { arm: arm.into(), after })
    }

    fn name(&self) -> String {
        format!("{}/{}", self.arm, self.after.name())
    }

    fn played<'a>(&self, cells: &'a [Cell], seed: u64, environment: &str) -> Option<&'a Played> {
        let cell = cells.iter().find(|it| it.arm == self.arm && it.seed == seed)?;
        cell.played.iter().find(|it| it.after == self.after && it.environment == environment)
    }
}

/// The registered predictions.
pub(super) fn registered() -> anyhow::Result<Vec<Prediction>> {
    parse(REGISTERED)
}

fn parse(text: &str) -> anyhow::Result<Vec<Prediction>> {
    let table: Table = toml::from_str(text).map_err(|it| Refusal::new(format!("predictions.toml: {it}")))?;
    table.prediction.into_iter().map(|it| Ok(read(it)?)).collect()
}

fn read(written: Written) -> Result<Prediction, Refusal> {
    let Written { name, says, source, measure: measure_name, of, less, share, at_least, at_most } = written;
    let wrong = |field: &str, expected: &str, found: &str| {
        Refusal::new(format!("predictions.toml: {name}: {field}: expected {expected}, found `{found}`"))
    };
    let measure = Measure::of(&measure_name).ok_or_else(|| wrong("measure", "a registered measure", &measure_name))?;
    let policy = |field: &str, text: &str| Policy::of(text).ok_or_else(|| wrong(field, "ARM/sft|rl|shuffled", text));
    let of = policy("of", &of)?;
    let less = less.map(|it| Ok((policy("less", &it)?, share.unwrap_or(1.0)))).transpose()?;
    let bound = match (at_least, at_most) {
        (Some(bound), None) => Bound::AtLeast(bound),
        (None, Some(bound)) => Bound::AtMost(bound),
        (both, _) => {
            let found = if both.is_some() { "both" } else { "neither" };
            return Err(wrong("at-least", "one of `at-least` and `at-most`", found));
        }
    };
    Ok(Prediction { name, says, source, measure, measure_name, of, less, bound })
}

impl Prediction {
    /// The verdict in an environment, on the seeds that every named arm has.
    pub(super) fn judge(&self, cells: &[Cell], environment: &str) -> Judged {
        let seeds = self.seeds(cells, environment);
        let sample = |policy: &Policy| {
            let played: Vec<&Played> =
                seeds.iter().filter_map(|seed| policy.played(cells, *seed, environment)).collect();
            Sample::of(&played)
        };
        let less = self.less.as_ref().map(|(policy, share)| (sample(policy), *share));
        let measured = match (sample(&self.of), &less) {
            (Some(of), None) => compared(self.measure, &of, None),
            (Some(of), Some((Some(less), share))) => compared(self.measure, &of, Some((less, *share))),
            _ => None,
        };
        let verdict = match measured {
            _ if seeds.is_empty() => Verdict::NotRun,
            Some(measured) => self.bound.verdict(measured),
            None => Verdict::Undecided,
        };
        Judged {
            name: self.name.clone(),
            says: self.says.clone(),
            source: self.source.clone(),
            environment: environment.into(),
            claim: self.claim(),
            measured,
            seeds: seeds.len(),
            verdict,
        }
    }

    fn seeds(&self, cells: &[Cell], environment: &str) -> Vec<u64> {
        let policies = || std::iter::once(&self.of).chain(self.less.as_ref().map(|it| &it.0));
        let mut seeds: Vec<u64> = cells.iter().map(|it| it.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        seeds.retain(|seed| policies().all(|it| it.played(cells, *seed, environment).is_some()));
        seeds
    }

    fn claim(&self) -> String {
        let less = match &self.less {
            Some((policy, 1.0)) => format!(" − {}", policy.name()),
            Some((policy, share)) => format!(" − {share} · {}", policy.name()),
            None => String::new(),
        };
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::AtMost(bound) => format!("≤ {bound}"),
        };
        format!("{} {}{less} {bound}", self.measure_name, self.of.name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::super::arms::ARMS;
    use super::super::results::Row;
    use super::*;

    #[test]
    fn the_registered_table_names_known_arms_and_numbers_its_rows() {
        let predictions = registered().unwrap();
        for (index, it) in predictions.iter().enumerate() {
            assert_eq!(it.name, format!("P{}", index + 1));
            for policy in std::iter::once(&it.of).chain(it.less.as_ref().map(|it| &it.0)) {
                assert!(ARMS.iter().any(|arm| arm.name == policy.arm), "{}", it.name);
            }
        }
        assert_eq!(predictions.len(), 16);
    }

    #[test]
    fn a_row_that_says_nothing_definite_is_refused() {
        let row = "[[prediction]]\nname = \"P\"\nsays = \"\"\nsource = \"\"\nmeasure = \"brier\"\nof = \"B/sft\"\n";
        assert!(parse(&format!("{row}at-most = 1.0\n")).is_ok());
        let refused = |text: String| parse(&text).err().unwrap().to_string();
        assert!(refused(row.into()).contains("P: at-least: expected one of"));
        assert!(refused(format!("{row}at-most = 1\nat-least = 0\n")).contains("found `both`"));
        assert!(refused(format!("{row}at-most = 1\n").replace("B/sft", "B/soon")).contains("P: of: "));
        assert!(refused(format!("{row}at-most = 1\n").replace("brier", "luck")).contains("P: measure: "));
        assert!(refused(format!("{row}at-most = 1\nmore = 2\n")).contains("more"));
    }

    fn cell(arm: &str, seed: u64, successes: usize) -> Cell {
        let row = |index| Row(u8::from(index < successes), None, String::new(), String::new(), 1, 1, 9, 0);
        let rows: Vec<Row> = (0..60).map(row).collect();
        let played = Played {
            after: After::Sft,
            environment: "countdown".into(),
            horizon: 2,
            difficulties: vec!["easy".into()],
            instances: "same".into(),
            n: rows.len(),
            rows,
        };
        Cell::new(arm, seed, Vec::new(), vec![played])
    }

    #[test]
    fn verdicts_follow_from_the_interval() {
        let prediction = |bound: &str| {
            let row = format!(
                "[[prediction]]\nname = \"P\"\nsays = \"\"\nsource = \"\"\nmeasure = \"success\"\n\
                 of = \"B/sft\"\nless = \"A/sft\"\n{bound}\n"
            );
            parse(&row).unwrap().remove(0)
        };
        let cells: Vec<Cell> =
            (1..=3).flat_map(|seed| [cell("A", seed, 40), cell("B", seed, 20)]).chain([cell("B", 9, 60)]).collect();
        // 20 of 60 points lost, on the three seeds that both have.
        let verdict = |bound: &str| {
            let judged = prediction(bound).judge(&cells, "countdown");
            assert_eq!(judged.seeds, 3);
            judged.verdict
        };
        assert_eq!(verdict("at-most = 0.0"), Verdict::Confirmed);
        assert_eq!(verdict("at-least = 0.0"), Verdict::Refuted);
        assert_eq!(verdict("at-least = -0.33"), Verdict::Undecided);
        assert_eq!(prediction("at-most = 0.0").judge(&cells, "dochop").verdict, Verdict::NotRun);
        assert_eq!(prediction("at-most = 0.0").judge(&cells[..1], "countdown").verdict, Verdict::NotRun);
        assert_eq!(prediction("at-most = 0.0").claim(), "success B/sft − A/sft ≤ 0");
    }
}
