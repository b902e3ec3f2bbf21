//! Sums and functions over slices that vectorise, with one fixed order of operations.

use super::isa::vectorized;
use super::simd::{self, EXP, LANES, LN2, Lanes, ROUND};
use crate::tensor::bf16;

/// The partial sums' sum, in pairs.
#[inline(always)]
pub fn fold(mut lanes: [f32; LANES]) -> f32 {
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

/// [`simd::exp`] of one number, without fused multiply-add.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2[0]) - n * LN2[1];
    let mut p = EXP[0];
    for coefficient in &EXP[1..] {
        p = p * r + coefficient;
    }
    p * f32::from_bits(shifted.to_bits() << 23)
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
    pub fn log_sum_exp(total: LogSumExp, values: &[f32]) -> LogSumExp = plus::<S>;
}

/// [`log_sum_exp`] in lanes.
#[inline(always)]
pub fn plus<S: Lanes>(mut total: LogSumExp, values: &[f32]) -> LogSumExp {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut most = S::splat(f32::NEG_INFINITY);
    for values in whole {
        most = S::load(values).max(most);
    }
    let most = rest.iter().fold(most.largest(), |a, &b| if b > a { b } else { a });
    if most > total.max {
        total = LogSumExp { max: most, sum: total.rescaled(most) };
    }
    let mut sum = S::splat(0.0);
    for values in whole {
        sum = sum.add(simd::exp(S::load(values).sub(S::splat(total.max))));
    }
    total.sum += sum.sum();
    for &value in rest {
        total.sum += exp(value - total.max);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;

    vectorized! {
        fn exp_lanes(values: &mut [f32; LANES]) = exp_in_place::<S>;
    }

    #[inline(always)]
    fn exp_in_place<S: Lanes>(values: &mut [f32; LANES]) {
        simd::exp(S::load(values)).store(values);
    }

    /// Goal: e^x to 2 ulp on every path, 1 for 0, and NaN of any kind stays NaN.
    #[test]
    fn exp_is_exact_to_two_ulp() {
        let close = |x: f32, ours: f32, name: &str| {
            let exact = f64::from(x).exp();
            let ulp = exact * 2f64.powi(-23);
            assert!((f64::from(ours) - exact).abs() <= 2.0 * ulp, "{name}: e^{x} is not {ours}");
        };
        for step in 0..100_000 {
            let x = -87.0 + step as f32 * (175.0 / 100_000.0);
            close(x, exp(x), "scalar");
        }
        for isa in Isa::available() {
            for step in 0..10_000 {
                let mut x = [0.0; LANES];
                for (lane, x) in x.iter_mut().enumerate() {
                    *x = -87.0 + (step * LANES + lane) as f32 * (175.0 / 160_000.0);
                }
                let mut ours = x;
                exp_lanes(isa, &mut ours);
                x.iter().zip(ours).for_each(|(&x, ours)| close(x, ours, &format!("{isa:?}")));
            }
            let nan = [f32::NAN, f32::from_bits(0x7fc0_0001), f32::from_bits(0xffff_ffff)];
            let mut lanes = [0.0; LANES];
            lanes[..3].copy_from_slice(&nan);
            exp_lanes(isa, &mut lanes);
            assert!(lanes[..3].iter().all(|x| x.is_nan()), "{isa:?}: {lanes:?}");
            assert_eq!(lanes[3..], [1.0; LANES - 3], "{isa:?}");
        }
    }

    /// Goal: a sum of exponentials in parts is the sum of the whole, whatever the parts' order.
    #[test]
    fn log_sum_exp_merges_parts() {
        let values: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let exact = values.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        for isa in Isa::available() {
            for cut in [0, 1, 16, 17, 99, 100] {
                let mut total = log_sum_exp(isa, LogSumExp::EMPTY, &values[..cut]);
                let rest = match cut {
                    100 => LogSumExp::EMPTY,
                    _ => log_sum_exp(isa, LogSumExp::EMPTY, &values[cut..]),
                };
                total.merge(rest);
                assert!((f64::from(total.value()) - exact).abs() < 1e-5, "{isa:?}: cut at {cut}");
            }
        }
    }
}
