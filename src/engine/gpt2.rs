//! GPT-2 (Radford et al., 2019) as a [`Config`] and the names of its tensors.

use serde_json::json;

use super::config::{Activation, Biases, Config, Fields, Norm, Position, heads, limits};
use super::model::Names;
use crate::error::Result;

/// The name in `architectures`.
pub const NAME: &str = "GPT2LMHeadModel";

/// Reads GPT-2's fields.
pub fn config(fields: &Fields) -> Result<Config> {
    let width = fields.size("n_embd", limits::WIDTH)?;
    let query = fields.size("n_head", limits::HEADS)?;
    if !width.is_multiple_of(query) {
        return Err(
            fields.error("n_head", format!("is {query}, which does not divide n_embd = {width}"))
        );
    }
    match fields.text("activation_function")? {
        None | Some("gelu_new" | "gelu_pytorch_tanh") => {}
        Some(other) => {
            let reason = format!("is {other:?}, which is not supported (only \"gelu_new\")");
            return Err(fields.error("activation_function", reason));
        }
    }
    fields.require("scale_attn_weights", &json!(true))?;
    fields.require("scale_attn_by_inverse_layer_idx", &json!(false))?;
    fields.require("add_cross_attention", &json!(false))?;
    Ok(Config {
        architecture: NAME,
        vocab: fields.size("vocab_size", limits::VOCAB)?,
        width,
        layers: fields.size("n_layer", limits::LAYERS)?,
        heads: heads(fields, ["n_head", "n_head"], query, query, width / query)?,
        feed_forward: fields.size_or("n_inner", limits::FEED_FORWARD, Some(4 * width))?,
        context: fields.size_or("n_positions", limits::CONTEXT, Some(1024))?,
        norm: Norm::Layer(fields.positive("layer_norm_epsilon", Some(1e-5))? as f32),
        position: Position::Learned,
        activation: Activation::Gelu,
        window: None,
        tied_head: fields.flag("tie_word_embeddings", true)?,
        biases: Biases { qkv: true, output: true, mlp: true },
        eos: Vec::new(),
    })
}

/// Where the weights are. Matrices lie `[in, out]` (Conv1D).
pub const NAMES: Names = Names {
    prefix: "transformer.",
    embedding: "wte.weight",
    positions: "wpe.weight",
    layers: "h",
    attention_norm: "ln_1",
    qkv: &["attn.c_attn"],
    output: "attn.c_proj",
    mlp_norm: "ln_2",
    up: "mlp.c_fc",
    gate: "",
    down: "mlp.c_proj",
    final_norm: "ln_f",
    head: "lm_head.weight",
    conv1d: true,
    // The causal mask.
    needless: &[".attn.bias", ".attn.masked_bias"],
};
