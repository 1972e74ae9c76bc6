//! What a policy's inputs say about its weights: the mean square of each input column; knows no format of blocks.

mod imatrix;

use std::collections::BTreeMap;

use crate::QuantizeError;
use crate::codes::Inputs;
use crate::digest::Parts;
use crate::moments::MomentsByTensor;

/// The squares of what each matrix reads, observed over some tokens, by the tensor's name in a GGUF file, such as
/// `blk.0.attn_q.weight`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// By tensor.
    pub tensors: BTreeMap<String, InputSquares>,
    /// The mean products of columns, where they were observed: what error feedback needs.
    pub moments: MomentsByTensor,
    /// The same over tokens that the others have not seen: what decides whether error feedback was worth it.
    pub held_out: MomentsByTensor,
    /// How much it matters, where that was measured, what share of a tensor's outputs is off.
    pub weights: BTreeMap<String, f64>,
}

/// The squares of what the matrices of one tensor read: one matrix, or one for each expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSquares {
    /// Sums of squares by column, `[matrices, columns]`.
    pub sums: Vec<f32>,
    /// Rows summed over, or their weights, `[matrices]`; zero for an expert that no token was sent to.
    pub counts: Vec<f32>,
}

impl InputSquares {
    /// The columns of a matrix.
    fn n_columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }
}

impl Importance {
    /// SHA-256 over all of it.
    pub fn sha256(&self) -> [u8; 32] {
        let mut parts = Parts::new();
        for (name, squares) in &self.tensors {
            parts.add(name.as_bytes());
            parts.add_floats(&squares.sums);
            parts.add_floats(&squares.counts);
        }
        for (name, moments) in self.moments.iter().chain(&self.held_out) {
            parts.add(name.as_bytes());
            parts.add_floats(moments.products());
        }
        for (name, weight) in &self.weights {
            parts.add(name.as_bytes());
            parts.add(&weight.to_le_bytes());
        }
        parts.finish()
    }

    /// The most rows that a matrix was observed over: the tokens, where no rows were left out or weighted.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, saturated")]
    pub fn n_tokens(&self) -> u32 {
        self.tensors.values().flat_map(|it| &it.counts).fold(0.0f32, |most, it| most.max(*it)) as u32
    }

    /// What is known of the inputs of a matrix, the `expert`-th of the `n` that its tensor holds. There are no moments
    /// of experts.
    ///
    /// # Errors
    /// When it does not fit the tensor.
    pub(crate) fn inputs(
        &self,
        (tensor, columns): (&str, usize),
        place: (usize, usize),
    ) -> Result<Inputs<'_>, QuantizeError> {
        let of = |all: &'_ MomentsByTensor| -> Result<(), QuantizeError> {
            match all.get(tensor) {
                Some(moments) if moments.columns() != columns => Err(QuantizeError::ImportanceColumns {
                    tensor: tensor.into(),
                    expected: columns,
                    found: moments.columns(),
                }),
                _ => Ok(()),
            }
        };
        of(&self.moments)?;
        of(&self.held_out)?;
        let alone = place.1 == 1;
        Ok(Inputs {
            squares: self.of((tensor, columns), place)?,
            moments: self.moments.get(tensor).filter(|_| alone),
            held_out: self.held_out.get(tensor).filter(|_| alone),
        })
    }

    /// The mean squares of the inputs of a tensor with one matrix (`[columns]`), by its name in a file.
    pub fn means(&self, tensor: &str) -> Option<Vec<f32>> {
        let InputSquares { sums, counts } = self.tensors.get(tensor)?;
        let [count] = counts[..] else { return None };
        (count > 0.0).then(|| sums.iter().map(|it| it / count).collect())
    }

    /// The mean squares of a matrix's inputs (`[columns]`), the `expert`-th of the `n` that its tensor holds; `None`
    /// where it was not observed. What was observed of a tensor as one matrix is true of each of several.
    ///
    /// # Errors
    /// When the tensor has another number of columns, or one of the numbers is negative or not finite.
    fn of(
        &self,
        (tensor, expected): (&str, usize),
        (expert, n): (usize, usize),
    ) -> Result<Option<Vec<f32>>, QuantizeError> {
        let Some(squares) = self.tensors.get(tensor) else { return Ok(None) };
        let matrix = if squares.counts.len() == n { expert } else { 0 };
        let fits = [1, n].contains(&squares.counts.len()) && squares.sums.len() == expected * squares.counts.len();
        if !fits {
            let found = squares.n_columns();
            return Err(QuantizeError::ImportanceColumns { tensor: tensor.into(), expected, found });
        }
        let count = squares.counts[matrix];
        if count <= 0.0 {
            return Ok(None);
        }
        let means: Vec<f32> = squares.sums[matrix * expected..][..expected].iter().map(|it| it / count).collect();
        match means.iter().position(|it| !it.is_finite() || *it < 0.0) {
            None => Ok(Some(means)),
            Some(column) => {
                let found = means[column];
                Err(QuantizeError::ImportanceValue { tensor: tensor.into(), found, column })
            }
        }
    }
}
