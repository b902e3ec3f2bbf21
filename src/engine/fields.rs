//! What trimtab does with the fields that all families' `config.json` may have, and with those of
//! `generation_config.json`.

use crate::folder::{Field, FieldTable, no_effect, obeyed, only};

/// The file that describes a model.
pub const CONFIG: &str = "config.json";
/// The file that says how its repository's authors generate text.
pub const GENERATION: &str = "generation_config.json";

/// `generation_config.json`.
pub const GENERATION_TABLE: FieldTable = FieldTable {
    file: GENERATION,
    lists: &[&[obeyed("eos_token_id")], GENERATING, WRITING, SAMPLING, ORIGIN],
};

/// Inside `rope_parameters` and `rope_scaling` of `config.json`.
pub const ROPE_TABLE: FieldTable = FieldTable {
    file: CONFIG,
    lists: &[&[
        obeyed("rope_type"),
        obeyed("type"),
        obeyed("rope_theta"),
        obeyed("factor"),
        obeyed("low_freq_factor"),
        obeyed("high_freq_factor"),
        obeyed("original_max_position_embeddings"),
        obeyed("attention_factor"),
        obeyed("beta_fast"),
        obeyed("beta_slow"),
        obeyed("mscale"),
        obeyed("mscale_all_dim"),
        obeyed("truncate"),
        only("partial_rotary_factor", &["1.0"]),
        // Of longrope, and of models that see images.
        only("short_factor", &[]),
        only("long_factor", &[]),
        only("mrope_section", &[]),
        no_effect("finetuned", TRAINING),
    ]],
};

const SAMPLED: &str = "flags and requests say how tokens are drawn";
const SEARCHED: &str = "it is about transformers' own search";
const LENGTH: &str = "--max-new-tokens limits a response";
const OUTPUT: &str = "it is about what transformers returns";
const SPEED: &str = "it is about the speed of transformers, not its results";
const TRAINING: &str = "it is about training";
const LABELS: &str = "it is about classifiers";
const ORIGIN_OF: &str = "it says where the folder comes from";
const TOKENIZERS: &str = "the tokenizer's own counts";
const ENCODER: &str = "it is about models with an encoder";

/// In every family's `config.json`.
pub const COMMON: &[Field] = &[
    obeyed("architectures"),
    obeyed("model_type"),
    obeyed("vocab_size"),
    obeyed("eos_token_id"),
    obeyed("tie_word_embeddings"),
    // Refused whenever it is there, in words of its own.
    obeyed("quantization_config"),
    only("is_encoder_decoder", &["false"]),
    only("add_cross_attention", &["false"]),
    only("tie_encoder_decoder", &["false"]),
    only("cross_attention_hidden_size", &[]),
    only("pruned_heads", &["{}"]),
    only("per_layer_config", &["{}"]),
    only("rope_interleaved", &["false"]),
    only("adapters", &["{}"]),
    no_effect("torch_dtype", "weights are bf16 here, whatever dtype the files have"),
    no_effect("dtype", "weights are bf16 here, whatever dtype the files have"),
    no_effect("use_bfloat16", "weights are bf16 here, whatever dtype the files have"),
    no_effect("bos_token_id", TOKENIZERS),
    no_effect("pad_token_id", "nothing is padded"),
    no_effect("sep_token_id", TOKENIZERS),
    no_effect("decoder_start_token_id", ENCODER),
    no_effect("tokenizer_class", "tokenizer_config.json names the tokenizer's class"),
    no_effect("n_ctx", "max_position_embeddings or n_positions counts"),
    no_effect("prefix", "--base-template writes what goes in front of prompts"),
    no_effect("auto_map", "code from a folder is never run"),
    no_effect("custom_pipelines", "code from a folder is never run"),
    no_effect("task_specific_params", "it is about transformers' pipelines"),
    no_effect("is_decoder", "attention is causal in any case"),
    no_effect("use_cache", SPEED),
    no_effect("chunk_size_feed_forward", SPEED),
    no_effect("attn_implementation", SPEED),
    no_effect("_attn_implementation_autoset", SPEED),
    no_effect("_attn_implementation_internal", SPEED),
    no_effect("_flash_attn_2_enabled", SPEED),
    no_effect("experts_implementation", SPEED),
    no_effect("_experts_implementation_internal", SPEED),
    no_effect("torchscript", SPEED),
    no_effect("output_attentions", OUTPUT),
    no_effect("output_hidden_states", OUTPUT),
    no_effect("output_past", OUTPUT),
    no_effect("return_dict", OUTPUT),
    no_effect("keys_to_ignore_at_inference", OUTPUT),
    no_effect("predict_special_tokens", OUTPUT),
    no_effect("initializer_range", TRAINING),
    no_effect("gradient_checkpointing", TRAINING),
    no_effect("tf_legacy_loss", TRAINING),
    no_effect("unsloth_fixed", TRAINING),
    no_effect("unsloth_version", TRAINING),
    no_effect("finetuning_task", LABELS),
    no_effect("id2label", LABELS),
    no_effect("label2id", LABELS),
    no_effect("num_labels", LABELS),
    no_effect("problem_type", LABELS),
    no_effect("_from_auto", ORIGIN_OF),
    no_effect("configuration_files", ORIGIN_OF),
    no_effect("transformers_weights", ORIGIN_OF),
    // Old versions of transformers wrote these here.
    no_effect("output_scores", OUTPUT),
    no_effect("return_dict_in_generate", OUTPUT),
    no_effect("remove_invalid_values", SAMPLED),
    no_effect("max_length", LENGTH),
    no_effect("min_length", LENGTH),
    only("suppress_tokens", &["[]"]),
    only("begin_suppress_tokens", &["[]"]),
    only("bad_words_ids", &["[]"]),
    only("forced_bos_token_id", &[]),
    only("forced_eos_token_id", &[]),
    no_effect("do_sample", SAMPLED),
    no_effect("temperature", SAMPLED),
    no_effect("top_k", SAMPLED),
    no_effect("top_p", SAMPLED),
    no_effect("typical_p", SAMPLED),
    no_effect("epsilon_cutoff", SAMPLED),
    no_effect("eta_cutoff", SAMPLED),
    no_effect("repetition_penalty", SAMPLED),
    no_effect("no_repeat_ngram_size", SAMPLED),
    no_effect("encoder_no_repeat_ngram_size", ENCODER),
    no_effect("encoder_repetition_penalty", ENCODER),
    no_effect("exponential_decay_length_penalty", SEARCHED),
    no_effect("num_beams", SEARCHED),
    no_effect("num_beam_groups", SEARCHED),
    no_effect("num_return_sequences", SEARCHED),
    no_effect("diversity_penalty", SEARCHED),
    no_effect("length_penalty", SEARCHED),
    no_effect("early_stopping", SEARCHED),
    no_effect("assistant_confidence_threshold", SPEED),
    no_effect("assistant_lookbehind", SPEED),
    no_effect("num_assistant_tokens", SPEED),
    no_effect("num_assistant_tokens_schedule", SPEED),
    no_effect("target_lookbehind", SPEED),
    no_effect("_name_or_path", ORIGIN_OF),
    no_effect("name_or_path", ORIGIN_OF),
    no_effect("_commit_hash", ORIGIN_OF),
    no_effect("_from_model_config", ORIGIN_OF),
    no_effect("transformers_version", ORIGIN_OF),
];

/// Fields that make some tokens impossible or certain: their authors' model does not write otherwise.
const GENERATING: &[Field] = &[
    only("suppress_tokens", &["[]"]),
    only("begin_suppress_tokens", &["[]"]),
    only("bad_words_ids", &["[]"]),
    only("force_words_ids", &["[]"]),
    only("forced_bos_token_id", &[]),
    only("forced_eos_token_id", &[]),
    only("sequence_bias", &["{}", "[]"]),
    only("constraints", &["[]"]),
    only("watermarking_config", &[]),
    only("stop_strings", &["[]"]),
    only("force_bos_token_to_be_generated", &["false"]),
];

/// How tokens are drawn. [`SUGGESTIONS`] are shown by `inspect`.
const SAMPLING: &[Field] = &[
    no_effect("do_sample", SAMPLED),
    no_effect("temperature", SAMPLED),
    no_effect("top_k", SAMPLED),
    no_effect("top_p", SAMPLED),
    no_effect("min_p", SAMPLED),
    no_effect("top_h", SAMPLED),
    no_effect("typical_p", SAMPLED),
    no_effect("epsilon_cutoff", SAMPLED),
    no_effect("eta_cutoff", SAMPLED),
    no_effect("repetition_penalty", SAMPLED),
    no_effect("no_repeat_ngram_size", SAMPLED),
    no_effect("penalty_alpha", SAMPLED),
    no_effect("guidance_scale", SAMPLED),
    no_effect("dola_layers", SAMPLED),
    no_effect("token_healing", SAMPLED),
    no_effect("renormalize_logits", SAMPLED),
    no_effect("remove_invalid_values", SAMPLED),
    no_effect("encoder_no_repeat_ngram_size", ENCODER),
    no_effect("encoder_repetition_penalty", ENCODER),
];

/// Fields of `generation_config.json` by which its authors' texts would differ from what flags and requests
/// make of the model, each with the value that changes nothing.
pub const SUGGESTIONS: [(&str, f64); 9] = [
    ("temperature", 1.0),
    ("top_k", 50.0),
    ("top_p", 1.0),
    ("min_p", 0.0),
    ("typical_p", 1.0),
    ("repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
];

/// How long, how many and how fast.
const WRITING: &[Field] = &[
    no_effect("max_length", LENGTH),
    no_effect("max_new_tokens", LENGTH),
    no_effect("min_length", LENGTH),
    no_effect("min_new_tokens", LENGTH),
    no_effect("max_time", LENGTH),
    no_effect("num_beams", SEARCHED),
    no_effect("num_beam_groups", SEARCHED),
    no_effect("num_return_sequences", SEARCHED),
    no_effect("diversity_penalty", SEARCHED),
    no_effect("length_penalty", SEARCHED),
    no_effect("exponential_decay_length_penalty", SEARCHED),
    no_effect("early_stopping", SEARCHED),
    no_effect("low_memory", SEARCHED),
    no_effect("bos_token_id", TOKENIZERS),
    no_effect("pad_token_id", "nothing is padded"),
    no_effect("decoder_start_token_id", ENCODER),
    no_effect("use_cache", SPEED),
    no_effect("cache_implementation", SPEED),
    no_effect("cache_config", SPEED),
    no_effect("max_cache_len", SPEED),
    no_effect("compile_config", SPEED),
    no_effect("disable_compile", SPEED),
    no_effect("continuous_batching_config", SPEED),
    no_effect("prefill_chunk_size", SPEED),
    no_effect("prompt_lookup_num_tokens", SPEED),
    no_effect("max_matching_ngram_size", SPEED),
    no_effect("speculation_type", SPEED),
    no_effect("use_mtp", SPEED),
    no_effect("is_assistant", SPEED),
    no_effect("assistant_confidence_threshold", SPEED),
    no_effect("assistant_early_exit", SPEED),
    no_effect("assistant_ensemble_weight", SPEED),
    no_effect("assistant_lookbehind", SPEED),
    no_effect("num_assistant_tokens", SPEED),
    no_effect("num_assistant_tokens_schedule", SPEED),
    no_effect("target_lookbehind", SPEED),
    no_effect("output_attentions", OUTPUT),
    no_effect("output_hidden_states", OUTPUT),
    no_effect("output_logits", OUTPUT),
    no_effect("output_scores", OUTPUT),
    no_effect("return_dict_in_generate", OUTPUT),
];

const ORIGIN: &[Field] = &[
    no_effect("_commit_hash", ORIGIN_OF),
    no_effect("_from_model_config", ORIGIN_OF),
    no_effect("transformers_version", ORIGIN_OF),
    no_effect("trust_remote_code", "code from a folder is never run"),
];
