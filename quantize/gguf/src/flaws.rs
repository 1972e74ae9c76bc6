//! What a file may hold and be opened all the same, but should not: hidden bytes, weights that are no numbers, names
//! that no program writes. Knows no architecture.

use std::path::PathBuf;

use crate::part::Part;
use crate::{Gguf, TensorInfo, TensorView};

/// Weights decoded at a time: a few blocks of the largest kind.
const WEIGHTS_AT_A_TIME: usize = 4096;

/// One thing that a sound file does not have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// Bytes that belong to no tensor and are more than padding.
    #[error("{}: {n_bytes} bytes at {offset} belong to no tensor", path.display())]
    UnusedBytes {
        /// The part.
        path: PathBuf,
        /// Where they begin in the file.
        offset: usize,
        /// How many there are.
        n_bytes: usize,
    },
    /// Padding that is not zero.
    #[error("{}: the padding at byte {offset} is not zero", path.display())]
    Padding {
        /// The part.
        path: PathBuf,
        /// Where the padding begins in the file.
        offset: usize,
    },
    /// A block whose scale is infinite or no number.
    #[error("tensor `{tensor}`: block {block}: expected a finite scale, found weights of {found}")]
    Scale {
        /// The tensor.
        tensor: String,
        /// The first such block, counted through all rows.
        block: usize,
        /// A weight that the block decodes to.
        found: f32,
    },
    /// A weight that is infinite or no number.
    #[error("tensor `{tensor}`: weight {index}: expected a finite number, found {found}")]
    Weight {
        /// The tensor.
        tensor: String,
        /// The first such weight, counted through all rows.
        index: usize,
        /// What it is.
        found: f32,
    },
    /// A key or a tensor's name that is empty or holds control characters.
    #[error("{what} {name:?}: expected a name of visible characters")]
    Name {
        /// `metadata key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// Everything that is wrong with a file that could be opened; reads all of it.
pub fn flaws(gguf: &Gguf) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let keys = gguf.metadata().iter().map(|it| ("metadata key", it.0));
    let names = gguf.tensors().iter().map(|it| ("tensor", it.name.as_str()));
    let odd = keys.chain(names).filter(|(_, it)| it.is_empty() || it.chars().any(char::is_control));
    flaws.extend(odd.map(|(what, name)| Flaw::Name { what, name: name.into() }));
    for (index, part) in gguf.parts().iter().enumerate() {
        between(part, gguf.tensors().iter().filter(|it| it.part == index), &mut flaws);
    }
    flaws.extend(gguf.views().filter_map(not_finite));
    flaws
}

/// What lies before, between and behind the tensors of a part.
fn between<'a>(part: &Part, tensors: impl Iterator<Item = &'a TensorInfo>, flaws: &mut Vec<Flaw>) {
    let (data, alignment) = (part.data(), part.alignment() as usize);
    let data_start = part.bytes().len() - data.len();
    let mut padding = |offset: usize, bytes: &[u8]| {
        if bytes.iter().any(|it| *it != 0) {
            flaws.push(Flaw::Padding { path: part.path().into(), offset });
        }
    };
    padding(data_start - part.header_padding().len(), part.header_padding());
    let mut places: Vec<(usize, usize)> = tensors.map(|it| (it.offset, it.offset + it.n_bytes)).collect();
    places.push((data.len(), data.len()));
    places.sort_unstable();
    let (mut end, mut unused) = (0usize, Vec::new());
    for (start, next_end) in places {
        let padded = end.next_multiple_of(alignment).min(start);
        padding(data_start + end, &data[end..padded]);
        if padded < start {
            unused.push((data_start + padded, start - padded));
        }
        end = next_end;
    }
    let path = part.path();
    flaws.extend(unused.into_iter().map(|(offset, n_bytes)| Flaw::UnusedBytes { path: path.into(), offset, n_bytes }));
}

/// The first weight of a tensor that is not a number. Levels are whole numbers, so in a block it is the scale's fault.
fn not_finite(view: TensorView<'_>) -> Option<Flaw> {
    let (index, found) = first_not_finite(view)?;
    let (tensor, per_block) = (view.name.to_owned(), view.format.block_weights());
    Some(match per_block {
        1 => Flaw::Weight { tensor, index, found },
        _ => Flaw::Scale { tensor, block: index / per_block, found },
    })
}

fn first_not_finite(view: TensorView<'_>) -> Option<(usize, f32)> {
    let (block_bytes, block_weights) = (view.format.block_bytes(), view.format.block_weights());
    let n_blocks = WEIGHTS_AT_A_TIME / block_weights;
    let mut weights = vec![0.0f32; n_blocks * block_weights];
    for (index, bytes) in view.bytes.chunks(n_blocks * block_bytes).enumerate() {
        let weights = &mut weights[..bytes.len() / block_bytes * block_weights];
        view.format.decode(bytes, weights);
        if let Some(at) = weights.iter().position(|it| !it.is_finite()) {
            return Some((index * n_blocks * block_weights + at, weights[at]));
        }
    }
    None
}
