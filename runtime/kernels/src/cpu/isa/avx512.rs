//! AVX-512 with VNNI: one register for sixteen lanes, four byte products to an instruction.

use std::arch::x86_64::*;

use super::{Isa, Kernel, LANES, Line};

/// Proof that the machine has AVX-512 F, BW, VL, DQ and VNNI, AVX2, FMA and F16C. Only `detect` makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        fn compiled<K: Kernel>(isa: Avx512, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        // SAFETY: `self` proves that the machine has these instructions.
        unsafe { compiled(self, kernel) }
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

impl Isa for Avx512 {
    type F = __m512;
    type I = __m512i;
    const ROWS_MAX: usize = 8;
    const WIDE_ZERO: i32 = 128;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        with_proof!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        with_proof!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, value: __m512, into: &mut [f32; LANES]) {
        with_proof!(_mm512_storeu_ps(into.as_mut_ptr(), value));
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        with_proof!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        with_proof!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            from.as_ptr().cast()
        )))))
    }
    #[inline(always)]
    fn store_f16(self, value: __m512, into: &mut [u16; LANES]) {
        with_proof!(_mm256_storeu_si256(
            into.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value)
        ));
    }
    #[inline(always)]
    fn store_i8(self, value: __m512, into: &mut [i8; LANES]) -> i32 {
        with_proof!({
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value));
            _mm_storeu_si128(into.as_mut_ptr().cast(), bytes);
            super::sum_of_bytes(bytes)
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        with_proof!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        with_proof!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        with_proof!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        with_proof!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        with_proof!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        with_proof!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        with_proof!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with_proof!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        with_proof!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn scale_by_power(self, a: __m512, n: __m512) -> __m512 {
        with_proof!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        with_proof!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        with_proof!(_mm512_reduce_max_ps(a))
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        with_proof!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn load_line(self, from: &Line) -> __m512i {
        with_proof!(_mm512_load_si512(from.0.as_ptr().cast()))
    }
    #[inline(always)]
    fn shift<const N: u32>(self, a: __m512i) -> __m512i {
        with_proof!(_mm512_srli_epi16::<N>(a))
    }
    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        with_proof!(_mm512_and_si512(a, _mm512_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn raise<const N: u32>(self, a: __m512i) -> __m512i {
        with_proof!(_mm512_slli_epi16::<N>(a))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        with_proof!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: __m512i) -> __m512i {
        with_proof!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), places))
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, codes: __m512i, quad: i32) -> __m512i {
        with_proof!(_mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(quad)))
    }
    #[inline(always)]
    fn dot_wide(self, acc: __m512i, codes: __m512i, quad: i32) -> __m512i {
        self.dot(acc, codes, quad)
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; 2 * LANES]) -> __m512i {
        with_proof!(_mm512_cvtepu8_epi16(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512i, pairs: __m512i, values: i32) -> __m512i {
        with_proof!(_mm512_dpwssd_epi32(acc, pairs, _mm512_set1_epi32(values)))
    }
    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        with_proof!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn prefetch<T>(self, soon: &[T]) {
        super::prefetch_lines(soon);
    }
}
