//! Sixteen numbers side by side: the one vector type that the kernels are written in.

use super::math::{fold, widen};
use crate::tensor::bf16;

/// Numbers in a vector, on every instruction set.
pub const LANES: usize = 16;

/// Sixteen f32. Kernels generic over this are compiled once per instruction set by `vectorized!`,
/// which alone names the implementors: that is what makes their instructions safe to run.
pub trait Lanes: Copy {
    /// Sixteen pairs of bf16, ready to be multiplied.
    type Pairs: Copy;
    /// What a matmul multiplies in one step: sixteen numbers, or sixteen pairs.
    type Factor: Copy;

    /// Vectors of sums that fit in the registers beside what they are computed from.
    const SUMS: usize;
    /// Rows whose sums are computed together, at most [`SUMS`](Self::SUMS) and 6.
    const ROWS: usize;
    /// Steps in which a matmul takes a pair of inputs, a word of its own each: 1 where there is an
    /// instruction for pairs of bf16, else 2, the even input and the odd one in f32.
    const STEPS: usize;

    fn splat(value: f32) -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    fn store(self, out: &mut [f32; LANES]);
    /// bf16 as f32.
    fn widen(values: &[bf16; LANES]) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self · factor + addend`
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger one; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller one; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// 2^n of n + 127 + 1.5 · 2^23, for n from −126 to 127: its last bits become the exponent.
    fn power_of_two(self) -> Self;

    fn pairs(values: &[bf16; 2 * LANES]) -> Self::Pairs;
    /// `self + a.even · b.even + a.odd · b.odd`
    fn dot(self, a: Self::Pairs, b: Self::Pairs) -> Self;

    /// The weights of one step, from sixteen pairs of them.
    fn weights(pairs: &[bf16; 2 * LANES], step: usize) -> Self::Factor;
    /// One step's input, sixteen times: an f32's bits, or a pair with the even input in the low half.
    fn input(word: u32) -> Self::Factor;
    /// `self + weights · input`
    fn step(self, weights: Self::Factor, input: Self::Factor) -> Self;

    /// The sum of all lanes, in a fixed order.
    fn sum(self) -> f32;
    /// The largest lane, ignoring NaN.
    fn largest(self) -> f32;
    /// Lane i is the sum of vector i's lanes.
    fn sums(vectors: &[Self; LANES]) -> Self;

    /// Asks for the cache line at `address`, which need not be ours.
    fn prefetch(address: *const bf16);
}

/// Adding this rounds to a whole number, which with a float's exponent bias stands in the last
/// bits then.
pub const ROUND: f32 = 12_582_912.0 + 127.0;
/// ln 2 in two parts, the first of few bits, so that its multiples are exact.
pub const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// e^r to 3.1e-9 of itself for |r| ≤ ln 2 / 2: the polynomial of degree 6 that begins with 1 + r and
/// has the least largest error (Lawson's algorithm).
pub const EXP: [f32; 7] =
    [1.381_453_9e-3, 8.368_745e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_4e-1, 1.0, 1.0];

/// e^x to 1.5 ulp between −87 and 88; beyond, the value at the bound; NaN stays NaN.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2.
#[inline(always)]
pub fn exp<S: Lanes>(x: S) -> S {
    let x = S::splat(88.0).min(S::splat(-87.0).max(x));
    let shifted = x.mul_add(S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
    let n = shifted.sub(S::splat(ROUND));
    let r = n.mul_add(S::splat(-LN2[0]), x);
    let r = n.mul_add(S::splat(-LN2[1]), r);
    let mut p = S::splat(EXP[0]);
    for &coefficient in &EXP[1..] {
        p = p.mul_add(r, S::splat(coefficient));
    }
    p.mul(shifted.power_of_two())
}

/// Lanes in plain Rust.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (out, other) in out.iter_mut().zip(other.0) {
            *out = f(*out, other);
        }
        Self(out)
    }
}

impl Lanes for Portable {
    /// The even numbers, then the odd ones.
    type Pairs = [[f32; LANES]; 2];
    type Factor = Self;

    const SUMS: usize = 4;
    const ROWS: usize = 4;
    const STEPS: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }

    #[inline(always)]
    fn widen(values: &[bf16; LANES]) -> Self {
        let mut out = [0.0; LANES];
        for (out, &value) in out.iter_mut().zip(values) {
            *out = widen(value);
        }
        Self(out)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.with(other, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Not fused: without the instruction that would be a call per number.
        self.mul(factor).add(addend)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.with(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.with(self, |shifted, _| f32::from_bits(shifted.to_bits() << 23))
    }

    #[inline(always)]
    fn pairs(values: &[bf16; 2 * LANES]) -> [[f32; LANES]; 2] {
        let mut out = [[0.0; LANES]; 2];
        for lane in 0..LANES {
            out[0][lane] = widen(values[2 * lane]);
            out[1][lane] = widen(values[2 * lane + 1]);
        }
        out
    }

    #[inline(always)]
    fn dot(self, a: [[f32; LANES]; 2], b: [[f32; LANES]; 2]) -> Self {
        let mut out = self.0;
        for lane in 0..LANES {
            out[lane] = out[lane] + a[0][lane] * b[0][lane] + a[1][lane] * b[1][lane];
        }
        Self(out)
    }

    #[inline(always)]
    fn weights(pairs: &[bf16; 2 * LANES], step: usize) -> Self {
        let mut out = [0.0; LANES];
        for (out, pair) in out.iter_mut().zip(pairs.as_chunks::<2>().0) {
            *out = widen(pair[step]);
        }
        Self(out)
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
        fold(self.0)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn sums(vectors: &[Self; LANES]) -> Self {
        let mut out = [0.0; LANES];
        for (out, vector) in out.iter_mut().zip(vectors) {
            *out = fold(vector.0);
        }
        Self(out)
    }

    #[inline(always)]
    fn prefetch(_address: *const bf16) {}
}
