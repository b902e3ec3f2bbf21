//! [`Lanes`] in AVX2's instructions.
//!
//! The methods are inlined into functions that have the features, which `vectorized!` makes and
//! calls only where the processor has them: that is the safety argument of every block here.

use std::arch::x86_64::*;

use super::simd::{LANES, Lanes};
use crate::tensor::bf16;

/// Two vectors of eight with fused multiply-add.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

impl Avx2 {
    /// Sums of eight vectors' lanes.
    #[inline(always)]
    fn sums_of_eight(v: [__m256; 8]) -> __m256 {
        // SAFETY: see the module's head.
        unsafe {
            let quads = |a, b, c, d| _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let (low, high) = (quads(v[0], v[1], v[2], v[3]), quads(v[4], v[5], v[6], v[7]));
            _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            )
        }
    }

    /// Even and odd numbers of eight pairs.
    #[inline(always)]
    fn split(words: __m256i) -> [__m256; 2] {
        // SAFETY: see the module's head.
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)),
                _mm256_castsi256_ps(_mm256_and_si256(
                    words,
                    _mm256_set1_epi32(0xffff_0000_u32 as i32),
                )),
            ]
        }
    }
}

impl Lanes for Avx2 {
    /// Even and odd numbers of the first eight pairs, then of the others.
    type Pairs = [[__m256; 2]; 2];
    type Factor = Self;

    // Two registers each: 12 of 16, beside the weights and an input.
    const SUMS: usize = 6;
    const ROWS: usize = 6;
    const STEPS: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        // SAFETY: see the module's head; sixteen numbers.
        unsafe { Self(_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: see the module's head; sixteen numbers.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
        }
    }

    #[inline(always)]
    fn widen(values: &[bf16; LANES]) -> Self {
        // SAFETY: see the module's head; sixteen numbers of two bytes.
        unsafe {
            let words = values.as_ptr().cast::<__m128i>();
            let widen = |half| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(words.add(half)));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self(widen(0), widen(1))
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, addend.0),
                _mm256_fmadd_ps(self.1, factor.1, addend.1),
            )
        }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see the module's head.
        unsafe {
            let first = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.0));
            let second = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.1));
            Self(_mm256_castsi256_ps(first), _mm256_castsi256_ps(second))
        }
    }

    #[inline(always)]
    fn pairs(values: &[bf16; 2 * LANES]) -> Self::Pairs {
        let words = values.as_ptr().cast::<__m256i>();
        // SAFETY: see the module's head; sixteen words.
        unsafe {
            [Self::split(_mm256_loadu_si256(words)), Self::split(_mm256_loadu_si256(words.add(1)))]
        }
    }

    #[inline(always)]
    fn dot(self, a: Self::Pairs, b: Self::Pairs) -> Self {
        // SAFETY: see the module's head.
        unsafe {
            Self(
                _mm256_fmadd_ps(a[0][1], b[0][1], _mm256_fmadd_ps(a[0][0], b[0][0], self.0)),
                _mm256_fmadd_ps(a[1][1], b[1][1], _mm256_fmadd_ps(a[1][0], b[1][0], self.1)),
            )
        }
    }

    #[inline(always)]
    fn weights(pairs: &[bf16; 2 * LANES], step: usize) -> Self {
        let words = pairs.as_ptr().cast::<__m256i>();
        // SAFETY: see the module's head; sixteen words.
        unsafe {
            let half = |half| {
                let words = _mm256_loadu_si256(words.add(half));
                _mm256_castsi256_ps(match step {
                    0 => _mm256_slli_epi32::<16>(words),
                    _ => _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
                })
            };
            Self(half(0), half(1))
        }
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
        // SAFETY: see the module's head. The order is `math::fold`'s.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see the module's head. The second operand wins where the first is NaN.
        unsafe {
            let none = _mm256_set1_ps(f32::NEG_INFINITY);
            let eight = _mm256_max_ps(self.1, _mm256_max_ps(self.0, none));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sums(vectors: &[Self; LANES]) -> Self {
        let mut halves = [[Self::splat(0.0).0; 8]; 2];
        for (index, vector) in vectors.iter().enumerate() {
            // SAFETY: see the module's head.
            halves[index / 8][index % 8] = unsafe { _mm256_add_ps(vector.0, vector.1) };
        }
        Self(Self::sums_of_eight(halves[0]), Self::sums_of_eight(halves[1]))
    }

    #[inline(always)]
    fn prefetch(address: *const bf16) {
        // SAFETY: see the module's head; prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
