//! 256 weights in 8 groups with a 6-bit scale each, 4 bits a weight that name one of 16 uneven levels:
//! `weight = d · (scale - 32) · LEVELS[code]` (`block_iq4_xs`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_K;
use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::codebook;
pub use crate::codebook::LEVELS;
use crate::coded::{Grid, Parts};
use crate::nibbles;
use crate::search::{self, nearest};
use crate::super_block::{self, WEIGHTS};

/// Weights that share a scale.
const GROUP: usize = 32;
/// Groups of a super-block.
const N_GROUPS: usize = WEIGHTS / GROUP;

/// One super-block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct IQ4_XS {
    /// The unit of the scales.
    pub d: Half,
    /// The upper two bits of the scales: group `g` has bits `2 · g` and `2 · g + 1` of a little-endian number.
    pub scales_high: [u8; 2],
    /// The lower four bits of the scales, two groups to a byte, the even one in the low half.
    pub scales_low: [u8; 4],
    /// The codes, 16 bytes a group: byte `i` holds weight `i` of the group in its low half and weight `i + 16` in its
    /// high half.
    pub packed: [[u8; 16]; N_GROUPS],
}

const GRID: Grid = Grid { group: GROUP, scales: (-32, 31), minima: (0, 0), levels: &LEVELS };

impl IQ4_XS {
    /// The codes in order, each a place in [`LEVELS`].
    pub fn codes(&self) -> [u8; WEIGHTS] {
        bytemuck::cast(self.packed.map(|group| nibbles::unpack_4_bit(&group)))
    }

    /// The levels in order, from -127 to 113.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        self.codes().map(|it| LEVELS[usize::from(it)])
    }

    /// The scale of a group of 32 weights, from -32 to 31.
    pub fn scale(&self, group: usize) -> i8 {
        let low = self.scales_low[group / 2] >> (group % 2 * 4) & 0xf;
        let high = self.scales_high[group / 4] >> (group % 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    }

    fn put_scale(&mut self, group: usize, scale: i32) {
        let shifted = (scale + 32) as u8;
        self.scales_low[group / 2] |= (shifted & 0xf) << (group % 2 * 4);
        self.scales_high[group / 4] |= (shifted >> 4) << (group % 4 * 2);
    }

    fn fit(x: &[f32; WEIGHTS], importance: Option<&[f32]>) -> Self {
        let sigma2 = search::sum_of_squares(x) * (2.0 / WEIGHTS as f32);
        let (groups, _) = x.as_chunks::<GROUP>();
        let mut scales = [0.0f32; N_GROUPS];
        for (index, (x, scale)) in groups.iter().zip(&mut scales).enumerate() {
            // A group whose inputs were all zero would otherwise lose its scale.
            let importance = importance.map(|it| &it[index * GROUP..][..GROUP]);
            let weights = importance.filter(|it| it.iter().any(|&it| it > 0.0)).map(|importance| {
                let mut weights = [0.0f32; GROUP];
                search::weigh(importance, x, sigma2, &mut weights);
                weights
            });
            *scale = codebook::scale(x, weights.as_ref());
        }
        let d = -search::extreme(&scales).0 / 32.0;
        let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
        let mut block = Self { d: Half::from_f32(d), ..Self::zeroed() };
        for (index, x) in groups.iter().enumerate() {
            let scale = nearest(inverse * scales[index]).clamp(-32, 31);
            block.put_scale(index, scale);
            block.packed[index] = nibbles::pack_4_bit(&codebook::codes(x, d * scale as f32));
        }
        block
    }
}

impl BlockFormat for IQ4_XS {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_K;

    const GRID: Option<&'static Grid> = Some(&GRID);

    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        Self::fit(super_block::whole(weights), importance.map(|it| it.columns))
    }

    fn parts(&self) -> Option<Parts> {
        let parts = super_block::symmetric_parts(self.d, |it| self.scale(it), GROUP, 0, &[]);
        Some(Parts { codes: self.codes(), ..parts })
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let mut block = Self { d: parts.d, ..Self::zeroed() };
        let (groups, _) = parts.codes.as_chunks::<GROUP>();
        for (index, codes) in groups.iter().enumerate() {
            block.put_scale(index, parts.scales[index].into());
            block.packed[index] = nibbles::pack_4_bit(codes);
        }
        Some(block)
    }

    fn decode_block(&self, weights: &mut [f32]) {
        super_block::decode::<GROUP>(&self.unpacked(), self.d, |it| self.scale(it), weights);
    }

    fn dot_block(&self, x: &Q8_K) -> f32 {
        super_block::dot::<GROUP>(&self.unpacked(), self.d, |it| self.scale(it), x)
    }
}
