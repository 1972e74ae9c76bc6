//! The memory that a forward pass works in. Knows no weights.

use fsq_checkpoint::Dimensions;
use fsq_kernels::{Backend, KernelError};

/// What flows between kernels, `[tokens, ..]` each; kept from pass to pass.
pub(crate) struct Buffers<B: Backend> {
    pub(crate) n_tokens: usize,
    pub(crate) n_logits: usize,
    /// The residual stream, `[tokens, hidden]`
    pub(crate) stream: B::Buffer,
    /// `[tokens, hidden]`
    pub(crate) normed: B::Buffer,
    /// What a block adds to the stream, `[tokens, hidden]`
    pub(crate) delta: B::Buffer,
    /// `[tokens, heads, head_dim]`
    pub(crate) queries: B::Buffer,
    /// `[tokens, kv heads, head_dim]`
    pub(crate) keys: B::Buffer,
    /// `[tokens, kv heads, head_dim]`
    pub(crate) values: B::Buffer,
    /// `[tokens, heads, head_dim]`
    pub(crate) attended: B::Buffer,
    /// Where normed keys are put before they change places with `keys`; empty where keys are not normed.
    pub(crate) normed_keys: B::Buffer,
    /// The same for `delta`.
    pub(crate) normed_delta: B::Buffer,
    /// Logits of the router, `[tokens, experts]`; empty where there are none, as are the next two.
    pub(crate) router: B::Buffer,
    /// The rows that one expert serves, `[tokens, hidden]`
    pub(crate) served: B::Buffer,
    /// What it makes of them, `[tokens, hidden]`
    pub(crate) contribution: B::Buffer,
    /// `[tokens, intermediate]`
    pub(crate) gate: B::Buffer,
    /// `[tokens, intermediate]`
    pub(crate) up: B::Buffer,
    /// `[tokens, rotary_dim]`, of each table of angles
    pub(crate) angles: Vec<B::Buffer>,
    /// Where the rows that stay are put before they change places with `stream`.
    pub(crate) kept_stream: B::Buffer,
    /// The same for `attended`.
    pub(crate) kept_attended: B::Buffer,
    /// `[rows with logits, vocab]`
    pub(crate) logits: B::Buffer,
}

impl<B: Backend> Buffers<B> {
    pub(crate) fn new(
        backend: &B,
        dimensions: &Dimensions,
        n_tokens: usize,
        n_logits: usize,
    ) -> Result<Self, KernelError> {
        let Dimensions { hidden, intermediate, n_heads, n_kv_heads, head_dim, vocab, .. } = *dimensions;
        let buffer = |width: usize| backend.buffer(n_tokens * width);
        let description = dimensions.architecture.description();
        let experts = dimensions.options.experts;
        let intermediate = experts.map_or(intermediate, |it| it.intermediate);
        let if_any = |present: bool, width: usize| buffer(if present { width } else { 0 });
        let sliding = dimensions.options.sliding.as_ref();
        let n_angles = if sliding.is_some_and(|it| it.rope_theta.is_some()) { 2 } else { 1 };
        Ok(Self {
            n_tokens,
            n_logits,
            stream: buffer(hidden)?,
            normed: buffer(hidden)?,
            delta: buffer(hidden)?,
            queries: buffer(n_heads * head_dim)?,
            keys: buffer(n_kv_heads * head_dim)?,
            values: buffer(n_kv_heads * head_dim)?,
            attended: buffer(n_heads * head_dim)?,
            normed_keys: if_any(description.head_norms, n_kv_heads * head_dim)?,
            normed_delta: if_any(description.post_norms, hidden)?,
            router: buffer(experts.map_or(0, |it| it.n))?,
            served: if_any(experts.is_some(), hidden)?,
            contribution: if_any(experts.is_some(), hidden)?,
            gate: buffer(intermediate)?,
            up: buffer(intermediate)?,
            angles: (0..n_angles).map(|_| buffer(dimensions.rotary_dim())).collect::<Result<_, _>>()?,
            kept_stream: buffer(hidden)?,
            kept_attended: buffer(n_heads * head_dim)?,
            logits: backend.buffer(n_logits * vocab)?,
        })
    }

    /// What the projections of queries, keys and values read and where they write.
    pub(crate) fn around_heads(&mut self) -> (&B::Buffer, [&mut B::Buffer; 3]) {
        (&self.normed, [&mut self.queries, &mut self.keys, &mut self.values])
    }

    /// The same of the attention's output.
    pub(crate) fn around_output(&mut self) -> (&B::Buffer, [&mut B::Buffer; 1]) {
        (&self.attended, [&mut self.delta])
    }

    /// The same of the gate and what it gates.
    pub(crate) fn around_gate(&mut self) -> (&B::Buffer, [&mut B::Buffer; 2]) {
        (&self.normed, [&mut self.gate, &mut self.up])
    }

    /// The same of the way down.
    pub(crate) fn around_down(&mut self) -> (&B::Buffer, [&mut B::Buffer; 1]) {
        (&self.gate, [&mut self.delta])
    }
}

/// What linears that read the same rows read, and where each of them writes.
pub(crate) type Around<B, const N: usize> =
    for<'a> fn(&'a mut Buffers<B>) -> (&'a <B as Backend>::Buffer, [&'a mut <B as Backend>::Buffer; N]);
