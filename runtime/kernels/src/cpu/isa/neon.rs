//! NEON with its dot product: four registers for sixteen lanes, four byte products to an instruction and lane.
//!
//! With `i8mm` unsigned codes meet signed values in one instruction; without, codes beyond 127 are shifted first.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::{Isa, Kernel, LANES, Line};

/// Registers of sixteen lanes.
const N: usize = 4;

/// Proof that the machine has NEON and the dot product, and `i8mm` where `MIXED`. Only `detect` makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon<const MIXED: bool>(());

impl<const MIXED: bool> Neon<MIXED> {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_aarch64_feature_detected!("neon")
            && is_aarch64_feature_detected!("dotprod")
            && (!MIXED || is_aarch64_feature_detected!("i8mm"));
        found.then_some(Self(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled<K: Kernel, const MIXED: bool>(isa: Neon<MIXED>, kernel: K) -> K::Output {
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

/// One register from each of the operands' four.
macro_rules! each {
    (|$at:ident| $body:expr) => {
        with_proof!([
            {
                let $at = 0;
                $body
            },
            {
                let $at = 1;
                $body
            },
            {
                let $at = 2;
                $body
            },
            {
                let $at = 3;
                $body
            }
        ])
    };
}

/// `acc + Σ code · value` per lane, both signed. Written out because the intrinsic is not stable yet.
///
/// # Safety
/// The machine has the dot product.
#[inline(always)]
unsafe fn dot_signed(acc: int32x4_t, codes: uint8x16_t, values: int32x4_t) -> int32x4_t {
    let mut sums = acc;
    // SAFETY: by this function's own condition; the instruction touches registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {codes:v}.16b, {values:v}.16b",
            sums = inout(vreg) sums, codes = in(vreg) codes, values = in(vreg) values,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// `acc + Σ code · value` per lane, codes unsigned and values signed.
///
/// # Safety
/// The machine has `i8mm`.
#[inline(always)]
unsafe fn dot_mixed(acc: int32x4_t, codes: uint8x16_t, values: int32x4_t) -> int32x4_t {
    let mut sums = acc;
    // SAFETY: by this function's own condition; the instruction touches registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "usdot {sums:v}.4s, {codes:v}.16b, {values:v}.16b",
            sums = inout(vreg) sums, codes = in(vreg) codes, values = in(vreg) values,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

impl<const MIXED: bool> Isa for Neon<MIXED> {
    type F = [float32x4_t; N];
    type I = [uint8x16_t; N];
    const ROWS_MAX: usize = 2;
    const WIDE_ZERO: i32 = if MIXED { 128 } else { 0 };

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        with_proof!([vdupq_n_f32(value); N])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        each!(|at| vld1q_f32(from.as_ptr().add(at * 4)))
    }
    #[inline(always)]
    fn store(self, value: Self::F, into: &mut [f32; LANES]) {
        for (at, value) in value.into_iter().enumerate() {
            with_proof!(vst1q_f32(into.as_mut_ptr().add(at * 4), value));
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        each!(|at| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.as_ptr().add(at * 4)))))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        each!(|at| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr().add(at * 4)))))
    }
    #[inline(always)]
    fn store_f16(self, value: Self::F, into: &mut [u16; LANES]) {
        for (at, value) in value.into_iter().enumerate() {
            with_proof!(vst1_u16(into.as_mut_ptr().add(at * 4), vreinterpret_u16_f16(vcvt_f16_f32(value))));
        }
    }
    #[inline(always)]
    fn store_i8(self, value: Self::F, into: &mut [i8; LANES]) -> i32 {
        with_proof!({
            let narrow = |it: float32x4_t| vqmovn_s32(vcvtnq_s32_f32(it));
            let first = vqmovn_s16(vcombine_s16(narrow(value[0]), narrow(value[1])));
            let second = vqmovn_s16(vcombine_s16(narrow(value[2]), narrow(value[3])));
            let bytes = vcombine_s8(first, second);
            vst1q_s8(into.as_mut_ptr(), bytes);
            i32::from(vaddlvq_s8(bytes))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F {
        with_proof!({
            let bytes = vld1q_s8(from.as_ptr());
            let [first, second] = [vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))];
            let quarters = [vget_low_s16(first), vget_high_s16(first), vget_low_s16(second), vget_high_s16(second)];
            quarters.map(|it| vcvtq_f32_s32(vmovl_s16(it)))
        })
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|at| vaddq_f32(a[at], b[at]))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|at| vsubq_f32(a[at], b[at]))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|at| vmulq_f32(a[at], b[at]))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|at| vdivq_f32(a[at], b[at]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|at| vmaxq_f32(a[at], b[at]))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each!(|at| vminq_f32(a[at], b[at]))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(|at| vfmaq_f32(c[at], a[at], b[at]))
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        each!(|at| vrndnq_f32(a[at]))
    }
    #[inline(always)]
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F {
        each!(|at| {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n[at]), vdupq_n_s32(127));
            vmulq_f32(a[at], vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        with_proof!(vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3]))))
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        with_proof!(vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))))
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        with_proof!([vreinterpretq_u8_s32(vdupq_n_s32(value)); N])
    }
    #[inline(always)]
    fn load_line(self, from: &Line) -> Self::I {
        each!(|at| vld1q_u8(from.0.as_ptr().add(at * 16)))
    }
    #[inline(always)]
    fn shift<const BITS: u32>(self, a: Self::I) -> Self::I {
        // A shift to the left by less than nothing; the amount is a constant that the compiler sees through.
        each!(|at| vshlq_u8(a[at], vdupq_n_s8(-(BITS as i8))))
    }
    #[inline(always)]
    fn and(self, a: Self::I, mask: u8) -> Self::I {
        each!(|at| vandq_u8(a[at], vdupq_n_u8(mask)))
    }
    #[inline(always)]
    fn raise<const BITS: u32>(self, a: Self::I) -> Self::I {
        each!(|at| vshlq_u8(a[at], vdupq_n_s8(BITS as i8)))
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        each!(|at| vorrq_u8(a[at], b[at]))
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: Self::I) -> Self::I {
        let table = with_proof!(vld1q_u8(table.as_ptr()));
        each!(|at| vqtbl1q_u8(table, places[at]))
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, codes: Self::I, quad: i32) -> Self::I {
        // Codes up to 127 are the same with a sign.
        let values = with_proof!(vdupq_n_s32(quad));
        each!(|at| vreinterpretq_u8_s32(dot_signed(vreinterpretq_s32_u8(acc[at]), codes[at], values)))
    }
    #[inline(always)]
    fn dot_wide(self, acc: Self::I, codes: Self::I, quad: i32) -> Self::I {
        let values = with_proof!(vdupq_n_s32(quad));
        if MIXED {
            return each!(|at| vreinterpretq_u8_s32(dot_mixed(vreinterpretq_s32_u8(acc[at]), codes[at], values)));
        }
        let shifted = each!(|at| veorq_u8(codes[at], vdupq_n_u8(128)));
        each!(|at| vreinterpretq_u8_s32(dot_signed(vreinterpretq_s32_u8(acc[at]), shifted[at], values)))
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; 2 * LANES]) -> Self::I {
        each!(|at| vreinterpretq_u8_u16(vmovl_u8(vld1_u8(from.as_ptr().add(at * 8)))))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, pairs: Self::I, values: i32) -> Self::I {
        let values = with_proof!(vreinterpretq_s16_s32(vdupq_n_s32(values)));
        each!(|at| {
            let pairs = vreinterpretq_s16_u8(pairs[at]);
            let low = vmull_s16(vget_low_s16(pairs), vget_low_s16(values));
            let sums = vpaddq_s32(low, vmull_high_s16(pairs, values));
            vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(acc[at]), sums))
        })
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        each!(|at| vcvtq_f32_s32(vreinterpretq_s32_u8(a[at])))
    }
    #[inline(always)]
    fn prefetch<T>(self, soon: &[T]) {
        let start: *const u8 = soon.as_ptr().cast();
        for offset in (0..size_of_val(soon)).step_by(size_of::<Line>()) {
            // SAFETY: the address lies inside the slice; asking for memory changes nothing.
            unsafe {
                asm!("prfm pldl1keep, [{}]", in(reg) start.add(offset), options(readonly, nostack, preserves_flags));
            }
        }
    }
}
