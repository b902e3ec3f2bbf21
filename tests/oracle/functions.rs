//! The oracle's formulas, in f64.

use trimtab::backend::SampleRow;

pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// GELU in its tanh form.
pub fn gelu(v: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
    0.5 * v * (1.0 + inner.tanh())
}

/// The exact GELU.
pub fn gelu_erf(v: f64) -> f64 {
    0.5 * v * (1.0 + erf(v / 2f64.sqrt()))
}

/// 2 / √π · e^(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1 · 3 · … · (2n + 1)), whose terms all have one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// The token that `how` draws, by sorting everything.
pub fn pick(how: &SampleRow, logits: &[f64]) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if how.temperature == 0.0 {
        return order[0];
    }
    if how.top_k > 0 && (how.top_k as usize) < order.len() {
        let bound = logits[order[how.top_k as usize - 1]];
        order.retain(|&token| logits[token] >= bound);
    }
    let weight =
        |token: usize| ((logits[token] - logits[order[0]]) / f64::from(how.temperature)).exp();
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let mut kept = Vec::new();
    let mut mass = 0.0;
    for &token in &order {
        if how.top_p < 1.0 && mass >= f64::from(how.top_p) * total && !kept.is_empty() {
            break;
        }
        kept.push(token);
        mass += weight(token);
    }
    kept.sort_unstable();
    let target = f64::from(how.draw.uniform()) * mass;
    let mut running = 0.0;
    for &token in &kept {
        running += weight(token);
        if running > target {
            return token;
        }
    }
    kept[kept.len() - 1]
}
