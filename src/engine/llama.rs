//! Llama 1, 2, 3, 3.1, 3.2, TinyLlama and Mistral as a [`Config`] and the names of their tensors.

use serde_json::Value;

use super::config::{
    Activation, Biases, Config, LayerAttention, Norm, Position, heads, limits, unsupported,
};
use super::model::Names;
use super::rotary::rotary;
use crate::error::Result;
use crate::folder::{Field, JsonFile, Notes, no_effect, obeyed, only};

/// Llama's name in `architectures`.
pub const LLAMA: &str = "LlamaForCausalLM";
/// Mistral's name in `architectures`.
pub const MISTRAL: &str = "MistralForCausalLM";

const TRAINING: &str = "it is about training";

/// What trimtab does with the fields of both families.
pub const FIELDS: &[Field] = &[
    obeyed("hidden_size"),
    obeyed("intermediate_size"),
    obeyed("num_hidden_layers"),
    obeyed("num_attention_heads"),
    obeyed("num_key_value_heads"),
    obeyed("head_dim"),
    obeyed("hidden_act"),
    obeyed("max_position_embeddings"),
    obeyed("rms_norm_eps"),
    obeyed("rope_theta"),
    obeyed("rope_scaling"),
    obeyed("rope_parameters"),
    obeyed("original_max_position_embeddings"),
    obeyed("layer_types"),
    only("partial_rotary_factor", &["1.0"]),
    no_effect("attention_dropout", TRAINING),
    no_effect("pretraining_tp", "it splits a product of training into parts with the same sum"),
];

/// Llama's own.
pub const LLAMA_FIELDS: &[Field] = &[
    obeyed("attention_bias"),
    obeyed("mlp_bias"),
    no_effect("sliding_window", "Llama attends to all that is before"),
    no_effect("use_sliding_window", "Llama attends to all that is before"),
    no_effect("max_window_layers", "Llama attends to all that is before"),
];

/// Mistral's own.
pub const MISTRAL_FIELDS: &[Field] = &[
    obeyed("sliding_window"),
    only("attention_bias", &["false"]),
    only("mlp_bias", &["false"]),
    only("use_sliding_window", &["true"]),
];

/// Reads Llama's fields.
pub fn config(file: &JsonFile, notes: &mut Notes) -> Result<Config> {
    let layers = file.size("num_hidden_layers", limits::LAYERS)?;
    if layer_types(file, layers)?.is_some_and(|slides| slides.contains(&true)) {
        let reason = "has sliding layers, which Llama has not; is it a Mistral?";
        return Err(file.error("layer_types", reason));
    }
    let (attention, mlp) = (file.flag("attention_bias", false)?, file.flag("mlp_bias", false)?);
    let biases = Biases { qkv: attention, output: attention, mlp };
    let defaults = Defaults { kv_heads: None, context: 2048 };
    shared(file, notes, LLAMA, defaults, vec![None; layers], biases)
}

/// Reads Mistral's fields.
pub fn mistral_config(file: &JsonFile, notes: &mut Notes) -> Result<Config> {
    let layers = file.size("num_hidden_layers", limits::LAYERS)?;
    // Where the field is missing, the family's own default holds; null is none.
    let window = match file.get("sliding_window") {
        Some(_) => Some(file.size("sliding_window", limits::CONTEXT)?),
        None if file.has("sliding_window") => None,
        None => Some(4096),
    };
    let windows = match layer_types(file, layers)? {
        None => vec![window; layers],
        Some(slides) => {
            if window.is_none() && slides.contains(&true) {
                let reason = "has sliding layers, but `sliding_window` is null";
                return Err(file.error("layer_types", reason));
            }
            slides.into_iter().map(|slides| window.filter(|_| slides)).collect()
        }
    };
    let kv_heads = (!file.has("num_key_value_heads")).then_some(8);
    let biases = Biases { qkv: false, output: false, mlp: false };
    let defaults = Defaults { kv_heads, context: 131_072 };
    shared(file, notes, MISTRAL, defaults, windows, biases)
}

/// What a family has where its file says nothing.
struct Defaults {
    /// Key and value heads; none means as many as query heads.
    kv_heads: Option<usize>,
    context: usize,
}

/// Reads what both families have, for layers that see as far as `windows` says.
fn shared(
    file: &JsonFile,
    notes: &mut Notes,
    architecture: &'static str,
    defaults: Defaults,
    windows: Vec<Option<usize>>,
    biases: Biases,
) -> Result<Config> {
    let width = file.size("hidden_size", limits::WIDTH)?;
    let query = file.size("num_attention_heads", limits::HEADS)?;
    let own = defaults.kv_heads.unwrap_or(query);
    let kv = file.size_or("num_key_value_heads", limits::HEADS, Some(own))?;
    let dim = match file.get("head_dim") {
        Some(_) => file.size("head_dim", limits::HEAD_DIM)?,
        None if width.is_multiple_of(query) => width / query,
        None => {
            let reason = format!("is {query}, which does not divide hidden_size = {width}");
            return Err(file.error("num_attention_heads", reason));
        }
    };
    if !dim.is_multiple_of(2) {
        return Err(
            file.error("head_dim", format!("is {dim} but must be even for rotary positions"))
        );
    }
    match file.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(unsupported(file, "hidden_act", other, "silu, swish")),
    }
    let context =
        file.size_or("max_position_embeddings", limits::CONTEXT, Some(defaults.context))?;
    let scale = 1.0 / (dim as f32).sqrt();
    Ok(Config {
        architecture,
        vocab: file.size("vocab_size", limits::VOCAB)?,
        width,
        layers: windows.len(),
        heads: heads(file, ["num_attention_heads", "num_key_value_heads"], query, kv, dim)?,
        feed_forward: file.size("intermediate_size", limits::FEED_FORWARD)?,
        context,
        norm: Norm::Rms(file.positive("rms_norm_eps", Some(1e-6))? as f32),
        position: Position::Rotary(rotary(file, dim, context, notes)?),
        activation: Activation::SiluGate,
        attention: windows.into_iter().map(|window| LayerAttention { window, scale }).collect(),
        tied_head: file.flag("tie_word_embeddings", false)?,
        biases,
        ends: Default::default(),
    })
}

/// Which layers slide, if the file says so.
fn layer_types(file: &JsonFile, layers: usize) -> Result<Option<Vec<bool>>> {
    const NAME: &str = "layer_types";
    let list = match file.get(NAME) {
        None => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(file.error(NAME, "must be a list of names")),
    };
    if list.len() != layers {
        let reason = format!("names {} layers, but num_hidden_layers is {layers}", list.len());
        return Err(file.error(NAME, reason));
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => {
            let supported = "full_attention, sliding_attention";
            Err(file.error(NAME, format!("has {kind}, which is not supported (only {supported})")))
        }
    };
    list.iter().map(slides).collect::<Result<_>>().map(Some)
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
