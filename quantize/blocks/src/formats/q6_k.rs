//! 256 weights in 16 groups with an 8-bit scale each, 6 bits a weight: `weight = d · scale · (level - 32)`
//! (`block_q6_K`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_K;
use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::search::{self, GROUP_MAX_EPSILON, nearest};
use crate::super_block::{self, LANES, WEIGHTS};

/// One super-block. In each half of it, with `l` from 0 to 31: byte `l` of the low bits holds weights `l` and `l + 64`,
/// byte `l + 32` weights `l + 32` and `l + 96`; byte `l` of the high bits holds all four.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q6_K {
    /// The low four bits, two weights to a byte.
    pub low: [u8; 128],
    /// The upper two bits, four weights to a byte.
    pub high: [u8; 64],
    /// The scale of each group.
    pub scales: [i8; 16],
    /// The unit of the scales.
    pub d: Half,
}

const GRID: Grid = Grid { group: 16, scales: (-128, 127), minima: (0, 0), levels: &whole_numbers::<64>(-32) };

impl Q6_K {
    /// The levels in order, from -32 to 31.
    #[inline(always)]
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        let mut levels = [0; WEIGHTS];
        let halves = self.low.as_chunks::<64>().0.iter().zip(self.high.as_chunks::<32>().0);
        for (levels, (low, high)) in levels.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            // In runs of 32 levels, of which compilers make vectors.
            for (part, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let low = &low[32 * (part % 2)..][..32];
                for ((level, low), high) in levels.iter_mut().zip(low).zip(high) {
                    *level = ((low >> (part / 2 * 4) & 0xf) | (high >> (2 * part) & 3) << 4) as i8 - 32;
                }
            }
        }
        levels
    }

    #[inline(always)]
    fn pack_levels(&mut self, levels: &[u8; WEIGHTS]) {
        self.low = std::array::from_fn(|index| {
            let first = 128 * (index / 64) + index % 64;
            (levels[first] & 0xf) | (levels[first + 64] & 0xf) << 4
        });
        self.high = std::array::from_fn(|index| {
            let first = 128 * (index / 32) + index % 32;
            (0..4).fold(0, |bits, part| bits | (levels[first + 32 * part] >> 4) << (2 * part))
        });
    }

    #[inline(always)]
    fn fit(x: &[f32; WEIGHTS], importance: Option<&[f32]>) -> Self {
        let mut levels = [0u8; WEIGHTS];
        let mut scales = [0.0f32; 16];
        for half in 0..2 {
            let of_half = WEIGHTS / 2 * half..WEIGHTS / 2 * (half + 1);
            let (x, mut found) = (super_block::side_by_side(&x[of_half.clone()]), [[0u8; LANES]; 16]);
            let importance = importance.map(|it| super_block::side_by_side(&it[of_half.clone()]));
            let importance = importance.as_ref().map(|it| &it[..16]);
            scales[LANES * half..][..LANES].copy_from_slice(&search::symmetric(32, &x[..16], importance, &mut found));
            super_block::one_after_another(&found, &mut levels[of_half]);
        }
        let (largest, magnitude) = search::extreme(&scales);
        if magnitude < GROUP_MAX_EPSILON {
            return Self::zeroed();
        }
        let inverse = -128.0 / largest;
        let mut block = Self {
            d: Half::from_f32(1.0 / inverse),
            scales: scales.map(|it| nearest(inverse * it).min(127) as i8),
            ..Self::zeroed()
        };
        let d = block.d.to_f32();
        super_block::round_symmetric(32, x, |group| d * f32::from(block.scales[group]), &mut levels);
        block.pack_levels(&levels);
        block
    }
}

impl BlockFormat for Q6_K {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_K;

    const GRID: Option<&'static Grid> = Some(&GRID);

    #[inline(always)]
    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        Self::fit(super_block::whole(weights), importance.map(|it| it.columns))
    }

    fn parts(&self) -> Option<Parts> {
        Some(super_block::symmetric_parts(self.d, |it| self.scales[it], 16, -32, &self.unpacked()))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let mut block = Self { d: parts.d, scales: parts.scales.map(|it| it as i8), ..Self::zeroed() };
        block.pack_levels(&parts.codes);
        Some(block)
    }

    #[inline(always)]
    fn decode_block(&self, weights: &mut [f32]) {
        super_block::decode::<16>(&self.unpacked(), self.d, |it| self.scales[it], weights);
    }

    fn dot_block(&self, x: &Q8_K) -> f32 {
        super_block::dot::<16>(&self.unpacked(), self.d, |it| self.scales[it], x)
    }
}
