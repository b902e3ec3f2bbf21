"""The three models of the comparison: GPT-2 shapes with random weights, nothing downloaded.

All weights are bf16 numbers, so an engine that keeps f32 and one that keeps bf16 hold the same
model. The tokenizer writes token 17 as `t17`: what is text to one engine are ids to another.
"""

import json
from pathlib import Path

ROLES = {"base": 1, "tuned": 2, "untuned": 3}
VOCAB = 50257
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "t50256",
    "eos_token": "t50256",
    "unk_token": "t0",
}


def make(folder: Path, **shape) -> dict[str, Path]:
    """The folders by role; those that exist are kept. `shape` is where it is not GPT-2 124M's."""
    models = {role: folder / role for role in ROLES}
    for role, seed in ROLES.items():
        if not (models[role] / "tokenizer.json").exists():
            write(models[role], seed, shape)
    return models


def write(folder: Path, seed: int, shape: dict) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **shape)).to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))


def tokenizer() -> dict:
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "WordLevel",
            "vocab": {f"t{token}": token for token in range(VOCAB)},
            "unk_token": "t0",
        },
    }


def texts(count: int, length: int) -> list[list[int]]:
    """The same token ids that `trimtab bench` takes."""
    return [
        [(text * 7919 + place * 104_729 + 17) % VOCAB for place in range(length)]
        for text in range(count)
    ]


def written(tokens: list[int]) -> str:
    return " ".join(f"t{token}" for token in tokens)
