//! [`Lanes`] in AVX-512's instructions, and in those for bf16.
//!
//! The methods are inlined into functions that have the features, which `vectorized!` makes and
//! calls only where the processor has them: that is the safety argument of every block here.

use std::arch::x86_64::*;

use super::simd::{LANES, Lanes};
use crate::tensor::bf16;

/// One vector of sixteen.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// One vector of sixteen, and `vdpbf16ps`, which multiplies pairs of bf16 and adds both products
/// to a sum in f32, flushing denormals to zero.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(Avx512);

impl Lanes for Avx512 {
    /// Even and odd numbers.
    type Pairs = [__m512; 2];
    type Factor = Self;

    const SUMS: usize = 24;
    const ROWS: usize = 6;
    const STEPS: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        // SAFETY: see the module's head; sixteen numbers.
        unsafe { Self(_mm512_loadu_ps(values.as_ptr())) }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: see the module's head; sixteen numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn widen(values: &[bf16; LANES]) -> Self {
        // SAFETY: see the module's head; sixteen numbers of two bytes.
        unsafe {
            let words = _mm256_loadu_si256(values.as_ptr().cast());
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words))))
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see the module's head.
        unsafe {
            let bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(bits))
        }
    }

    #[inline(always)]
    fn pairs(values: &[bf16; 2 * LANES]) -> Self::Pairs {
        // SAFETY: see the module's head; sixteen words.
        unsafe { split(_mm512_loadu_si512(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn dot(self, a: Self::Pairs, b: Self::Pairs) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_fmadd_ps(a[1], b[1], _mm512_fmadd_ps(a[0], b[0], self.0))) }
    }

    #[inline(always)]
    fn weights(pairs: &[bf16; 2 * LANES], step: usize) -> Self {
        Self(Self::pairs(pairs)[step])
    }

    #[inline(always)]
    fn input(word: u32) -> Self {
        Self::splat(f32::from_bits(word))
    }

    #[inline(always)]
    fn step(self, weights: Self, input: Self) -> Self {
        weights.mul_add(input, self)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        super::math::fold(lanes)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see the module's head. The second operand wins where the first is NaN.
        unsafe {
            let numbers = _mm512_max_ps(self.0, _mm512_set1_ps(f32::NEG_INFINITY));
            _mm512_reduce_max_ps(numbers)
        }
    }

    #[inline(always)]
    fn sums(vectors: &[Self; LANES]) -> Self {
        // Each step adds lanes of two vectors and keeps the sums of both side by side: lanes
        // within quarters first, then the quarters.
        // SAFETY: see the module's head.
        unsafe {
            let mut quads = [_mm512_setzero_ps(); 4];
            for (quad, v) in quads.iter_mut().zip(vectors.as_chunks::<4>().0) {
                let ab = _mm512_add_ps(
                    _mm512_unpacklo_ps(v[0].0, v[1].0),
                    _mm512_unpackhi_ps(v[0].0, v[1].0),
                );
                let cd = _mm512_add_ps(
                    _mm512_unpacklo_ps(v[2].0, v[3].0),
                    _mm512_unpackhi_ps(v[2].0, v[3].0),
                );
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                *quad = _mm512_add_ps(
                    _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
                );
            }
            let quarters = |a, b| {
                _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x88>(a, b),
                    _mm512_shuffle_f32x4::<0xdd>(a, b),
                )
            };
            Self(quarters(quarters(quads[0], quads[1]), quarters(quads[2], quads[3])))
        }
    }

    #[inline(always)]
    fn prefetch(address: *const bf16) {
        // SAFETY: see the module's head; prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}

/// Even and odd numbers of sixteen pairs.
#[inline(always)]
fn split(words: __m512i) -> [__m512; 2] {
    // SAFETY: see the module's head.
    unsafe {
        [
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
            _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32))),
        ]
    }
}

impl Lanes for Avx512Bf16 {
    type Pairs = __m512bh;
    type Factor = __m512bh;

    const SUMS: usize = 24;
    const ROWS: usize = 6;
    const STEPS: usize = 1;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(Avx512::splat(value))
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(Avx512::load(values))
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        self.0.store(out);
    }

    #[inline(always)]
    fn widen(values: &[bf16; LANES]) -> Self {
        Self(Avx512::widen(values))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.sub(other.0))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(self.0.mul(other.0))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(self.0.div(other.0))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(self.0.mul_add(factor.0, addend.0))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.power_of_two())
    }

    #[inline(always)]
    fn pairs(values: &[bf16; 2 * LANES]) -> __m512bh {
        // SAFETY: see the module's head; sixteen words. Both types are the same 64 bytes.
        unsafe { std::mem::transmute(_mm512_loadu_si512(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn dot(self, a: __m512bh, b: __m512bh) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(Avx512(_mm512_dpbf16_ps(self.0.0, a, b))) }
    }

    #[inline(always)]
    fn weights(pairs: &[bf16; 2 * LANES], _step: usize) -> __m512bh {
        Self::pairs(pairs)
    }

    #[inline(always)]
    fn input(word: u32) -> __m512bh {
        // SAFETY: see the module's head; both types are the same 64 bytes.
        unsafe { std::mem::transmute(_mm512_set1_epi32(word as i32)) }
    }

    #[inline(always)]
    fn step(self, weights: __m512bh, input: __m512bh) -> Self {
        self.dot(weights, input)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        self.0.sum()
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.largest()
    }

    #[inline(always)]
    fn sums(vectors: &[Self; LANES]) -> Self {
        let mut plain = [Avx512::splat(0.0); LANES];
        for (plain, vector) in plain.iter_mut().zip(vectors) {
            *plain = vector.0;
        }
        Self(Avx512::sums(&plain))
    }

    #[inline(always)]
    fn prefetch(address: *const bf16) {
        Avx512::prefetch(address);
    }
}
