//! The isotonic map: pool adjacent violators, blocks of a minimum size, linear in between.

use serde::Serialize;

use crate::metrics::Tally;

/// Fewest outcomes in a block.
pub(super) const BLOCK_MIN: usize = 20;
/// Most blocks, so that the map stays a few kilobytes of metadata for any number of outcomes.
pub(super) const BLOCKS_MAX: usize = 100;

/// A monotone polyline: constant outside its ends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Knots {
    /// Mean stated probability of each block, ascending.
    places: Vec<f64>,
    /// Success rate of each block, never descending.
    values: Vec<f64>,
}

impl Knots {
    /// From stored parameters: all places, then all values. `None` unless they form a monotone map
    /// within `0..=1` of at most [`BLOCKS_MAX`] knots.
    pub(super) fn from_parameters(parameters: &[f64]) -> Option<Self> {
        let (places, values) = parameters.split_at_checked(parameters.len() / 2)?;
        let in_range = parameters.iter().all(|it| (0.0..=1.0).contains(it));
        let paired = places.len() == values.len() && (1..=BLOCKS_MAX).contains(&places.len());
        let monotone = places.is_sorted() && values.is_sorted();
        (in_range && paired && monotone).then(|| Self { places: places.to_vec(), values: values.to_vec() })
    }

    pub(super) fn parameters(&self) -> Vec<f64> {
        [self.places.as_slice(), self.values.as_slice()].concat()
    }

    /// The value at `q`. There is at least one knot.
    pub(super) fn at(&self, q: f64) -> f64 {
        let right = self.places.partition_point(|&place| place < q);
        if right == 0 {
            return self.values[0];
        }
        if right == self.places.len() {
            return self.values[right - 1];
        }
        let (left_place, right_place) = (self.places[right - 1], self.places[right]);
        let share = (q - left_place) / (right_place - left_place);
        self.values[right - 1] + share * (self.values[right] - self.values[right - 1])
    }
}

#[derive(Clone, Copy)]
struct Block {
    n: f64,
    place_sum: f64,
    successes: f64,
}

impl Block {
    fn rate(&self) -> f64 {
        self.successes / self.n
    }

    fn join(&mut self, other: Block) {
        self.n += other.n;
        self.place_sum += other.place_sum;
        self.successes += other.successes;
    }
}

/// Fits the map; the tally must not be empty.
pub(super) fn fit(tally: &Tally) -> Knots {
    let mut blocks: Vec<Block> = Vec::new();
    for (q, n, successes) in tally.levels() {
        blocks.push(Block { n, place_sum: n * q, successes });
        while let [.., before, last] = blocks.as_mut_slice()
            && before.rate() >= last.rate()
        {
            before.join(*last);
            blocks.pop();
        }
    }
    let n: f64 = blocks.iter().map(|it| it.n).sum();
    let blocks = enlarged(blocks, (n / BLOCKS_MAX as f64).max(BLOCK_MIN as f64));
    Knots {
        places: blocks.iter().map(|it| (it.place_sum / it.n).clamp(0.0, 1.0)).collect(),
        values: blocks.iter().map(Block::rate).collect(),
    }
}

/// Joins neighbours until each block has `n_min` outcomes. Rates stay monotone: the rate of a join
/// lies between those of its parts.
fn enlarged(blocks: Vec<Block>, n_min: f64) -> Vec<Block> {
    let mut large: Vec<Block> = Vec::new();
    for block in blocks {
        match large.last_mut() {
            Some(last) if last.n < n_min => last.join(block),
            _ => large.push(block),
        }
    }
    if let [.., before, last] = large.as_mut_slice()
        && last.n < n_min
    {
        before.join(*last);
        large.pop();
    }
    large
}
