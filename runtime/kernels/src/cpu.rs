//! The CPU backend: the widest instructions of the machine or plain Rust, chosen when it is made. Knows no policy.

mod activations;
mod attention;
mod elementwise;
mod isa;
mod matmul;
mod matrix;
mod memory;
mod paths;
mod pool;
mod probe;
mod tiles;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fsq_blocks::Format;

pub use attention::CpuCache;
pub use matrix::CpuMatrix;
pub use memory::CpuBuffer;

use crate::{Attending, Backend, CacheShape, KernelError, LowRank, RotaryHeads, Slot, Span, WeightView};
use activations::{Rounded32, Rounded256, RoundedRows};
use attention::{Attention, Store};
use elementwise::{Add, ExpShifted, Gelu, RmsNorm, Rope, Swiglu};
use isa::{Choice, dispatch};
use paths::Trials;
use pool::Pool;

/// Floats above which a pass over them is shared among the threads.
const SHARED_MIN: usize = 1 << 15;

/// The processor.
#[derive(Debug)]
pub struct Cpu {
    /// For everything but products, whose matrices have their own.
    choice: Choice,
    trials: Trials,
    pool: Pool,
    scratch: Mutex<Scratch>,
}

/// Memory that products need in passing, kept between calls.
#[derive(Debug, Default)]
struct Scratch {
    rounded_32: RoundedRows<Rounded32>,
    rounded_256: RoundedRows<Rounded256>,
    low_rank: Vec<f32>,
}

impl Cpu {
    /// A backend on so many threads, the calling one included, with the widest instructions of this machine or those
    /// that [`Cpu::asked_for`] names. Where there are several and none is named, trials tell which of them multiplies
    /// the matrices of a shape.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { trials: Trials::new(Choice::candidates()), ..Self::with_choice(threads, Choice::detect()) }
    }

    fn with_choice(threads: usize, choice: Choice) -> Self {
        let trials = Trials::new(vec![choice]);
        Self { choice, trials, pool: Pool::new(threads.max(1)), scratch: Mutex::default() }
    }

    /// The instructions that the environment variable `FSQ_CPU` asks for, if it does. Backends are made for these, or,
    /// where the machine lacks them, for the widest that it has: ask this first.
    ///
    /// # Errors
    /// [`KernelError::Path`] names what the machine has.
    pub fn asked_for() -> Result<Option<&'static str>, KernelError> {
        let wish = Choice::wish();
        let choice = Choice::asked_for(wish.as_deref())?;
        Ok(wish.map(|_| choice.name()))
    }

    /// The instructions in use, as `FSQ_CPU` names them: `avx512-vnni`, `avx2`, `scalar` and others; where trials
    /// preferred others for some of the matrices loaded so far, those too, with a `+` between.
    #[must_use]
    pub fn path(&self) -> String {
        let mut names = vec![self.choice.name()];
        names.extend(self.trials.used().into_iter().filter(|it| *it != self.choice).map(Choice::name));
        names.join("+")
    }

    /// Threads that share the work, the calling one included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // Scratch is written before it is read in every call: a panic leaves nothing behind that matters.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `work` with ranges of rows that together are all `n_rows`, on several threads when it is much.
    fn share(&self, n_rows: usize, width: usize, out: &mut [f32], work: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let out = &mut out[..n_rows * width];
        if out.len() < SHARED_MIN || self.pool.threads() == 1 {
            work(0..n_rows, out);
            return;
        }
        let rows_per_piece = n_rows.div_ceil(self.pool.threads() * 2);
        // A mutex for each piece: cheap beside thousands of floats, and nothing unsafe.
        let pieces: Vec<Mutex<&mut [f32]>> = out.chunks_mut(rows_per_piece * width).map(Mutex::new).collect();
        self.pool.run(pieces.len(), &|piece| {
            let mut out = pieces[piece].lock().unwrap_or_else(PoisonError::into_inner);
            let start = piece * rows_per_piece;
            work(start..start + out.len() / width, &mut out);
        });
    }
}

impl Backend for Cpu {
    type Buffer = CpuBuffer;
    type Matrix = CpuMatrix;
    type Cache = CpuCache;
    const NAME: &'static str = "cpu";

    fn reads(&self, format: Format) -> bool {
        CpuMatrix::reads(format)
    }

    fn buffer(&self, len: usize) -> Result<CpuBuffer, KernelError> {
        Ok(CpuBuffer::new(len))
    }

    fn load(&self, weight: WeightView<'_>) -> Result<CpuMatrix, KernelError> {
        let mut matrix = CpuMatrix::load(&self.pool, weight, self.choice)?;
        self.trials.settle(&self.pool, weight.format, &mut matrix);
        Ok(matrix)
    }

    fn write(&self, from: &[f32], into: &mut CpuBuffer) {
        into.values_mut()[..from.len()].copy_from_slice(from);
    }

    fn read(&self, from: &CpuBuffer, into: &mut [f32]) -> Result<(), KernelError> {
        into.copy_from_slice(&from.values()[..into.len()]);
        Ok(())
    }

    fn cache(&self, shape: CacheShape) -> Result<CpuCache, KernelError> {
        CpuCache::new(shape)
    }

    fn embed(&self, table: &CpuMatrix, tokens: &[u32], out: &mut CpuBuffer) {
        let rows = out.values_mut().chunks_exact_mut(table.cols());
        for (token, row) in tokens.iter().zip(rows) {
            table.decode_row(*token as usize, row);
        }
    }

    fn matmul(&self, w: &CpuMatrix, x: &CpuBuffer, n_tokens: usize, out: &mut CpuBuffer) {
        let x = &x.values()[..n_tokens * w.cols()];
        let out = &mut out.values_mut()[..n_tokens * w.rows()];
        CpuMatrix::multiply([w], (self.choice, &self.pool), &mut self.scratch(), x, [out], false);
    }

    fn matmuls<const N: usize>(
        &self,
        matrices: [&CpuMatrix; N],
        x: &CpuBuffer,
        n_tokens: usize,
        outs: [&mut CpuBuffer; N],
    ) {
        let x = &x.values()[..n_tokens * matrices[0].cols()];
        let mut rows = matrices.iter().map(|it| n_tokens * it.rows());
        let outs = outs.map(|it| &mut it.values_mut()[..rows.next().unwrap_or(0)]);
        CpuMatrix::multiply(matrices, (self.choice, &self.pool), &mut self.scratch(), x, outs, false);
    }

    fn add_low_rank(&self, update: &LowRank<CpuMatrix>, x: &CpuBuffer, tokens: Range<usize>, out: &mut CpuBuffer) {
        let (a, b) = (&update.a, &update.b);
        let x = &x.values()[tokens.start * a.cols()..tokens.end * a.cols()];
        let out = &mut out.values_mut()[tokens.start * b.rows()..tokens.end * b.rows()];
        let mut scratch = self.scratch();
        let mut middle = std::mem::take(&mut scratch.low_rank);
        middle.resize(tokens.len() * a.rows(), 0.0);
        CpuMatrix::multiply([a], (self.choice, &self.pool), &mut scratch, x, [&mut middle], false);
        middle.iter_mut().for_each(|it| *it *= update.scale);
        CpuMatrix::multiply([b], (self.choice, &self.pool), &mut scratch, &middle, [out], true);
        scratch.low_rank = middle;
    }

    fn rms_norm(&self, x: &CpuBuffer, weight: &CpuBuffer, epsilon: f32, n_rows: usize, out: &mut CpuBuffer) {
        let (x, weight) = (x.values(), weight.values());
        let width = weight.len();
        self.share(n_rows, width, out.values_mut(), |rows, out| {
            let x = &x[rows.start * width..rows.end * width];
            dispatch(self.choice, RmsNorm { x, weight, epsilon, out });
        });
    }

    fn rope(&self, x: &mut CpuBuffer, angles: &CpuBuffer, n_tokens: usize, heads: RotaryHeads) {
        let angles = angles.values();
        self.share(n_tokens, heads.n_heads * heads.head_dim, x.values_mut(), |tokens, x| {
            let angles = &angles[tokens.start * heads.rotary_dim..tokens.end * heads.rotary_dim];
            dispatch(self.choice, Rope { x, angles, heads });
        });
    }

    fn store(&self, cache: &mut CpuCache, layer: usize, keys: &CpuBuffer, values: &CpuBuffer, slots: &[Slot]) {
        dispatch(self.choice, Store { cache, layer, keys: keys.values(), values: values.values(), slots });
    }

    fn copy_page(&self, cache: &mut CpuCache, from: u32, to: u32) {
        cache.copy_page(from, to);
    }

    fn attend(
        &self,
        cache: &CpuCache,
        layer: usize,
        queries: &CpuBuffer,
        attending: Attending,
        spans: &[Span<'_>],
        out: &mut CpuBuffer,
    ) {
        let attention = Attention { cache, layer, queries: queries.values(), attending };
        attention.run((self.choice, &self.pool), spans, out.values_mut());
    }

    fn silu(&self, x: &mut CpuBuffer, n: usize) {
        let ones = vec![1.0; n];
        dispatch(self.choice, Swiglu { gate: &mut x.values_mut()[..n], up: &ones });
    }

    fn gelu(&self, x: &mut CpuBuffer, n: usize) {
        self.share(n, 1, x.values_mut(), |_, x| dispatch(self.choice, Gelu { x }));
    }

    fn cap(&self, x: &mut CpuBuffer, n: usize, cap: f32) {
        self.share(n, 1, x.values_mut(), |_, x| x.iter_mut().for_each(|it| *it = cap * (*it / cap).tanh()));
    }

    fn scale(&self, x: &mut CpuBuffer, n: usize, factor: f32) {
        self.share(n, 1, x.values_mut(), |_, x| x.iter_mut().for_each(|it| *it *= factor));
    }

    fn multiply(&self, x: &CpuBuffer, n: usize, into: &mut CpuBuffer) {
        for (into, x) in into.values_mut()[..n].iter_mut().zip(x.values()) {
            *into *= x;
        }
    }

    fn add(&self, x: &CpuBuffer, n: usize, into: &mut CpuBuffer) {
        let x = x.values();
        self.share(n, 1, into.values_mut(), |range, into| {
            dispatch(self.choice, Add { x: &x[range], into });
        });
    }

    fn add_bias(&self, bias: &CpuBuffer, n_rows: usize, into: &mut CpuBuffer) {
        let bias = bias.values();
        self.share(n_rows, bias.len(), into.values_mut(), |_, into| {
            for row in into.chunks_exact_mut(bias.len()) {
                dispatch(self.choice, Add { x: bias, into: row });
            }
        });
    }

    fn gather(&self, x: &CpuBuffer, rows: &[usize], width: usize, out: &mut CpuBuffer) {
        let (x, out) = (x.values(), out.values_mut().chunks_exact_mut(width));
        for (row, out) in rows.iter().zip(out) {
            out.copy_from_slice(&x[row * width..(row + 1) * width]);
        }
    }

    fn add_rows(&self, x: &CpuBuffer, rows: &[usize], weights: &[f32], width: usize, into: &mut CpuBuffer) {
        let into = into.values_mut();
        for ((x, row), weight) in x.values().chunks_exact(width).zip(rows).zip(weights) {
            for (into, x) in into[row * width..(row + 1) * width].iter_mut().zip(x) {
                *into += weight * x;
            }
        }
    }

    fn swiglu(&self, gate: &mut CpuBuffer, up: &CpuBuffer, n: usize) {
        let up = up.values();
        self.share(n, 1, gate.values_mut(), |range, gate| {
            dispatch(self.choice, Swiglu { gate, up: &up[range] });
        });
    }
}

/// Turns logits into `e^((logit - shift) · factor)` in place and returns their sum: what sampling needs, vectorized.
pub fn exp_shifted(x: &mut [f32], shift: f32, factor: f32) -> f32 {
    dispatch(Choice::detect(), ExpShifted { x, shift, factor })
}

#[cfg(test)]
mod conformance;
