//! Linear layers that share an input: trained whole, or frozen with a low-rank update on each.

use std::ops::Range;

use super::{Op, product};

/// Linears with one input, their weights one below another: `[Σ outputs, inputs]`.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) inputs: usize,
    pub(crate) outputs: Vec<usize>,
    /// Those that adapters are put on, in order.
    pub(crate) adapted: Vec<usize>,
}

/// What of a group is trained, as slices of a block's parameters.
#[derive(Clone, Copy)]
pub(crate) enum Trained<T> {
    /// The weights themselves.
    Whole(T),
    /// The adapters over frozen weights: `A` of each adapted linear one below another, then `B` of each.
    Adapter {
        /// The frozen weights.
        weight: T,
        /// The adapters' parameters.
        pairs: T,
        /// Rank of each pair.
        rank: usize,
        /// What the update is multiplied by.
        scale: f32,
    },
}

impl Group {
    pub(crate) fn width(&self) -> usize {
        self.outputs.iter().sum()
    }

    /// Number of weights.
    pub(crate) fn weights(&self) -> usize {
        self.width() * self.inputs
    }

    /// Rows of the adapted linears, one below another.
    fn adapted_width(&self) -> usize {
        self.adapted.iter().map(|it| self.outputs[*it]).sum()
    }

    /// Number of an adapter's parameters.
    pub(crate) fn pairs(&self, rank: usize) -> usize {
        rank * (self.adapted.len() * self.inputs + self.adapted_width())
    }

    /// Where `A` of the so-manieth adapted linear lies among its group's adapter parameters.
    pub(crate) fn place_of_a(&self, place: usize, rank: usize) -> Range<usize> {
        let size = rank * self.inputs;
        place * size..(place + 1) * size
    }

    /// Where its `B` lies.
    pub(crate) fn place_of_b(&self, place: usize, rank: usize) -> Range<usize> {
        let before: usize = self.adapted[..place].iter().map(|it| self.outputs[*it]).sum();
        let start = rank * (self.adapted.len() * self.inputs + before);
        start..start + rank * self.outputs[self.adapted[place]]
    }

    /// Each adapted linear: its place among them, its first column and its rows.
    fn updates(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let column = |index: usize| self.outputs[..index].iter().sum();
        self.adapted.iter().enumerate().map(move |(place, index)| (place, column(*index), self.outputs[*index]))
    }

    /// `scale · x · Aᵀ` for all adapters at once: `[tokens, linears · rank]`.
    fn narrow(&self, x: &[f32], pairs: &[f32], rank: usize, scale: f32, threads: usize) -> Vec<f32> {
        let (tokens, all) = (x.len() / self.inputs, self.adapted.len() * rank);
        let mut narrow = vec![0.0; tokens * all];
        let sizes = (tokens, all, self.inputs);
        let (x, a) = ((x, (self.inputs, 1)), (pairs, (1, self.inputs)));
        product(sizes, scale, x, a, 0.0, (&mut narrow, all), threads);
        narrow
    }

    /// `out = x · Wᵀ`, plus `scale · (x · Aᵀ) · Bᵀ` where adapted: `x [tokens, inputs]`, `out [tokens, width]`.
    pub(crate) fn forward(&self, x: &[f32], trained: Trained<&[f32]>, out: &mut [f32], threads: usize) {
        let (tokens, width) = (x.len() / self.inputs, self.width());
        let (Trained::Whole(weight) | Trained::Adapter { weight, .. }) = trained;
        let sizes = (tokens, width, self.inputs);
        product(sizes, 1.0, (x, (self.inputs, 1)), (weight, (1, self.inputs)), 0.0, (out, width), threads);
        let Trained::Adapter { pairs, rank, scale, .. } = trained else { return };
        if self.adapted.is_empty() {
            return;
        }
        let narrow = self.narrow(x, pairs, rank, scale, threads);
        for (place, column, outputs) in self.updates() {
            let a = (&narrow[place * rank..], (self.adapted.len() * rank, 1));
            let b = (&pairs[self.place_of_b(place, rank)], (1, rank));
            product((tokens, outputs, rank), 1.0, a, b, 1.0, (&mut out[column..], width), threads);
        }
    }

    /// Writes the gradient by `x` to `dx`, and the gradient by what is trained to `dp`.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        trained: Trained<&[f32]>,
        dy: &[f32],
        dx: &mut [f32],
        dp: &mut [f32],
        threads: usize,
    ) {
        let (tokens, width, inputs) = (x.len() / self.inputs, self.width(), self.inputs);
        let (Trained::Whole(weight) | Trained::Adapter { weight, .. }) = trained;
        // dx = dy · W.
        product((tokens, inputs, width), 1.0, (dy, (width, 1)), (weight, (inputs, 1)), 0.0, (dx, inputs), threads);
        let Trained::Adapter { pairs, rank, scale, .. } = trained else {
            // dW = dyᵀ · x.
            return product(
                (width, inputs, tokens),
                1.0,
                (dy, (1, width)),
                (x, (inputs, 1)),
                0.0,
                (dp, inputs),
                threads,
            );
        };
        if self.adapted.is_empty() {
            return;
        }
        let narrow = self.narrow(x, pairs, rank, scale, threads);
        let all = self.adapted.len() * rank;
        let mut back = vec![0.0; tokens * all];
        for (index, column, outputs) in self.updates() {
            let place = self.place_of_b(index, rank);
            // dB = dyᵀ · (scale · x · Aᵀ); d(x · Aᵀ) = scale · dy · B.
            let narrow = (&narrow[index * rank..], (all, 1));
            let sizes = (outputs, rank, tokens);
            let columns = &dy[column..];
            product(sizes, 1.0, (columns, (1, width)), narrow, 0.0, (&mut dp[place.clone()], rank), threads);
            let (b, back) = ((&pairs[place], (rank, 1)), (&mut back[index * rank..], all));
            product((tokens, rank, outputs), scale, (columns, (width, 1)), b, 0.0, back, threads);
        }
        // dA = d(x · Aᵀ)ᵀ · x; dx += d(x · Aᵀ) · A.
        product((all, inputs, tokens), 1.0, (&back, (1, all)), (x, (inputs, 1)), 0.0, (dp, inputs), threads);
        product((tokens, inputs, all), 1.0, (&back, (all, 1)), (pairs, (inputs, 1)), 1.0, (dx, inputs), threads);
    }
}

/// The output matrix, trained: `y = x · Wᵀ`. Inputs: `x [tokens, inputs]`, `W [outputs, inputs]`.
pub(crate) struct Head {
    pub(crate) group: Group,
    pub(crate) threads: usize,
}

impl Op for Head {
    const NAME: &'static str = "head";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        vec![inputs[0][0], self.group.width()]
    }

    fn forward(&self, values: &[&[f32]], output: &mut [f32]) {
        self.group.forward(values[0], Trained::Whole(values[1]), output, self.threads);
    }

    fn backward(&self, values: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        let [dx, dw] = grads else { return };
        self.group.backward(values[0], Trained::Whole(values[1]), grad, dx, dw, self.threads);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients, noise};
    use super::*;

    #[test]
    fn heads_backward_equals_differences() {
        let group = Group { inputs: 5, outputs: vec![4], adapted: Vec::new() };
        let head = Head { group, threads: 1 };
        gradients(&head, &[(vec![3, 5], noise(15, 1, 1.0)), (vec![4, 5], noise(20, 2, 1.0))], &[0, 1], 1e-3);
    }
}
