"""Ordinary checkpoints that are easy to read wrongly, as changes to the golden ones, and what transformers
makes of them.

Written are variants.json (models: log-probabilities in float64) and side_files.json (tokenizers: ids). A test makes
the same changes in a folder of its own. Each change is plain data, but for those of tensors, which
have names: see TENSORS.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from golden.checkpoints import load
from golden.files import Json, read_json, rounded, write_json
from golden.values import run_float64

Tensors = dict[str, Tensor]


def head_differs(tensors: Tensors) -> Tensors:
    """A head of its own beside the table of a tied model: the table's rows from the last to the first."""
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].flip(0).contiguous()}


def head_alike(tensors: Tensors) -> Tensors:
    """The table stored twice."""
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def head_alone(tensors: Tensors) -> Tensors:
    """The one table of a tied model under the head's name."""
    table = tensors.pop("model.embed_tokens.weight")
    return tensors | {"lm_head.weight": table}


def float64(tensors: Tensors) -> Tensors:
    return {name: tensor.double() for name, tensor in tensors.items()}


# Changes that a config cannot say. Prefixes are not among them: transformers reads such files as if their
# tensors were missing.
TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "head differs": head_differs,
    "head alike": head_alike,
    "head alone": head_alone,
    "float64": float64,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 4.0}
GONE = {"rope_parameters": None}

# Name, golden model, fields of config.json (null takes one out), change of tensors.
MODELS: list[tuple[str, str, Json, str | None]] = [
    ("another head beside a tied table", "llama", {}, "head differs"),
    ("the table stored twice", "llama", {}, "head alike"),
    ("the table under the head's name", "llama", {}, "head alone"),
    ("float64 weights", "llama", {}, "float64"),
    ("swish", "llama", {"hidden_act": "swish"}, None),
    ("a model without its head", "llama", {"architectures": ["LlamaModel"]}, None),
    ("exact gelu", "gpt2", {"activation_function": "gelu"}, None),
    ("another name of the tanh form", "gpt2", {"activation_function": "gelu_fast"}, None),
    ("attention scaled by the layer", "gpt2", {"scale_attn_by_inverse_layer_idx": True}, None),
    ("attention not scaled", "gpt2", {"scale_attn_weights": False}, None),
    ("GPT-2 with other families' names", "gpt2", {
        "n_embd": None, "n_head": None, "n_layer": None, "n_positions": None, "hidden_size": 64,
        "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 128,
    }, None),
    ("a window in one layer of two", "mistral", {"layer_types": ["full_attention", "sliding_attention"]}, None),
    ("linear positions", "llama", GONE | {"rope_scaling": {"type": "linear", "factor": 4.0}}, None),
    ("theta inside rope_scaling", "llama", GONE | {
        "rope_scaling": {"rope_type": "default", "rope_theta": 100.0}}, None),
    ("rope_scaling beside rope_parameters", "llama", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, None),
    ("dynamic positions within the context", "llama", GONE | {
        "rope_scaling": {"type": "dynamic", "factor": 4.0}}, None),
    ("llama3 with the original context at the top", "llama", GONE | {
        "rope_scaling": LLAMA3, "original_max_position_embeddings": 32}, None),
    ("llama3 with two original contexts", "llama", GONE | {
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 128},
        "original_max_position_embeddings": 32}, None),
    ("llama3 without an original context", "llama", GONE | {"rope_scaling": LLAMA3}, None),
    ("yarn", "llama", {"rope_parameters": YARN | {"rope_theta": 10000.0}}, None),
    ("yarn with its own scale and ramp", "llama", {"rope_parameters": YARN | {
        "rope_theta": 500.0, "attention_factor": 1.5, "beta_fast": 8.0, "beta_slow": 2.0,
        "truncate": False}}, None),
    ("yarn with two scales", "llama", {"rope_parameters": YARN | {
        "rope_theta": 10000.0, "mscale": 2.0, "mscale_all_dim": 0.5}}, None),
]


def model_cases(golden: Path) -> list[Json]:
    cases = []
    for name, model, fields, change in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder)
            config = read_json(golden / model / "config.json") | fields
            config = {key: value for key, value in config.items() if value is not None or key not in fields}
            write_json(changed / "config.json", config)
            tensors = load_file(golden / model / "model.safetensors")
            tensors = TENSORS[change](tensors) if change else tensors
            save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
            tokens = read_json(golden / model / "golden.json")["tokens"]
            _, logprobs = run_float64(load(changed, torch.float64), tokens)
        plain = read_json(golden / model / "golden.json")["logprobs"]
        moved = max(abs(a - b) for a, b in zip(logprobs.tolist(), plain, strict=True))
        print(f"{name:45} moves a log-probability by up to {moved:.3f}")
        cases.append({"name": name, "model": model, "config": fields, "tensors": change,
                      "logprobs": rounded(logprobs, 9)})
    return cases


FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
CHAT = "<|im_start|>user\nHi <|im_end|>  there<|im_start|> x"

# Name, golden tokenizer, tokenizer_config.json, other side files, fields of tokenizer.json by path, texts.
TOKENIZERS: list[tuple[str, str, Json, dict[str, Json], Json, list[str]]] = [
    ("flags of an end token stay", "gpt2", {"eos_token": "<|endoftext|>"}, {},
     {"added_tokens/0/rstrip": True, "added_tokens/0/lstrip": True},
     ["a  <|endoftext|>   b", "<|endoftext|>\n c"]),
    ("flags of an end token are the config's", "gpt2",
     {"eos_token": "<|endoftext|>", "added_tokens_decoder": {
         "399": FLAGS | {"content": "<|endoftext|>", "rstrip": True}}}, {}, {},
     ["a  <|endoftext|>   b"]),
    ("a normalized end token", "gpt2", {"eos_token": "<|ENDOFTEXT|>"}, {},
     {"normalizer": {"type": "Lowercase"}, "added_tokens/0/content": "<|ENDOFTEXT|>",
      "added_tokens/0/normalized": True}, ["Hi <|ENDOFTEXT|> <|endoftext|> there"]),
    ("tokens of added_tokens_decoder", "gpt2",
     {"added_tokens_decoder": {"400": FLAGS | {"content": "<|im_start|>"},
                               "401": FLAGS | {"content": "<|im_end|>", "rstrip": True}}}, {}, {}, [CHAT]),
    ("a plain token of added_tokens_decoder", "gpt2",
     {"added_tokens_decoder": {"400": FLAGS | {"content": "film", "special": False, "single_word": True}}},
     {}, {}, ["a film", "films of a film"]),
    ("additional_special_tokens", "gpt2", {"additional_special_tokens": ["film", "<|im_end|>"]}, {}, {},
     ["A nice film about films<|im_end|>"]),
    ("extra_special_tokens as a list", "gpt2", {"extra_special_tokens": ["<|im_start|>"]}, {}, {}, [CHAT]),
    ("extra_special_tokens with names", "gpt2", {"extra_special_tokens": {"image_token": "<|im_start|>"}},
     {}, {}, [CHAT]),
    ("a token that a model calls its own", "gpt2", {"turn_token": "<|im_start|>"}, {}, {}, [CHAT]),
    ("special_tokens_map.json", "gpt2", {}, {"special_tokens_map.json": {
        "pad_token": {"content": "<|im_end|>", "lstrip": True, "rstrip": False, "normalized": False,
                      "single_word": False},
        "additional_special_tokens": ["<|im_start|>"]}}, {}, [CHAT]),
    ("special_tokens_map.json beside added_tokens_decoder", "gpt2",
     {"added_tokens_decoder": {"399": FLAGS | {"content": "<|endoftext|>"}}},
     {"special_tokens_map.json": {"pad_token": "<|im_end|>"}}, {}, [CHAT]),
    ("added_tokens.json", "gpt2", {"pad_token": "<|im_end|>"},
     {"added_tokens.json": {"<|im_start|>": 400, "<|im_end|>": 401}}, {}, [CHAT]),
    ("added_tokens.json beside added_tokens_decoder", "gpt2",
     {"added_tokens_decoder": {"399": FLAGS | {"content": "<|endoftext|>"}}},
     {"added_tokens.json": {"<|im_start|>": 400}}, {}, [CHAT]),
    ("a named token that is missing", "gpt2", {"pad_token": "[PAD]"}, {}, {}, ["x [PAD] y"]),
    ("an empty name", "gpt2", {"bos_token": "", "eos_token": "<|endoftext|>"}, {}, {}, ["x <|endoftext|>"]),
    ("split_special_tokens", "gpt2", {"split_special_tokens": True}, {}, {}, ["x <|endoftext|> y"]),
    ("GPT-2 with a space in front", "gpt2", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
     {}, {}, ["The film", " The film", "", "x<|endoftext|>y"]),
    ("GPT-2 without, whatever tokenizer.json does", "gpt2", {"tokenizer_class": "GPT2TokenizerFast"}, {},
     {"pre_tokenizer/add_prefix_space": True}, ["The film", "x<|endoftext|>y"]),
]


def tokenizer_cases(golden: Path) -> list[Json]:
    cases = []
    for name, model, config, files, changes, texts in TOKENIZERS:
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder)
            tokenizer = read_json(golden / model / "tokenizer.json")
            for path, value in changes.items():
                *parents, last = path.split("/")
                place = tokenizer
                for step in parents:
                    place = place[int(step)] if isinstance(place, list) else place[step]
                place[last] = value
            write_json(changed / "tokenizer.json", tokenizer)
            config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
            write_json(changed / "tokenizer_config.json", config)
            for file, content in files.items():
                write_json(changed / file, content)
            shutil.copy(golden / model / "config.json", changed)
            theirs = AutoTokenizer.from_pretrained(changed)
            ids = [theirs(text, add_special_tokens=False).input_ids for text in texts]
        cases.append({"name": name, "model": model, "config": config, "files": files,
                      "tokenizer": changes, "texts": texts, "ids": ids})
    return cases


def write_variants(golden: Path) -> None:
    write_json(golden / "side_files.json", tokenizer_cases(golden))
    write_json(golden / "variants.json", model_cases(golden))
