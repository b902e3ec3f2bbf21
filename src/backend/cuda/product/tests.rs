use super::*;
use crate::backend::Backend;
use crate::backend::cuda::Emulator;
use crate::backend::cuda::params::{LogitsParams, MatmulAddParams};
use crate::tensor::HostMatrix;

type Emulated = CudaBackend<Emulator>;

/// Ops by what their kernels are launched with.
#[derive(Clone, Copy)]
enum Op {
    Store,
    Add,
    Gate,
    Logits,
}

/// What a product is made of, and room for what comes out.
struct Operands {
    rows: usize,
    x: Buffer<Emulator, bf16>,
    weights: [Matrix<Emulator>; 2],
    biases: [Buffer<Emulator, f32>; 2],
    out: Buffer<Emulator, f32>,
    maxima: Buffer<Emulator, f32>,
}

impl Operands {
    fn new(backend: &Emulated, rows: usize, inputs: usize, outputs: usize) -> Self {
        // Between −1 and 1 (a linear congruential generator's upper bits).
        let mut state = 1u64;
        let mut numbers = |len: usize| -> Vec<f32> {
            let next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            std::iter::repeat_with(next).take(len).collect()
        };
        let mut halves =
            |len| -> Vec<bf16> { numbers(len).into_iter().map(bf16::from_f32).collect() };
        let mut x = backend.alloc(rows * inputs).unwrap();
        backend.upload(&halves(rows * inputs), &mut x).unwrap();
        let weights = [(); 2].map(|()| {
            let data = halves(outputs * inputs);
            backend.matrix(HostMatrix::new(outputs, inputs, &data)).unwrap()
        });
        let biases = [(); 2].map(|()| {
            let mut bias = backend.alloc(outputs).unwrap();
            backend.upload(&numbers(outputs), &mut bias).unwrap();
            bias
        });
        let [out, maxima] = [(); 2].map(|()| backend.alloc(rows * outputs).unwrap());
        Self { rows, x, weights, biases, out, maxima }
    }

    /// What the op's kernel of this plan leaves behind.
    fn bits(&mut self, backend: &Emulated, op: Op, plan: Plan) -> Vec<u32> {
        let mut left = vec![1.0; self.out.len];
        backend.upload(&left, &mut self.out).unwrap();
        backend.upload(&left, &mut self.maxima).unwrap();
        let (out, maxima) = (self.out.as_mut_ptr(), self.maxima.as_mut_ptr());
        let [weight, up] = &self.weights;
        let [bias, up_bias] = self.biases.each_ref().map(Buffer::as_ptr);
        let one = Product::new(self.rows, &self.x, weight);
        match op {
            Op::Store => launch(backend, &one, plan, |product| MatmulParams {
                product,
                bias,
                out: out.cast(),
            }),
            Op::Add => launch(backend, &one, plan, |product| MatmulAddParams {
                product,
                bias,
                residual: out,
            }),
            Op::Gate => {
                let two = Product { second: Some(up), ..one };
                launch(backend, &two, plan, |product| MatmulSiluGateParams {
                    product,
                    up: up.data.as_ptr(),
                    gate_bias: bias,
                    up_bias,
                    out: out.cast(),
                });
            }
            Op::Logits => {
                launch(backend, &one, plan, |product| LogitsParams { product, out, maxima });
            }
        }
        let mut maxima = left.clone();
        backend.download(&self.out, &mut left).unwrap();
        backend.download(&self.maxima, &mut maxima).unwrap();
        left.into_iter().chain(maxima).map(f32::to_bits).collect()
    }
}

fn launch<P: Params>(
    backend: &Emulated,
    product: &Product<'_, Emulator>,
    plan: Plan,
    params: impl FnOnce(ProductParams) -> P,
) {
    // SAFETY: the callers' structs are the kernels'; the shapes are those of Operands.
    unsafe { product.launch_by(backend, plan, params) }.unwrap();
}

/// All kernels for rows that are whole chunks, with their names.
fn plans(kernels: Kernels) -> impl Iterator<Item = (&'static str, Plan)> {
    let few = kernels.few.into_iter().zip(FEW_ROWS);
    let few = few.map(|(kernel, rows)| (kernel, Plan::Few { kernel, rows }));
    let tiles = [(kernels.small, SMALL), (kernels.large, LARGE)];
    let tiles = tiles.into_iter().map(|(kernel, tiling)| (kernel, Plan::Tiles(kernel, tiling)));
    let wide = kernels.wide.into_iter().zip(WIDE);
    few.chain(tiles).chain(wide.map(|(kernel, tiling)| (kernel, Plan::Wide(kernel, tiling))))
}

/// Goal: whatever kernel multiplies, the bits are the same: with rows and outputs that straddle every tile,
/// with more stages than steps and the reverse, and with slices that are empty.
#[test]
fn all_kernels_of_an_op_give_the_same_bits() {
    let backend = CudaBackend::new(Emulator::new(4)).unwrap();
    let check = |op: Op, kernels: Kernels, rows, inputs, outputs| {
        let mut operands = Operands::new(&backend, rows, inputs, outputs);
        let mut all = plans(kernels);
        let (_, first) = all.next().unwrap();
        let expected = operands.bits(&backend, op, first);
        for (kernel, plan) in all {
            let same = operands.bits(&backend, op, plan) == expected;
            assert!(same, "{kernel}, {rows} rows of {inputs} -> {outputs}");
        }
    };
    let all_inputs = [8, 72, 200, 264, 520, 1096, 3072];
    for inputs in all_inputs {
        check(Op::Logits, LOGITS, 163, inputs, 134);
    }
    let rows = [163, 67, 9, 131, 17, 33, 5];
    let stored = [MATMUL, MATMUL_GELU, MATMUL_GELU_ERF].map(|kernels| (Op::Store, kernels));
    let others = [(Op::Add, MATMUL_ADD), (Op::Gate, MATMUL_SILU_GATE)];
    for (op, kernels) in stored.into_iter().chain(others) {
        for (inputs, rows) in all_inputs.into_iter().zip(rows) {
            check(op, kernels, rows, inputs, 70);
        }
    }
}

/// Goal: tiles as large as the shape fills, on an H200's processors: what all blocks take one after another is least.
#[test]
fn wide_tiles_follow_the_shape() {
    let chosen = |rows, lines| {
        let Wide { lines, rows, .. } = WIDE[Wide::choose(&WIDE, 132, rows, lines)];
        (lines, rows)
    };
    assert_eq!(chosen(16, 28672), (64, 16));
    assert_eq!(chosen(64, 28672), (64, 64));
    assert_eq!(chosen(16, 4096), (64, 16));
    assert_eq!(chosen(64, 4096), (64, 32));
    assert_eq!(chosen(160, 4096), (128, 64));
    assert_eq!(chosen(160, 57344), (128, 160));
    assert_eq!(chosen(512, 4096), (128, 128));
}
