//! AVX2 with FMA and F16C: two registers for sixteen lanes. Products of bytes by way of 16-bit pairs, or in one
//! instruction where the machine has VNNI at this width.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{Isa, Kernel, LANES, Line};

/// How four products of bytes are added to a lane.
pub(crate) trait Products: Copy {
    /// As [`Isa::WIDE_ZERO`].
    const WIDE_ZERO: i32;

    fn detect() -> bool;

    /// Runs a kernel in a function that is compiled for the instructions.
    ///
    /// # Safety
    /// The machine has AVX2, FMA, F16C and what `detect` looks for.
    unsafe fn run<K: Kernel>(isa: Avx2<Self>, kernel: K) -> K::Output;

    /// `acc + Σ code · value` for codes up to 127.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn dot(acc: __m256i, codes: __m256i, values: __m256i) -> __m256i;

    /// `acc + Σ (code - 128 + WIDE_ZERO) · value` for any codes.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn dot_wide(acc: __m256i, codes: __m256i, values: __m256i) -> __m256i;
}

/// Implements [`Products::run`] for a list of features.
macro_rules! compiled_for {
    ($features:literal) => {
        #[inline(always)]
        unsafe fn run<K: Kernel>(isa: Avx2<Self>, kernel: K) -> K::Output {
            #[target_feature(enable = $features)]
            fn compiled<K: Kernel, P: Products>(isa: Avx2<P>, kernel: K) -> K::Output {
                kernel.run(isa)
            }
            // SAFETY: by this function's own condition.
            unsafe { compiled(isa, kernel) }
        }
    };
}

/// AVX2 alone: products of bytes, pairs of them added in 16 bits, those in 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pairs;

impl Products for Pairs {
    const WIDE_ZERO: i32 = 0;

    fn detect() -> bool {
        true
    }

    compiled_for!("avx2,fma,f16c");

    #[inline(always)]
    unsafe fn dot(acc: __m256i, codes: __m256i, values: __m256i) -> __m256i {
        // SAFETY: by this function's own condition.
        unsafe {
            // Codes up to 127 times values up to 127: a pair's sum fits 16 bits.
            let pairs = _mm256_maddubs_epi16(codes, values);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn dot_wide(acc: __m256i, codes: __m256i, values: __m256i) -> __m256i {
        // SAFETY: by this function's own condition.
        unsafe {
            // Signed codes by way of |value| · (code with the value's sign). The one case that does not fit is a code
            // of 0, -128 when signed, with a negative value: no encoder writes it.
            let signed = _mm256_sign_epi8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), values);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), signed);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

macro_rules! vnni {
    ($name:ident, $about:literal, $features:literal, [$($feature:tt),*], $dot:ident) => {
        #[doc = $about]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct $name;

        impl Products for $name {
            const WIDE_ZERO: i32 = 128;

            fn detect() -> bool {
                true $(&& is_x86_feature_detected!($feature))*
            }

            compiled_for!($features);

            #[inline(always)]
            unsafe fn dot(acc: __m256i, codes: __m256i, values: __m256i) -> __m256i {
                // SAFETY: by this function's own condition.
                unsafe { $dot(acc, codes, values) }
            }

            #[inline(always)]
            unsafe fn dot_wide(acc: __m256i, codes: __m256i, values: __m256i) -> __m256i {
                // SAFETY: by this function's own condition.
                unsafe { $dot(acc, codes, values) }
            }
        }
    };
}

vnni!(
    ShortVnni,
    "AVX-VNNI, as on desktops without AVX-512.",
    "avx2,fma,f16c,avxvnni",
    ["avxvnni"],
    _mm256_dpbusd_avx_epi32
);
vnni!(
    LongVnni,
    "The same product in AVX-512's encoding: for machines that slow down under 512 bits, and the test of the other.",
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    ["avx512f", "avx512vl", "avx512vnni"],
    _mm256_dpbusd_epi32
);

/// Proof that the machine has AVX2, FMA, F16C and the products' instructions. Only `detect` makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2<P>(PhantomData<P>);

impl<P: Products> Avx2<P> {
    pub(crate) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        (found && P::detect()).then_some(Self(PhantomData))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves that the machine has these instructions.
        unsafe { P::run(self, kernel) }
    }
}

/// Calls intrinsics on behalf of a method that holds the proof.
macro_rules! with_proof {
    ($body:expr) => {
        // SAFETY: the method's `self` proves that the machine has the instructions, and loads and stores go
        // through references to arrays of the right size.
        unsafe { $body }
    };
}

/// The same instruction on both halves.
macro_rules! halves {
    ($function:ident, $a:expr) => {
        with_proof!([$function($a[0]), $function($a[1])])
    };
    ($function:ident, $a:expr, $b:expr) => {
        with_proof!([$function($a[0], $b[0]), $function($a[1], $b[1])])
    };
    ($function:ident, $a:expr, $b:expr, $c:expr) => {
        with_proof!([$function($a[0], $b[0], $c[0]), $function($a[1], $b[1], $c[1])])
    };
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl<P: Products> Isa for Avx2<P> {
    type F = F;
    type I = I;
    const ROWS_MAX: usize = 4;
    const WIDE_ZERO: i32 = P::WIDE_ZERO;

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        with_proof!([_mm256_set1_ps(value); 2])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        with_proof!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, value: F, into: &mut [f32; LANES]) {
        with_proof!({
            _mm256_storeu_ps(into.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(into.as_mut_ptr().add(8), value[1]);
        });
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        with_proof!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(8).cast())),
        ])
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        with_proof!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(8).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        })
    }
    #[inline(always)]
    fn store_f16(self, value: F, into: &mut [u16; LANES]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        with_proof!({
            _mm_storeu_si128(into.as_mut_ptr().cast(), _mm256_cvtps_ph::<NEAREST>(value[0]));
            _mm_storeu_si128(into.as_mut_ptr().add(8).cast(), _mm256_cvtps_ph::<NEAREST>(value[1]));
        });
    }
    #[inline(always)]
    fn store_i8(self, value: F, into: &mut [i8; LANES]) -> i32 {
        with_proof!({
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(value[0]), _mm256_cvtps_epi32(value[1]));
            // Packing works on each half of a register: the quarters are put in order again.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(into.as_mut_ptr().cast(), bytes);
            super::sum_of_bytes(bytes)
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F {
        with_proof!({
            let all = _mm_loadu_si128(from.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all))),
            ]
        })
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        halves!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        with_proof!([_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])])
    }
    #[inline(always)]
    fn scale_by_power(self, a: F, n: F) -> F {
        let power = |n: __m256| {
            with_proof!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                _mm256_cvtps_epi32(n),
                _mm256_set1_epi32(127)
            ))))
        };
        self.mul(a, [power(n[0]), power(n[1])])
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        // Pairs of pairs, as the 512-bit reduction does it.
        let mut n = LANES / 2;
        while n > 0 {
            for lane in 0..n {
                lanes[lane] += lanes[lane + n];
            }
            n /= 2;
        }
        lanes[0]
    }
    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> I {
        with_proof!([_mm256_set1_epi32(value); 2])
    }
    #[inline(always)]
    fn load_line(self, from: &Line) -> I {
        with_proof!([_mm256_load_si256(from.0.as_ptr().cast()), _mm256_load_si256(from.0.as_ptr().add(32).cast()),])
    }
    #[inline(always)]
    fn shift<const N: u32>(self, a: I) -> I {
        // The instruction wants an `i32` constant, and constants cannot be converted in a generic position.
        with_proof!({
            let count = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi16(a[0], count), _mm256_srl_epi16(a[1], count)]
        })
    }
    #[inline(always)]
    fn and(self, a: I, mask: u8) -> I {
        with_proof!({
            let mask = _mm256_set1_epi8(mask as i8);
            [_mm256_and_si256(a[0], mask), _mm256_and_si256(a[1], mask)]
        })
    }
    #[inline(always)]
    fn raise<const N: u32>(self, a: I) -> I {
        with_proof!({
            let count = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi16(a[0], count), _mm256_sll_epi16(a[1], count)]
        })
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        halves!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: I) -> I {
        with_proof!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, places[0]), _mm256_shuffle_epi8(table, places[1])]
        })
    }
    #[inline(always)]
    fn dot(self, acc: I, codes: I, quad: i32) -> I {
        with_proof!({
            let values = _mm256_set1_epi32(quad);
            [P::dot(acc[0], codes[0], values), P::dot(acc[1], codes[1], values)]
        })
    }
    #[inline(always)]
    fn dot_wide(self, acc: I, codes: I, quad: i32) -> I {
        with_proof!({
            let values = _mm256_set1_epi32(quad);
            [P::dot_wide(acc[0], codes[0], values), P::dot_wide(acc[1], codes[1], values)]
        })
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; 2 * LANES]) -> I {
        with_proof!([
            _mm256_cvtepu8_epi16(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtepu8_epi16(_mm_loadu_si128(from.as_ptr().add(LANES).cast())),
        ])
    }
    #[inline(always)]
    fn dot_pairs(self, acc: I, pairs: I, values: i32) -> I {
        with_proof!({
            let values = _mm256_set1_epi32(values);
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(pairs[0], values)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(pairs[1], values)),
            ]
        })
    }
    #[inline(always)]
    fn to_float(self, a: I) -> F {
        halves!(_mm256_cvtepi32_ps, a)
    }
    #[inline(always)]
    fn prefetch<T>(self, soon: &[T]) {
        super::prefetch_lines(soon);
    }
}
