//! One transformer block as one operation: attention and feed-forward part, each behind its norm.
//!
//! `x + O(attend(rope(QKV(norm(x)))))`, then `+ Down(swiglu(GateUp(norm(·))))`. One node per block keeps the graph
//! a chain, so candle adds no gradients of its own; what the backward needs is kept in the node.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use fsq_checkpoint::Activation;

use super::Op;
use super::attention::Heads;
use super::elementwise::{Turns, gated, gated_backward, norm_heads, norm_heads_backward, rms_norm, rms_norm_backward};
use super::linear::{Group, Trained};
use super::weights::Weights;

/// The four groups of linears, in the order in which a block applies them.
pub(crate) const GROUPS: usize = 4;

/// The sizes of a block, and where its parameters lie.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) heads: Heads,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) eps: f32,
    pub(crate) activation: Activation,
    /// Queries, keys and values; back from the heads; gate and up; down.
    pub(crate) groups: [Group; GROUPS],
    /// Rank and scale where only adapters are trained.
    pub(crate) adapter: Option<(usize, f32)>,
    pub(crate) threads: usize,
    /// The backward computes again what the forward could have left for it.
    pub(crate) recomputes: bool,
}

impl Plan {
    /// Where the weights of a whole block lie: first norm, second norm, then the four groups.
    pub(crate) fn whole(&self) -> Vec<Range<usize>> {
        ranges([self.hidden, self.hidden].into_iter().chain(self.groups.iter().map(Group::weights)))
    }

    /// Where the adapter parameters of the four groups lie.
    pub(crate) fn pairs(&self, rank: usize) -> Vec<Range<usize>> {
        ranges(self.groups.iter().map(|it| it.pairs(rank)))
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

/// The weights of a block whose adapters alone are trained, and what it has beyond a plain Llama's.
pub(crate) struct Frozen {
    /// Before attention, before the feed-forward part: `[hidden]` each.
    pub(crate) norms: [Vec<f32>; 2],
    /// Of each group, `[width, inputs]`.
    pub(crate) groups: [Weights; GROUPS],
    /// Of each group, `[width]`, where it adds one.
    pub(crate) biases: [Option<Vec<f32>>; GROUPS],
    /// Of each head's queries, and of its keys: `[head_dim]` each.
    pub(crate) head_norms: Option<[Vec<f32>; 2]>,
    /// Behind attention, behind the feed-forward part: `[hidden]` each.
    pub(crate) post_norms: Option<[Vec<f32>; 2]>,
    /// Over which its tokens attend.
    pub(crate) window: Option<usize>,
}

/// Inputs: `x [tokens, hidden]`, the block's trained parameters `[n]`.
pub(crate) struct Block {
    pub(crate) plan: Arc<Plan>,
    /// Where only its adapters are trained.
    pub(crate) frozen: Option<Arc<Frozen>>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) sequences: Arc<Vec<Range<usize>>>,
    pub(crate) saved: Mutex<Option<Saved>>,
}

/// What the forward leaves for the backward.
pub(crate) struct Saved {
    /// `[tokens, heads.width()]` before the norms of heads, where there are any.
    raw: Option<Vec<f32>>,
    /// `[tokens, heads.width()]`, turned.
    qkv: Vec<f32>,
    /// `[tokens, heads.query_width()]`.
    heads: Vec<f32>,
    /// `[tokens, hidden]`: what attention gives to the norm behind it, where there is one.
    attended: Option<Vec<f32>>,
    /// `[tokens, hidden]`, between the two parts.
    middle: Vec<f32>,
    /// `[tokens, 2 · intermediate]`.
    gate_up: Vec<f32>,
    /// `[tokens, hidden]`: what the feed-forward part gives to the norm behind it, where there is one.
    fed: Option<Vec<f32>>,
}

impl Block {
    /// One of the two norms that every block has.
    fn norm<'a>(&'a self, parameters: &'a [f32], index: usize) -> &'a [f32] {
        match &self.frozen {
            Some(frozen) => &frozen.norms[index],
            None => &parameters[self.plan.whole()[index].clone()],
        }
    }

    fn weight<'a>(&'a self, parameters: &'a [f32], group: usize) -> Cow<'a, [f32]> {
        match &self.frozen {
            Some(frozen) => frozen.groups[group].widened(self.plan.groups[group].inputs),
            None => Cow::Borrowed(&parameters[self.plan.whole()[2 + group].clone()]),
        }
    }

    /// A group's weights, with its adapter where there is one.
    fn trained<'a>(&self, weight: &'a [f32], parameters: &'a [f32], group: usize) -> Trained<&'a [f32]> {
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

    /// `x [tokens, inputs]` through a group: `[tokens, width]`.
    fn group(&self, group: usize, x: &[f32], parameters: &[f32]) -> Vec<f32> {
        let linears = &self.plan.groups[group];
        let weight = self.weight(parameters, group);
        let mut out = vec![0.0; x.len() / linears.inputs * linears.width()];
        linears.forward(x, self.trained(&weight, parameters, group), &mut out, self.plan.threads);
        if let Some(bias) = self.frozen.as_ref().and_then(|it| it.biases[group].as_ref()) {
            out.chunks_exact_mut(bias.len()).for_each(|it| add(it, bias));
        }
        out
    }

    /// The gradient by the input of a group; what its parameters get is written to `dp`.
    fn group_backward(&self, group: usize, x: &[f32], parameters: &[f32], dy: &[f32], dp: &mut [f32]) -> Vec<f32> {
        let weight = self.weight(parameters, group);
        let trained = self.trained(&weight, parameters, group);
        let mut dx = vec![0.0; x.len()];
        self.plan.groups[group].backward(x, trained, dy, &mut dx, &mut dp[self.place(group)], self.plan.threads);
        dx
    }

    fn compute(&self, x: &[f32], parameters: &[f32]) -> Saved {
        let plan = &*self.plan;
        let tokens = x.len() / plan.hidden;
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, self.norm(parameters, 0), plan.eps, &mut normed);
        let mut qkv = self.group(0, &normed, parameters);
        let mut raw = None;
        if let Some(norms) = self.head_norms() {
            raw = Some(qkv.clone());
            for (columns, weight) in self.queries_and_keys().iter().zip(norms) {
                norm_heads(&mut qkv, plan.heads.width(), columns, weight, plan.eps);
            }
        }
        self.turns.apply(&mut qkv, plan.heads.width(), self.turned(), 1.0);
        let mut heads = vec![0.0; tokens * plan.heads.query_width()];
        plan.heads.attend(&self.sequences, self.window(), &qkv, &mut heads);
        let (mut middle, attended) = self.behind(0, self.group(1, &heads, parameters));
        add(&mut middle, x);
        rms_norm(&middle, self.norm(parameters, 1), plan.eps, &mut normed);
        let gate_up = self.group(2, &normed, parameters);
        Saved { raw, qkv, heads, attended, middle, gate_up, fed: None }
    }

    /// From between gate and down to the end of the block.
    fn feed(&self, saved: &mut Saved, parameters: &[f32]) -> Vec<f32> {
        let inner = self.inner(&saved.gate_up);
        let (mut output, fed) = self.behind(1, self.group(3, &inner, parameters));
        saved.fed = fed;
        add(&mut output, &saved.middle);
        output
    }

    fn inner(&self, gate_up: &[f32]) -> Vec<f32> {
        let mut inner = vec![0.0; gate_up.len() / 2];
        gated(self.plan.activation, gate_up, self.plan.intermediate, &mut inner);
        inner
    }

    /// What a part adds to the stream: normed where there is a norm behind it, and then what the norm read.
    fn behind(&self, part: usize, added: Vec<f32>) -> (Vec<f32>, Option<Vec<f32>>) {
        let Some(norms) = self.frozen.as_ref().and_then(|it| it.post_norms.as_ref()) else { return (added, None) };
        let mut normed = vec![0.0; added.len()];
        rms_norm(&added, &norms[part], self.plan.eps, &mut normed);
        (normed, Some(added))
    }

    /// The gradient by what a part gives to the norm behind it; as it is where there is none.
    fn behind_backward<'a>(&self, part: usize, read: Option<&[f32]>, grad: &'a [f32]) -> Cow<'a, [f32]> {
        let norms = self.frozen.as_ref().and_then(|it| it.post_norms.as_ref());
        let (Some(norms), Some(read)) = (norms, read) else { return Cow::Borrowed(grad) };
        let mut dx = vec![0.0; grad.len()];
        rms_norm_backward(read, &norms[part], self.plan.eps, grad, &mut dx, None);
        Cow::Owned(dx)
    }

    fn head_norms(&self) -> Option<&[Vec<f32>; 2]> {
        self.frozen.as_ref()?.head_norms.as_ref()
    }

    fn window(&self) -> Option<usize> {
        self.frozen.as_ref()?.window
    }

    /// The columns of queries, and of keys.
    fn queries_and_keys(&self) -> [Range<usize>; 2] {
        let queries = self.plan.heads.query_width();
        [0..queries, queries..queries + self.plan.heads.key_width()]
    }

    /// The columns that rotary positions turn: queries and keys.
    fn turned(&self) -> Range<usize> {
        0..self.plan.heads.query_width() + self.plan.heads.key_width()
    }

    /// The gradient by what the first group wrote, from the gradient by the heads.
    fn attention_backward(&self, saved: &Saved, d_heads: &[f32]) -> Vec<f32> {
        let plan = &*self.plan;
        let mut dqkv = vec![0.0; saved.qkv.len()];
        plan.heads.attend_backward(&self.sequences, self.window(), &saved.qkv, d_heads, &mut dqkv);
        self.turns.apply(&mut dqkv, plan.heads.width(), self.turned(), -1.0);
        if let (Some(norms), Some(raw)) = (self.head_norms(), &saved.raw) {
            for (columns, weight) in self.queries_and_keys().iter().zip(norms) {
                norm_heads_backward(raw, &mut dqkv, plan.heads.width(), columns, weight, plan.eps);
            }
        }
        dqkv
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
        let mut saved = self.compute(values[0], values[1]);
        output.copy_from_slice(&self.feed(&mut saved, values[1]));
        if !self.plan.recomputes {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        }
    }

    fn backward(&self, values: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        let (plan, x, parameters) = (&*self.plan, values[0], values[1]);
        let [dx, dp] = grads else { return };
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut saved = saved.unwrap_or_else(|| {
            let mut saved = self.compute(x, parameters);
            if self.frozen.as_ref().is_some_and(|it| it.post_norms.is_some()) {
                self.feed(&mut saved, parameters);
            }
            saved
        });
        let [first, second] = [0, 1].map(|it| self.norm(parameters, it));
        let wanted = |index: usize| self.frozen.is_none().then(|| plan.whole()[index].clone());

        let inner = self.inner(&saved.gate_up);
        let d_fed = self.behind_backward(1, saved.fed.as_deref(), grad);
        let d_inner = self.group_backward(3, &inner, parameters, &d_fed, dp);
        drop(inner);
        gated_backward(plan.activation, &mut saved.gate_up, plan.intermediate, &d_inner);
        drop(d_inner);
        let mut normed = vec![0.0; x.len()];
        rms_norm(&saved.middle, second, plan.eps, &mut normed);
        let d_normed = self.group_backward(2, &normed, parameters, &saved.gate_up, dp);
        // The gradient by the middle: through the residual, and through the feed-forward part.
        let mut d_middle = grad.to_vec();
        let dw = wanted(1).map(|it| &mut dp[it]);
        rms_norm_backward(&saved.middle, second, plan.eps, &d_normed, &mut d_middle, dw);

        let d_attended = self.behind_backward(0, saved.attended.as_deref(), &d_middle);
        let d_heads = self.group_backward(1, &saved.heads, parameters, &d_attended, dp);
        let dqkv = self.attention_backward(&saved, &d_heads);
        rms_norm(x, first, plan.eps, &mut normed);
        let d_normed = self.group_backward(0, &normed, parameters, &dqkv, dp);
        drop(d_attended);
        dx.copy_from_slice(&d_middle);
        let dw = wanted(0).map(|it| &mut dp[it]);
        rms_norm_backward(x, first, plan.eps, &d_normed, dx, dw);
    }
}

#[cfg(test)]
mod tests {
    use fsq_checkpoint::Turning;

    use super::super::check::{gradients, noise};
    use super::*;

    /// What a block may have beyond a plain Llama's.
    #[derive(Clone, Copy, Default)]
    struct Beyond {
        biased: bool,
        head_norms: bool,
        post_norms: bool,
        window: Option<usize>,
        gelu: bool,
        /// Queries, keys and values are one linear, gate and up another.
        fused: bool,
        recomputes: bool,
    }

    fn block(adapter: Option<(usize, f32)>, adapted: [&[usize]; GROUPS], beyond: Beyond) -> Block {
        let heads = Heads { queries: 4, keys: 2, dim: 2, scale: 0.7 };
        let group = |inputs: usize, outputs: &[usize], adapted: &[usize]| {
            let outputs = if beyond.fused { vec![outputs.iter().sum()] } else { outputs.to_vec() };
            Group { inputs, outputs, adapted: adapted.to_vec() }
        };
        let groups = [
            group(6, &[8, 4, 4], adapted[0]),
            group(8, &[6], adapted[1]),
            group(6, &[5, 5], adapted[2]),
            group(5, &[6], adapted[3]),
        ];
        let activation = if beyond.gelu { Activation::GeluTanh } else { Activation::Silu };
        let (threads, recomputes) = (1, beyond.recomputes);
        let plan =
            Plan { heads, hidden: 6, intermediate: 5, eps: 1e-5, activation, groups, adapter, threads, recomputes };
        let frozen = adapter.is_some().then(|| {
            let values = |count: usize, seed: u64| noise(count, seed, 0.8);
            let pair = |width: usize, seed: u64| [values(width, seed), values(width, seed + 1)];
            Arc::new(Frozen {
                norms: pair(6, 5),
                groups: [0, 1, 2, 3].map(|it| Weights::F32(values(plan.groups[it].weights(), 7 + it as u64))),
                biases: [0, 1, 2, 3].map(|it| beyond.biased.then(|| values(plan.groups[it].width(), 11 + it as u64))),
                head_norms: beyond.head_norms.then(|| pair(2, 15)),
                post_norms: beyond.post_norms.then(|| pair(6, 17)),
                window: beyond.window,
            })
        });
        let turning = Turning { divisors: vec![1.0], magnitude: 1.0 };
        let turns = Turns::new(&[0, 1, 2, 0, 1], 2, 100.0, &turning);
        let sequences = Arc::new(vec![0..3, 3..5]);
        Block { plan: Arc::new(plan), frozen, turns, sequences, saved: Mutex::new(None) }
    }

    const ALL: [&[usize]; GROUPS] = [&[0, 1, 2], &[0], &[0, 1], &[0]];

    /// Finite differences by the input and by every parameter.
    #[track_caller]
    fn assert_gradients(block: &Block, seed: u64) {
        let n = block.plan.parameters();
        gradients(block, &[(vec![5, 6], noise(30, 1, 1.0)), (vec![n], noise(n, seed, 0.8))], &[0, 1], 4e-3);
    }

    #[test]
    fn every_weight_gets_the_gradient_of_finite_differences() {
        assert_gradients(&block(None, ALL, Beyond::default()), 2);
    }

    #[test]
    fn every_adapter_matrix_gets_the_gradient_of_finite_differences() {
        assert_gradients(&block(Some((2, 0.7)), ALL, Beyond::default()), 3);
    }

    #[test]
    fn what_architectures_add_gets_through_to_the_gradients() {
        let plain = Beyond::default();
        let each = [
            Beyond { biased: true, ..plain },
            Beyond { head_norms: true, ..plain },
            Beyond { post_norms: true, ..plain },
            Beyond { window: Some(2), ..plain },
            Beyond { gelu: true, ..plain },
            Beyond { biased: true, head_norms: true, post_norms: true, window: Some(2), gelu: true, ..plain },
        ];
        let mut outputs = Vec::new();
        for beyond in std::iter::once(plain).chain(each) {
            let block = block(Some((2, 0.7)), ALL, beyond);
            assert_gradients(&block, 3);
            let mut output = vec![0.0; 30];
            block.forward(&[&noise(30, 1, 1.0), &noise(block.plan.parameters(), 3, 0.8)], &mut output);
            assert!(!outputs.contains(&output), "an option changes nothing");
            outputs.push(output);
        }
    }

    #[test]
    fn some_linears_may_have_no_adapter_and_fused_ones_have_one() {
        let fewer: [&[usize]; GROUPS] = [&[0, 2], &[], &[1], &[]];
        assert_gradients(&block(Some((2, 0.7)), fewer, Beyond::default()), 3);
        let fused = Beyond { fused: true, ..Beyond::default() };
        assert_gradients(&block(Some((2, 0.7)), [&[0], &[0], &[0], &[0]], fused), 3);
    }

    #[test]
    fn what_is_computed_again_is_the_same() {
        let run = |recomputes: bool| {
            let beyond = Beyond { post_norms: true, head_norms: true, recomputes, ..Beyond::default() };
            let block = block(Some((2, 0.7)), ALL, beyond);
            let (x, parameters) = (noise(30, 1, 1.0), noise(block.plan.parameters(), 3, 0.8));
            block.forward(&[&x, &parameters], &mut [0.0; 30]);
            let mut grads = vec![vec![0.0; 30], vec![0.0; parameters.len()]];
            block.backward(&[&x, &parameters], &noise(30, 4, 1.0), &mut grads);
            grads
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn sequences_and_later_tokens_are_not_seen() {
        let block = block(None, ALL, Beyond::default());
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
