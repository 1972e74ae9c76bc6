//! The one table of formats; knows nothing of how any of them works.

use crate::block::{Activation, BlockFormat};
use crate::coded::{Grid, Parts};
use crate::descent::descend;
use crate::formats;

/// Work that is the same for every format: [`Format::visit`] calls it with the block type.
pub trait FormatVisitor {
    /// What comes out.
    type Output;
    /// Called once, with the block type of the format.
    fn visit<F: BlockFormat>(self) -> Self::Output;
}

/// Makes the enum, its look-ups and the only `match` over formats. A row is: documentation, name, ggml's number of
/// the type, the block type and its bytes. A wrong number of bytes or a number used twice does not compile.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident = $id:literal => $block:path, $bytes:literal;)*) => {
        /// How a run of weights becomes bytes. The discriminants are ggml's type numbers.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        #[repr(u32)]
        #[expect(non_camel_case_types, reason = "the names everyone uses for these formats")]
                pub enum Format { $($(#[$doc])* $name = $id,)* }

        $(const _: () = {
            assert!(size_of::<$block>() == $bytes, "the block has another size than its row says");
            assert!(align_of::<$block>() == 1, "a block must be readable from any byte");
        };)*

        impl Format {
            /// Every format, in the order of the table.
            pub const ALL: &'static [Format] = &[$(Format::$name,)*];

            /// The name, such as `Q4_K`.
            pub fn name(self) -> &'static str {
                match self { $(Format::$name => stringify!($name),)* }
            }

            /// Calls the visitor with this format's block type.
            pub fn visit<V: FormatVisitor>(self, visitor: V) -> V::Output {
                match self { $(Format::$name => visitor.visit::<$block>(),)* }
            }
        }
    };
}

formats! {
    /// 32-bit floats.
    F32 = 0 => formats::f32::F32, 4;
    /// 16-bit IEEE floats.
    F16 = 1 => formats::f16::F16, 2;
    /// 16-bit brain floats: the upper half of a 32-bit float.
    BF16 = 30 => formats::bf16::BF16, 2;
    /// 32 weights, one scale, 8 bits each.
    Q8_0 = 8 => formats::q8_0::Q8_0, 34;
    /// 32 weights, one scale, 4 bits each.
    Q4_0 = 2 => formats::q4_0::Q4_0, 18;
    /// 32 weights, one scale and one minimum, 4 bits each.
    Q4_1 = 3 => formats::q4_1::Q4_1, 20;
    /// 32 weights, one scale, 5 bits each.
    Q5_0 = 6 => formats::q5_0::Q5_0, 22;
    /// 32 weights, one scale and one minimum, 5 bits each.
    Q5_1 = 7 => formats::q5_1::Q5_1, 24;
    /// 256 weights in 16 groups with a 4-bit scale and minimum each, 2 bits a weight.
    Q2_K = 10 => formats::q2_k::Q2_K, 84;
    /// 256 weights in 16 groups with a 6-bit scale each, 3 bits a weight.
    Q3_K = 11 => formats::q3_k::Q3_K, 110;
    /// 256 weights in 8 groups with a 6-bit scale and minimum each, 4 bits a weight.
    Q4_K = 12 => formats::q4_k::Q4_K, 144;
    /// 256 weights in 8 groups with a 6-bit scale and minimum each, 5 bits a weight.
    Q5_K = 13 => formats::q5_k::Q5_K, 176;
    /// 256 weights in 16 groups with an 8-bit scale each, 6 bits a weight.
    Q6_K = 14 => formats::q6_k::Q6_K, 210;
    /// 32 weights, one scale, 4 bits each that name one of 16 uneven levels.
    IQ4_NL = 20 => formats::iq4_nl::IQ4_NL, 18;
    /// 256 weights in 8 groups with a 6-bit scale each, 4 bits a weight that name one of 16 uneven levels.
    IQ4_XS = 23 => formats::iq4_xs::IQ4_XS, 136;
    /// 32 weights, one power of two as scale, floats of 4 bits each.
    MXFP4 = 39 => formats::mxfp4::MXFP4, 17;
}

impl Format {
    /// ggml's number of the type, as a GGUF file has it.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The format of that number, if it is one of ours.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.id() == id)
    }

    /// The format of that name, in capitals or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name().eq_ignore_ascii_case(name))
    }

    /// Weights per block.
    pub fn block_weights(self) -> usize {
        struct Weights;
        impl FormatVisitor for Weights {
            type Output = usize;
            fn visit<F: BlockFormat>(self) -> usize {
                F::WEIGHTS
            }
        }
        self.visit(Weights)
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        struct Bytes;
        impl FormatVisitor for Bytes {
            type Output = usize;
            fn visit<F: BlockFormat>(self) -> usize {
                size_of::<F>()
            }
        }
        self.visit(Bytes)
    }

    /// Bytes of a row of `cols` weights; `None` when `cols` is not a multiple of the block or the bytes do not fit
    /// in a `usize`.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let weights = self.block_weights();
        if !cols.is_multiple_of(weights) {
            return None;
        }
        (cols / weights).checked_mul(self.block_bytes())
    }

    /// Bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_weights() as f64
    }

    /// Whether [`Format::encode`] looks at the importance.
    pub fn uses_importance(self) -> bool {
        struct Uses;
        impl FormatVisitor for Uses {
            type Output = bool;
            fn visit<F: BlockFormat>(self) -> bool {
                F::USES_IMPORTANCE
            }
        }
        self.visit(Uses)
    }

    /// Encodes whole rows: `weights` is `[rows, cols]`, `importance` `[cols]` and the same for every row, `out` as
    /// many bytes as the rows have.
    ///
    /// # Panics
    /// When `out` has another length than the weights need, or `importance` does not divide `weights` into rows.
    pub fn encode(self, weights: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        self.visit(Encode { weights, importance, out });
    }

    /// As [`Format::encode`], and then descends, block by block, to codes of less error: Σ importance · (decoded -
    /// weight)². Never more of it than [`Format::encode`] leaves. Without importance all columns count the same.
    ///
    /// # Panics
    /// As [`Format::encode`].
    pub fn encode_by_descent(self, weights: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode(weights, importance, out);
        self.visit(Descend { weights, importance, out });
    }

    /// How weights follow from scales and codes; `None` where nothing is to be searched for.
    pub fn grid(self) -> Option<&'static Grid> {
        struct OfFormat;
        impl FormatVisitor for OfFormat {
            type Output = Option<&'static Grid>;
            fn visit<F: BlockFormat>(self) -> Self::Output {
                F::GRID
            }
        }
        self.visit(OfFormat)
    }

    /// Takes the blocks of some rows apart; none where there is no grid.
    ///
    /// # Panics
    /// When the bytes are not whole blocks.
    pub fn take_apart(self, bytes: &[u8]) -> Vec<Parts> {
        struct TakeApart<'a>(&'a [u8]);
        impl FormatVisitor for TakeApart<'_> {
            type Output = Vec<Parts>;
            fn visit<F: BlockFormat>(self) -> Vec<Parts> {
                bytemuck::cast_slice::<u8, F>(self.0).iter().filter_map(F::parts).collect()
            }
        }
        self.visit(TakeApart(bytes))
    }

    /// Puts blocks together from numbers within the grid of the format.
    ///
    /// # Panics
    /// When `out` is not as long as the blocks are, or the format has no grid.
    pub fn put_together(self, parts: &[Parts], out: &mut [u8]) {
        struct PutTogether<'a>(&'a [Parts], &'a mut [u8]);
        impl FormatVisitor for PutTogether<'_> {
            type Output = ();
            fn visit<F: BlockFormat>(self) {
                let blocks: &mut [F] = bytemuck::cast_slice_mut(self.1);
                assert_eq!(blocks.len(), self.0.len(), "as many blocks as numbers");
                for (block, parts) in blocks.iter_mut().zip(self.0) {
                    *block = F::from_parts(parts).expect("a format with a grid");
                }
            }
        }
        self.visit(PutTogether(parts, out));
    }

    /// Decodes `bytes` into `weights`.
    ///
    /// # Panics
    /// When the two differ in the number of weights.
    pub fn decode(self, bytes: &[u8], weights: &mut [f32]) {
        self.visit(Decode { bytes, weights });
    }

    /// The dot product of one encoded row and a row of inputs, which are first rounded to the format's activation
    /// blocks.
    ///
    /// # Panics
    /// When the two differ in length.
    pub fn dot(self, row: &[u8], inputs: &[f32]) -> f32 {
        self.visit(Dot { row, inputs })
    }
}

struct Encode<'a> {
    weights: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl FormatVisitor for Encode<'_> {
    type Output = ();
    fn visit<F: BlockFormat>(self) {
        let blocks: &mut [F] = bytemuck::cast_slice_mut(self.out);
        let Some(importance) = self.importance.filter(|it| F::USES_IMPORTANCE && !it.is_empty()) else {
            return F::encode(self.weights, None, blocks);
        };
        let cols = importance.len();
        assert!(
            self.weights.len().is_multiple_of(cols) && cols.is_multiple_of(F::WEIGHTS),
            "{} weights are not whole rows of {cols}",
            self.weights.len()
        );
        crate::block::assert_fits(self.weights.len(), blocks.len(), F::WEIGHTS);
        for (row, blocks) in self.weights.chunks_exact(cols).zip(blocks.chunks_exact_mut(cols / F::WEIGHTS)) {
            F::encode(row, Some(importance), blocks);
        }
    }
}

struct Descend<'a> {
    weights: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl FormatVisitor for Descend<'_> {
    type Output = ();
    fn visit<F: BlockFormat>(self) {
        let Some(grid) = F::GRID else { return };
        let blocks: &mut [F] = bytemuck::cast_slice_mut(self.out);
        let blocks_of_row = self.importance.map_or(1, |it| it.len() / F::WEIGHTS).max(1);
        let ones = vec![1.0; F::WEIGHTS];
        for (index, (weights, block)) in self.weights.chunks_exact(F::WEIGHTS).zip(blocks).enumerate() {
            let columns =
                self.importance.and_then(|it| it.get(index % blocks_of_row * F::WEIGHTS..)?.get(..F::WEIGHTS));
            let columns = columns.filter(|it| it.iter().any(|it| *it > 0.0)).unwrap_or(&ones);
            if let Some(mut parts) = block.parts() {
                descend(grid, weights, columns, &mut parts);
                *block = F::from_parts(&parts).unwrap_or(*block);
            }
        }
    }
}

struct Decode<'a> {
    bytes: &'a [u8],
    weights: &'a mut [f32],
}

impl FormatVisitor for Decode<'_> {
    type Output = ();
    fn visit<F: BlockFormat>(self) {
        F::decode(bytemuck::cast_slice(self.bytes), self.weights);
    }
}

struct Dot<'a> {
    row: &'a [u8],
    inputs: &'a [f32],
}

impl FormatVisitor for Dot<'_> {
    type Output = f32;
    fn visit<F: BlockFormat>(self) -> f32 {
        let n_blocks = self.inputs.len() / F::Activation::VALUES;
        let mut activations = vec![bytemuck::Zeroable::zeroed(); n_blocks];
        F::Activation::encode(self.inputs, &mut activations);
        F::dot(bytemuck::cast_slice(self.row), &activations)
    }
}
