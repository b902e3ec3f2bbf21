use crate::harness::*;
use trimtab::backend::{Backend, Logits};
use trimtab::tensor::{Element, bf16};

/// Inputs and outputs that fill, straddle and miss panels, pairs and blocks of pairs (256 inputs).
pub const SHAPES: [(usize, usize); 8] =
    [(1, 1), (2, 63), (15, 65), (33, 130), (64, 64), (100, 17), (257, 200), (1101, 70)];

/// Row counts, each with a shape, beyond what one block for few rows takes; and none. Enough
/// inputs for the stages of tiles to be used again, and enough rows and outputs for large ones; more
/// rows than any path takes as one block.
pub const MANY: [(usize, (usize, usize)); 7] = [
    (0, (8, 16)),
    (65, (264, 130)),
    (129, (520, 65)),
    (200, (72, 260)),
    (66, (264, 30)),
    (125, (600, 400)),
    (530, (40, 66)),
];

pub struct Case {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Vec<bf16>,
    pub weight: Vec<bf16>,
    pub bias: Option<Vec<f32>>,
    /// Products are below it.
    pub size: f32,
}

/// All shapes with all row counts, and many rows.
pub fn rows_and_shapes() -> impl Iterator<Item = (usize, (usize, usize))> {
    SHAPES.into_iter().flat_map(|shape| ROWS.map(|rows| (rows, shape))).chain(MANY)
}

impl Case {
    pub fn new(rows: usize, shape: (usize, usize), bias: bool) -> Self {
        Self::sized(rows, shape, bias, 1.0)
    }

    pub fn sized(rows: usize, (inputs, outputs): (usize, usize), bias: bool, size: f32) -> Self {
        let mut random = Random::new((rows * inputs * outputs) as u64);
        Self {
            rows,
            inputs,
            outputs,
            x: random.halves(rows * inputs, size),
            weight: random.halves(outputs * inputs, 1.0),
            bias: bias.then(|| random.numbers(outputs, size)),
            size,
        }
    }

    /// All shapes, with and without bias, of sums from small ones to such as activations saturate at.
    pub fn of_all_sizes() -> impl Iterator<Item = Self> {
        let sizes = [1.0, 8.0, 100.0, 0.01].into_iter().cycle();
        rows_and_shapes()
            .zip(sizes)
            .map(|((rows, shape), size)| Self::sized(rows, shape, rows % 2 == 0, size))
    }

    pub fn describe(&self, backend: &str) -> String {
        let Self { rows, inputs, outputs, size, .. } = self;
        format!("{backend}, {rows} rows of {inputs} -> {outputs} times {size}")
    }

    pub fn error(&self) -> f64 {
        sum_error(self.inputs, f64::from(self.size))
    }

    pub fn largest_sum(&self) -> f64 {
        (self.inputs + 1) as f64 * f64::from(self.size)
    }

    /// `x · weightᵀ + bias` as the backend adds it up, which it does alike in all products.
    pub fn sums<B: Backend>(
        &self,
        backend: &B,
        weight: &B::Matrix,
        bias: Option<&[f32]>,
    ) -> Vec<f64> {
        let x = upload(backend, &self.x);
        let mut out = Logits::new(backend, self.rows, self.outputs).unwrap();
        backend.logits(self.rows, &x, weight, &mut out).unwrap();
        let zeros = vec![0.0; self.outputs];
        let biases = bias.unwrap_or(&zeros).iter().cycle();
        let sums = download(backend, &out.values).into_iter().zip(biases);
        sums.map(|(sum, bias)| f64::from(sum + bias)).collect()
    }

    /// Goal: a row's bits are the same alone and in any batch, also one large enough to be cut into
    /// blocks and spread over threads, and where few rows and many have other kernels.
    pub fn rows_do_not_notice_their_batch<T: Element>(name: &str, run: impl Fn(&Self) -> Vec<T>) {
        for shape in [(130, 193), (264, 193), (1101, 70), (1096, 30)] {
            let case = Self::new(372, shape, true);
            let whole = run(&case);
            for (first, rows) in
                [(0, 1), (5, 2), (100, 96), (200, 101), (300, 1), (7, 13), (20, 31), (60, 64)]
            {
                let x = case.x[first * case.inputs..][..rows * case.inputs].to_vec();
                let (weight, bias) = (case.weight.clone(), case.bias.clone());
                let part = Self { rows, x, weight, bias, ..case };
                let bits =
                    |values: &[T]| values.iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&run(&part)[..rows * case.outputs]),
                    bits(&whole[first * case.outputs..][..rows * case.outputs]),
                    "{name}, {shape:?}: rows {first}.."
                );
            }
        }
    }
}

fn run<B: Backend>(backend: &B, case: &Case) -> Vec<bf16> {
    let weight = matrix(backend, case.outputs, case.inputs, &case.weight);
    let bias = case.bias.as_ref().map(|bias| upload(backend, bias));
    let mut out = upload(backend, &vec![bf16::ONE; (case.rows + 1) * case.outputs]);
    let x = upload(backend, &case.x);
    backend.matmul(case.rows, &x, &weight, bias.as_ref(), &mut out).unwrap();
    download(backend, &out)
}

/// Goal: all shapes, with and without bias, on all paths.
#[test]
fn matmul_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for (rows, shape) in rows_and_shapes() {
            let case = Case::new(rows, shape, rows % 2 == 0);
            let name = format!("{name}, {rows} rows of {shape:?}");
            let bound = case.error();
            assert_close(&name, &run(&backend, &case), &run(&Oracle, &case), BF16, bound);
        }
    });
}

#[test]
fn a_row_does_not_notice_its_batch() {
    on_every_backend!(|name, backend| {
        Case::rows_do_not_notice_their_batch(&name, |case| run(&backend, case));
    });
}
