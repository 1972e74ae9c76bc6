//! A weight matrix in the CPU's layout, whatever its format.

use std::time::{Duration, Instant};

use fsq_blocks::formats::{
    iq4_nl::IQ4_NL, iq4_xs::IQ4_XS, mxfp4::MXFP4, q2_k::Q2_K, q3_k::Q3_K, q4_0::Q4_0, q4_1::Q4_1, q4_k::Q4_K,
    q5_0::Q5_0, q5_1::Q5_1, q5_k::Q5_K, q6_k::Q6_K, q8_0::Q8_0,
};
use fsq_blocks::{BlockFormat, Format};

use super::Scratch;
use super::isa::Choice;
use super::matmul::{ALONE_MAX, Cut, Destination, FloatRows, Shape, multiply, round};
use super::paths::Paths;
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
    /// Which instructions multiply it.
    pub(super) paths: Paths,
}

/// Memory of [`Scratch`] that rounded activations lie in.
#[derive(Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names of the fields")]
enum Rounding {
    none,
    rounded_32,
    rounded_256,
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

            /// Makes of `x` what the tiles multiply with.
            fn round(&self, threads: (Choice, &Pool), scratch: &mut Scratch, x: &[f32], shape: Shape) {
                match self {
                    $(Self::$float(_) => {})*
                    $(Self::$name(_) => round(threads, &mut scratch.$rows, x, shape),)*
                }
            }

            /// Which memory [`Tiles::round`] fills: equal ones need it once.
            fn rounding(&self) -> Rounding {
                match self {
                    $(Self::$float(_) => Rounding::none,)*
                    $(Self::$name(_) => Rounding::$rows,)*
                }
            }

            fn multiply(
                &self,
                choice: Choice,
                scratch: &Scratch,
                x: &[f32],
                shape: Shape,
                out: &Destination<'_>,
                piece: (Cut, usize),
            ) {
                match self {
                    $(Self::$float(tiles) => {
                        let rows = FloatRows { values: x, columns: shape.columns };
                        multiply(choice, tiles, rows, shape, out, piece);
                    })*
                    $(Self::$name(tiles) => multiply(choice, tiles, &scratch.$rows, shape, out, piece),)*
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

    pub(super) fn load(pool: &Pool, weight: WeightView<'_>, choice: Choice) -> Result<Self, KernelError> {
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
        Ok(Self { rows: weight.rows, cols: weight.cols, tiles, paths: Paths::only(choice) })
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

    /// `outs[i][tokens, rows] (+)= x[tokens, cols] · wᵢᵀ` for matrices of the same columns, as one job.
    pub(super) fn multiply<const N: usize>(
        matrices: [&Self; N],
        (choice, pool): (Choice, &Pool),
        scratch: &mut Scratch,
        x: &[f32],
        outs: [&mut [f32]; N],
        adds: bool,
    ) {
        let columns = matrices[0].cols;
        let tokens = x.len() / columns.max(1);
        let shapes = matrices.map(|it| Shape { tokens, rows: it.rows, columns: it.cols, adds });
        for (index, matrix) in matrices.iter().enumerate() {
            assert_eq!(matrix.cols, columns, "columns of matrices that read the same rows");
            let rounding = matrix.tiles.rounding();
            if matrices[..index].iter().all(|it| it.tiles.rounding() != rounding) {
                matrix.tiles.round((choice, pool), scratch, x, shapes[index]);
            }
        }
        Self::run(matrices.map(|it| (it, it.paths.of(tokens))), pool, scratch, x, shapes, outs);
    }

    /// The products themselves, with rows that are rounded already, each on its own instructions.
    fn run<const N: usize>(
        matrices: [(&Self, Choice); N],
        pool: &Pool,
        scratch: &Scratch,
        x: &[f32],
        shapes: [Shape; N],
        outs: [&mut [f32]; N],
    ) {
        let cuts = shapes.map(Cut::new);
        let outs = outs.map(Destination::new);
        let work = |mut piece: usize| {
            for (index, cut) in cuts.into_iter().enumerate() {
                if piece < cut.n_pieces() {
                    let (matrix, choice) = matrices[index];
                    let work = (cut, piece);
                    return matrix.tiles.multiply(choice, scratch, x, shapes[index], &outs[index], work);
                }
                piece -= cut.n_pieces();
            }
        };
        let n_pieces = cuts.iter().map(|it| it.n_pieces()).sum();
        let multiplications: usize = shapes.iter().map(|it| it.tokens * it.columns * it.rows).sum();
        if multiplications < ALONE_MAX { (0..n_pieces).for_each(work) } else { pool.run(n_pieces, &work) }
    }

    /// What times one product of the first `shape.rows` rows with activations of no meaning.
    pub(super) fn trial<'a>(&'a self, pool: &'a Pool, shape: Shape) -> impl FnMut(Choice) -> Duration + 'a {
        let x = vec![1.0; shape.tokens * shape.columns];
        let mut out = vec![0.0; shape.tokens * shape.rows];
        let mut scratch = Scratch::default();
        self.tiles.round((self.paths.of(shape.tokens), pool), &mut scratch, &x, shape);
        move |choice| {
            let begun = Instant::now();
            Self::run([(self, choice)], pool, &scratch, &x, [shape], [&mut out]);
            begun.elapsed()
        }
    }
}
