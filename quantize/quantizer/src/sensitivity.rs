//! What each tensor loses in each format, and the plan that loses least within a budget; never runs a policy.
//!
//! The loss of a tensor is the share of its outputs' mean square that rounding puts off: Σ over rows of
//! `(w - q)ᵀ H (w - q)`, by that of `wᵀ H w`, on held-out inputs where there are some. How much such a share matters
//! differs from tensor to tensor; who can run the policy measures it and multiplies, see [`Sensitivities::weigh`]. For
//! small losses the sum over tensors is what the whole file loses.

use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Checkpoint};
use serde::Serialize;

use crate::budget::{Choice, choose};
use crate::codes::{Encoder, output_energy};
use crate::encode::{file_bytes, matrix_places, stored};
use crate::merge::check_adapters;
use crate::{Codes, Importance, Mix, Plan, Provenance, QuantizeError};

/// What a matrix may get, where its rows are whole super-blocks.
const FORMATS: &[Format] =
    &[Format::Q3_K, Format::IQ4_XS, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::Q8_0, Format::F16];
/// What it may get otherwise.
const FORMATS_OF_32: &[Format] = &[Format::Q4_0, Format::IQ4_NL, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::F16];
/// Weights of a matrix that are looked at: some of its rows, evenly spread.
const WEIGHTS_SEEN_MAX: usize = 1 << 18;

/// What one tensor loses in each of the formats that it may get.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Its name in the file.
    pub tensor: String,
    /// Its weights.
    pub n_weights: usize,
    /// How much a share of its outputs' mean square counts.
    pub weight: f64,
    /// By format, from few bits to many.
    pub losses: Vec<Loss>,
}

/// What a tensor loses in one format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// The format.
    #[serde(serialize_with = "by_name")]
    pub format: Format,
    /// Bytes of the tensor.
    pub n_bytes: u64,
    /// The mean square of what its outputs are off by, in parts of their mean square.
    pub error: f64,
}

fn by_name<S: serde::Serializer>(format: &Format, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(format.name())
}

/// What all matrices of a policy lose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivities {
    /// In the order of the file.
    pub tensors: Vec<Sensitivity>,
}

impl Sensitivities {
    /// Encodes some rows of every matrix in every format that it may get.
    ///
    /// `progress` is called with the number of tensors done and of all.
    ///
    /// # Errors
    /// When an adapter or the importance does not fit the checkpoint, or a weight is not finite.
    pub fn measure(
        checkpoint: &Checkpoint,
        adapters: &[Adapter],
        importance: Option<&Importance>,
        codes: Codes,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, QuantizeError> {
        check_adapters(&checkpoint.dimensions, adapters)?;
        let allocations = Plan::new(Mix::Q4_K_M).allocate(&checkpoint.dimensions, importance.is_some())?;
        // Where some tensors were measured, the others count as these do in the mean.
        let weights: Vec<f64> = importance.iter().flat_map(|it| it.weights.values().copied()).collect();
        let typical = if weights.is_empty() { 1.0 } else { weights.iter().sum::<f64>() / weights.len() as f64 };
        let mut tensors: Vec<Sensitivity> = Vec::new();
        let n = allocations.len();
        for (index, (allocation, place)) in allocations.iter().zip(matrix_places(&allocations)).enumerate() {
            progress(index, n);
            let tensor = &allocation.tensor;
            let [_, columns] = tensor.shape[..] else { continue };
            // Experts of one tensor get one format: what the first loses stands for all.
            if let Some(last) = tensors.last_mut().filter(|it| it.tensor == tensor.gguf) {
                let n = place.0 as u64;
                last.n_weights += last.n_weights / place.0;
                last.losses.iter_mut().for_each(|it| it.n_bytes += it.n_bytes / n);
                continue;
            }
            if tensor.precise {
                continue;
            }
            let weights = stored(checkpoint, adapters, tensor, &(0..tensor.shape[0]))?;
            let rows = some_rows(&weights, columns);
            let inputs =
                importance.map(|it| it.inputs((&tensor.gguf, columns), place)).transpose()?.unwrap_or_default();
            let energy = output_energy(columns, &inputs, &rows);
            let formats = if columns.is_multiple_of(256) { FORMATS } else { FORMATS_OF_32 };
            let encoder = Encoder::new(Format::F32, columns, codes, &inputs);
            let loss = |format: &Format| {
                let row_bytes = format.row_bytes(columns)?;
                let encoder = encoder.with_format(*format);
                let error = encoder.output_error(&rows, &encoder.encode(&rows).0);
                let n_bytes = (row_bytes * (weights.len() / columns)) as u64;
                Some(Loss { format: *format, n_bytes, error: if energy > 0.0 { error / energy } else { 0.0 } })
            };
            let losses = formats.iter().filter_map(loss).collect();
            let weight = importance.and_then(|it| it.weights.get(&tensor.gguf)).copied().unwrap_or(typical);
            tensors.push(Sensitivity { tensor: tensor.gguf.clone(), n_weights: weights.len(), weight, losses });
        }
        progress(n, n);
        Ok(Self { tensors })
    }

    /// Says how much a share of a tensor's outputs counts: what a policy loses with that tensor alone in some format,
    /// by the tensor's own loss in it. Tensors that were not measured keep what they have.
    pub fn weigh(&mut self, tensor: &str, weight: f64) {
        self.tensors.iter_mut().filter(|it| it.tensor == tensor).for_each(|it| it.weight = weight);
    }

    /// The plan that loses least in a file of at most `budget_bytes`, header and all: `plan` with an override for each
    /// matrix. Overrides that it has stay as they are.
    ///
    /// # Errors
    /// When the smallest formats are too large, or as [`Plan::allocate`].
    pub fn fit(
        &self,
        checkpoint: &Checkpoint,
        plan: &Plan,
        weighted: bool,
        provenance: &Provenance,
        budget_bytes: u64,
    ) -> Result<Plan, QuantizeError> {
        let fixed: Vec<_> =
            plan.allocate(&checkpoint.dimensions, weighted)?.into_iter().map(|it| it.tensor.gguf).collect();
        let is_free = |it: &&Sensitivity| fixed.contains(&it.tensor) && !plan.overrides_tensor(&it.tensor);
        let free: Vec<&Sensitivity> = self.tensors.iter().filter(is_free).collect();
        let smallest = |it: &&Sensitivity| Some((it.tensor.clone(), it.losses.first()?.format));
        let with = |overrides: Vec<(String, Format)>| Plan {
            overrides: plan.overrides.iter().cloned().chain(overrides).collect(),
            ..plan.clone()
        };
        // The file with the smallest formats; what formats add to it is what they add to their tensors, aligned.
        let least = with(free.iter().filter_map(smallest).collect());
        let least_bytes = file_bytes(checkpoint, &least, weighted, provenance)?;
        let items: Vec<Vec<Choice>> = free.iter().map(|it| choices(it)).collect();
        let of_smallest: u64 = items.iter().filter_map(|it| it.first()).map(|it| it.n_bytes).sum();
        let room = budget_bytes.saturating_add(of_smallest).checked_sub(least_bytes);
        let chosen = room.and_then(|it| choose(&items, it));
        let chosen = chosen.ok_or(QuantizeError::Budget { expected: least_bytes, found: budget_bytes })?;
        let overrides = free.iter().zip(chosen).map(|(it, choice)| (it.tensor.clone(), it.losses[choice].format));
        let plan = with(overrides.collect());
        let mix = most_like(&plan.allocate(&checkpoint.dimensions, weighted)?);
        Ok(Plan { mix: mix.unwrap_or(plan.mix), ..plan })
    }
}

/// The mix whose main format has most weights: what the file is called.
fn most_like(allocations: &[crate::Allocation]) -> Option<Mix> {
    let weights = |mix: &Mix| -> usize {
        let same = allocations.iter().filter(|it| it.format == mix.format());
        same.map(|it| it.tensor.shape.iter().product::<usize>()).sum()
    };
    // Of mixes of one format the medium one is the usual name.
    let preferred = [Mix::Q3_K_M, Mix::IQ4_XS, Mix::IQ4_NL, Mix::Q4_0, Mix::Q4_K_M, Mix::Q5_0, Mix::Q5_1, Mix::Q5_K_M];
    preferred.into_iter().chain([Mix::Q6_K, Mix::Q8_0, Mix::F16]).max_by_key(weights)
}

/// A tensor's formats with their bytes, aligned as a file has them, and what they lose.
fn choices(it: &Sensitivity) -> Vec<Choice> {
    let choice = |loss: &Loss| Choice {
        n_bytes: loss.n_bytes.next_multiple_of(fsq_gguf::ALIGNMENT_DEFAULT.into()),
        cost: it.weight * loss.error,
    };
    it.losses.iter().map(choice).collect()
}

/// Rows of a matrix, evenly spread, as many as are looked at.
fn some_rows(weights: &[f32], columns: usize) -> Vec<f32> {
    let rows = weights.len() / columns;
    let seen = (WEIGHTS_SEEN_MAX / columns).clamp(1, rows.max(1));
    (0..seen).flat_map(|it| weights[it * rows / seen * columns..][..columns].iter().copied()).collect()
}
