//! Sixteen lanes at a time, the same for every instruction set: kernels are written once against [`Isa`].
//!
//! A value of an [`Isa`] type is a proof that the machine has its instructions: only [`Choice::detect`] and
//! [`dispatch`] make one. A kernel is a [`Kernel`] whose `run` is inlined into a function that is compiled for the
//! instruction set, so each set gets its own machine code in one binary.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};

use crate::KernelError;

/// Names the instruction set that kernels run on, in place of the widest.
const VARIABLE: &str = "FSQ_CPU";

/// Lanes of a vector, and rows of a weight tile.
pub(crate) const LANES: usize = 16;

/// 64 bytes on a cache line of their own: 4 codes for each of 16 rows.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Sixteen lanes of `f32` (`F`), or of four bytes or one `i32` each (`I`).
pub(crate) trait Isa: Copy {
    type F: Copy;
    type I: Copy;
    /// Activation rows that one pass over a tile serves at most: what the registers hold.
    const ROWS_MAX: usize;
    /// What [`Isa::dot_wide`] leaves to be subtracted from each code.
    const WIDE_ZERO: i32;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, value: Self::F, into: &mut [f32; LANES]);
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// To nearest, ties to even.
    fn store_f16(self, value: Self::F, into: &mut [u16; LANES]);
    /// Rounds to nearest, ties to even, and returns the sum. The values lie between -128 and 127.
    fn store_i8(self, value: Self::F, into: &mut [i8; LANES]) -> i32;
    fn load_i8(self, from: &[i8; LANES]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `a * 2^n` for whole `n` from -126 to 127.
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F;
    fn sum(self, a: Self::F) -> f32;
    fn largest(self, a: Self::F) -> f32;

    fn splat_int(self, value: i32) -> Self::I;
    fn load_line(self, from: &Line) -> Self::I;
    /// Each byte's bits from `N` upwards; what other bytes shift in is left to a mask. `N` is at most 7.
    fn shift<const N: u32>(self, a: Self::I) -> Self::I;
    fn and(self, a: Self::I, mask: u8) -> Self::I;
    /// Each byte's bits moved up by `N`; what other bytes shift in is left to a mask. `N` is at most 7.
    fn raise<const N: u32>(self, a: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Each byte the entry of the table that it is the place of; places are 0 to 15.
    fn look_up(self, table: &[u8; 16], places: Self::I) -> Self::I;
    /// Per lane: `acc + Σ code · value` over its four codes (0 to 127) and the four `i8` of `quad`.
    fn dot(self, acc: Self::I, codes: Self::I, quad: i32) -> Self::I;
    /// The same for codes 0 to 255, of which `128 - WIDE_ZERO` has been subtracted.
    fn dot_wide(self, acc: Self::I, codes: Self::I, quad: i32) -> Self::I;
    /// 32 bytes as two whole numbers of 16 bits in each lane.
    fn load_pairs(self, from: &[u8; 2 * LANES]) -> Self::I;
    /// Per lane: `acc + Σ pair · value` over its two numbers of 16 bits and the two of `values`.
    fn dot_pairs(self, acc: Self::I, pairs: Self::I, values: i32) -> Self::I;
    fn to_float(self, a: Self::I) -> Self::F;

    /// Asks for memory that is read soon, each line of it; without effect on results.
    fn prefetch<T>(self, soon: &[T]);

    /// `e^a`, within 2 units in the last place; below -87 it is 0 or nearly so.
    #[inline(always)]
    fn exp(self, a: Self::F) -> Self::F {
        // Cody-Waite reduction and the polynomial of Cephes `expf`.
        let a = self.min(self.max(a, self.splat(-87.3)), self.splat(88.0));
        let n = self.round(self.mul(a, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), a);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
            p = self.fma(p, r, self.splat(coefficient));
        }
        let p = self.add(self.fma(self.mul(p, r), r, r), self.splat(1.0));
        self.scale_by_power(p, n)
    }
}

/// Asks for every line of a slice.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_lines<T>(soon: &[T]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let start: *const i8 = soon.as_ptr().cast();
    for offset in (0..size_of_val(soon)).step_by(size_of::<Line>()) {
        // SAFETY: the address lies inside the slice; x86-64 always has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(offset)) };
    }
}

/// The sum of 16 signed bytes.
///
/// # Safety
/// The machine has SSE2, which x86-64 always has.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_of_bytes(bytes: std::arch::x86_64::__m128i) -> i32 {
    use std::arch::x86_64::*;
    // SAFETY: by this function's own condition.
    unsafe {
        let raised = _mm_xor_si128(bytes, _mm_set1_epi8(-128));
        let halves = _mm_sad_epu8(raised, _mm_setzero_si128());
        _mm_cvtsi128_si32(_mm_add_epi64(halves, _mm_unpackhi_epi64(halves, halves))) - 128 * LANES as i32
    }
}

/// Work that is compiled once for each instruction set. Implementations must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Isa>(self, isa: S) -> Self::Output;
}

/// Which instruction set runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<avx2::Pairs>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::Avx2<avx2::ShortVnni>),
    #[cfg(target_arch = "x86_64")]
    Avx512Half(avx2::Avx2<avx2::LongVnni>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon<false>),
    #[cfg(target_arch = "aarch64")]
    NeonMixed(neon::Neon<true>),
}

impl Choice {
    /// The set that the environment asks for, else the widest that this machine has; asked once.
    pub(crate) fn detect() -> Self {
        static CHOICE: OnceLock<Choice> = OnceLock::new();
        *CHOICE.get_or_init(|| Self::asked_for(Self::wish().as_deref()).unwrap_or_else(|_| Self::widest()))
    }

    /// What the environment variable holds, if anything.
    #[expect(clippy::disallowed_methods, reason = "which kernels run changes no result, only how soon it is there")]
    pub(crate) fn wish() -> Option<String> {
        std::env::var_os(VARIABLE).map(|it| it.to_string_lossy().into_owned()).filter(|it| !it.is_empty())
    }

    /// The set of a name; the widest when none is named.
    ///
    /// # Errors
    /// [`KernelError::Path`] when this machine has no set of this name.
    pub(crate) fn asked_for(name: Option<&str>) -> Result<Self, KernelError> {
        let Some(name) = name else { return Ok(Self::widest()) };
        let available = Self::available();
        let found = available.iter().copied().find(|it| it.name() == name);
        found.ok_or_else(|| KernelError::Path {
            variable: VARIABLE,
            expected: available.iter().map(|it| it.name()).collect::<Vec<_>>().join(", "),
            found: name.to_owned(),
        })
    }

    /// The sets that are worth a trial, the widest last: the one that the environment asks for, else all with vectors.
    pub(crate) fn candidates() -> Vec<Self> {
        match Self::wish() {
            Some(_) => vec![Self::detect()],
            None => Self::with_vectors(),
        }
    }

    /// Every set but the plain one. They fuse products and sums, so that all of them give the same bits.
    pub(crate) fn with_vectors() -> Vec<Self> {
        Self::available().split_off(1)
    }

    fn widest() -> Self {
        Self::available().pop().unwrap_or(Self(Set::Scalar))
    }

    /// Every set that this machine has, the plainest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = vec![Self(Set::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            sets.extend(avx2::Avx2::detect().map(|it| Self(Set::Avx2(it))));
            sets.extend(avx2::Avx2::detect().map(|it| Self(Set::AvxVnni(it))));
            sets.extend(avx2::Avx2::detect().map(|it| Self(Set::Avx512Half(it))));
            sets.extend(avx512::Avx512::detect().map(|it| Self(Set::Avx512(it))));
        }
        #[cfg(target_arch = "aarch64")]
        {
            sets.extend(neon::Neon::<false>::detect().map(|it| Self(Set::Neon(it))));
            sets.extend(neon::Neon::<true>::detect().map(|it| Self(Set::NeonMixed(it))));
        }
        sets
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Set::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Half(_) => "avx512-vnni-256",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Set::Neon(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Set::NeonMixed(_) => "neon-i8mm",
        }
    }
}

/// Runs a kernel on an instruction set.
#[inline]
pub(crate) fn dispatch<K: Kernel>(choice: Choice, kernel: K) -> K::Output {
    match choice.0 {
        Set::Scalar => kernel.run(scalar::Scalar),
        #[cfg(target_arch = "x86_64")]
        Set::Avx2(isa) => isa.run(kernel),
        #[cfg(target_arch = "x86_64")]
        Set::AvxVnni(isa) => isa.run(kernel),
        #[cfg(target_arch = "x86_64")]
        Set::Avx512Half(isa) => isa.run(kernel),
        #[cfg(target_arch = "x86_64")]
        Set::Avx512(isa) => isa.run(kernel),
        #[cfg(target_arch = "aarch64")]
        Set::Neon(isa) => isa.run(kernel),
        #[cfg(target_arch = "aarch64")]
        Set::NeonMixed(isa) => isa.run(kernel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32; LANES], &'a mut [f32; LANES]);

    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Isa>(self, isa: S) {
            isa.store(isa.exp(isa.load(self.0)), self.1);
        }
    }

    #[test]
    fn a_set_is_found_by_its_name() {
        for choice in Choice::available() {
            assert_eq!(Choice::asked_for(Some(choice.name())).unwrap(), choice);
        }
        assert_eq!(Choice::available().last().copied(), Choice::asked_for(None).ok());
        let refused = Choice::asked_for(Some("sse9")).unwrap_err().to_string();
        assert!(refused.starts_with("FSQ_CPU: expected one of scalar"), "{refused}");
        assert!(refused.ends_with("found `sse9`"), "{refused}");
    }

    #[test]
    fn exp_is_exact_to_a_few_units_on_every_set() {
        for choice in Choice::available() {
            for start in [-87.0f32, -30.0, -3.0, -0.4, 0.0, 1.0, 60.0] {
                let x: [f32; LANES] = std::array::from_fn(|it| start + it as f32 * 0.61);
                let mut y = [0.0; LANES];
                dispatch(choice, Exp(&x, &mut y));
                for (x, y) in x.iter().zip(y) {
                    let exact = f64::from(*x).exp();
                    assert!((f64::from(y) / exact - 1.0).abs() < 5e-7, "{}: exp({x}) = {y}", choice.name());
                }
            }
            let mut y = [1.0; LANES];
            dispatch(choice, Exp(&[f32::NEG_INFINITY; LANES], &mut y));
            assert!(y[0] < 1e-37);
        }
    }

    struct Ints<'a>(&'a Line, i32, &'a mut [[f32; LANES]; 10]);

    impl Kernel for Ints<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Isa>(self, isa: S) {
            let line = isa.load_line(self.0);
            let start = isa.splat_int(5);
            let low = isa.and(line, 15);
            let high = isa.and(isa.shift::<6>(line), 3);
            let wide = isa.dot_wide(start, line, self.1);
            // Σ (code - 128) · value on every set, once the rest of the zero point is taken off.
            let sum: i32 = self.1.to_le_bytes().iter().map(|it| i32::from(*it as i8)).sum();
            let rest = isa.splat(-((S::WIDE_ZERO * sum) as f32));
            isa.store(isa.to_float(isa.dot(start, low, self.1)), &mut self.2[0]);
            isa.store(isa.to_float(isa.dot(start, high, self.1)), &mut self.2[1]);
            isa.store(isa.add(isa.to_float(wide), rest), &mut self.2[2]);
            isa.store(
                isa.to_float(isa.dot(start, isa.or(low, isa.and(isa.raise::<4>(high), 0x30)), self.1)),
                &mut self.2[3],
            );
            let mut narrow = ([0; LANES], [0; LANES]);
            let floats = isa.load(&std::array::from_fn(|it| it as f32 * 15.5 - 100.0));
            let sum = isa.store_i8(floats, &mut narrow.0);
            isa.store_f16(isa.mul(floats, isa.splat(1.0 / 3.0)), &mut narrow.1);
            let table = std::array::from_fn(|it| (it as u8).wrapping_mul(23) / 2);
            isa.store(isa.to_float(isa.dot(start, isa.look_up(&table, low), self.1)), &mut self.2[8]);
            isa.store(isa.add(isa.load_i8(&narrow.0), isa.splat(sum as f32 * 1000.0)), &mut self.2[6]);
            isa.store(isa.load_f16(&narrow.1), &mut self.2[7]);
            let pairs = isa.load_pairs(&std::array::from_fn(|it| (it * 7) as u8));
            isa.store(isa.to_float(isa.dot_pairs(start, pairs, self.1)), &mut self.2[9]);
            isa.store(isa.load_f16(&std::array::from_fn(|it| it as u16 * 2000)), &mut self.2[4]);
            isa.store(isa.load_bf16(&std::array::from_fn(|it| it as u16 * 1021)), &mut self.2[5]);
        }
    }

    /// Emulators and machines of today have both; a test that ran on the scalar set alone would prove nothing.
    #[test]
    #[cfg(target_arch = "aarch64")]
    fn both_neon_sets_are_there() {
        let names: Vec<_> = Choice::available().into_iter().map(Choice::name).collect();
        assert_eq!(names, ["scalar", "neon-dotprod", "neon-i8mm"]);
    }

    fn low_half(quad: i32) -> i16 {
        quad as i16
    }

    #[test]
    fn integers_are_equal_on_every_set() {
        let line = Line(std::array::from_fn(|it| (it * 37 % 255) as u8 + 1));
        for quad in [i32::from_le_bytes([127, 129, 3, 255]), i32::from_le_bytes([129; 4]), 0] {
            let mut expected = [[0.0; LANES]; 10];
            dispatch(Choice(Set::Scalar), Ints(&line, quad, &mut expected));
            let values = quad.to_le_bytes().map(|it| i32::from(it as i8));
            let by_hand: i32 = (0..4).map(|it| (i32::from(line.0[it]) - 128) * values[it]).sum();
            assert_eq!(expected[2][0], (by_hand + 5) as f32);
            let entry = |it: usize| i32::from((line.0[it] & 15).wrapping_mul(23) / 2);
            let by_table: i32 = (0..4).map(|it| entry(it) * values[it]).sum();
            assert_eq!(expected[8][0], (by_table + 5) as f32);
            let halves = [i32::from(low_half(quad)), quad >> 16];
            assert_eq!(expected[9][1], (14 * halves[0] + 21 * halves[1] + 5) as f32);
            for choice in Choice::available() {
                let mut found = [[0.0; LANES]; 10];
                dispatch(choice, Ints(&line, quad, &mut found));
                assert_eq!(found, expected, "{}", choice.name());
            }
        }
    }
}
