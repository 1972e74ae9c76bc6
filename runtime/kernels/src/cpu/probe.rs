//! How fast this machine reads memory, the roofline of every decode step. Knows no weights.

use std::hint::black_box;
use std::time::Instant;

use super::Cpu;
use super::isa::{Isa, Kernel, Line, dispatch};
use super::memory::Zeroed;
use crate::KernelError;

/// Well above the caches that a share of a machine has, well below its memory.
const PROBE_BYTES: usize = 512 << 20;
/// What one thread reads at a time.
const PIECE_LINES: usize = 1 << 14;
/// Runs of memory that a thread reads side by side: one alone does not keep its memory controller busy.
const STREAMS: usize = 4;
/// Lines that are asked for ahead of their turn, in each stream.
const AHEAD: usize = 8;
/// Passes, of which the fastest counts: whatever disturbs only slows down.
const PASSES: usize = 6;

impl Cpu {
    /// Bytes per second that all threads together read from memory at best, measured on the spot.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when there is no room for a buffer that no cache holds.
    pub fn read_bytes_per_s(&self) -> Result<f64, KernelError> {
        let mut memory = Zeroed::new(PROBE_BYTES)?;
        // Untouched pages are all one page of zeroes, which would be read from the cache.
        memory.parts_mut::<u8>().fill(1);
        let pieces: Vec<&[Line]> = memory.parts::<Line>().chunks_exact(PIECE_LINES).collect();
        let pass = |_| {
            let begun = Instant::now();
            self.pool.run(pieces.len(), &|piece| {
                black_box(dispatch(self.choice, Read { lines: pieces[piece] }));
            });
            PROBE_BYTES as f64 / begun.elapsed().as_secs_f64()
        };
        Ok((0..PASSES).map(pass).fold(0.0, f64::max))
    }
}

/// Reads lines in several streams and returns something that depends on each.
struct Read<'a> {
    lines: &'a [Line],
}

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> f32 {
        let length = self.lines.len() / STREAMS;
        let mut sums = [isa.splat_int(0); STREAMS];
        for index in 0..length {
            for stream in 0..STREAMS {
                let at = stream * length + index;
                let soon = (at + AHEAD).min(self.lines.len() - 1);
                isa.prefetch(&self.lines[soon..=soon]);
                sums[stream] = isa.dot(sums[stream], isa.load_line(&self.lines[at]), 1);
            }
        }
        sums.into_iter().map(|it| isa.sum(isa.to_float(it))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Choice;

    #[test]
    fn every_line_is_read_on_every_instruction_set() {
        let lines = vec![Line([1; 64]); 4 * 100];
        for choice in Choice::available() {
            // Of each lane's four codes, the lowest meets a one.
            assert_eq!(dispatch(choice, Read { lines: &lines }), 16.0 * 400.0, "{}", choice.name());
        }
    }

    #[test]
    fn memory_is_slower_than_light_and_faster_than_a_disk() {
        let found = Cpu::new(2).read_bytes_per_s().unwrap();
        assert!((1e8..1e13).contains(&found), "{found}");
    }
}
