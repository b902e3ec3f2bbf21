//! What trimtab does with the fields of a tokenizer's files.

use crate::folder::{FieldTable, no_effect, obeyed, only};

/// The tokenizer itself.
pub const TOKENIZER: &str = "tokenizer.json";
/// What else there is to know of it.
pub const CONFIG: &str = "tokenizer_config.json";
/// Names of special tokens, in folders that transformers 4 and older wrote.
pub const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Tokens and ids that were added to a vocabulary, in folders that are older still.
pub const ADDED_TOKENS: &str = "added_tokens.json";

const SLOW: &str = "it is about tokenizers written in Python; tokenizer.json counts";
const BATCHES: &str = "prompts are neither cut nor filled up";
const ORIGIN: &str = "it says where the folder comes from";
const DECODING: &str = "an answer is the concatenation of its tokens' bytes";
const MULTIMODAL: &str = "it is about images or sound";
const CODE: &str = "code from a folder is never run";
const FRONT: &str =
    "tokenizer.json's post-processor counts, as in transformers 5; inspect says where they differ";

/// `tokenizer_config.json`.
pub const CONFIG_TABLE: FieldTable = FieldTable {
    file: CONFIG,
    lists: &[&[
        obeyed("added_tokens_decoder"),
        obeyed("additional_special_tokens"),
        obeyed("extra_special_tokens"),
        obeyed("model_specific_special_tokens"),
        obeyed("tokenizer_class"),
        obeyed("add_prefix_space"),
        obeyed("split_special_tokens"),
        obeyed("chat_template"),
        // For --compat reference.
        obeyed("clean_up_tokenization_spaces"),
        // bos_token, eos_token, pad_token and what a model calls its own.
        obeyed("*_token"),
        no_effect("add_bos_token", FRONT),
        // For a remark: transformers 5 reads it, tokenizer.json counts.
        obeyed("legacy"),
        no_effect("add_eos_token", "a prompt goes on, so nothing is added behind it"),
        only("do_lower_case", &["false"]),
        only("fix_mistral_regex", &["false"]),
        no_effect("model_max_length", "config.json has the model's context"),
        no_effect("max_len", "config.json has the model's context"),
        no_effect("max_length", BATCHES),
        no_effect("padding_side", BATCHES),
        no_effect("truncation_side", BATCHES),
        no_effect("pad_to_multiple_of", BATCHES),
        no_effect("pad_token_type_id", BATCHES),
        no_effect("truncation", BATCHES),
        no_effect("truncation_strategy", BATCHES),
        no_effect("stride", BATCHES),
        no_effect("tokenizer_padding", BATCHES),
        no_effect("tokenizer_truncation", BATCHES),
        no_effect("_json_padding", BATCHES),
        no_effect("_json_truncation", BATCHES),
        no_effect("spaces_between_special_tokens", DECODING),
        no_effect(
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            DECODING,
        ),
        no_effect("errors", DECODING),
        no_effect("trim_offsets", "it is about places of tokens in a text"),
        no_effect("sp_model_kwargs", SLOW),
        no_effect("from_slow", SLOW),
        no_effect("use_fast", SLOW),
        no_effect("slow_tokenizer_class", SLOW),
        no_effect("vocab", SLOW),
        no_effect("merges", SLOW),
        no_effect("vocab_file", SLOW),
        no_effect("merges_file", SLOW),
        no_effect("unk_id", SLOW),
        no_effect("post_processor", SLOW),
        no_effect("_spm_precompiled_charsmap", SLOW),
        no_effect("fast_tokenizer_files", "tokenizer.json is the one file that is read"),
        no_effect("tokenizer_file", "tokenizer.json is the one file that is read"),
        no_effect("special_tokens_map_file", "special_tokens_map.json is read where it counts"),
        no_effect("gguf_file", "tokenizer.json is the one file that is read"),
        no_effect("tokenizer_object", SLOW),
        no_effect("tokenizer", SLOW),
        no_effect(
            "use_default_system_prompt",
            "a template says what is in front; --system adds a system message",
        ),
        no_effect(
            "chat_control_tokens",
            "special tokens in a message are special, as in transformers",
        ),
        no_effect("response_schema", "answers are not parsed"),
        no_effect("response_template", "it is about training"),
        no_effect("model_input_names", "it is about what transformers returns"),
        no_effect("processor_class", MULTIMODAL),
        no_effect("image_processor_type", MULTIMODAL),
        no_effect("auto_map", CODE),
        no_effect("trust_remote_code", CODE),
        no_effect("init_inputs", CODE),
        no_effect("backend", ORIGIN),
        no_effect("device_map", ORIGIN),
        no_effect("is_local", ORIGIN),
        no_effect("local_files_only", ORIGIN),
        no_effect("files_loaded", ORIGIN),
        no_effect("name_or_path", ORIGIN),
        no_effect("tokenizer_type", ORIGIN),
        no_effect("verbose", ORIGIN),
        no_effect("__type", ORIGIN),
        no_effect("_commit_hash", ORIGIN),
        no_effect("transformers_version", ORIGIN),
    ]],
};

/// `special_tokens_map.json`.
pub const SPECIAL_TOKENS_TABLE: FieldTable = FieldTable {
    file: SPECIAL_TOKENS,
    lists: &[&[
        obeyed("additional_special_tokens"),
        obeyed("extra_special_tokens"),
        obeyed("*_token"),
    ]],
};

/// A token with its flags, in several files.
pub const ADDED_TOKEN_TABLE: FieldTable = FieldTable {
    file: CONFIG,
    lists: &[&[
        obeyed("content"),
        obeyed("single_word"),
        obeyed("lstrip"),
        obeyed("rstrip"),
        obeyed("normalized"),
        obeyed("special"),
        // In tokenizer.json.
        obeyed("id"),
        no_effect("__type", "it says that this is a token"),
    ]],
};

/// `tokenizer.json`.
pub const TOKENIZER_TABLE: FieldTable = FieldTable {
    file: TOKENIZER,
    lists: &[&[
        obeyed("added_tokens"),
        obeyed("normalizer"),
        obeyed("pre_tokenizer"),
        obeyed("decoder"),
        obeyed("model"),
        // In front of a text; what it puts behind one is left out, since a prompt goes on.
        obeyed("post_processor"),
        only("version", &["\"1.0\""]),
        no_effect("truncation", BATCHES),
        no_effect("padding", BATCHES),
    ]],
};

/// The field `model` of `tokenizer.json`.
pub const MODEL_TABLE: FieldTable = FieldTable {
    file: TOKENIZER,
    lists: &[&[
        obeyed("type"),
        obeyed("vocab"),
        obeyed("merges"),
        obeyed("unk_token"),
        obeyed("unk_id"),
        obeyed("fuse_unk"),
        obeyed("byte_fallback"),
        obeyed("ignore_merges"),
        obeyed("continuing_subword_prefix"),
        obeyed("end_of_word_suffix"),
        obeyed("max_input_chars_per_word"),
        no_effect("dropout", "it is about training, and would make every run another one"),
    ]],
};
