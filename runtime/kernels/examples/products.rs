//! Multiplications per second of each format's product, for a row of activations alone and for many.
//!
//! `cargo run --release -p fsq-kernels --example products -- [FORMAT …]`; `FSQ_CPU` names the instructions.
#![allow(clippy::print_stdout, reason = "an example's output is its purpose")]

use std::time::{Duration, Instant};

use fsq_blocks::Format;
use fsq_kernels::{Backend, Cpu, KernelError, WeightView};

/// A feed-forward matrix of a policy of a billion weights.
const ROWS: usize = 8192;
const COLUMNS: usize = 2048;
/// Rows of activations: decode, a small batch, and a prompt.
const TOKENS: [usize; 3] = [1, 8, 256];
/// Attempts, of which the fastest counts: whatever disturbs only slows down.
const ATTEMPTS: usize = 12;

fn main() -> Result<(), KernelError> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    println!("billions of multiplications per second, a weight of {ROWS} by {COLUMNS}");
    println!("{:8} {:>24}  {}", "format", "instructions", TOKENS.map(|it| format!("{it:>5} rows")).join("  "));
    for format in Format::ALL.iter().filter(|it| named.is_empty() || named.iter().any(|name| name == it.name())) {
        let cpu = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from));
        let weights: Vec<f32> = (0..ROWS * COLUMNS).map(|it| (it as f32 * 0.37).sin()).collect();
        let mut bytes = vec![0; format.row_bytes(COLUMNS).unwrap_or(0) * ROWS];
        format.encode(&weights, None, &mut bytes);
        let matrix = cpu.load(WeightView { name: "w", format: *format, rows: ROWS, cols: COLUMNS, bytes: &bytes })?;
        let speeds = TOKENS.map(|tokens| speed(&cpu, &matrix, tokens).map(|it| format!("{it:10.1}")));
        let speeds = speeds.into_iter().collect::<Result<Vec<_>, _>>()?;
        println!("{:8} {:>24}  {}", format.name(), cpu.path(), speeds.join("  "));
    }
    Ok(())
}

fn speed(cpu: &Cpu, matrix: &<Cpu as Backend>::Matrix, tokens: usize) -> Result<f64, KernelError> {
    let (mut x, mut out) = (cpu.buffer(tokens * COLUMNS)?, cpu.buffer(tokens * ROWS)?);
    cpu.write(&(0..tokens * COLUMNS).map(|it| (it as f32 * 0.61).cos()).collect::<Vec<_>>(), &mut x);
    let mut best = Duration::MAX;
    for _ in 0..ATTEMPTS {
        let begun = Instant::now();
        cpu.matmul(matrix, &x, tokens, &mut out);
        best = best.min(begun.elapsed());
    }
    Ok((tokens * ROWS * COLUMNS) as f64 / best.as_secs_f64() / 1e9)
}
