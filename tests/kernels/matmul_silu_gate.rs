use super::matmul::Case;
use crate::harness::*;
use trimtab::backend::Backend;
use trimtab::tensor::bf16;

/// What goes up is another matrix of the gate's shape, with its biases the other way round.
struct Up {
    weight: Vec<bf16>,
    bias: Option<Vec<f32>>,
}

impl Up {
    fn of(case: &Case) -> Self {
        let weight = Random::new(5).halves(case.outputs * case.inputs, 1.0);
        Self { weight, bias: case.bias.as_ref().map(|bias| bias.iter().rev().copied().collect()) }
    }
}

fn run<B: Backend>(backend: &B, case: &Case) -> Vec<bf16> {
    let Case { rows, inputs, outputs, .. } = *case;
    let up = Up::of(case);
    let [gate, up_weight] =
        [&case.weight, &up.weight].map(|data| matrix(backend, outputs, inputs, data));
    let biases = case.bias.as_ref().zip(up.bias.as_ref());
    let biases = biases.map(|(gate, up)| [upload(backend, gate), upload(backend, up)]);
    let biases = biases.as_ref().map(|[gate, up]| [gate, up]);
    let mut out = upload(backend, &vec![bf16::ONE; (rows + 1) * outputs]);
    let x = upload(backend, &case.x);
    backend.matmul_silu_gate(rows, &x, &gate, &up_weight, biases, &mut out).unwrap();
    download(backend, &out)
}

/// Goal: all shapes, with and without bias, also where the exponential saturates: against the oracle, which
/// allows for the sums' errors (silu's slope is at most 1.1, each factor at most inputs + 1 products), and
/// against the product of the backend's own sums, to the rounding of bf16. Below e^-87 the gate is anything
/// that small.
#[test]
fn matmul_silu_gate_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for case in Case::of_all_sizes() {
            let (name, ours) = (case.describe(&name), run(&backend, &case));
            let error = 2.1 * case.error() * case.largest_sum();
            assert_close(&name, &ours, &run(&Oracle, &case), BF16, error + 1e-30);
            let up = Up::of(&case);
            let sums = |weight: &[bf16], bias: &Option<Vec<f32>>| {
                let weight = matrix(&backend, case.outputs, case.inputs, weight);
                case.sums(&backend, &weight, bias.as_deref())
            };
            let gates = sums(&case.weight, &case.bias).into_iter();
            let gated =
                gates.zip(sums(&up.weight, &up.bias)).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
            let gated: Vec<bf16> = gated.map(bf16::from_f64).collect();
            let ours = &ours[..gated.len()];
            assert_close(&format!("{name}, own sums"), ours, &gated, BF16, 1e-30);
        }
    });
}

#[test]
fn a_row_does_not_notice_its_batch() {
    on_every_backend!(|name, backend| {
        Case::rows_do_not_notice_their_batch(&name, |case| run(&backend, case));
    });
}
