//! [`Lanes`] in x86-64's own instructions.
//!
//! The methods are inlined into functions that have the features, which `vectorized!` makes and
//! calls only where the processor has them: that is the safety argument of every block here.

use std::arch::x86_64::*;

use super::simd::{LANES, Lanes};
use crate::tensor::bf16;

/// Two vectors of eight with fused multiply-add.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// One vector of sixteen.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// One vector of sixteen, and `vdpbf16ps`, which multiplies pairs of bf16 and adds both products
/// to a sum in f32, flushing denormals to zero.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(Avx512);

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

    const SUMS: usize = 4;
    const ROWS: usize = 4;

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
    fn splat_pair(word: u32) -> Self::Pairs {
        // SAFETY: see the module's head.
        let half = unsafe { Self::split(_mm256_set1_epi32(word as i32)) };
        [half, half]
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
    fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        super::math::fold(lanes)
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

impl Lanes for Avx512 {
    /// Even and odd numbers.
    type Pairs = [__m512; 2];

    const SUMS: usize = 16;
    const ROWS: usize = 6;

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
    fn splat_pair(word: u32) -> Self::Pairs {
        // SAFETY: see the module's head.
        unsafe { split(_mm512_set1_epi32(word as i32)) }
    }

    #[inline(always)]
    fn dot(self, a: Self::Pairs, b: Self::Pairs) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(_mm512_fmadd_ps(a[1], b[1], _mm512_fmadd_ps(a[0], b[0], self.0))) }
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

    const SUMS: usize = 24;
    const ROWS: usize = 6;

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
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(self.0.mul_add(factor.0, addend.0))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
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
    fn splat_pair(word: u32) -> __m512bh {
        // SAFETY: see the module's head; both types are the same 64 bytes.
        unsafe { std::mem::transmute(_mm512_set1_epi32(word as i32)) }
    }

    #[inline(always)]
    fn dot(self, a: __m512bh, b: __m512bh) -> Self {
        // SAFETY: see the module's head.
        unsafe { Self(Avx512(_mm512_dpbf16_ps(self.0.0, a, b))) }
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
