//! The one forward pass. Families differ by data and by three matches: norm, position,
//! activation.

use super::batch::Batch;
use super::config::{Activation, Config, Norm, Position};
use super::model::{Layer, Linear, Model, NormWeights};
use crate::backend::{Attention, Backend, PoolShape, Qkv, Rotary};
use crate::error::Result;
use crate::tensor::bf16;

/// Activations of one batch, allocated once.
pub(super) struct Activations<B: Backend> {
    /// The residual stream, `[rows, width]`.
    pub x: B::Buffer<f32>,
    /// `[rows, width]`
    normed: B::Buffer<bf16>,
    /// `[rows, (q + 2 kv) * head_dim]`
    qkv: B::Buffer<bf16>,
    /// `[rows, q * head_dim]`
    attended: B::Buffer<bf16>,
    /// `[rows, feed_forward]`
    hidden: B::Buffer<bf16>,
}

impl<B: Backend> Activations<B> {
    /// Bytes of device memory that [`Activations::new`] takes.
    pub fn bytes(config: &Config, rows: usize) -> usize {
        let Config { heads, width, feed_forward, .. } = *config;
        let narrow = width + heads.qkv_width() + heads.query_width() + feed_forward;
        rows * (width * size_of::<f32>() + narrow * size_of::<bf16>())
    }

    pub fn new(backend: &B, config: &Config, rows: usize) -> Result<Self> {
        Ok(Self {
            x: backend.alloc(rows * config.width)?,
            normed: backend.alloc(rows * config.width)?,
            qkv: backend.alloc(rows * config.heads.qkv_width())?,
            attended: backend.alloc(rows * config.heads.query_width())?,
            hidden: backend.alloc(rows * config.feed_forward)?,
        })
    }
}

/// A model's keys and values on the device.
pub(super) struct Pool<B: Backend> {
    pub shape: PoolShape,
    /// Laid out as [`PoolShape`] says.
    pub data: B::Buffer<bf16>,
    /// `[positions, head_dim]`: cosines, then sines; empty for learned positions.
    pub cos_sin: B::Buffer<f32>,
}

impl<B: Backend> Model<B> {
    /// Runs the batch through all layers: writes its keys and values to the pool and leaves the
    /// residual stream before the final norm in `a.x`.
    pub(super) fn forward(
        &self,
        backend: &B,
        batch: &Batch<B>,
        pool: &mut Pool<B>,
        a: &mut Activations<B>,
    ) -> Result<()> {
        backend.embed(batch.rows, &batch.tokens, &self.embedding, &mut a.x)?;
        if let Some(table) = &self.positions {
            backend.embed_add(batch.rows, &batch.positions, table, &mut a.x)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.attend(backend, batch, index, layer, pool, a)?;
            self.feed_forward(backend, batch.rows, layer, a)?;
        }
        Ok(())
    }

    fn attend(
        &self,
        backend: &B,
        batch: &Batch<B>,
        index: usize,
        layer: &Layer<B>,
        pool: &mut Pool<B>,
        a: &mut Activations<B>,
    ) -> Result<()> {
        let rows = batch.rows;
        self.norm(backend, rows, &a.x, &layer.attention_norm, &mut a.normed)?;
        backend.qkv(Qkv {
            layer: index,
            shape: pool.shape,
            x: &a.normed,
            weight: &layer.qkv.weight,
            bias: layer.qkv.bias.as_ref(),
            rotary: match self.config.position {
                Position::Learned => None,
                Position::Rotary(_) => {
                    Some(Rotary { positions: &batch.positions, cos_sin: &pool.cos_sin })
                }
            },
            entries: batch.entries(),
            slots: &batch.slots,
            pool: &mut pool.data,
            out: &mut a.qkv,
        })?;
        backend.attention(Attention {
            layer: index,
            shape: pool.shape,
            window: self.config.attention[index].window,
            scale: self.config.attention[index].scale,
            qkv: &a.qkv,
            pool: &pool.data,
            segments: &batch.segments,
            positions: &batch.positions,
            row_segments: &batch.row_segments,
            tables: &batch.tables,
            table_stride: batch.table_stride,
            out: &mut a.attended,
        })?;
        matmul_add(backend, rows, &a.attended, &layer.output, &mut a.x)
    }

    fn feed_forward(
        &self,
        backend: &B,
        rows: usize,
        layer: &Layer<B>,
        a: &mut Activations<B>,
    ) -> Result<()> {
        self.norm(backend, rows, &a.x, &layer.mlp_norm, &mut a.normed)?;
        let Linear { weight: up, bias } = &layer.up;
        match (self.config.activation, &layer.gate) {
            (Activation::Gelu, _) => {
                backend.matmul_gelu(rows, &a.normed, up, bias.as_ref(), &mut a.hidden)?;
            }
            (Activation::GeluErf, _) => {
                backend.matmul_gelu_erf(rows, &a.normed, up, bias.as_ref(), &mut a.hidden)?;
            }
            (Activation::SiluGate, gate) => {
                let gate = gate.as_ref().expect("the loader gives a gate to gated MLPs");
                let biases = gate.bias.as_ref().zip(bias.as_ref()).map(<[_; 2]>::from);
                let gate = &gate.weight;
                backend.matmul_silu_gate(rows, &a.normed, gate, up, biases, &mut a.hidden)?;
            }
        }
        matmul_add(backend, rows, &a.hidden, &layer.down, &mut a.x)
    }

    /// The norm before the head, of rows already picked.
    pub(super) fn final_norm(
        &self,
        backend: &B,
        rows: usize,
        x: &B::Buffer<f32>,
        out: &mut B::Buffer<bf16>,
    ) -> Result<()> {
        self.norm(backend, rows, x, &self.final_norm, out)
    }

    fn norm(
        &self,
        backend: &B,
        rows: usize,
        x: &B::Buffer<f32>,
        norm: &NormWeights<B>,
        out: &mut B::Buffer<bf16>,
    ) -> Result<()> {
        match (self.config.norm, &norm.bias) {
            (Norm::Layer(eps), Some(bias)) => {
                backend.layer_norm(rows, x, &norm.weight, bias, eps, out)
            }
            (Norm::Rms(eps), None) => backend.rms_norm(rows, x, &norm.weight, eps, out),
            (Norm::Layer(_), None) | (Norm::Rms(_), Some(_)) => {
                unreachable!("the loader gives biases to layer norms alone")
            }
        }
    }
}

fn matmul_add<B: Backend>(
    backend: &B,
    rows: usize,
    x: &B::Buffer<bf16>,
    linear: &Linear<B>,
    residual: &mut B::Buffer<f32>,
) -> Result<()> {
    backend.matmul_add(rows, x, &linear.weight, linear.bias.as_ref(), residual)
}
