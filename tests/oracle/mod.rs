//! The third implementor of `Backend`: obviously right loops in f64, with no rounding anywhere.
//!
//! Kernels are held against it op by op, and it runs whole models against transformers' own
//! float64 log-probabilities.
#![allow(dead_code)] // each test file uses a part
#![allow(clippy::needless_range_loop)] // indices say what the formula says

mod functions;

use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use trimtab::backend::{
    Advance, Attention, Backend, Entries, Heads, Logits, Memory, NO_SLOT, NO_TOKEN, PAGE_LEN,
    PoolShape, SampleRow,
};
use trimtab::error::Result;
use trimtab::tensor::{Element, HostMatrix, bf16};

pub use functions::{gelu, gelu_erf, log_sum_exp, pick};

/// Numbers of any element type, exactly.
pub struct Numbers<T> {
    pub values: Vec<f64>,
    element: PhantomData<T>,
}

impl<T: Element> Numbers<T> {
    pub fn new(values: Vec<f64>) -> Self {
        Self { values, element: PhantomData }
    }

    /// A whole number that stands for a token, a position or a slot.
    fn index(&self, at: usize) -> usize {
        self.values[at] as usize
    }
}

/// A plain matrix, `[rows, cols]`.
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f64>,
}

/// The oracle.
pub struct Oracle;

/// Each row with each of its entries.
fn pairs(entries: &Entries<'_, Oracle>) -> Vec<(usize, usize)> {
    let of = |row| entries.starts.index(row)..entries.starts.index(row + 1);
    let each = |row| of(row).map(move |at| (row, entries.list.index(at)));
    (0..entries.rows).flat_map(each).collect()
}

/// `x[row] · weight[output] + bias[output]`
fn product(
    row: usize,
    output: usize,
    x: &Numbers<bf16>,
    weight: &Matrix,
    bias: Option<&Numbers<f32>>,
) -> f64 {
    let x = &x.values[row * weight.cols..][..weight.cols];
    let w = &weight.values[output * weight.cols..][..weight.cols];
    let dot: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
    dot + bias.map_or(0.0, |bias| bias.values[output])
}

impl Backend for Oracle {
    type Buffer<T: Element> = Numbers<T>;
    type Matrix = Matrix;

    fn describe(&self) -> String {
        "oracle (f64)".into()
    }

    fn memory(&self) -> &Arc<Memory> {
        static ALL: LazyLock<Arc<Memory>> = LazyLock::new(|| Memory::new(None));
        &ALL
    }

    /// As many as a GPU, so that rows end in between.
    fn steps_per_look(&self) -> usize {
        32
    }

    fn side(&self) -> Result<Self> {
        Ok(Self)
    }

    fn after(&self, _other: &Self) -> Result<()> {
        Ok(())
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Numbers<T>> {
        Ok(Numbers::new(vec![0.0; len]))
    }

    fn len<T: Element>(&self, buffer: &Numbers<T>) -> usize {
        buffer.values.len()
    }

    fn upload<T: Element>(&self, source: &[T], target: &mut Numbers<T>) -> Result<()> {
        for (target, source) in target.values[..source.len()].iter_mut().zip(source) {
            *target = source.to_f64();
        }
        Ok(())
    }

    fn download<T: Element>(&self, source: &Numbers<T>, target: &mut [T]) -> Result<()> {
        for (target, &source) in target.iter_mut().zip(&source.values) {
            *target = T::from_f64(source);
        }
        Ok(())
    }

    fn matrix(&self, matrix: HostMatrix<'_>) -> Result<Matrix> {
        let values = matrix.data.iter().map(|&value| value.to_f64()).collect();
        Ok(Matrix { rows: matrix.rows, cols: matrix.cols, values })
    }

    fn embed(
        &self,
        rows: usize,
        tokens: &Numbers<u32>,
        table: &Matrix,
        out: &mut Numbers<f32>,
    ) -> Result<()> {
        for row in 0..rows {
            for i in 0..table.cols {
                out.values[row * table.cols + i] = table.values[tokens.index(row) * table.cols + i];
            }
        }
        Ok(())
    }

    fn embed_add(
        &self,
        rows: usize,
        positions: &Numbers<u32>,
        table: &Matrix,
        x: &mut Numbers<f32>,
    ) -> Result<()> {
        for row in 0..rows {
            for i in 0..table.cols {
                x.values[row * table.cols + i] +=
                    table.values[positions.index(row) * table.cols + i];
            }
        }
        Ok(())
    }

    fn rms_norm(
        &self,
        rows: usize,
        x: &Numbers<f32>,
        weight: &Numbers<f32>,
        eps: f32,
        out: &mut Numbers<bf16>,
    ) -> Result<()> {
        let width = weight.values.len();
        for row in 0..rows {
            let x = &x.values[row * width..][..width];
            let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
            for i in 0..width {
                out.values[row * width + i] =
                    x[i] / (mean + f64::from(eps)).sqrt() * weight.values[i];
            }
        }
        Ok(())
    }

    fn layer_norm(
        &self,
        rows: usize,
        x: &Numbers<f32>,
        weight: &Numbers<f32>,
        bias: &Numbers<f32>,
        eps: f32,
        out: &mut Numbers<bf16>,
    ) -> Result<()> {
        let width = weight.values.len();
        for row in 0..rows {
            let x = &x.values[row * width..][..width];
            let mean = x.iter().sum::<f64>() / width as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            for i in 0..width {
                let normal = (x[i] - mean) / (variance + f64::from(eps)).sqrt();
                out.values[row * width + i] = normal * weight.values[i] + bias.values[i];
            }
        }
        Ok(())
    }

    fn matmul(
        &self,
        rows: usize,
        x: &Numbers<bf16>,
        weight: &Matrix,
        bias: Option<&Numbers<f32>>,
        out: &mut Numbers<bf16>,
    ) -> Result<()> {
        for row in 0..rows {
            for output in 0..weight.rows {
                out.values[row * weight.rows + output] = product(row, output, x, weight, bias);
            }
        }
        Ok(())
    }

    fn matmul_add(
        &self,
        rows: usize,
        x: &Numbers<bf16>,
        weight: &Matrix,
        bias: Option<&Numbers<f32>>,
        residual: &mut Numbers<f32>,
    ) -> Result<()> {
        for row in 0..rows {
            for output in 0..weight.rows {
                residual.values[row * weight.rows + output] +=
                    product(row, output, x, weight, bias);
            }
        }
        Ok(())
    }

    fn matmul_gelu(
        &self,
        rows: usize,
        x: &Numbers<bf16>,
        weight: &Matrix,
        bias: Option<&Numbers<f32>>,
        out: &mut Numbers<bf16>,
    ) -> Result<()> {
        self.matmul(rows, x, weight, bias, out)?;
        out.values[..rows * weight.rows].iter_mut().for_each(|v| *v = gelu(*v));
        Ok(())
    }

    fn matmul_gelu_erf(
        &self,
        rows: usize,
        x: &Numbers<bf16>,
        weight: &Matrix,
        bias: Option<&Numbers<f32>>,
        out: &mut Numbers<bf16>,
    ) -> Result<()> {
        self.matmul(rows, x, weight, bias, out)?;
        out.values[..rows * weight.rows].iter_mut().for_each(|v| *v = gelu_erf(*v));
        Ok(())
    }

    fn matmul_silu_gate(
        &self,
        rows: usize,
        x: &Numbers<bf16>,
        gate: &Matrix,
        up: &Matrix,
        biases: Option<[&Numbers<f32>; 2]>,
        out: &mut Numbers<bf16>,
    ) -> Result<()> {
        for row in 0..rows {
            for output in 0..gate.rows {
                let g = product(row, output, x, gate, biases.map(|biases| biases[0]));
                let u = product(row, output, x, up, biases.map(|biases| biases[1]));
                out.values[row * gate.rows + output] = g / (1.0 + (-g).exp()) * u;
            }
        }
        Ok(())
    }

    fn rope(
        &self,
        rows: usize,
        heads: Heads,
        positions: &Numbers<u32>,
        cos_sin: &Numbers<f32>,
        qkv: &mut Numbers<bf16>,
    ) -> Result<()> {
        let half = heads.dim / 2;
        for row in 0..rows {
            let angles = &cos_sin.values[positions.index(row) * heads.dim..][..heads.dim];
            for head in 0..heads.query + heads.kv {
                let at = row * heads.qkv_width() + head * heads.dim;
                for i in 0..half {
                    let (cos, sin) = (angles[i], angles[half + i]);
                    let (a, b) = (qkv.values[at + i], qkv.values[at + half + i]);
                    qkv.values[at + i] = a * cos - b * sin;
                    qkv.values[at + half + i] = b * cos + a * sin;
                }
            }
        }
        Ok(())
    }

    fn store_kv(
        &self,
        layer: usize,
        shape: PoolShape,
        qkv: &Numbers<bf16>,
        entries: Entries<'_, Self>,
        slots: &Numbers<u32>,
        pool: &mut Numbers<bf16>,
    ) -> Result<()> {
        let Heads { query, kv, dim } = shape.heads;
        for (row, entry) in pairs(&entries) {
            if slots.index(entry) == NO_SLOT as usize {
                continue;
            }
            let (page, offset) = (slots.index(entry) / PAGE_LEN, slots.index(entry) % PAGE_LEN);
            for head in 0..kv {
                for which in 0..2 {
                    for i in 0..dim {
                        let from = (query + which * kv + head) * dim + i;
                        let to = shape.offset(layer, page, head, which) + offset * dim + i;
                        pool.values[to] = qkv.values[row * shape.heads.qkv_width() + from];
                    }
                }
            }
        }
        Ok(())
    }

    fn copy_pages(
        &self,
        shape: PoolShape,
        copies: &[(u32, u32)],
        pool: &mut Numbers<bf16>,
    ) -> Result<()> {
        for &(from, to) in copies {
            for layer in 0..shape.layers {
                for i in 0..shape.page_len() {
                    let page = |page: u32| (layer * shape.pages + page as usize) * shape.page_len();
                    pool.values[page(to) + i] = pool.values[page(from) + i];
                }
            }
        }
        Ok(())
    }

    fn attention(&self, args: Attention<'_, Self>) -> Result<()> {
        let heads = args.shape.heads;
        let rows: usize = args.segments.iter().map(|segment| segment.rows).sum();
        for row in 0..rows {
            let position = args.positions.index(row);
            let table = args.row_segments.index(row) * args.table_stride;
            let visible: Vec<usize> = (0..=position)
                .filter(|at| args.window.is_none_or(|window| position - at < window))
                .collect();
            for head in 0..heads.query {
                let kv_head = head / (heads.query / heads.kv);
                let pooled = |at: usize, which: usize, i: usize| {
                    let page = args.tables.index(table + at / PAGE_LEN);
                    let start = args.shape.offset(args.layer, page, kv_head, which);
                    args.pool.values[start + at % PAGE_LEN * heads.dim + i]
                };
                let query = row * heads.qkv_width() + head * heads.dim;
                let scores: Vec<f64> = visible
                    .iter()
                    .map(|&at| {
                        let dot: f64 = (0..heads.dim)
                            .map(|i| args.qkv.values[query + i] * pooled(at, 0, i))
                            .sum();
                        dot * f64::from(args.scale)
                    })
                    .collect();
                let total = log_sum_exp(&scores);
                for i in 0..heads.dim {
                    args.out.values[row * heads.query_width() + head * heads.dim + i] = visible
                        .iter()
                        .zip(&scores)
                        .map(|(&at, score)| (score - total).exp() * pooled(at, 1, i))
                        .sum();
                }
            }
        }
        Ok(())
    }

    fn logits(
        &self,
        rows: usize,
        x: &Numbers<bf16>,
        head: &Matrix,
        out: &mut Logits<Self>,
    ) -> Result<()> {
        for row in 0..rows {
            for token in 0..head.rows {
                out.values.values[row * head.rows + token] = product(row, token, x, head, None);
            }
        }
        Ok(())
    }

    fn logprobs(
        &self,
        x: &Numbers<bf16>,
        head: &Matrix,
        entries: Entries<'_, Self>,
        targets: &Numbers<u32>,
        out: &mut Numbers<f32>,
    ) -> Result<()> {
        for (row, entry) in pairs(&entries) {
            let logits: Vec<f64> =
                (0..head.rows).map(|token| product(row, token, x, head, None)).collect();
            out.values[entry] = logits[targets.index(entry)] - log_sum_exp(&logits);
        }
        Ok(())
    }

    fn add_guidance(
        &self,
        rows: usize,
        weight: f32,
        tuned: &Logits<Self>,
        untuned: &Logits<Self>,
        logits: &mut Logits<Self>,
    ) -> Result<()> {
        let vocab = logits.vocab;
        for row in 0..rows {
            let [tuned, untuned] =
                [tuned, untuned].map(|of| &of.values.values[row * of.vocab..][..of.vocab]);
            let (t, u) = (log_sum_exp(tuned), log_sum_exp(untuned));
            for i in 0..vocab {
                let logit = &mut logits.values.values[row * vocab + i];
                if i < tuned.len() && i < untuned.len() {
                    *logit += f64::from(weight) * ((tuned[i] - t) - (untuned[i] - u));
                } else {
                    *logit = f64::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    fn sample(
        &self,
        rows: &[SampleRow],
        logits: &Logits<Self>,
        tokens: &mut Numbers<u32>,
    ) -> Result<()> {
        for (row, how) in rows.iter().enumerate() {
            let logits =
                &logits.values.values[how.logits as usize * logits.vocab..][..logits.vocab];
            let broken = logits.iter().any(|logit| logit.is_nan() || *logit == f64::INFINITY)
                || logits.iter().all(|&logit| logit == f64::NEG_INFINITY);
            tokens.values[row] =
                if broken { f64::from(NO_TOKEN) } else { pick(how, logits) as f64 };
        }
        Ok(())
    }

    fn advance(&self, args: Advance<'_, Self>) -> Result<()> {
        for row in 0..args.rows {
            let ended = args.slots.index(row) == NO_SLOT as usize;
            let token = if ended { args.tokens.values[row] } else { args.drawn.values[row] };
            args.history.values[args.step * args.rows + row] = token;
            let broken = token == f64::from(NO_TOKEN);
            args.tokens.values[row] = if broken { 0.0 } else { token };
            if ended || broken || args.ends.values.contains(&token) {
                args.positions.values[row] = 0.0;
                args.slots.values[row] = f64::from(NO_SLOT);
                continue;
            }
            let position = args.positions.index(row) + 1;
            args.positions.values[row] = position as f64;
            let page = position / PAGE_LEN;
            if page < args.table_stride {
                let page = args.tables.index(row * args.table_stride + page);
                args.slots.values[row] = (page * PAGE_LEN + position % PAGE_LEN) as f64;
            }
        }
        Ok(())
    }
}
