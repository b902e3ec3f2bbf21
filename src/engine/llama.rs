//! Llama 1, 2, 3, 3.1, 3.2, TinyLlama and Mistral as a [`Config`] and the names of their tensors.

use serde_json::json;

use super::config::{Activation, Biases, Config, Fields, Norm, Position, heads, limits};
use super::model::Names;
use crate::error::Result;

/// Llama's name in `architectures`.
pub const LLAMA: &str = "LlamaForCausalLM";
/// Mistral's name in `architectures`.
pub const MISTRAL: &str = "MistralForCausalLM";

/// Reads the fields of either family; Mistral adds a window and has no biases.
pub fn config(fields: &Fields, architecture: &'static str) -> Result<Config> {
    let mistral = architecture == MISTRAL;
    let width = fields.size("hidden_size", limits::WIDTH)?;
    let query = fields.size("num_attention_heads", limits::HEADS)?;
    // Where a field is missing, the family's own default holds; null is another one.
    let missing = |name| mistral && !fields.names(name);
    let own = if missing("num_key_value_heads") { 8 } else { query };
    let kv = fields.size_or("num_key_value_heads", limits::HEADS, Some(own))?;
    let dim = match fields.get("head_dim") {
        Some(_) => fields.size("head_dim", limits::HEAD_DIM)?,
        None if width.is_multiple_of(query) => width / query,
        None => {
            let reason = format!("is {query}, which does not divide hidden_size = {width}");
            return Err(fields.error("num_attention_heads", reason));
        }
    };
    if !dim.is_multiple_of(2) {
        return Err(
            fields.error("head_dim", format!("is {dim} but must be even for rotary positions"))
        );
    }
    fields.require("hidden_act", &json!("silu"))?;
    fields.require("partial_rotary_factor", &json!(1.0))?;
    let bias = |name| if mistral { Ok(false) } else { fields.flag(name, false) };
    let (attention_bias, mlp_bias) = (bias("attention_bias")?, bias("mlp_bias")?);
    let window = match fields.get("sliding_window") {
        Some(_) if mistral => Some(fields.size("sliding_window", limits::CONTEXT)?),
        None if missing("sliding_window") => Some(4096),
        _ => None,
    };
    let default_context = if mistral { 131_072 } else { 2048 };
    Ok(Config {
        architecture,
        vocab: fields.size("vocab_size", limits::VOCAB)?,
        width,
        layers: fields.size("num_hidden_layers", limits::LAYERS)?,
        heads: heads(fields, ["num_attention_heads", "num_key_value_heads"], query, kv, dim)?,
        feed_forward: fields.size("intermediate_size", limits::FEED_FORWARD)?,
        context: fields.size_or(
            "max_position_embeddings",
            limits::CONTEXT,
            Some(default_context),
        )?,
        norm: Norm::Rms(fields.positive("rms_norm_eps", Some(1e-6))? as f32),
        position: Position::Rotary(rotary_frequencies(fields, dim)?),
        activation: Activation::SiluGate,
        window,
        tied_head: fields.flag("tie_word_embeddings", false)?,
        biases: Biases { qkv: attention_bias, output: attention_bias, mlp: mlp_bias },
        eos: Vec::new(),
    })
}

/// Radians per position of each channel pair, in f32 as transformers computes them.
///
/// Older configs write `rope_theta` and `rope_scaling`, newer ones both inside `rope_parameters`.
fn rotary_frequencies(fields: &Fields, head_dim: usize) -> Result<Vec<f32>> {
    let new = fields.nested("rope_parameters")?;
    let old = fields.nested("rope_scaling")?;
    let theta = match &new {
        Some(rope) if rope.get("rope_theta").is_some() => rope.positive("rope_theta", None)?,
        _ => fields.positive("rope_theta", Some(10_000.0))?,
    };
    let plain: Vec<f32> = (0..head_dim / 2)
        .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32))
        .collect();
    let Some(rope) = new.or(old) else { return Ok(plain) };
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind.to_owned(),
        None => rope.text("type")?.unwrap_or("default").to_owned(),
    };
    match kind.as_str() {
        "default" => Ok(plain),
        "linear" => {
            let factor = rope.positive("factor", None)? as f32;
            Ok(plain.into_iter().map(|frequency| frequency / factor).collect())
        }
        "llama3" => {
            let factor = rope.positive("factor", None)? as f32;
            let low = rope.positive("low_freq_factor", None)? as f32;
            let high = rope.positive("high_freq_factor", None)? as f32;
            if high <= low {
                return Err(rope.error("high_freq_factor", "must be larger than low_freq_factor"));
            }
            let context = rope.size("original_max_position_embeddings", limits::CONTEXT)? as f32;
            Ok(plain.into_iter().map(|f| llama3_frequency(f, factor, low, high, context)).collect())
        }
        other => Err(rope.error(
            "rope_type",
            format!("is {other:?}, which is not supported (only default, linear, llama3)"),
        )),
    }
}

/// Llama 3.1's scaling: short waves stay, long ones are stretched by `factor`, those between are
/// interpolated (Llama 3 herd of models, arXiv 2407.21783, and its reference code).
fn llama3_frequency(frequency: f32, factor: f32, low: f32, high: f32, context: f32) -> f32 {
    let wave_length = 2.0 * std::f32::consts::PI / frequency;
    if wave_length < context / high {
        frequency
    } else if wave_length > context / low {
        frequency / factor
    } else {
        let smooth = (context / wave_length - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// Where the weights are. Matrices lie `[out, in]`.
pub const NAMES: Names = Names {
    prefix: "model.",
    embedding: "embed_tokens.weight",
    positions: "",
    layers: "layers",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    up: "mlp.up_proj",
    gate: "mlp.gate_proj",
    down: "mlp.down_proj",
    final_norm: "norm",
    head: "lm_head.weight",
    conv1d: false,
    // The angles of positions.
    needless: &[".rotary_emb.inv_freq"],
};
