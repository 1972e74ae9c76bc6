//! 32 weights with a power of two as scale, floats of 4 bits each: `weight = 2^(exponent - 128) · LEVELS[code]`
//! (`block_mxfp4`; the MXFP4 of the OCP microscaling formats, version 1.0, with its levels doubled).

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, ColumnImportance};
use crate::block_of_32::{self, WEIGHTS};
use crate::formats::q8_0::Q8_0;
use crate::nibbles;
use crate::search;

/// Twice the values of a float with a sign, two bits of exponent and one of mantissa, in the order of the codes. Code 8
/// is minus zero.
pub const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The exponent of the largest level's power of two, before doubling: 6 = 1.5 · 2².
const LARGEST_EXPONENT: f32 = 2.0;

/// One block. Byte `i` of the codes holds weight `i` in its low half and weight `i + 16` in its high half.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MXFP4 {
    /// The scale's exponent, shifted by 127 for levels that are not doubled. 255, which stands for NaN in the
    /// standard, is a power of two like the others here, as in ggml.
    pub exponent: u8,
    /// The codes, two to a byte.
    pub packed: [u8; 16],
}

impl MXFP4 {
    /// The codes in order, each a place in [`LEVELS`].
    pub fn codes(&self) -> [u8; WEIGHTS] {
        nibbles::unpack_4_bit(&self.packed)
    }

    /// The levels in order, from -12 to 12.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        self.codes().map(|it| LEVELS[usize::from(it)])
    }

    /// What a level of 1 stands for; the lower half of its bits is zero.
    pub fn scale(&self) -> f32 {
        let bits = match self.exponent {
            // Below the smallest normal float.
            0 | 1 => 0x0020_0000 << self.exponent,
            exponent => u32::from(exponent - 1) << 23,
        };
        f32::from_bits(bits)
    }
}

/// The exponent for a block of that largest magnitude.
///
/// ggml takes `log2f` of the C library, which may differ between libraries for the few floats just below a power of
/// two; here it is the logarithm in `f64`, rounded. Where ggml's conversion to a byte is undefined, below the smallest
/// exponent, the smallest is taken.
fn exponent_for(magnitude: f32) -> u8 {
    if magnitude > 0.0 { ((f64::from(magnitude).log2() as f32).floor() - LARGEST_EXPONENT + 127.0) as u8 } else { 0 }
}

/// The first code of least error.
fn nearest(x: f32, scale: f32) -> u8 {
    let mut best = (0, (f32::from(LEVELS[0]) * scale - x).abs());
    for (code, &level) in LEVELS.iter().enumerate().skip(1) {
        let error = (f32::from(level) * scale - x).abs();
        if error < best.1 {
            best = (code, error);
        }
    }
    best.0 as u8
}

impl BlockFormat for MXFP4 {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = false;
    type Activation = Q8_0;

    fn encode_block(weights: &[f32], _: Option<ColumnImportance<'_>>) -> Self {
        let exponent = exponent_for(search::extreme(weights).1);
        let scale = Self { exponent, ..Self::zeroed() }.scale();
        let mut codes = [0u8; WEIGHTS];
        for (code, &x) in codes.iter_mut().zip(weights) {
            *code = nearest(x, scale);
        }
        Self { exponent, packed: nibbles::pack_4_bit(&codes) }
    }

    fn decode_block(&self, weights: &mut [f32]) {
        block_of_32::decode(self.unpacked(), self.scale(), weights);
    }

    fn dot_block(&self, x: &Q8_0) -> f32 {
        block_of_32::dot(&self.unpacked(), self.scale(), x)
    }
}
