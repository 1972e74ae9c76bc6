//! What a device must be able to do for a policy to run on it. Knows no policy.
//!
//! Operations may be queued; a wrong shape is a bug in this project and panics; a device that fails says so at the
//! next [`Backend::read`]. A new backend is right before it is fast: whatever has a default body is composed of the
//! other operations until it gets a kernel of its own.

use std::ops::Range;

use fsq_blocks::Format;

use crate::KernelError;

/// Tokens of one page of keys and values.
pub const PAGE_TOKENS: usize = 32;

/// A matrix as it lies in a file.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// For messages.
    pub name: &'a str,
    /// How rows are bytes.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows` rows of `format.row_bytes(cols)` bytes.
    pub bytes: &'a [u8],
}

/// Which two numbers of a head are turned together by rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `2 i` and `2 i + 1`: GGUF files of the llama architecture, whose rows were reordered for it.
    Adjacent,
    /// `i` and `i + rotary_dim / 2`: Hugging Face's order, and that of most other architectures.
    Halves,
}

/// The heads that rotary positions turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryHeads {
    /// Heads of each token.
    pub n_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Numbers of each head that are turned, from the first; even.
    pub rotary_dim: usize,
    /// Which of them are turned together.
    pub pairs: RotaryPairs,
}

/// How queries meet keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attending {
    /// Query heads.
    pub n_heads: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// Tokens that one attends to, itself the last; all before it when `None`.
    pub window: Option<usize>,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// IEEE half floats.
    #[default]
    F16,
    /// 8 bits and a scale in f16 for each 32 numbers of a head, rounded as weights in [`Format::Q8_0`] are. The last
    /// block of a head is a shorter one where 32 does not divide its width.
    Q8_0,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F16, Self::Q8_0];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one token's keys, or values, of one head of so many numbers.
    #[must_use]
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => 2 * head_dim,
            Self::Q8_0 => head_dim + 2 * head_dim.div_ceil(32),
        }
    }
}

/// The size of a cache of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// How they are stored.
    pub format: KvFormat,
    /// Layers, each with its own keys and values.
    pub n_layers: usize,
    /// Pages of each layer.
    pub n_pages: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head; a multiple of 16.
    pub head_dim: usize,
}

impl CacheShape {
    /// Bytes of the whole cache; `None` when no address space holds them.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        let sizes = [2, PAGE_TOKENS, self.n_kv_heads, self.n_layers, self.n_pages];
        sizes.iter().try_fold(self.format.head_bytes(self.head_dim), |bytes, size| bytes.checked_mul(*size))
    }
}

/// Where one token's keys and values are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The page.
    pub page: u32,
    /// The place in it, below [`PAGE_TOKENS`].
    pub offset: u32,
}

/// Tokens of one sequence that attend in one call. Their own keys and values are in the cache already.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Row of the first token in the call's queries.
    pub first_token: usize,
    /// How many tokens.
    pub n_tokens: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
    /// The sequence's pages, in order; they hold at least `position + n_tokens` tokens.
    pub pages: &'a [u32],
}

/// A low-rank update of a matrix: `scale · B · A`.
#[derive(Debug)]
pub struct LowRank<M> {
    /// `[rank, cols]`
    pub a: M,
    /// `[rows, rank]`
    pub b: M,
    /// What the product is multiplied by.
    pub scale: f32,
}

/// One device's kernels. Buffers hold rows of f32, `[rows, width]`, and may be longer than what a call touches.
pub trait Backend: Sized + Send + 'static {
    /// Floats on the device.
    type Buffer: Send;
    /// A weight matrix on the device.
    type Matrix: Send;
    /// Pages of keys and values on the device.
    type Cache: Send;
    /// What people call it.
    const NAME: &'static str;

    /// Whether matrices of this format can be loaded; asked once, at load.
    fn reads(&self, format: Format) -> bool;
    /// Zeroes.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    fn buffer(&self, len: usize) -> Result<Self::Buffer, KernelError>;
    /// Copies a matrix to the device in whatever layout it multiplies best.
    ///
    /// # Errors
    /// [`KernelError::Weight`] when bytes and shape differ; [`KernelError::OutOfMemory`].
    fn load(&self, weight: WeightView<'_>) -> Result<Self::Matrix, KernelError>;
    /// Overwrites the start of a buffer.
    fn write(&self, from: &[f32], into: &mut Self::Buffer);
    /// Waits for all that is queued and reads the start of a buffer.
    ///
    /// # Errors
    /// [`KernelError::Device`] when anything failed since the last reading.
    fn read(&self, from: &Self::Buffer, into: &mut [f32]) -> Result<(), KernelError>;
    /// Pages for keys and values.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, KernelError>;

    /// `out[i] = table[tokens[i]]`, rows of `[tokens, cols]`.
    fn embed(&self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Buffer);
    /// `out[tokens, rows] = x[tokens, cols] · wᵀ`
    fn matmul(&self, w: &Self::Matrix, x: &Self::Buffer, n_tokens: usize, out: &mut Self::Buffer);
    /// `out[t] += scale · B · (A · x[t])` for the tokens `t` of a range.
    fn add_low_rank(
        &self,
        update: &LowRank<Self::Matrix>,
        x: &Self::Buffer,
        tokens: Range<usize>,
        out: &mut Self::Buffer,
    );
    /// `out = x / √(mean(x²) + epsilon) · weight` for rows of `[n_rows, width]`, `width` being the weight's.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Buffer, epsilon: f32, n_rows: usize, out: &mut Self::Buffer);
    /// Turns `x[tokens, heads, head_dim]` by `angles[tokens, rotary_dim]`: the cosines of all pairs, then the sines.
    fn rope(&self, x: &mut Self::Buffer, angles: &Self::Buffer, n_tokens: usize, heads: RotaryHeads);
    /// Puts keys and values, `[slots, kv heads, head_dim]`, into a layer's pages.
    fn store(&self, cache: &mut Self::Cache, layer: usize, keys: &Self::Buffer, values: &Self::Buffer, slots: &[Slot]);
    /// Copies a page of every layer.
    fn copy_page(&self, cache: &mut Self::Cache, from: u32, to: u32);
    /// `out = softmax(scale · q · kᵀ) · v` of `q[tokens, heads, head_dim]`, each token over the positions up to its
    /// own, from the first of its window; query head `h` reads key head `h · kv_heads / heads`.
    fn attend(
        &self,
        cache: &Self::Cache,
        layer: usize,
        queries: &Self::Buffer,
        attending: Attending,
        spans: &[Span<'_>],
        out: &mut Self::Buffer,
    );
    /// `x = x / (1 + e^-x)` for the first `n` floats.
    fn silu(&self, x: &mut Self::Buffer, n: usize);
    /// `x = x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))` for the first `n` floats: GELU's usual approximation
    /// (arXiv 1606.08415).
    fn gelu(&self, x: &mut Self::Buffer, n: usize);
    /// `x = cap · tanh(x / cap)` for the first `n` floats.
    fn cap(&self, x: &mut Self::Buffer, n: usize, cap: f32);
    /// `x = factor · x` for the first `n` floats.
    fn scale(&self, x: &mut Self::Buffer, n: usize, factor: f32);
    /// `into *= x` for the first `n` floats.
    fn multiply(&self, x: &Self::Buffer, n: usize, into: &mut Self::Buffer);
    /// `into += x` for the first `n` floats.
    fn add(&self, x: &Self::Buffer, n: usize, into: &mut Self::Buffer);
    /// `into += bias` for each row of `[n_rows, width]`, `width` being the bias's.
    fn add_bias(&self, bias: &Self::Buffer, n_rows: usize, into: &mut Self::Buffer);
    /// `out[i] = x[rows[i]]`, rows of `width` floats.
    fn gather(&self, x: &Self::Buffer, rows: &[usize], width: usize, out: &mut Self::Buffer);

    /// `into[rows[i]] += weights[i] · x[i]`, rows of `width` floats, none named twice.
    fn add_rows(&self, x: &Self::Buffer, rows: &[usize], weights: &[f32], width: usize, into: &mut Self::Buffer);

    /// `outs[i][tokens, rows] = x[tokens, cols] · wᵢᵀ`: matrices that read the same rows, so that a device can do with
    /// one start and one reading of them.
    fn matmuls<const N: usize>(
        &self,
        matrices: [&Self::Matrix; N],
        x: &Self::Buffer,
        n_tokens: usize,
        outs: [&mut Self::Buffer; N],
    ) {
        for (matrix, out) in matrices.into_iter().zip(outs) {
            self.matmul(matrix, x, n_tokens, out);
        }
    }
    /// `gate = gelu(gate) · up` for the first `n` floats.
    fn geglu(&self, gate: &mut Self::Buffer, up: &Self::Buffer, n: usize) {
        self.gelu(gate, n);
        self.multiply(up, n, gate);
    }
    /// `gate = silu(gate) · up` for the first `n` floats.
    fn swiglu(&self, gate: &mut Self::Buffer, up: &Self::Buffer, n: usize) {
        self.silu(gate, n);
        self.multiply(up, n, gate);
    }
    /// `into += x`, then the norm of `into`: how a block hands over to the next.
    fn add_rms_norm(
        &self,
        x: &Self::Buffer,
        into: &mut Self::Buffer,
        weight: &Self::Buffer,
        epsilon: f32,
        (n_rows, width): (usize, usize),
        out: &mut Self::Buffer,
    ) {
        self.add(x, n_rows * width, into);
        self.rms_norm(into, weight, epsilon, n_rows, out);
    }
}
