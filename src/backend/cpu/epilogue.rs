//! What becomes of a matmul's sums: the bias comes in, an activation, and they go to their places.

use super::buffer::Shared;
use super::isa::vectorized;
use super::math::narrow;
use super::matmul::{Block, Row};
use super::matrix::PANEL;
use super::simd::{self, LANES, Lanes};
use crate::tensor::bf16;

/// A matrix that several threads write, each to places of its own.
#[derive(Clone, Copy)]
pub struct Places<Y> {
    out: Shared<Y>,
    width: usize,
}

impl<Y> Places<Y> {
    /// The rows of `out: [rows, width]`.
    ///
    /// # Safety
    /// `out` must be borrowed as long as this is used, and no two threads may write the same block.
    pub unsafe fn new(out: &mut [Y], width: usize) -> Self {
        Self { out: Shared::new(out), width }
    }

    /// Where a row's sums of a block belong.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // as Shared::range
    fn of(&self, row: usize, block: &Block<'_>) -> &mut [Y] {
        // SAFETY: who made this keeps it borrowed and blocks apart.
        unsafe { self.out.range(row * self.width + block.output, block.outputs) }
    }
}

impl Block<'_> {
    /// The biases of its outputs, zeros without any.
    #[inline(always)]
    fn of(&self, bias: Option<&[f32]>) -> Row {
        let mut biases = Row::ZERO;
        if let Some(bias) = bias {
            biases.0[..self.outputs].copy_from_slice(&bias[self.output..][..self.outputs]);
        }
        biases
    }
}

vectorized! {
    /// Rounded to bf16.
    pub fn store_half(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) = halves;
    /// As they are.
    pub fn store(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) = wholes;
    /// Added to the residual stream.
    pub fn add(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) = sums;
    /// Their GELU in its tanh form, rounded to bf16.
    pub fn store_gelu(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) = gelus::<S>;
    /// Their exact GELU, rounded to bf16.
    pub fn store_gelu_erf(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) = gelu_erfs::<S>;
    /// `silu(gate) · sum`, rounded to bf16; `gates`: of the block's rows.
    pub fn store_silu_gate(
        gates: &[Row],
        block: Block<'_>,
        biases: Option<[&[f32]; 2]>,
        out: Places<bf16>,
    ) = silu_gates::<S>;
}

#[inline(always)]
fn halves(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) {
    each(block, bias, out, |out, value| *out = narrow(value));
}

#[inline(always)]
fn wholes(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) {
    each(block, bias, out, |out, value| *out = value);
}

#[inline(always)]
fn sums(block: Block<'_>, bias: Option<&[f32]>, out: Places<f32>) {
    each(block, bias, out, |out, value| *out += value);
}

/// Hands `put` each sum with its bias, and its place.
#[inline(always)]
fn each<Y>(block: Block<'_>, bias: Option<&[f32]>, out: Places<Y>, put: impl Fn(&mut Y, f32)) {
    let biases = block.of(bias);
    for (row, sums) in block.rows.clone().zip(block.sums) {
        let out = out.of(row, &block);
        let numbers = sums.0.iter().zip(&biases.0);
        // All but the last panel are whole, and then the loop's length is known.
        if let Ok(out) = <&mut [Y; PANEL]>::try_from(&mut *out) {
            out.iter_mut().zip(numbers).for_each(|(out, (sum, bias))| put(out, sum + bias));
        } else {
            out.iter_mut().zip(numbers).for_each(|(out, (sum, bias))| put(out, sum + bias));
        }
    }
}

/// A function of each sum. A type, not a closure, so that it is sure to be inlined.
trait Activation {
    fn of<S: Lanes>(v: S) -> S;
}

#[inline(always)]
fn gelus<S: Lanes>(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) {
    activated::<S, Gelu>(block, bias, out);
}

#[inline(always)]
fn gelu_erfs<S: Lanes>(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) {
    activated::<S, GeluErf>(block, bias, out);
}

#[inline(always)]
fn activated<S: Lanes, A: Activation>(block: Block<'_>, bias: Option<&[f32]>, out: Places<bf16>) {
    let biases = block.of(bias);
    for (row, sums) in block.rows.clone().zip(block.sums) {
        for (at, out) in out.of(row, &block).chunks_mut(LANES).enumerate() {
            let v = S::load(sums.vector(at)).add(S::load(biases.vector(at)));
            put(A::of(v), out);
        }
    }
}

#[inline(always)]
fn silu_gates<S: Lanes>(
    gates: &[Row],
    block: Block<'_>,
    biases: Option<[&[f32]; 2]>,
    out: Places<bf16>,
) {
    let gate_biases = block.of(biases.map(|[gate, _]| gate));
    let up_biases = block.of(biases.map(|[_, up]| up));
    for ((row, gates), sums) in block.rows.clone().zip(gates).zip(block.sums) {
        for (at, out) in out.of(row, &block).chunks_mut(LANES).enumerate() {
            let gate = S::load(gates.vector(at)).add(S::load(gate_biases.vector(at)));
            let up = S::load(sums.vector(at)).add(S::load(up_biases.vector(at)));
            put(silu(gate).mul(up), out);
        }
    }
}

/// `0.5 v (1 + tanh(u))`, u = sqrt(2/π) (v + 0.044715 v³)
struct Gelu;

impl Activation for Gelu {
    #[inline(always)]
    fn of<S: Lanes>(v: S) -> S {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        // 0.5 (1 + tanh(u)) = 1 / (1 + e^−2u), which has no difference of nearly equal numbers.
        let cubic = v.mul(v).mul_add(S::splat(0.044_715), S::splat(1.0));
        let e = simd::exp(v.mul(S::splat(-2.0 * SQRT_2_OVER_PI)).mul(cubic));
        v.div(e.add(S::splat(1.0)))
    }
}

/// `v Φ(v)`, Φ(v) = 0.5 (1 + erf(v / √2)), the standard normal distribution.
struct GeluErf;

impl GeluErf {
    /// Φ(−a) = e^(−a²/2) P(t) with t = 1 / (1 + 0.3 a), to 1.5e-7 of itself for a from 0 to 14: the polynomial
    /// of degree 8 without a constant that has the least largest error (Lawson's algorithm), in the form of
    /// Hastings, Approximations for Digital Computers, 1955 (Abramowitz and Stegun, 26.2.17).
    const TAIL: [f32; 8] = [
        3.567_476_6e-2,
        -1.572_030_3e-1,
        2.063_534e-1,
        -5.368_354_5e-2,
        1.285_615_7e-1,
        9.991_351e-2,
        1.207_539_6e-1,
        1.196_293e-1,
    ];
    const SCALE: f32 = 0.3;
    /// The largest a: beyond, a Φ(−a) is nothing to an f32.
    const END: f32 = 14.0;
}

impl Activation for GeluErf {
    /// To 1e-7, and for negative v to 2e-6 of itself; NaN stays NaN.
    #[inline(always)]
    fn of<S: Lanes>(v: S) -> S {
        // v Φ(v) = max(v, 0) − |v| Φ(−|v|), which has no difference of nearly equal numbers.
        let size = S::splat(Self::END).min(v.max(v.mul(S::splat(-1.0))));
        let one = S::splat(1.0);
        let t = one.div(size.mul_add(S::splat(Self::SCALE), one));
        let mut p = S::splat(Self::TAIL[0]);
        for &coefficient in &Self::TAIL[1..] {
            p = p.mul_add(t, S::splat(coefficient));
        }
        let e = simd::exp(size.mul(size).mul(S::splat(-0.5)));
        v.max(S::splat(0.0)).sub(size.mul(t).mul(p).mul(e))
    }
}

/// `v / (1 + e^−v)`
#[inline(always)]
fn silu<S: Lanes>(v: S) -> S {
    v.div(simd::exp(v.mul(S::splat(-1.0))).add(S::splat(1.0)))
}

/// As many of `values` as there is room for, rounded.
#[inline(always)]
fn put<S: Lanes>(values: S, out: &mut [bf16]) {
    let mut numbers = [0.0; LANES];
    values.store(&mut numbers);
    if let Ok(out) = <&mut [bf16; LANES]>::try_from(&mut *out) {
        out.iter_mut().zip(numbers).for_each(|(out, number)| *out = narrow(number));
    } else {
        out.iter_mut().zip(numbers).for_each(|(out, number)| *out = narrow(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;

    vectorized! {
        fn gelu_erf_lanes(values: &mut [f32; LANES]) = gelu_erf_in_place::<S>;
    }

    #[inline(always)]
    fn gelu_erf_in_place<S: Lanes>(values: &mut [f32; LANES]) {
        GeluErf::of(S::load(values)).store(values);
    }

    /// Φ(−a) = 1/2 − φ(a) Σ a²ⁿ⁺¹ / (1 · 3 · … · (2n + 1)): all terms have one sign.
    fn tail(a: f64) -> f64 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= a * a / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 - (-0.5 * a * a).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
    }

    /// Goal: v Φ(v) to 1e-7 and the last bit of v on every path, and to 2e-6 of itself where it is next to
    /// nothing; 0 and v itself far out; NaN stays NaN.
    #[test]
    fn the_exact_gelu_is_exact() {
        for isa in Isa::available() {
            let of = |v: [f32; LANES]| {
                let mut out = v;
                gelu_erf_lanes(isa, &mut out);
                v.into_iter().zip(out)
            };
            for step in 0..20_000 {
                let at = |lane: usize| (step * LANES + lane) as f32 * (11.0 / 320_000.0) - 5.5;
                for (v, ours) in of(std::array::from_fn(at)) {
                    let (v, ours) = (f64::from(v), f64::from(ours));
                    let below = tail(v.abs());
                    let exact = v * if v < 0.0 { below } else { 1.0 - below };
                    let error = (ours - exact).abs();
                    assert!(error <= 1e-7 + v.abs() * 2f64.powi(-24), "{isa:?}: {ours} of {v}");
                    assert!(v > 0.0 || error <= 2e-6 * exact.abs(), "{isa:?}: {ours} of {v}");
                }
            }
            for (v, ours) in of(std::array::from_fn(|lane| 14.0 * 4f32.powi(lane as i32))) {
                assert_eq!(ours, v, "{isa:?}");
            }
            for (v, ours) in of(std::array::from_fn(|lane| -14.0 * 4f32.powi(lane as i32))) {
                assert!((-1e-37..=0.0).contains(&ours), "{isa:?}: {ours} of {v}");
            }
            assert!(of([f32::NAN; LANES]).all(|(_, ours)| ours.is_nan()), "{isa:?}");
        }
    }
}
