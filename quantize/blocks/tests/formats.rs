//! Every format of the table: bytes equal to those ggml wrote, errors within bounds, and no panic on bad weights.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixture has failed")]

use std::path::Path;

use bytemuck::Zeroable;
use fsq_blocks::{Activation, Format, activations};

const COLS: usize = 512;

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/blocks");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn floats(name: &str) -> Vec<f32> {
    fixture(name).chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect()
}

fn quantized() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|it| it.block_weights() > 1)
}

fn encode(format: Format, weights: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; format.row_bytes(weights.len()).unwrap()];
    format.encode(weights, importance, &mut out);
    out
}

fn decode(format: Format, bytes: &[u8]) -> Vec<f32> {
    let mut weights = vec![f32::NAN; bytes.len() / format.block_bytes() * format.block_weights()];
    format.decode(bytes, &mut weights);
    weights
}

fn round_trip(format: Format, weights: &[f32]) -> Vec<f32> {
    decode(format, &encode(format, weights, None))
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

fn relative_error(weights: &[f32], decoded: &[f32]) -> f64 {
    let error: f64 = weights.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = weights.iter().map(|a| f64::from(*a).powi(2)).sum();
    (error / norm).sqrt()
}

/// The first block that differs, if any, told with its bytes.
fn first_difference(format: Format, ours: &[u8], theirs: &[u8]) -> Option<String> {
    assert_eq!(ours.len(), theirs.len(), "{}", format.name());
    let blocks = ours.chunks_exact(format.block_bytes()).zip(theirs.chunks_exact(format.block_bytes()));
    let (index, (ours, theirs)) = blocks.enumerate().find(|(_, (ours, theirs))| ours != theirs)?;
    Some(format!("{} block {index}:\n ours {ours:?}\ntheirs {theirs:?}", format.name()))
}

#[test]
fn plain_bytes_equal_ggml() {
    let weights = floats("weights.f32");
    for format in quantized() {
        let theirs = fixture(&format!("{}.plain", format.name()));
        assert_eq!(first_difference(format, &encode(format, &weights, None), &theirs), None);
    }
}

#[test]
fn weighted_bytes_equal_ggml() {
    let (weights, importance) = (floats("weights.f32"), floats("importance.f32"));
    for format in quantized() {
        let theirs = fixture(&format!("{}.weighted", format.name()));
        assert_eq!(first_difference(format, &encode(format, &weights, Some(&importance)), &theirs), None);
    }
}

#[test]
fn decoded_weights_equal_the_gguf_package() {
    for format in quantized() {
        let ours = decode(format, &fixture(&format!("{}.plain", format.name())));
        assert_eq!(ours, floats(&format!("{}.decoded", format.name())), "{}", format.name());
    }
}

#[test]
fn dot_products_equal_ggml() {
    let inputs = floats("inputs.f32");
    for format in quantized() {
        let bytes = fixture(&format!("{}.plain", format.name()));
        let rows = bytes.chunks_exact(format.row_bytes(COLS).unwrap());
        for (row, theirs) in rows.zip(floats(&format!("{}.dots", format.name()))) {
            let ours = format.dot(row, &inputs);
            // Sums over blocks may be in another order, so the last bits may differ.
            assert!((ours - theirs).abs() <= 1e-5 * (1.0 + theirs.abs()), "{}: {ours} {theirs}", format.name());
        }
    }
}

#[test]
fn errors_stay_within_the_bound_of_their_bits() {
    let weights = noise(64 * COLS, 1);
    let bound = |format| match format {
        Format::F32 => 0.0,
        Format::F16 => 3e-4,
        Format::BF16 => 2e-3,
        Format::Q8_0 => 0.008,
        Format::Q6_K => 0.022,
        Format::Q5_K => 0.045,
        Format::Q5_0 | Format::Q5_1 => 0.05,
        Format::Q4_K => 0.085,
        Format::IQ4_NL | Format::IQ4_XS | Format::Q4_1 => 0.1,
        Format::Q4_0 => 0.11,
        Format::MXFP4 => 0.13,
        Format::Q3_K => 0.18,
        Format::Q2_K => 0.35,
        _ => panic!("give {} a bound", format.name()),
    };
    for &format in Format::ALL {
        let error = relative_error(&weights, &round_trip(format, &weights));
        assert!(error <= bound(format), "{}: {error}", format.name());
    }
}

#[test]
fn dot_is_near_the_float_product() {
    let (weights, inputs) = (noise(COLS, 2), noise(COLS, 3));
    for &format in Format::ALL {
        let row = encode(format, &weights, None);
        let exact: f64 = decode(format, &row).iter().zip(&inputs).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let scale: f64 = weights.iter().zip(&inputs).map(|(a, b)| f64::from(a * b).powi(2)).sum::<f64>().sqrt();
        assert!((f64::from(format.dot(&row, &inputs)) - exact).abs() < 0.02 * scale, "{}", format.name());
    }
}

#[test]
fn zero_stays_zero() {
    for &format in Format::ALL {
        for importance in [None, Some(vec![1.0; COLS]), Some(vec![0.0; COLS])] {
            let bytes = encode(format, &vec![0.0; 2 * COLS], importance.as_deref());
            assert!(decode(format, &bytes).iter().all(|&it| it == 0.0), "{}", format.name());
            assert_eq!(format.dot(&bytes[..bytes.len() / 2], &[1.0; COLS]), 0.0, "{}", format.name());
        }
    }
}

#[test]
fn numbers_that_are_not_finite_do_not_panic() {
    for &format in Format::ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45] {
            for n_bad in [1, 7, COLS] {
                let mut weights = noise(COLS, 4);
                weights[..n_bad].fill(bad);
                for importance in [None, Some(noise(COLS, 5)), Some(vec![bad; COLS])] {
                    let bytes = encode(format, &weights, importance.as_deref());
                    format.dot(&bytes, &weights);
                    decode(format, &bytes);
                }
            }
        }
    }
}

#[test]
fn any_bytes_decode_and_multiply_without_panic() {
    for &format in Format::ALL {
        for byte in 0..=255 {
            let bytes = vec![byte; format.row_bytes(COLS).unwrap()];
            decode(format, &bytes);
            format.dot(&bytes, &[127.0; COLS]);
        }
    }
}

#[test]
fn one_outlier_is_kept() {
    for &format in Format::ALL {
        for (place, outlier) in [(0, 4.0), (100, -4.0), (511, 4.0)] {
            let mut weights = noise(COLS, 6);
            weights[place] = outlier;
            let decoded = round_trip(format, &weights);
            assert!((decoded[place] / outlier - 1.0).abs() < 0.07, "{}: {}", format.name(), decoded[place]);
            // Other blocks do not see it.
            let alone = round_trip(format, &noise(COLS, 6));
            let block = place / format.block_weights().max(1);
            for (index, (a, b)) in decoded.iter().zip(&alone).enumerate() {
                assert!(index / format.block_weights() == block || a == b, "{} weight {index}", format.name());
            }
        }
    }
}

#[test]
fn powers_of_two_reach_as_far_as_their_exponent() {
    for power in -126..=125 {
        let scale = 2.0f32.powi(power);
        let weights: Vec<f32> = (0..32).map(|it| [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, -6.0][it % 8] * scale).collect();
        assert_eq!(round_trip(Format::MXFP4, &weights), weights, "2^{power}");
    }
    // Between two powers the exponent is that of the lower; what lies above the largest level is cut to it.
    assert_eq!(round_trip(Format::MXFP4, &[7.9; 32]), [6.0; 32]);
    assert_eq!(round_trip(Format::MXFP4, &[8.0; 32]), [8.0; 32]);
    assert!(round_trip(Format::MXFP4, &[1e-45; 32]).iter().all(|it| *it == 0.0));
}

#[test]
fn importance_changes_the_result_and_lowers_the_error_where_it_counts() {
    let weights = noise(32 * COLS, 7);
    let importance: Vec<f32> = (0..COLS).map(|column| if column % 8 == 0 { 100.0 } else { 0.1 }).collect();
    for &format in Format::ALL {
        let (plain, weighted) = (encode(format, &weights, None), encode(format, &weights, Some(&importance)));
        assert_eq!(plain != weighted, format.uses_importance(), "{}", format.name());
        let cost = |bytes: &[u8]| -> f64 {
            let decoded = decode(format, bytes);
            let pairs = weights.iter().zip(&decoded).enumerate();
            pairs.map(|(index, (a, b))| f64::from(importance[index % COLS]) * f64::from(a - b).powi(2)).sum()
        };
        assert!(!format.uses_importance() || cost(&weighted) < 0.9 * cost(&plain), "{}", format.name());
    }
}

#[test]
fn importance_of_zero_falls_back_to_the_plain_search() {
    let weights = noise(COLS, 8);
    for format in quantized() {
        let bytes = encode(format, &weights, Some(&[0.0; COLS]));
        assert_eq!(bytes, encode(format, &weights, None), "{}", format.name());
    }
}

#[test]
fn rows_are_independent() {
    let weights = noise(4 * COLS, 9);
    let importance: Vec<f32> = noise(COLS, 10).iter().map(|it| it.abs()).collect();
    for &format in Format::ALL {
        let whole = encode(format, &weights, Some(&importance));
        let rows: Vec<u8> = weights.chunks_exact(COLS).flat_map(|row| encode(format, row, Some(&importance))).collect();
        assert_eq!(whole, rows, "{}", format.name());
    }
}

#[test]
fn activation_blocks_round_to_8_bits() {
    let values = noise(COLS, 11);
    let mut decoded = vec![0.0; COLS];
    let mut blocks = [activations::Q8_K::zeroed(); COLS / 256];
    activations::Q8_K::encode(&values, &mut blocks);
    activations::Q8_K::decode(&blocks, &mut decoded);
    assert!(relative_error(&values, &decoded) < 0.01);
    let (mut of_32, mut again) = ([activations::Q8_1::zeroed(); COLS / 32], vec![0.0; COLS]);
    activations::Q8_1::encode(&values, &mut of_32);
    activations::Q8_1::decode(&of_32, &mut again);
    assert!(relative_error(&values, &again) < 0.01);
    for (block, decoded) in of_32.iter().zip(again.chunks_exact(32)) {
        let sum: f32 = decoded.iter().sum();
        assert!((block.sum.to_f32() - sum).abs() <= 1e-3 * (0.01 + sum.abs()), "{:?} {sum}", block.sum);
    }
    for block in &blocks {
        assert_eq!(block.sums[3], block.levels[48..64].iter().map(|&it| i16::from(it)).sum());
    }
}

#[test]
fn the_table_can_be_looked_up() {
    for &format in Format::ALL {
        assert_eq!(Format::from_id(format.id()), Some(format));
        assert_eq!(Format::from_name(&format.name().to_lowercase()), Some(format));
    }
    assert_eq!(Format::from_id(4), None);
    assert_eq!(Format::from_name("Q9_Z"), None);
    assert_eq!(Format::Q4_K.row_bytes(512), Some(288));
    assert_eq!(Format::Q4_K.row_bytes(500), None);
    assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    assert_eq!(Format::Q4_K.bits_per_weight(), 4.5);
}

#[test]
#[should_panic(expected = "do not fill")]
fn a_buffer_of_the_wrong_length_is_refused() {
    Format::Q8_0.encode(&[0.0; 64], None, &mut [0; 34]);
}
