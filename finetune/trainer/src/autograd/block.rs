//! One transformer block as one operation: attention and feed-forward part, each behind its norm.
//!
//! `x + O(attend(rope(QKV(norm(x)))))`, then `+ Down(swiglu(GateUp(norm(·))))`. One node per block keeps the graph
//! a chain, so candle adds no gradients of its own; what the backward needs is kept in the node.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::Op;
use super::attention::Heads;
use super::elementwise::{Turns, rms_norm, rms_norm_backward, swiglu, swiglu_backward};
use super::linear::{Group, Trained};

/// The sizes of a block, and where its parameters lie.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) heads: Heads,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) eps: f32,
    /// Rank and scale where only adapters are trained.
    pub(crate) adapter: Option<(usize, f32)>,
    pub(crate) threads: usize,
}

/// The four groups of linears, in the order in which a block applies them.
pub(crate) const GROUPS: usize = 4;

impl Plan {
    pub(crate) fn groups(&self) -> [Group; GROUPS] {
        let (q, kv) = (self.heads.query_width(), self.heads.key_width());
        [
            Group { inputs: self.hidden, outputs: vec![q, kv, kv] },
            Group { inputs: q, outputs: vec![self.hidden] },
            Group { inputs: self.hidden, outputs: vec![self.intermediate; 2] },
            Group { inputs: self.intermediate, outputs: vec![self.hidden] },
        ]
    }

    /// Where the weights of a whole block lie: first norm, second norm, then the four groups.
    pub(crate) fn whole(&self) -> Vec<Range<usize>> {
        let sizes = [self.hidden, self.hidden].into_iter().chain(self.groups().map(|it| it.weights()));
        ranges(sizes)
    }

    /// Where the adapter parameters of the four groups lie.
    pub(crate) fn pairs(&self, rank: usize) -> Vec<Range<usize>> {
        ranges(self.groups().map(|it| it.pairs(rank)).into_iter())
    }

    /// Number of trained parameters.
    pub(crate) fn parameters(&self) -> usize {
        let places = self.adapter.map_or_else(|| self.whole(), |(rank, _)| self.pairs(rank));
        places.last().map_or(0, |it| it.end)
    }
}

fn ranges(sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    sizes
        .scan(0, |start, size| {
            let range = *start..*start + size;
            *start = range.end;
            Some(range)
        })
        .collect()
}

/// Inputs: `x [tokens, hidden]`, the block's trained parameters `[n]`.
pub(crate) struct Block {
    pub(crate) plan: Arc<Plan>,
    /// All weights of the block where only its adapters are trained, laid out as [`Plan::whole`].
    pub(crate) frozen: Option<Arc<Vec<f32>>>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) sequences: Arc<Vec<Range<usize>>>,
    pub(crate) saved: Mutex<Option<Saved>>,
}

/// What the forward leaves for the backward.
pub(crate) struct Saved {
    /// `[tokens, heads.width()]`, turned.
    qkv: Vec<f32>,
    /// `[tokens, heads.query_width()]`.
    heads: Vec<f32>,
    /// `[tokens, hidden]`, between the two parts.
    middle: Vec<f32>,
    /// `[tokens, 2 · intermediate]`.
    gate_up: Vec<f32>,
}

impl Block {
    /// All weights: frozen, or those that are trained.
    fn weights<'a>(&'a self, parameters: &'a [f32]) -> &'a [f32] {
        self.frozen.as_ref().map_or(parameters, |it| it.as_slice())
    }

    /// A group's weights, with its adapter where there is one.
    fn trained<'a>(&'a self, parameters: &'a [f32], group: usize) -> Trained<&'a [f32]> {
        let weight = &self.weights(parameters)[self.plan.whole()[2 + group].clone()];
        match self.plan.adapter {
            None => Trained::Whole(weight),
            Some((rank, scale)) => {
                let pairs = &parameters[self.plan.pairs(rank)[group].clone()];
                Trained::Adapter { weight, pairs, rank, scale }
            }
        }
    }

    /// Where the gradient of a group's parameters lies.
    fn place(&self, group: usize) -> Range<usize> {
        match self.plan.adapter {
            None => self.plan.whole()[2 + group].clone(),
            Some((rank, _)) => self.plan.pairs(rank)[group].clone(),
        }
    }

    fn compute(&self, x: &[f32], parameters: &[f32], output: &mut [f32]) -> Saved {
        let plan = &*self.plan;
        let tokens = x.len() / plan.hidden;
        let [qkv_group, o_group, gate_up_group, down_group] = plan.groups();
        let norms = self.weights(parameters);
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, &norms[plan.whole()[0].clone()], plan.eps, &mut normed);
        let mut qkv = vec![0.0; tokens * plan.heads.width()];
        qkv_group.forward(&normed, self.trained(parameters, 0), &mut qkv, plan.threads);
        self.turns.apply(&mut qkv, plan.heads.width(), self.turned(), 1.0);
        let mut heads = vec![0.0; tokens * plan.heads.query_width()];
        plan.heads.attend(&self.sequences, &qkv, &mut heads);
        let mut middle = vec![0.0; x.len()];
        o_group.forward(&heads, self.trained(parameters, 1), &mut middle, plan.threads);
        add(&mut middle, x);
        rms_norm(&middle, &norms[plan.whole()[1].clone()], plan.eps, &mut normed);
        let mut gate_up = vec![0.0; tokens * 2 * plan.intermediate];
        gate_up_group.forward(&normed, self.trained(parameters, 2), &mut gate_up, plan.threads);
        let mut inner = vec![0.0; tokens * plan.intermediate];
        swiglu(&gate_up, plan.intermediate, &mut inner);
        down_group.forward(&inner, self.trained(parameters, 3), output, plan.threads);
        add(output, &middle);
        Saved { qkv, heads, middle, gate_up }
    }

    /// The columns that rotary positions turn: queries and keys.
    fn turned(&self) -> Range<usize> {
        0..self.plan.heads.query_width() + self.plan.heads.key_width()
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

impl Op for Block {
    const NAME: &'static str = "block";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        inputs[0].to_vec()
    }

    fn forward(&self, values: &[&[f32]], output: &mut [f32]) {
        let saved = self.compute(values[0], values[1], output);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
    }

    fn backward(&self, values: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        let (plan, x, parameters) = (&*self.plan, values[0], values[1]);
        let [dx, dp] = grads else { return };
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = saved.unwrap_or_else(|| self.compute(x, parameters, &mut vec![0.0; x.len()]));
        let Saved { qkv, heads, middle, mut gate_up } = saved;
        let tokens = x.len() / plan.hidden;
        let [qkv_group, o_group, gate_up_group, down_group] = plan.groups();
        let norms = self.weights(parameters);
        let [first, second] = [0, 1].map(|it| plan.whole()[it].clone());

        let mut inner = vec![0.0; tokens * plan.intermediate];
        swiglu(&gate_up, plan.intermediate, &mut inner);
        let mut d_inner = vec![0.0; inner.len()];
        let trained = self.trained(parameters, 3);
        down_group.backward(&inner, trained, grad, &mut d_inner, &mut dp[self.place(3)], plan.threads);
        swiglu_backward(&mut gate_up, plan.intermediate, &d_inner);
        let mut normed = vec![0.0; x.len()];
        rms_norm(&middle, &norms[second.clone()], plan.eps, &mut normed);
        let mut d_normed = vec![0.0; x.len()];
        let trained = self.trained(parameters, 2);
        gate_up_group.backward(&normed, trained, &gate_up, &mut d_normed, &mut dp[self.place(2)], plan.threads);
        // The gradient by the middle: through the residual, and through the feed-forward part.
        let mut d_middle = grad.to_vec();
        let wanted = self.frozen.is_none();
        let dw = wanted.then(|| &mut dp[second.clone()]);
        rms_norm_backward(&middle, &norms[second.clone()], plan.eps, &d_normed, &mut d_middle, dw);

        let mut d_heads = vec![0.0; heads.len()];
        let trained = self.trained(parameters, 1);
        o_group.backward(&heads, trained, &d_middle, &mut d_heads, &mut dp[self.place(1)], plan.threads);
        let mut dqkv = vec![0.0; qkv.len()];
        plan.heads.attend_backward(&self.sequences, &qkv, &d_heads, &mut dqkv);
        self.turns.apply(&mut dqkv, plan.heads.width(), self.turned(), -1.0);
        rms_norm(x, &norms[first.clone()], plan.eps, &mut normed);
        let trained = self.trained(parameters, 0);
        qkv_group.backward(&normed, trained, &dqkv, &mut d_normed, &mut dp[self.place(0)], plan.threads);
        dx.copy_from_slice(&d_middle);
        let dw = wanted.then(|| &mut dp[first.clone()]);
        rms_norm_backward(x, &norms[first], plan.eps, &d_normed, dx, dw);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients, noise};
    use super::*;

    fn block(adapter: Option<(usize, f32)>) -> Block {
        let heads = Heads { queries: 4, keys: 2, dim: 2 };
        let plan = Plan { heads, hidden: 6, intermediate: 5, eps: 1e-5, adapter, threads: 1 };
        let whole = plan.whole().last().map_or(0, |it| it.end);
        let frozen = adapter.is_some().then(|| Arc::new(noise(whole, 5, 0.8)));
        let turns = Turns::new(&[0, 1, 2, 0, 1], 2, 100.0);
        let sequences = Arc::new(vec![0..3, 3..5]);
        Block { plan: Arc::new(plan), frozen, turns, sequences, saved: Mutex::new(None) }
    }

    #[test]
    fn every_weight_gets_the_gradient_of_finite_differences() {
        let block = block(None);
        let n = block.plan.parameters();
        gradients(&block, &[(vec![5, 6], noise(30, 1, 1.0)), (vec![n], noise(n, 2, 0.8))], &[0, 1], 4e-3);
    }

    #[test]
    fn every_adapter_matrix_gets_the_gradient_of_finite_differences() {
        let block = block(Some((2, 0.7)));
        let n = block.plan.parameters();
        gradients(&block, &[(vec![5, 6], noise(30, 1, 1.0)), (vec![n], noise(n, 3, 0.8))], &[0, 1], 4e-3);
    }

    #[test]
    fn sequences_and_later_tokens_are_not_seen() {
        let block = block(None);
        let parameters = noise(block.plan.parameters(), 2, 0.8);
        let mut x = noise(30, 1, 1.0);
        let mut before = vec![0.0; 30];
        block.forward(&[&x, &parameters], &mut before);
        // Changing token 2 must change neither tokens 0 and 1 nor the second sequence.
        x[12..18].fill(0.9);
        let mut after = vec![0.0; 30];
        block.forward(&[&x, &parameters], &mut after);
        assert_eq!(before[..12], after[..12]);
        assert_ne!(before[12..18], after[12..18]);
        assert_eq!(before[18..], after[18..]);
    }
}
