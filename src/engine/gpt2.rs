//! GPT-2 (Radford et al., 2019) as a [`Config`] and the names of its tensors.

use super::config::{
    Activation, Biases, Config, LayerAttention, Norm, Position, heads, limits, unsupported,
};
use super::model::Names;
use crate::error::Result;
use crate::folder::{Field, JsonFile, Notes, no_effect, obeyed};

/// The name in `architectures`.
pub const NAME: &str = "GPT2LMHeadModel";

/// The end token of GPT-2's own vocabulary, which transformers writes into every config of this family
/// that does not name another one.
pub const DEFAULT_EOS: u32 = 50256;

// Each pair means the same: GPT-2's own name, and the one that other families use.
const WIDTH: [&str; 2] = ["n_embd", "hidden_size"];
const HEADS: [&str; 2] = ["n_head", "num_attention_heads"];
const LAYERS: [&str; 2] = ["n_layer", "num_hidden_layers"];
const CONTEXT: [&str; 2] = ["n_positions", "max_position_embeddings"];

const LEARNED: &str = "GPT-2's positions are learned, not rotary";

/// What trimtab does with GPT-2's own fields.
pub const FIELDS: &[Field] = &[
    obeyed("n_embd"),
    obeyed("hidden_size"),
    obeyed("n_head"),
    obeyed("num_attention_heads"),
    obeyed("n_layer"),
    obeyed("num_hidden_layers"),
    obeyed("n_positions"),
    obeyed("max_position_embeddings"),
    obeyed("n_inner"),
    obeyed("activation_function"),
    obeyed("layer_norm_epsilon"),
    obeyed("scale_attn_weights"),
    obeyed("scale_attn_by_inverse_layer_idx"),
    no_effect("reorder_and_upcast_attn", "attention's sums are f32 in any case"),
    no_effect("attn_pdrop", "it is about training"),
    no_effect("embd_pdrop", "it is about training"),
    no_effect("resid_pdrop", "it is about training"),
    no_effect("summary_activation", "it is about classifiers"),
    no_effect("summary_first_dropout", "it is about classifiers"),
    no_effect("summary_proj_to_labels", "it is about classifiers"),
    no_effect("summary_type", "it is about classifiers"),
    no_effect("summary_use_proj", "it is about classifiers"),
    no_effect("rope_theta", LEARNED),
    no_effect("rope_scaling", LEARNED),
    no_effect("rope_parameters", LEARNED),
    no_effect("partial_rotary_factor", LEARNED),
    no_effect("original_max_position_embeddings", LEARNED),
    no_effect("layer_types", "every layer of GPT-2 attends to all that is before"),
];

/// Reads GPT-2's fields.
pub fn config(file: &JsonFile, _: &mut Notes) -> Result<Config> {
    let width = file.size(file.one_of(&WIDTH)?, limits::WIDTH)?;
    let heads_name = file.one_of(&HEADS)?;
    let query = file.size(heads_name, limits::HEADS)?;
    if !width.is_multiple_of(query) {
        let reason = format!("is {query}, which does not divide the width {width}");
        return Err(file.error(heads_name, reason));
    }
    let dim = width / query;
    let activation = match file.text("activation_function")? {
        None | Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate") => {
            Activation::Gelu
        }
        Some("gelu" | "gelu_python") => Activation::GeluErf,
        Some(other) => {
            let supported =
                "gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, gelu, gelu_python";
            return Err(unsupported(file, "activation_function", other, supported));
        }
    };
    let layers = file.size(file.one_of(&LAYERS)?, limits::LAYERS)?;
    let scaled = file.flag("scale_attn_weights", true)?;
    let by_layer = file.flag("scale_attn_by_inverse_layer_idx", false)?;
    let scale = if scaled { 1.0 / (dim as f32).sqrt() } else { 1.0 };
    let attention = (1..=layers).map(|layer| LayerAttention {
        window: None,
        scale: if by_layer { scale / layer as f32 } else { scale },
    });
    Ok(Config {
        architecture: NAME,
        vocab: file.size("vocab_size", limits::VOCAB)?,
        width,
        layers,
        heads: heads(file, [heads_name, heads_name], query, query, dim)?,
        feed_forward: file.size_or("n_inner", limits::FEED_FORWARD, Some(4 * width))?,
        context: file.size_or(file.one_of(&CONTEXT)?, limits::CONTEXT, Some(1024))?,
        norm: Norm::Layer(file.positive("layer_norm_epsilon", Some(1e-5))? as f32),
        position: Position::Learned,
        activation,
        attention: attention.collect(),
        tied_head: file.flag("tie_word_embeddings", true)?,
        biases: Biases { qkv: true, output: true, mlp: true },
        ends: Default::default(),
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
