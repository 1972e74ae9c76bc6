//! The forward pass of every architecture over a mixed batch of prompts and decoded tokens. Knows no text.
//!
//! All tokens of a batch form one `[tokens, hidden]` matrix; only attention looks at which sequence a row belongs to.
//! A row's numbers do not depend on the rest of its batch, so batching, splitting a prompt or forking change nothing.

use std::collections::{BTreeMap, HashSet};

use fsq_checkpoint::{Activation, Adapter, Dimensions, Experts, Linear, RopeScaling};
use fsq_gguf::Gguf;
use fsq_kernels::{Attending, Backend, CacheShape, Cpu, KernelError, KvFormat, PAGE_TOKENS, RotaryHeads, Slot, Span};

use crate::batch::{Batch, Rows};
use crate::buffers::{Around, Buffers};
use crate::experts::route;
use crate::observe::{ColumnSums, Observer, Observing};
use crate::pages::{Claim, Pages};
use crate::prefixes::Lineage;
use crate::rotary::RotaryTable;
use crate::weights::{LoadedAdapter, Weights, rotary_pairs};
use crate::{AdapterId, Decode, Logits, ModelError, SequenceId, Step, TokenId, config};

/// What a decoder is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderOptions {
    /// Threads that multiply, the calling one included.
    pub threads: usize,
    /// Longest sequence in tokens; cut to what the policy was trained for.
    pub context_tokens: usize,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// Sequences of full length that fit beside each other. Memory is taken as it is used.
    pub max_sequences: usize,
}

/// A policy on a device, with its open sequences.
pub struct Decoder<B: Backend> {
    backend: B,
    dimensions: Dimensions,
    options: DecoderOptions,
    weights: Weights<B>,
    /// Of layers that attend to everything and, where they turn otherwise, of those with a window.
    rotary: Vec<RotaryTable>,
    /// Each with its lineage, a number that no other adapter was ever given.
    adapters: BTreeMap<AdapterId, (Lineage, LoadedAdapter<B>)>,
    last_lineage: Lineage,
    pages: Pages,
    cache: B::Cache,
    kv_bytes: u64,
    buffers: Buffers<B>,
    /// There while what matrices read is observed.
    observer: Option<Observer>,
}

impl Decoder<Cpu> {
    /// Loads a policy for the CPU. The file may be closed afterwards.
    ///
    /// # Errors
    /// What in the file cannot be run, by field or tensor; [`ModelError::Device`] when memory is short.
    pub fn load(gguf: &Gguf, options: DecoderOptions) -> Result<Self, ModelError> {
        Self::load_on(Cpu::new(options.threads), gguf, options)
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a policy for a device that has been set up.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_on(backend: B, gguf: &Gguf, mut options: DecoderOptions) -> Result<Self, ModelError> {
        let dimensions = config::read(gguf)?;
        options.context_tokens = options.context_tokens.clamp(1, dimensions.context);
        options.max_sequences = options.max_sequences.max(1);
        let pages_each = options.context_tokens.div_ceil(PAGE_TOKENS);
        let n_pages = pages_each.saturating_mul(options.max_sequences).min(u32::MAX as usize);
        let shape = CacheShape {
            format: options.kv,
            n_layers: dimensions.n_layers,
            n_pages,
            n_kv_heads: dimensions.n_kv_heads,
            head_dim: dimensions.head_dim,
        };
        Ok(Self {
            weights: Weights::load(&backend, gguf, &dimensions)?,
            rotary: rotary_tables(&dimensions, options.context_tokens),
            adapters: BTreeMap::new(),
            last_lineage: 0,
            pages: Pages::new(n_pages),
            cache: backend.cache(shape)?,
            kv_bytes: shape.bytes().unwrap_or(usize::MAX) as u64,
            buffers: Buffers::new(&backend, &dimensions, 1, 1)?,
            observer: None,
            backend,
            dimensions,
            options,
        })
    }

    /// The policy's sizes.
    pub fn config(&self) -> &Dimensions {
        &self.dimensions
    }

    /// What the decoder was made for, with limits as they hold.
    pub fn options(&self) -> &DecoderOptions {
        &self.options
    }

    /// What keys and values take at most, all sequences full; memory is taken as it is used.
    pub fn kv_bytes(&self) -> u64 {
        self.kv_bytes
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Puts an adapter in a place, over what was there; `None` empties the place.
    ///
    /// Sequences that ran under what was there before keep its keys and values: close or truncate them. Nobody else
    /// is given those.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] names the module that does not fit; the place is unchanged then.
    pub fn set_adapter(&mut self, place: AdapterId, adapter: Option<&Adapter>) -> Result<(), ModelError> {
        match adapter {
            Some(adapter) => {
                let loaded = LoadedAdapter::load(&self.backend, adapter, &self.dimensions)?;
                self.last_lineage += 1;
                self.adapters.insert(place, (self.last_lineage, loaded));
            }
            None => {
                self.adapters.remove(&place);
            }
        }
        Ok(())
    }

    /// From now on sums, by column, the squares of what each matrix reads; see [`Decoder::observed`].
    ///
    /// Behind the last attention only rows with logits are read, so there only those are seen.
    pub fn observe(&mut self, observing: Observing) {
        self.observer = Some(Observer::new(observing));
    }

    /// Runs one step while observing, in which the inputs of each token count as often as its weight says (`[tokens]`).
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    ///
    /// # Panics
    /// When there are more or fewer weights than tokens, or nothing observes.
    pub fn forward_weighted(&mut self, step: Step<'_>, weights: &[f32]) -> Result<Logits, ModelError> {
        assert_eq!(weights.len(), step.tokens.len(), "a weight for each token");
        let observer = self.observer.as_mut();
        observer.expect("weights are for what is observed").weigh_rows(weights);
        // Every row must come through the last layer, or the weights would be those of others.
        let logits = self.forward(&[Step { logits: crate::LogitsFor::All, ..step }]);
        if let Some(observer) = &mut self.observer {
            observer.weigh_rows(&[]);
        }
        logits
    }

    /// Ends [`Decoder::observe`]: the sums by the tensors' names in the file. Empty where nothing was observed.
    pub fn observed(&mut self) -> BTreeMap<String, ColumnSums> {
        self.observer.take().map(Observer::into_sums).unwrap_or_default()
    }

    /// Opens an empty sequence.
    pub fn open_sequence(&mut self) -> SequenceId {
        self.pages.open()
    }

    /// Opens a sequence with the same tokens; see [`Decode::fork`].
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, ModelError> {
        self.pages.fork(sequence)
    }

    /// Closes a sequence and frees its pages; closing it again does nothing.
    pub fn close(&mut self, sequence: SequenceId) {
        self.pages.close(sequence);
    }

    /// Forgets all tokens after the first `len`.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    pub fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), ModelError> {
        self.pages.truncate(sequence, len)
    }

    /// The tokens of a sequence; `None` when it is not open.
    pub fn tokens(&self, sequence: SequenceId) -> Option<&[TokenId]> {
        self.pages.tokens(sequence)
    }

    /// Extends every named sequence by its step, all in one pass; see [`Decode::forward`].
    ///
    /// # Errors
    /// As [`Decode::forward`].
    pub fn forward(&mut self, steps: &[Step<'_>]) -> Result<Logits, ModelError> {
        self.check(steps)?;
        let batch = Batch::new(steps, &self.pages);
        let growth: Vec<_> = batch.steps.iter().map(|it| (it.sequence, it.tokens.len())).collect();
        let claim = self.pages.claim(&growth)?;
        match self.run(&batch, &claim) {
            Ok(values) => {
                let lineage = |step: &Step<'_>| self.lineage(step.adapter).unwrap_or_default();
                let ran: Vec<_> = batch.steps.iter().map(|it| (it.tokens, lineage(it))).collect();
                self.pages.commit(claim, ran.into_iter());
                Ok(Logits::new(self.dimensions.vocab, values, batch.logit_rows_by_input()))
            }
            Err(error) => {
                self.pages.give_back(claim);
                Err(error.into())
            }
        }
    }

    /// What runs under an adapter; `None` when it is not there.
    fn lineage(&self, adapter: Option<AdapterId>) -> Option<Lineage> {
        adapter.map_or(Some(0), |it| Some(self.adapters.get(&it)?.0))
    }

    fn check(&self, steps: &[Step<'_>]) -> Result<(), ModelError> {
        let vocab = self.dimensions.vocab;
        let mut seen = HashSet::with_capacity(steps.len());
        for step in steps {
            let sequence = step.sequence;
            let held = self.pages.tokens(sequence).ok_or(ModelError::UnknownSequence { sequence })?;
            if !seen.insert(sequence) {
                return Err(ModelError::SequenceTwice { sequence });
            }
            if step.tokens.is_empty() {
                return Err(ModelError::EmptyStep);
            }
            let (needed, context_tokens) = (held.len() + step.tokens.len(), self.options.context_tokens);
            if needed > context_tokens {
                return Err(ModelError::ContextFull { needed, context_tokens });
            }
            if let Some(token) = step.tokens.iter().copied().find(|it| *it as usize >= vocab) {
                return Err(ModelError::UnknownToken { token, vocab });
            }
            if let Some(adapter) = step.adapter.filter(|it| !self.adapters.contains_key(it)) {
                return Err(ModelError::UnknownAdapter { adapter });
            }
        }
        Ok(())
    }

    /// Runs a batch whose pages have been claimed; `[rows with logits, vocab]` comes back.
    fn run(&mut self, batch: &Batch<'_>, claim: &Claim) -> Result<Vec<f32>, KernelError> {
        let (n_tokens, n_logits) = (batch.tokens.len(), batch.logit_rows.len());
        if n_tokens == 0 {
            return Ok(Vec::new());
        }
        if n_tokens > self.buffers.n_tokens || n_logits > self.buffers.n_logits {
            let (n_tokens, n_logits) = (n_tokens.max(self.buffers.n_tokens), n_logits.max(self.buffers.n_logits));
            self.buffers = Buffers::new(&self.backend, &self.dimensions, n_tokens, n_logits)?;
        }
        for (from, to) in &claim.copies {
            self.backend.copy_page(&mut self.cache, *from, *to);
        }
        for (table, buffer) in self.rotary.iter_mut().zip(&mut self.buffers.angles) {
            let mut angles = Vec::with_capacity(n_tokens * self.dimensions.rotary_dim());
            batch.positions().for_each(|it| angles.extend_from_slice(table.at(it)));
            self.backend.write(&angles, buffer);
        }
        self.backend.embed(&self.weights.embedding, &batch.tokens, &mut self.buffers.stream);
        if self.dimensions.architecture.description().embedding_scaled {
            let hidden = self.dimensions.hidden;
            self.backend.scale(&mut self.buffers.stream, n_tokens * hidden, (hidden as f32).sqrt());
        }
        let (first_norm, eps) = (&self.weights.layers[0].attention_norm, self.dimensions.rms_eps);
        self.backend.rms_norm(&self.buffers.stream, first_norm, eps, n_tokens, &mut self.buffers.normed);
        let spans = batch.spans(claim);
        let slots = batch.slots(claim);
        for layer in 0..self.dimensions.n_layers {
            self.attend(layer, batch, &spans, &slots)?;
            let is_last = layer + 1 == self.dimensions.n_layers;
            if is_last && n_logits == 0 {
                return Ok(Vec::new());
            }
            // Behind the last attention only the rows that logits are wanted of matter.
            let rows = if is_last { self.keep_logit_rows(batch) } else { batch.rows() };
            self.feed_forward(layer, &rows)?;
        }
        if let Some(observer) = &mut self.observer {
            let tensor = if self.dimensions.tied { "token_embd.weight" } else { "output.weight" };
            observer.see(tensor.into(), self.dimensions.hidden, &self.backend, (&self.buffers.normed, n_logits))?;
        }
        self.backend.matmul(self.weights.output(), &self.buffers.normed, n_logits, &mut self.buffers.logits);
        if let Some(cap) = self.dimensions.options.logit_cap {
            self.backend.cap(&mut self.buffers.logits, n_logits * self.dimensions.vocab, cap);
        }
        let mut logits = vec![0.0; n_logits * self.dimensions.vocab];
        self.backend.read(&self.buffers.logits, &mut logits)?;
        Ok(logits)
    }

    /// From `normed` to `attended`, the heads' outputs.
    fn attend(
        &mut self,
        layer: usize,
        batch: &Batch<'_>,
        spans: &[Span<'_>],
        slots: &[Slot],
    ) -> Result<(), KernelError> {
        let Dimensions { n_heads, n_kv_heads, head_dim, architecture, .. } = self.dimensions;
        let window = self.dimensions.window(layer);
        let rows = batch.rows();
        self.linears(layer, [Linear::Q, Linear::K, Linear::V], Buffers::around_heads, &rows)?;
        let (backend, buffers) = (&self.backend, &mut self.buffers);
        if let Some([of_queries, of_keys]) = &self.weights.layers[layer].head_norms {
            // `attended` is as large as the queries and free until they attend.
            let (eps, n) = (self.dimensions.rms_eps, rows.n);
            backend.rms_norm(&buffers.queries, of_queries, eps, n * n_heads, &mut buffers.attended);
            std::mem::swap(&mut buffers.queries, &mut buffers.attended);
            backend.rms_norm(&buffers.keys, of_keys, eps, n * n_kv_heads, &mut buffers.normed_keys);
            std::mem::swap(&mut buffers.keys, &mut buffers.normed_keys);
        }
        let (rotary_dim, pairs) = (self.dimensions.rotary_dim(), rotary_pairs(architecture));
        let heads = |n_heads| RotaryHeads { n_heads, head_dim, rotary_dim, pairs };
        // Layers with a window take the second table where there is one.
        let angles = &buffers.angles[if window.is_some() { buffers.angles.len() - 1 } else { 0 }];
        backend.rope(&mut buffers.queries, angles, rows.n, heads(n_heads));
        backend.rope(&mut buffers.keys, angles, rows.n, heads(n_kv_heads));
        backend.store(&mut self.cache, layer, &buffers.keys, &buffers.values, slots);
        let attending = Attending { n_heads, scale: self.dimensions.attention_scale(), window };
        backend.attend(&self.cache, layer, &buffers.queries, attending, spans, &mut buffers.attended);
        Ok(())
    }

    /// From `attended` to the next block's `normed`, by way of the residual stream.
    fn feed_forward(&mut self, layer: usize, rows: &Rows) -> Result<(), KernelError> {
        let (n, hidden, eps) = (rows.n, self.dimensions.hidden, self.dimensions.rms_eps);
        let activation = self.dimensions.architecture.description().activation;
        self.linears(layer, [Linear::O], Buffers::around_output, rows)?;
        self.norm_delta(layer, 0, n);
        let norm = &self.weights.layers[layer].feed_forward_norm;
        let Buffers { delta, stream, normed, .. } = &mut self.buffers;
        self.backend.add_rms_norm(delta, stream, norm, eps, (n, hidden), normed);
        match self.dimensions.options.experts {
            Some(experts) => self.ask_experts(layer, &experts, n)?,
            None => {
                self.linears(layer, [Linear::Gate, Linear::Up], Buffers::around_gate, rows)?;
                let Buffers { gate, up, .. } = &mut self.buffers;
                open_gate(&self.backend, activation, gate, up, n * self.dimensions.intermediate);
                self.linears(layer, [Linear::Down], Buffers::around_down, rows)?;
            }
        }
        self.norm_delta(layer, 1, n);
        let next = self.weights.layers.get(layer + 1).map_or(&self.weights.output_norm, |it| &it.attention_norm);
        let Buffers { delta, stream, normed, .. } = &mut self.buffers;
        self.backend.add_rms_norm(delta, stream, next, eps, (n, hidden), normed);
        Ok(())
    }

    /// The norm of what a part of a block, the first or the second, adds to the stream, where it has one.
    fn norm_delta(&mut self, layer: usize, part: usize, n: usize) {
        let Some(norms) = &self.weights.layers[layer].post_norms else { return };
        let Buffers { delta, normed_delta, .. } = &mut self.buffers;
        self.backend.rms_norm(delta, &norms[part], self.dimensions.rms_eps, n, normed_delta);
        std::mem::swap(delta, normed_delta);
    }

    /// From `normed` to `delta`. A row adds its experts in their order, so its sum is the same in any company.
    fn ask_experts(&mut self, layer: usize, experts: &Experts, n: usize) -> Result<(), KernelError> {
        let hidden = self.dimensions.hidden;
        let activation = self.dimensions.architecture.description().activation;
        let Some(weights) = &self.weights.layers[layer].experts else { return Ok(()) };
        self.backend.matmul(&weights.router, &self.buffers.normed, n, &mut self.buffers.router);
        let mut logits = vec![0.0; n * experts.n];
        self.backend.read(&self.buffers.router, &mut logits)?;
        self.backend.write(&vec![0.0; n * hidden], &mut self.buffers.delta);
        for (expert, served) in route(&logits, experts).into_iter().enumerate() {
            let n_served = served.rows.len();
            if n_served == 0 {
                continue;
            }
            let [of_gate, of_up, of_down] = &weights.matrices[expert];
            let backend = &self.backend;
            let Buffers { normed, served: x, gate, up, contribution, delta, .. } = &mut self.buffers;
            backend.gather(normed, &served.rows, hidden, x);
            backend.matmuls([of_gate, of_up], x, n_served, [&mut *gate, &mut *up]);
            open_gate(backend, activation, gate, up, n_served * experts.intermediate);
            if let Some(observer) = &mut self.observer {
                observer.see_expert(&self.dimensions, (layer, expert), backend, (x, gate, &served.rows))?;
            }
            backend.matmul(of_down, gate, n_served, contribution);
            backend.add_rows(contribution, &served.rows, &served.weights, hidden, delta);
        }
        Ok(())
    }

    /// Matrices that read the same rows, their biases, and what the rows' adapters add to them.
    fn linears<const N: usize>(
        &mut self,
        layer: usize,
        linears: [Linear; N],
        around: Around<B, N>,
        rows: &Rows,
    ) -> Result<(), KernelError> {
        let (x, mut outs) = around(&mut self.buffers);
        if let Some(observer) = &mut self.observer {
            for linear in linears {
                observer.see_linear(&self.dimensions, (layer, linear), &self.backend, (x, rows.n))?;
            }
        }
        let projections = linears.map(|it| self.weights.layers[layer].linear(it));
        self.backend.matmuls(projections.map(|it| &it.weight), x, rows.n, outs.each_mut().map(|it| &mut **it));
        for ((linear, projection), out) in linears.into_iter().zip(projections).zip(outs) {
            if let Some(bias) = &projection.bias {
                self.backend.add_bias(bias, rows.n, out);
            }
            for (adapter, tokens) in &rows.adapters {
                let update = self.adapters.get(adapter).and_then(|it| it.1.update(layer, linear));
                if let Some(update) = update {
                    self.backend.add_low_rank(update, x, tokens.clone(), out);
                }
            }
        }
        Ok(())
    }

    /// Moves the rows with logits to the front of the residual stream and of the heads' outputs.
    fn keep_logit_rows(&mut self, batch: &Batch<'_>) -> Rows {
        let (hidden, heads) = (self.dimensions.hidden, self.dimensions.n_heads * self.dimensions.head_dim);
        if batch.logit_rows.len() == batch.tokens.len() {
            return batch.rows();
        }
        let Buffers { stream, attended, kept_stream, kept_attended, .. } = &mut self.buffers;
        self.backend.gather(stream, &batch.logit_rows, hidden, kept_stream);
        self.backend.gather(attended, &batch.logit_rows, heads, kept_attended);
        std::mem::swap(stream, kept_stream);
        std::mem::swap(attended, kept_attended);
        batch.kept_rows()
    }
}

impl<B: Backend> Decode for Decoder<B> {
    fn vocab(&self) -> usize {
        self.dimensions.vocab
    }
    fn context_tokens(&self) -> usize {
        self.options.context_tokens
    }
    fn max_sequences(&self) -> usize {
        self.options.max_sequences
    }
    fn page_tokens(&self) -> usize {
        PAGE_TOKENS
    }
    fn free_pages(&self) -> usize {
        self.pages.n_free()
    }
    fn pages_to_grow(&self, sequence: SequenceId, n_tokens: usize) -> usize {
        self.pages.needed(sequence, n_tokens).unwrap_or(0)
    }
    fn open_sequence(&mut self) -> SequenceId {
        Self::open_sequence(self)
    }
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, ModelError> {
        Self::fork(self, sequence)
    }
    fn share(&mut self, from: SequenceId, to: SequenceId, len: usize) -> Result<(), ModelError> {
        self.pages.share(from, to, len)
    }
    fn reuses(&self) -> bool {
        self.observer.is_none()
    }
    fn keep(&mut self, sequence: SequenceId) {
        self.pages.keep(sequence);
    }
    fn adopt(&mut self, sequence: SequenceId, text: &[TokenId], adapter: Option<AdapterId>) -> usize {
        match self.lineage(adapter) {
            Some(lineage) => self.pages.adopt(sequence, text, lineage),
            None => self.pages.tokens(sequence).map_or(0, <[_]>::len),
        }
    }
    fn close(&mut self, sequence: SequenceId) {
        Self::close(self, sequence);
    }
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), ModelError> {
        Self::truncate(self, sequence, len)
    }
    fn tokens(&self, sequence: SequenceId) -> Option<&[TokenId]> {
        Self::tokens(self, sequence)
    }
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Logits, ModelError> {
        Self::forward(self, steps)
    }
}

impl<B: Backend> std::fmt::Debug for Decoder<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("backend", &B::NAME)
            .field("dimensions", &self.dimensions)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The angles of layers that attend to everything and, where they turn otherwise, of those with a window.
fn rotary_tables(dimensions: &Dimensions, context: usize) -> Vec<RotaryTable> {
    let table = |theta: f32, scaling: &RopeScaling| {
        RotaryTable::new(theta, scaling.turning(theta, dimensions.rotary_dim(), context))
    };
    let sliding = dimensions.options.sliding.as_ref().and_then(|it| it.rope_theta);
    let everywhere = table(dimensions.rope_theta, &dimensions.options.rope);
    std::iter::once(everywhere).chain(sliding.map(|theta| table(theta, &RopeScaling::None))).collect()
}

/// `gate = activation(gate) · up` for the first `n` floats.
fn open_gate<B: Backend>(backend: &B, activation: Activation, gate: &mut B::Buffer, up: &B::Buffer, n: usize) {
    match activation {
        Activation::Silu => backend.swiglu(gate, up, n),
        Activation::GeluTanh => backend.geglu(gate, up, n),
    }
}
