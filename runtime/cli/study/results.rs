//! Raw results: a file of JSON lines for each cell, one short row an episode. Knows nothing of how they came about.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::failure::Refusal;
use crate::output;

/// When a policy was played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum After {
    /// After fine-tuning; after mid-training in an arm that has none.
    Sft,
    /// After reinforcement.
    Rl,
    /// The same, made to go on from the imagined future of another instance.
    Shuffled,
}

impl After {
    pub(super) const ALL: [Self; 3] = [Self::Sft, Self::Rl, Self::Shuffled];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Rl => "rl",
            Self::Shuffled => "shuffled",
        }
    }
}

/// What an episode showed: success, what was stated at first, first rollout by horizon (`1` came true, `0` did not,
/// `-` nothing to compare), the same for another instance's rollout, turns, turns that parse, tokens written, and
/// the place of its difficulty in the list of its environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row(
    pub(super) u8,
    pub(super) Option<f64>,
    pub(super) String,
    pub(super) String,
    pub(super) u32,
    pub(super) u32,
    pub(super) u32,
    pub(super) u8,
);

/// Names of a row's values, in order.
const COLUMNS: [&str; 8] =
    ["success", "stated", "fidelity", "fidelity_shuffled", "turns", "turns_parsed", "tokens", "difficulty"];

impl Row {
    pub(super) fn success(&self) -> bool {
        self.0 == 1
    }

    pub(super) fn stated(&self) -> Option<f64> {
        self.1
    }

    pub(super) fn fidelity(&self) -> impl Iterator<Item = Option<bool>> {
        marks(&self.2)
    }

    pub(super) fn fidelity_shuffled(&self) -> impl Iterator<Item = Option<bool>> {
        marks(&self.3)
    }

    pub(super) fn turns(&self) -> u32 {
        self.4
    }

    pub(super) fn turns_parsed(&self) -> u32 {
        self.5
    }

    pub(super) fn tokens(&self) -> u32 {
        self.6
    }

    pub(super) fn difficulty(&self) -> usize {
        usize::from(self.7)
    }
}

fn marks(text: &str) -> impl Iterator<Item = Option<bool>> {
    text.bytes().map(|it| match it {
        b'1' => Some(true),
        b'0' => Some(false),
        _ => None,
    })
}

/// Truths as a row holds them.
pub(super) fn marked(truths: &[Option<bool>]) -> String {
    truths.iter().map(|it| it.map_or('-', |it| if it { '1' } else { '0' })).collect()
}

/// The episodes of one policy in one environment; row `i` is of the same instance in every cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Played {
    pub(super) after: After,
    pub(super) environment: String,
    pub(super) horizon: usize,
    /// From the easiest on.
    pub(super) difficulties: Vec<String>,
    /// Of the instances' numbers: cells are only compared on the same ones.
    pub(super) instances: String,
    /// How many rows follow.
    pub(super) n: usize,
    #[serde(skip)]
    pub(super) rows: Vec<Row>,
}

/// A stage behind a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StageRecord {
    pub(super) stage: String,
    pub(super) digest: String,
    pub(super) steps: usize,
    /// Tokens read, where the stage reads text.
    pub(super) tokens: Option<usize>,
    /// Tokens of the fixed set that it read again and again.
    pub(super) set_tokens: Option<usize>,
    /// Steps at which an alarm sounded.
    pub(super) alarms: Option<usize>,
}

/// One arm with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cell {
    pub(super) study: String,
    pub(super) arm: String,
    pub(super) seed: u64,
    pub(super) columns: Vec<String>,
    pub(super) stages: Vec<StageRecord>,
    #[serde(skip)]
    pub(super) played: Vec<Played>,
}

impl Cell {
    pub(super) fn new(arm: &str, seed: u64, stages: Vec<StageRecord>, played: Vec<Played>) -> Self {
        let columns = COLUMNS.map(String::from).to_vec();
        Self { study: "gap".into(), arm: arm.into(), seed, columns, stages, played }
    }

    /// Where a cell's results lie.
    pub(super) fn path(results: &Path, arm: &str, seed: u64) -> PathBuf {
        results.join("cells").join(format!("{arm}-{seed}.jsonl"))
    }

    /// Writes the cell's file, whole.
    pub(super) fn write(&self, results: &Path) -> anyhow::Result<()> {
        output::make_folder(&results.join("cells"))?;
        let mut text = serde_json::to_string(self)? + "\n";
        for played in &self.played {
            text += &played.text()?;
        }
        output::write_whole(&Self::path(results, &self.arm, self.seed), text.as_bytes())
    }

    /// Reads a cell's file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
        let refuse = |line: usize, what: String| Refusal::new(format!("{shown}:{line}: {what}"));
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let mut cell: Self = serde_json::from_str(first).map_err(|it| refuse(1, it.to_string()))?;
        if cell.columns != COLUMNS {
            return Err(refuse(1, format!("columns: expected {COLUMNS:?}, found {:?}", cell.columns)).into());
        }
        cell.played = Played::parse_all(rest).map_err(|(line, what)| refuse(line + 1, what))?;
        Ok(cell)
    }
}

impl Played {
    /// The header and a line for each row.
    pub(super) fn text(&self) -> anyhow::Result<String> {
        let mut text = serde_json::to_string(self)? + "\n";
        for row in &self.rows {
            text += &(serde_json::to_string(row)? + "\n");
        }
        Ok(text)
    }

    /// Reads what [`Played::text`] wrote, any number of times; a fault comes with its line, from 1.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, (usize, String)> {
        let mut lines = text.lines().zip(1..);
        let mut all = Vec::new();
        while let Some((header, at)) = lines.next() {
            let mut played: Self = serde_json::from_str(header).map_err(|it| (at, it.to_string()))?;
            for (row, at) in lines.by_ref().take(played.n) {
                played.rows.push(serde_json::from_str(row).map_err(|it| (at, it.to_string()))?);
            }
            if played.rows.len() != played.n {
                return Err((at, format!("expected {} rows, found {}", played.n, played.rows.len())));
            }
            all.push(played);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    fn cell() -> Cell {
        let rows = vec![
            Row(1, Some(0.613), "1-".into(), "00".into(), 2, 2, 118, 1),
            Row(0, None, String::new(), String::new(), 1, 0, 96, 0),
        ];
        let played = Played {
            after: After::Rl,
            environment: "countdown".into(),
            horizon: 2,
            difficulties: vec!["several ways".into(), "one way".into()],
            instances: "abc".into(),
            n: rows.len(),
            rows,
        };
        Cell::new("E", 3, Vec::new(), vec![played.clone(), Played { after: After::Shuffled, ..played }])
    }

    #[test]
    fn a_cell_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let cell = cell();
        cell.write(folder.path()).unwrap();
        let path = Cell::path(folder.path(), "E", 3);
        assert_eq!(Cell::read(&path).unwrap(), cell);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\n[1,0.613,\"1-\",\"00\",2,2,118,1]\n"), "{text}");
        let truths: Vec<_> = cell.played[0].rows[0].fidelity().collect();
        assert_eq!((marked(&truths), truths), ("1-".into(), vec![Some(true), None]));
    }

    #[test]
    fn a_damaged_cell_is_named_by_line() {
        let folder = tempfile::tempdir().unwrap();
        cell().write(folder.path()).unwrap();
        let path = Cell::path(folder.path(), "E", 3);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[1,0.613", "[1,x")).unwrap();
        let refused = Cell::read(&path).unwrap_err().to_string();
        assert!(refused.contains("E-3.jsonl:3: "), "{refused}");
        std::fs::write(&path, text.lines().take(3).map(|it| format!("{it}\n")).collect::<String>()).unwrap();
        let refused = Cell::read(&path).unwrap_err().to_string();
        assert!(refused.contains(":2: expected 2 rows, found 1"), "{refused}");
    }
}
