//! A weight matrix in the CPU's layout, whatever its format.

use fsq_blocks::formats::{
    iq4_nl::IQ4_NL, iq4_xs::IQ4_XS, mxfp4::MXFP4, q2_k::Q2_K, q3_k::Q3_K, q4_0::Q4_0, q4_1::Q4_1, q4_k::Q4_K,
    q5_0::Q5_0, q5_1::Q5_1, q5_k::Q5_K, q6_k::Q6_K, q8_0::Q8_0,
};
use fsq_blocks::{BlockFormat, Format};

use super::Scratch;
use super::isa::Choice;
use super::matmul::{FloatRows, Shape, multiply, round};
use super::pool::Pool;
use super::tiles::blocks::BlockTiles;
use super::tiles::floats::{Bf16, F16, FloatTiles};
use super::tiles::supers::SuperTiles;
use crate::{KernelError, WeightView};

/// A loaded matrix.
#[derive(Debug)]
pub struct CpuMatrix {
    rows: usize,
    cols: usize,
    tiles: Tiles,
}

/// One row per format: its tiles, and what activations become before they meet it.
macro_rules! tiles {
    (
        floats { $($float:ident($lane:ty, $from_bytes:expr),)* }
        rounded { $($name:ident($tiles:ty) by $rows:ident,)* }
    ) => {
        #[derive(Debug)]
        #[expect(non_camel_case_types, reason = "the names everyone uses for these formats")]
        enum Tiles { $($float(FloatTiles<$lane>),)* $($name($tiles),)* }

        impl Tiles {
            fn new(pool: &Pool, weight: WeightView<'_>) -> Result<Option<Self>, KernelError> {
                Ok(Some(match weight.format {
                    $(Format::$float => {
                        let (values, _) = weight.bytes.as_chunks::<{ size_of::<$lane>() }>();
                        let value = |index: usize| $from_bytes(values[index]);
                        Self::$float(FloatTiles::new(weight.rows, weight.cols, value))
                    })*
                    $(Format::$name => {
                        Self::$name(<$tiles>::new(pool, blocks::<$name>(weight.bytes), weight.rows)?)
                    })*
                    _ => return Ok(None),
                }))
            }

            fn decode_row(&self, row: usize, into: &mut [f32]) {
                match self {
                    $(Self::$float(tiles) => tiles.decode_row(row, into),)*
                    $(Self::$name(tiles) => tiles.decode_row(row, into),)*
                }
            }

            fn multiply(
                &self,
                (choice, pool): (Choice, &Pool),
                scratch: &mut Scratch,
                x: &[f32],
                shape: Shape,
                out: &mut [f32],
            ) {
                match self {
                    $(Self::$float(tiles) => {
                        let rows = FloatRows { values: x, columns: shape.columns };
                        multiply((choice, pool), tiles, rows, shape, out);
                    })*
                    $(Self::$name(tiles) => {
                        round((choice, pool), &mut scratch.$rows, x, shape);
                        multiply((choice, pool), tiles, &scratch.$rows, shape, out);
                    })*
                }
            }
        }

        /// Formats that have tiles.
        const READ: &[Format] = &[$(Format::$float,)* $(Format::$name,)*];
    };
}

tiles! {
    floats {
        F32(f32, f32::from_le_bytes),
        F16(F16, |it| F16(u16::from_le_bytes(it))),
        BF16(Bf16, |it| Bf16(u16::from_le_bytes(it))),
    }
    rounded {
        Q8_0(BlockTiles<Q8_0>) by rounded_32,
        Q5_0(BlockTiles<Q5_0>) by rounded_32,
        Q5_1(BlockTiles<Q5_1>) by rounded_32,
        Q4_0(BlockTiles<Q4_0>) by rounded_32,
        Q4_1(BlockTiles<Q4_1>) by rounded_32,
        IQ4_NL(BlockTiles<IQ4_NL>) by rounded_32,
        MXFP4(BlockTiles<MXFP4>) by rounded_32,
        Q2_K(SuperTiles<Q2_K>) by rounded_256,
        Q3_K(SuperTiles<Q3_K>) by rounded_256,
        Q4_K(SuperTiles<Q4_K>) by rounded_256,
        Q5_K(SuperTiles<Q5_K>) by rounded_256,
        Q6_K(SuperTiles<Q6_K>) by rounded_256,
        IQ4_XS(SuperTiles<IQ4_XS>) by rounded_256,
    }
}

/// The bytes as the blocks that they are; blocks are aligned to one byte.
fn blocks<B: BlockFormat>(bytes: &[u8]) -> &[B] {
    bytemuck::cast_slice(bytes)
}

impl CpuMatrix {
    pub(crate) fn reads(format: Format) -> bool {
        READ.contains(&format)
    }

    pub(super) fn load(pool: &Pool, weight: WeightView<'_>) -> Result<Self, KernelError> {
        let wrong = |expected: String| KernelError::Weight { name: weight.name.to_string(), expected };
        let row_bytes = weight.format.row_bytes(weight.cols).ok_or_else(|| {
            let n = weight.format.block_weights();
            wrong(format!("columns in blocks of {n} for {}, found {}", weight.format.name(), weight.cols))
        })?;
        if row_bytes.checked_mul(weight.rows) != Some(weight.bytes.len()) {
            let found = weight.bytes.len();
            return Err(wrong(format!("{} rows of {row_bytes} bytes, found {found} bytes", weight.rows)));
        }
        let tiles = Tiles::new(pool, weight)?
            .ok_or_else(|| wrong(format!("a format that the CPU multiplies, found {}", weight.format.name())))?;
        Ok(Self { rows: weight.rows, cols: weight.cols, tiles })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn decode_row(&self, row: usize, into: &mut [f32]) {
        assert!(row < self.rows && into.len() == self.cols, "row {row} of {}", self.rows);
        self.tiles.decode_row(row, into);
    }

    /// `out[tokens, rows] (+)= x[tokens, cols] · wᵀ`
    pub(super) fn multiply(
        &self,
        threads: (Choice, &Pool),
        scratch: &mut Scratch,
        x: &[f32],
        out: &mut [f32],
        adds: bool,
    ) {
        let shape = Shape { tokens: x.len() / self.cols.max(1), rows: self.rows, columns: self.cols, adds };
        self.tiles.multiply(threads, scratch, x, shape, out);
    }
}
