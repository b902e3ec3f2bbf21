//! Sums and functions over slices that vectorise, with one fixed order of operations.

use super::isa::vectorized;
use crate::tensor::bf16;

/// Partial sums that a reduction keeps; a fixed number, so that all paths add in one order.
const LANES: usize = 16;

/// The partial sums' sum, in pairs.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The last few numbers, and zeros.
#[inline(always)]
fn padded<T: Copy + Default>(rest: &[T]) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// `Σ f(value)`, in sixteen interleaved partial sums that are added in pairs.
#[inline(always)]
pub fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    // Arrays, not indices: a bounds check would keep the loop from being vectorised.
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    if !rest.is_empty() {
        // Fixed lanes again: an index that is not known beforehand would put them in memory.
        let padded = padded(rest);
        for lane in 0..LANES {
            lanes[lane] += if lane < rest.len() { f(padded[lane]) } else { 0.0 };
        }
    }
    fold(lanes)
}

/// `Σ a · b`, in the same order.
#[inline(always)]
pub fn dot(a: &[f32], b: &[bf16]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * widen(b[lane]);
        }
    }
    if !rest_a.is_empty() {
        let (a, b) = (padded(rest_a), padded(rest_b));
        for lane in 0..LANES {
            lanes[lane] += a[lane] * widen(b[lane]);
        }
    }
    fold(lanes)
}

/// The largest of `values`, ignoring NaN; −∞ if there is none.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// e^x to about 1 ulp between −87 and 88; beyond, the value at the bound.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor polynomial of degree 7, whose remainder
/// is below 1e-8; 2^n by its exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // NaN becomes 0 here, and stays NaN in `p`.
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// tanh(x) = 1 − 2 / (e^2x + 1).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Widens by bits: what `bf16::to_f32` does but for NaN's payload.
#[inline(always)]
pub fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Rounds to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { nan } else { rounded } as u16)
}

/// Softmax's denominator while the values still come in: Σ e^(x − max), online.
#[derive(Clone, Copy, Debug)]
pub struct LogSumExp {
    max: f32,
    sum: f32,
}

impl LogSumExp {
    /// Of no values.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// With more values.
    #[inline(always)]
    fn plus(self, values: &[f32]) -> Self {
        let most = max(values);
        let max = if most > self.max { most } else { self.max };
        let sum = sum(values, |value| exp(value - max));
        Self { max, sum: self.rescaled(max) + sum }
    }

    /// Adds another's values.
    pub fn merge(&mut self, other: Self) {
        let max = if other.max > self.max { other.max } else { self.max };
        *self = Self { max, sum: self.rescaled(max) + other.rescaled(max) };
    }

    #[inline(always)]
    fn rescaled(&self, max: f32) -> f32 {
        if self.sum == 0.0 { 0.0 } else { self.sum * exp(self.max - max) }
    }

    /// log Σ e^x.
    pub fn value(&self) -> f32 {
        self.max + self.sum.ln()
    }
}

vectorized! {
    /// The denominator with more values.
    pub fn log_sum_exp(total: LogSumExp, values: &[f32]) -> LogSumExp = LogSumExp::plus;
}
