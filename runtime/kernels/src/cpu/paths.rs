//! Which instructions multiply which matrix: tried when the first of a shape is loaded. Knows no policy.
//!
//! Every set of instructions with vectors gives the same bits, so that a trial decides nothing but how soon they are
//! there. The widest is not always the fastest: some machines slow down for wide registers, and a product that waits
//! for memory gains nothing from them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fsq_blocks::Format;

use super::isa::Choice;
use super::matmul::Shape;
use super::matrix::CpuMatrix;
use super::pool::Pool;

/// Weights of a matrix below which a trial says more about the clock than about the instructions.
const TRIED_MIN: usize = 1 << 19;
/// Weights that a trial multiplies: some hundred microseconds for a set, some tens of milliseconds for a policy.
const TRIAL_WEIGHTS: usize = 1 << 20;
/// Rows of activations that stand for many: several of every block of rows that kernels have.
const TOGETHER: usize = 36;
/// Attempts for each set, in turns; the fastest counts, since whatever disturbs only slows down.
const ATTEMPTS: usize = 5;
/// What part of the widest set's time another may take at most to be preferred: less is noise.
const PREFERRED: f64 = 0.95;

/// Instructions for a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    /// For a row of activations alone, as in decode.
    alone: Choice,
    /// For several at once, as in prefill and in batches.
    together: Choice,
}

impl Paths {
    /// The same instructions whatever there is to do.
    pub(crate) fn only(choice: Choice) -> Self {
        Self { alone: choice, together: choice }
    }

    /// For so many rows of activations.
    pub(crate) fn of(self, tokens: usize) -> Choice {
        if tokens == 1 { self.alone } else { self.together }
    }
}

/// What trials found.
#[derive(Debug)]
pub(crate) struct Trials {
    /// The widest last. One alone is never tried.
    candidates: Vec<Choice>,
    /// By format, rows and columns: the layers of a policy share their shapes.
    found: Mutex<HashMap<(Format, usize, usize), Paths>>,
}

impl Trials {
    pub(crate) fn new(candidates: Vec<Choice>) -> Self {
        Self { candidates, found: Mutex::default() }
    }

    /// Gives a matrix the fastest instructions for its shape.
    pub(crate) fn settle(&self, pool: &Pool, format: Format, matrix: &mut CpuMatrix) {
        if self.candidates.len() < 2 || matrix.rows() * matrix.cols() < TRIED_MIN {
            return;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (format, matrix.rows(), matrix.cols());
        matrix.paths = *found.entry(key).or_insert_with(|| Paths {
            alone: self.fastest(pool, matrix, 1),
            together: self.fastest(pool, matrix, TOGETHER),
        });
    }

    fn fastest(&self, pool: &Pool, matrix: &CpuMatrix, tokens: usize) -> Choice {
        let rows = (TRIAL_WEIGHTS / matrix.cols()).clamp(1, matrix.rows());
        let shape = Shape { tokens, rows, columns: matrix.cols(), adds: false };
        let mut best = vec![Duration::MAX; self.candidates.len()];
        let mut trial = matrix.trial(pool, shape);
        for _ in 0..ATTEMPTS {
            for (best, choice) in best.iter_mut().zip(&self.candidates) {
                *best = trial(*choice).min(*best);
            }
        }
        preferred(&self.candidates, &best)
    }

    /// Whose instructions are used for anything, each once, in the order of the candidates.
    pub(crate) fn used(&self) -> Vec<Choice> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let is_used = |it: &Choice| found.values().any(|paths| paths.alone == *it || paths.together == *it);
        self.candidates.iter().copied().filter(is_used).collect()
    }
}

/// The fastest, where it is so by more than noise; else the last.
fn preferred(candidates: &[Choice], times: &[Duration]) -> Choice {
    let last = candidates.len() - 1;
    let fastest = (0..=last).min_by_key(|it| times[*it]).unwrap_or(last);
    let is_clear = times[fastest].as_secs_f64() <= times[last].as_secs_f64() * PREFERRED;
    candidates[if is_clear { fastest } else { last }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::{Backend, WeightView};

    fn load(trials: &Trials, rows: usize) -> CpuMatrix {
        let pool = Pool::new(2);
        let bytes = vec![1; rows * Format::Q8_0.row_bytes(1024).unwrap()];
        let weight = WeightView { name: "w", format: Format::Q8_0, rows, cols: 1024, bytes: &bytes };
        let mut matrix = CpuMatrix::load(&pool, weight, *trials.candidates.last().unwrap()).unwrap();
        trials.settle(&pool, Format::Q8_0, &mut matrix);
        matrix
    }

    #[test]
    fn plain_code_loses_to_vectors_wherever_it_stands() {
        let available = Choice::available();
        let (plain, widest) = (available[0], *available.last().unwrap());
        if plain == widest {
            return;
        }
        let trials = Trials::new(vec![widest, plain]);
        assert_eq!(load(&trials, 1024).paths, Paths::only(widest));
        assert_eq!(trials.used(), [widest]);
    }

    #[test]
    fn a_shape_is_tried_once_and_a_small_one_never() {
        let available = Choice::available();
        let trials = Trials::new(available.clone());
        let widest = *available.last().unwrap();
        assert_eq!(load(&trials, 64).paths, Paths::only(widest));
        assert!(trials.found.lock().unwrap().is_empty());
        if available.len() > 1 {
            // What an earlier trial is made to say is what a matrix of the shape gets.
            let earlier = Paths { alone: available[0], together: widest };
            trials.found.lock().unwrap().insert((Format::Q8_0, 1024, 1024), earlier);
            let matrix = load(&trials, 1024);
            assert_eq!(matrix.paths, earlier);
            assert_eq!((matrix.paths.of(1), matrix.paths.of(2)), (available[0], widest));
        }
    }

    #[test]
    fn a_backend_runs_trials_and_names_what_they_found() {
        let cpu = Cpu::new(2);
        let bytes = vec![1; 1024 * Format::Q8_0.row_bytes(1024).unwrap()];
        cpu.load(WeightView { name: "w", format: Format::Q8_0, rows: 1024, cols: 1024, bytes: &bytes }).unwrap();
        let candidates = Choice::candidates();
        assert_eq!(cpu.trials.used().is_empty(), candidates.len() < 2);
        if let [first, .., widest] = candidates[..] {
            let other = Paths { alone: widest, together: first };
            cpu.trials.found.lock().unwrap().insert((Format::Q4_K, 1024, 1024), other);
            assert_eq!(cpu.choice, widest);
            assert!(cpu.path().starts_with(&format!("{}+{}", widest.name(), first.name())), "{}", cpu.path());
        }
    }

    #[test]
    fn another_set_is_preferred_only_when_it_is_clearly_faster() {
        let available = Choice::available();
        let pair = [available[0], *available.last().unwrap()];
        let times = |first, last| [Duration::from_micros(first), Duration::from_micros(last)];
        assert_eq!(preferred(&pair, &times(90, 100)), pair[0]);
        assert_eq!(preferred(&pair, &times(97, 100)), pair[1]);
        assert_eq!(preferred(&pair, &times(130, 100)), pair[1]);
    }
}
