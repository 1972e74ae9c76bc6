//! Blocks taken apart and put together, and codes that were searched for: the same bytes, never more error.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use fsq_blocks::Format;

const COLS: usize = 512;

fn searched() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|it| it.grid().is_some())
}

/// Reproducible numbers, roughly normal with standard deviation 0.02.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.02 * (0..12).map(|_| uniform()).sum::<f32>()).collect()
}

/// Mean squares that differ by two orders of magnitude, as those of a policy's inputs do.
fn importance(seed: u64) -> Vec<f32> {
    noise(COLS, seed).iter().map(|it| (150.0 * it).exp()).collect()
}

fn encoded(format: Format, rows: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(rows.len()).unwrap()];
    format.encode(rows, importance, &mut bytes);
    bytes
}

fn descended(format: Format, rows: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(rows.len()).unwrap()];
    format.encode_by_descent(rows, importance, &mut bytes);
    bytes
}

/// The weighted square error of each block.
fn errors(format: Format, rows: &[f32], importance: Option<&[f32]>, bytes: &[u8]) -> Vec<f64> {
    let mut decoded = vec![0.0; rows.len()];
    format.decode(bytes, &mut decoded);
    let weight = |column: usize| importance.map_or(1.0, |it| f64::from(it[column % COLS]));
    let errors =
        rows.iter().zip(&decoded).enumerate().map(|(column, (a, b))| weight(column) * f64::from(a - b).powi(2));
    errors.collect::<Vec<_>>().chunks(format.block_weights()).map(|it| it.iter().sum()).collect()
}

#[test]
fn blocks_come_back_from_their_parts() {
    let rows = noise(8 * COLS, 1);
    for format in searched() {
        let bytes = encoded(format, &rows, None);
        let parts = format.take_apart(&bytes);
        assert_eq!(parts.len(), rows.len() / format.block_weights(), "{}", format.name());
        let mut again = vec![0xa5; bytes.len()];
        format.put_together(&parts, &mut again);
        assert_eq!(again, bytes, "{}", format.name());
    }
    for format in [Format::F32, Format::F16, Format::BF16, Format::MXFP4] {
        assert!(format.grid().is_none());
        assert!(format.take_apart(&encoded(format, &rows, None)).is_empty());
    }
}

#[test]
fn parts_stand_for_the_weights_that_blocks_decode_to() {
    let rows = noise(8 * COLS, 2);
    for format in searched() {
        let bytes = encoded(format, &rows, Some(&importance(3)));
        let (mut expected, mut found) = (vec![0.0; rows.len()], vec![f32::NAN; rows.len()]);
        format.decode(&bytes, &mut expected);
        for (parts, weights) in format.take_apart(&bytes).iter().zip(found.chunks_exact_mut(format.block_weights())) {
            parts.decode(format.grid().unwrap(), weights);
        }
        assert_eq!(found, expected, "{}", format.name());
    }
}

#[test]
fn any_bytes_can_be_taken_apart() {
    for format in searched() {
        let grid = format.grid().unwrap();
        for byte in 0..=255u8 {
            let bytes = vec![byte; format.row_bytes(COLS).unwrap()];
            for parts in format.take_apart(&bytes) {
                assert!(parts.codes.iter().all(|it| usize::from(*it) < grid.levels.len()), "{} {byte}", format.name());
                parts.decode(grid, &mut vec![0.0; format.block_weights()]);
            }
        }
    }
}

#[test]
fn the_nearest_code_is_the_nearest() {
    for format in searched() {
        let grid = format.grid().unwrap();
        for (step, minimum) in [(0.5, 0.0), (0.01, 0.3), (-0.02, -0.1)] {
            let value = |code: usize| step * f32::from(grid.levels[code]) - minimum;
            for weight in noise(200, 4).iter().map(|it| it * 40.0) {
                let found = (value(grid.nearest(weight, (step, minimum)).into()) - weight).abs();
                let least = (0..grid.levels.len()).map(|it| (value(it) - weight).abs()).fold(f32::INFINITY, f32::min);
                assert!(found <= least + 1e-5, "{} {weight}: {found} {least}", format.name());
            }
        }
        assert!(usize::from(grid.nearest(1.0, (0.0, 0.0))) < grid.levels.len());
        assert!(usize::from(grid.nearest(f32::NAN, (1.0, 0.0))) < grid.levels.len());
    }
}

#[test]
fn descent_is_never_worse_in_any_block_and_better_in_all() {
    let weights = importance(5);
    for (seed, importance) in [(6, None), (7, Some(&weights[..]))] {
        let mut rows = noise(16 * COLS, seed);
        rows[COLS..2 * COLS].iter_mut().for_each(|it| *it = it.abs() + 0.01);
        rows[3 * COLS] = 1.0;
        rows[4 * COLS..4 * COLS + 256].fill(0.0);
        for format in searched() {
            let stock = errors(format, &rows, importance, &encoded(format, &rows, importance));
            let better = errors(format, &rows, importance, &descended(format, &rows, importance));
            for (block, (stock, better)) in stock.iter().zip(&better).enumerate() {
                // Errors are compared in another precision than that of the search.
                assert!(*better <= stock * (1.0 + 1e-5) + 1e-20, "{} block {block}: {better} {stock}", format.name());
            }
            let (stock, better): (f64, f64) = (stock.iter().sum(), better.iter().sum());
            assert!(better < 0.99 * stock, "{}: {better} of {stock}", format.name());
        }
    }
}

#[test]
fn descent_is_the_same_row_by_row_and_twice() {
    let (rows, importance) = (noise(4 * COLS, 8), importance(9));
    for format in searched() {
        let whole = descended(format, &rows, Some(&importance));
        let by_row: Vec<u8> =
            rows.chunks_exact(COLS).flat_map(|row| descended(format, row, Some(&importance))).collect();
        assert_eq!(whole, by_row, "{}", format.name());
    }
}

#[test]
fn descent_leaves_formats_without_a_grid_as_they_are_and_bad_weights_do_not_panic() {
    let rows = noise(COLS, 10);
    for format in [Format::F32, Format::F16, Format::BF16, Format::MXFP4] {
        assert_eq!(descended(format, &rows, None), encoded(format, &rows, None));
    }
    for format in searched() {
        for bad in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 0.0] {
            let mut rows = noise(COLS, 11);
            rows[..40].fill(bad);
            descended(format, &rows, None);
            descended(format, &rows, Some(&[bad; COLS]));
        }
    }
}
