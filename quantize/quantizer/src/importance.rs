//! What a policy's inputs say about its weights: the mean square of each input column; knows no format.

use std::collections::BTreeMap;
use std::path::Path;

use fsq_blocks::Format;
use fsq_gguf::{Draft, FinishedDraft, Gguf, Metadata, TensorSpec};

use crate::digest::Parts;
use crate::{Allocation, QuantizeError};

/// The mean square of each matrix's inputs, observed over some tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// Mean squares by the matrix's name in a GGUF file, such as `blk.0.attn_q.weight`; one for each column.
    pub columns: BTreeMap<String, Vec<f32>>,
    /// Tokens they were observed over.
    pub n_tokens: u32,
}

const SUM_SUFFIX: &str = ".in_sum2";
const COUNT_SUFFIX: &str = ".counts";

impl Importance {
    /// SHA-256 over all of it.
    pub fn sha256(&self) -> [u8; 32] {
        let mut parts = Parts::new();
        parts.add(&self.n_tokens.to_le_bytes());
        for (name, columns) in &self.columns {
            parts.add(name.as_bytes());
            parts.add_floats(columns);
        }
        parts.finish()
    }

    /// Checks what there is of one tensor.
    pub(crate) fn of(&self, allocation: &Allocation) -> Result<Option<&[f32]>, QuantizeError> {
        let tensor = &allocation.tensor;
        let Some(columns) = self.columns.get(&tensor.gguf) else { return Ok(None) };
        let expected = tensor.shape.last().copied().unwrap_or(0);
        if columns.len() != expected {
            let (tensor, found) = (tensor.gguf.clone(), columns.len());
            return Err(QuantizeError::ImportanceColumns { tensor, expected, found });
        }
        match columns.iter().position(|it| !it.is_finite() || *it < 0.0) {
            None => Ok(Some(columns)),
            Some(column) => {
                let found = columns[column];
                Err(QuantizeError::ImportanceValue { tensor: tensor.gguf.clone(), found, column })
            }
        }
    }

    /// Writes it as llama.cpp's `imatrix` files are: for each matrix the sums of squares and the number of tokens.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[expect(clippy::cast_precision_loss, reason = "the file holds the count as a float")]
    pub fn write(&self, path: &Path, datasets: &[String]) -> Result<FinishedDraft, QuantizeError> {
        let mut metadata = Metadata::new();
        metadata.insert("general.type", "imatrix");
        metadata.insert("imatrix.datasets", datasets.to_vec());
        metadata.insert("imatrix.chunk_count", 1u32);
        metadata.insert("imatrix.chunk_size", self.n_tokens);
        let spec = |name: &str, suffix: &str, n: usize| TensorSpec {
            name: format!("{name}{suffix}"),
            format: Format::F32,
            shape: vec![n, 1],
        };
        let pairs = self.columns.iter();
        let specs: Vec<_> =
            pairs.flat_map(|(name, it)| [spec(name, SUM_SUFFIX, it.len()), spec(name, COUNT_SUFFIX, 1)]).collect();
        let mut draft = Draft::create(path, &metadata, &specs)?;
        let count = self.n_tokens as f32;
        for (name, columns) in &self.columns {
            let sums: Vec<u8> = columns.iter().flat_map(|it| (it * count).to_le_bytes()).collect();
            draft.write(&format!("{name}{SUM_SUFFIX}"), &sums)?;
            draft.write(&format!("{name}{COUNT_SUFFIX}"), &count.to_le_bytes())?;
        }
        Ok(draft.finish()?)
    }

    /// Reads an `imatrix` file, ours or llama.cpp's. A matrix that saw no token is left out.
    ///
    /// # Errors
    /// When the file is damaged or holds something else.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of tokens, as the file holds it"
    )]
    pub fn open(path: &Path) -> Result<Self, QuantizeError> {
        let gguf = Gguf::open(path)?;
        let fault = |found: String| QuantizeError::ImportanceFile { path: path.into(), found };
        match gguf.metadata().str("general.type") {
            Some("imatrix") => {}
            found => return Err(fault(format!("`general.type` of {}", found.unwrap_or("nothing")))),
        }
        let mut importance = Self::default();
        for view in gguf.views() {
            let Some(name) = view.name.strip_suffix(SUM_SUFFIX) else { continue };
            let counts = gguf
                .tensor(&format!("{name}{COUNT_SUFFIX}"))
                .ok_or_else(|| fault(format!("no counts of `{name}`")))?
                .to_f32();
            let &[count] = &counts[..] else {
                return Err(fault(format!("{} counts of `{name}`", counts.len())));
            };
            if count > 0.0 {
                importance.columns.insert(name.into(), view.to_f32().iter().map(|it| it / count).collect());
                importance.n_tokens = importance.n_tokens.max(count as u32);
            }
        }
        Ok(importance)
    }
}
