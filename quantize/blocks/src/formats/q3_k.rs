//! 256 weights in 16 groups with a 6-bit scale each, 3 bits a weight: `weight = d · (scale - 32) · (level - 4)`
//! (`block_q3_K`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_K;
use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::search::{self, nearest};
use crate::super_block::{self, LANES, WEIGHTS};

/// One super-block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q3_K {
    /// The third bits: bit `b` of byte `l` belongs to weight `32 · b + l`.
    pub high: [u8; 32],
    /// The low two bits, four weights to a byte: in each half of the block, byte `l` holds weights `l`, `l + 32`, `l +
    /// 64`, `l + 96`.
    pub low: [u8; 64],
    /// The scales, 6 bits each: the low halves of bytes 0 to 7 begin groups 0 to 7, the high halves groups 8 to 15;
    /// bytes 8 to 11 hold the upper two bits of every fourth group.
    pub scales: [u8; 12],
    /// The unit of the scales.
    pub d: Half,
}

const GRID: Grid = Grid { group: 16, scales: (-32, 31), minima: (0, 0), levels: &whole_numbers::<8>(-4) };

impl Q3_K {
    /// The levels in order, from -4 to 3.
    #[inline(always)]
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        let mut levels = super_block::unpack_2_bit(&self.low);
        for (group, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (level, high) in levels.iter_mut().zip(&self.high) {
                *level += ((high >> group & 1) << 2) as i8 - 4;
            }
        }
        levels
    }

    /// The scale of a group of 16 weights, from -32 to 31.
    #[inline(always)]
    pub fn scale(&self, group: usize) -> i8 {
        let low = self.scales[group % 8] >> (group / 8 * 4) & 0xf;
        let high = self.scales[8 + group % 4] >> (group / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    }

    #[inline(always)]
    fn pack(d: Half, scales: &[u8; 16]) -> Self {
        let mut block = Self { d, ..Self::zeroed() };
        for (group, scale) in scales.iter().enumerate() {
            block.scales[group % 8] |= (scale & 0xf) << (group / 8 * 4);
            block.scales[8 + group % 4] |= (scale >> 4) << (group / 4 * 2);
        }
        block
    }

    /// Levels from 0 to 7.
    #[inline(always)]
    fn pack_levels(&mut self, levels: &[u8; WEIGHTS]) {
        self.low = super_block::pack_2_bit(levels);
        self.high =
            std::array::from_fn(|byte| (0..8).fold(0, |bits, bit| bits | (levels[32 * bit + byte] >> 2) << bit));
    }

    #[inline(always)]
    fn fit(x: &[f32; WEIGHTS], importance: Option<&[f32]>) -> Self {
        let mut levels = [0u8; WEIGHTS];
        let mut block = match importance {
            None => Self::fit_plain(x, &mut levels),
            Some(importance) => Self::fit_weighted(x, importance, &mut levels),
        };
        let d = block.d.to_f32();
        super_block::round_symmetric(4, x, |group| d * f32::from(block.scale(group)), &mut levels);
        block.pack_levels(&levels);
        block
    }

    #[inline(always)]
    fn fit_plain(x: &[f32; WEIGHTS], levels: &mut [u8; WEIGHTS]) -> Self {
        let mut scales = [0.0f32; 16];
        let (groups, _) = x.as_chunks::<16>();
        for ((scale, x), levels) in scales.iter_mut().zip(groups).zip(levels.chunks_exact_mut(16)) {
            *scale = search::symmetric_by_turns(4, x, levels);
        }
        let largest = search::extreme(&scales).0;
        if largest == 0.0 {
            return Self::zeroed();
        }
        let inverse = -32.0 / largest;
        Self::pack(Half::from_f32(1.0 / inverse), &scales.map(|it| (nearest(inverse * it).clamp(-32, 31) + 32) as u8))
    }

    #[inline(always)]
    fn fit_weighted(x: &[f32; WEIGHTS], importance: &[f32], levels: &mut [u8; WEIGHTS]) -> Self {
        let sigma2 = 2.0 * search::sum_of_squares(x) / WEIGHTS as f32;
        let (mut scales, mut totals) = ([0.0f32; 16], [0.0f32; 16]);
        for half in 0..2 {
            let of_half = WEIGHTS / 2 * half..WEIGHTS / 2 * (half + 1);
            let x = &x[of_half.clone()];
            let mut weights = [0.0f32; WEIGHTS / 2];
            search::weigh(&importance[of_half.clone()], x, sigma2, &mut weights);
            for (total, weights) in totals[LANES * half..].iter_mut().zip(weights.chunks_exact(16)) {
                *total = weights.iter().sum();
            }
            let (x, weights) = (super_block::side_by_side(x), super_block::side_by_side(&weights));
            let mut found = [[0u8; LANES]; 16];
            let of_groups = search::symmetric(4, &x[..16], Some(&weights[..16]), &mut found);
            scales[LANES * half..][..LANES].copy_from_slice(&of_groups);
            super_block::one_after_another(&found, &mut levels[of_half]);
        }
        let mut rounded = [0u8; 16];
        let (scales, totals) = (scales.as_chunks::<1>().0, totals.as_chunks::<1>().0);
        let [d] = search::symmetric(32, scales, Some(totals), rounded.as_chunks_mut().0);
        Self::pack(Half::from_f32(d), &rounded)
    }
}

impl BlockFormat for Q3_K {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_K;

    const GRID: Option<&'static Grid> = Some(&GRID);

    #[inline(always)]
    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        Self::fit(super_block::whole(weights), importance.map(|it| it.columns))
    }

    fn parts(&self) -> Option<Parts> {
        Some(super_block::symmetric_parts(self.d, |it| self.scale(it), 16, -4, &self.unpacked()))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let mut block = Self::pack(parts.d, &parts.scales.map(|it| (it + 32) as u8));
        block.pack_levels(&parts.codes);
        Some(block)
    }

    #[inline(always)]
    fn decode_block(&self, weights: &mut [f32]) {
        super_block::decode::<16>(&self.unpacked(), self.d, |it| self.scale(it), weights);
    }

    fn dot_block(&self, x: &Q8_K) -> f32 {
        super_block::dot::<16>(&self.unpacked(), self.d, |it| self.scale(it), x)
    }
}
