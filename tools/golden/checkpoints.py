"""Models with random weights, saved as checkpoints in the ways that checkpoints differ."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from golden.files import read_json, write_json

# What tuning changes; all other tensors stay the untuned model's, byte for byte. Of llama's
# queries, keys and values only the queries: an engine that joins the three must see it.
GPT2_TUNED = ["transformer.h.0.mlp.c_proj.weight", "transformer.h.1.attn.c_attn.weight",
              "transformer.h.1.mlp.c_fc.bias", "transformer.ln_f.weight"]
LLAMA_TUNED = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight",
               "model.norm.weight"]

PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


class Draw:
    """Random numbers that depend on the seed and on what they are for, not on the order of calls."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    def normal(self, purpose: str, shape: torch.Size, std: float) -> Tensor:
        return torch.from_numpy(self.stream(purpose).normal(0.0, std, tuple(shape))).float()


@dataclass
class Saved:
    """A checkpoint's folder, and the logits that its weights gave before they were saved."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    probe: Tensor
    logits: Tensor


def fill(model: PreTrainedModel, name: str, draw: Draw) -> None:
    """Random weights, such that logits spread by about 2 and every tensor matters."""
    for key, weight in model.named_parameters():
        purpose = f"{name}/{key}"
        if key.endswith(".bias"):
            value = draw.normal(purpose, weight.shape, 0.1)
        elif weight.dim() == 1:
            value = 1 + draw.normal(purpose, weight.shape, 0.15)
        elif any(table in key for table in ["wte", "wpe", "embed_tokens", "lm_head"]):
            value = draw.normal(purpose, weight.shape, 0.28)
        else:
            value = draw.normal(purpose, weight.shape, 0.15)
        weight.data = exact(value)


def exact(values: Tensor) -> Tensor:
    """Rounded to what bf16, f16 and f32 all hold: bf16's 8 bits, and 0 below f16's range."""
    rounded = values.to(torch.bfloat16).float()
    rounded[rounded.abs() < 2.0**-14] = 0.0
    assert torch.equal(rounded, rounded.half().float())
    return rounded


def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(tokens[None]).logits[0]


def save_gpt2(folder: Path, tokenizer: PreTrainedTokenizerFast, draw: Draw) -> Saved:
    """GPT-2 in f32, names with the prefix `transformer.`, an MLP narrower than the usual 4×."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=64, n_layer=2, n_head=4, n_inner=128,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )
    return save(GPT2LMHeadModel(config), folder, tokenizer, torch.float32, draw)


def save_gpt2_bare(origin: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Saved:
    """The same weights as `origin`, named as openai-community/gpt2 names them: without prefix, and
    with each layer's causal mask (in f16 for the first, in u8 for the second, as older files
    differ in it). The file is f16, and `config.json` has the old key `torch_dtype`."""
    start_folder(folder)
    tensors = {k.removeprefix("transformer."): t.half()
               for k, t in load_file(origin / "model.safetensors").items()}
    mask = torch.ones(128, 128).tril()[None, None]
    tensors |= {"h.0.attn.bias": mask.half(), "h.1.attn.bias": mask.to(torch.uint8)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(origin / "config.json")
    del config["dtype"]
    write_json(folder / "config.json", config | {"torch_dtype": "float16"}, indent=2)
    save_tokenizer(tokenizer, folder)
    probe = probe_tokens(len(tokenizer))
    return Saved(folder, tokenizer, probe, logits_of(load(origin, torch.float32), probe))


def save_llama3(folder: Path, tokenizer: PreTrainedTokenizerFast, draw: Draw) -> Saved:
    """Llama 3.1 in bf16 shards: grouped queries, heads wider than hidden / heads, biases, scaled
    positions, a head of its own, several end tokens, and `config.json` in the old spelling."""
    eos = [tokenizer.convert_tokens_to_ids(t) for t in ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]]
    # With these numbers the first channel pair keeps its frequency, the second one is
    # interpolated, all others are slowed down: each of the three branches is taken.
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}
    theta = 500_000.0
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        rms_norm_eps=1e-5, rope_parameters=scaling | {"rope_theta": theta}, attention_bias=True,
        mlp_bias=True, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
    )
    saved = save(LlamaForCausalLM(config), folder, tokenizer, torch.bfloat16, draw, shard="80KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 2

    # The old spelling, as published files have it; transformers must read both alike.
    tokens, new = saved.probe, logits_of(load(folder, torch.float32), saved.probe)
    fields = read_json(folder / "config.json")
    del fields["rope_parameters"]
    fields |= {"rope_theta": theta, "rope_scaling": scaling, "torch_dtype": fields.pop("dtype")}
    write_json(folder / "config.json", dict(sorted(fields.items())), indent=2)
    assert torch.equal(new, logits_of(load(folder, torch.float32), tokens))
    return saved


def save_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, draw: Draw) -> Saved:
    """Llama 1 in f32: as many keys as queries, no biases, plain positions; the head is tied."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=256, rope_parameters=PLAIN,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return save(LlamaForCausalLM(config), folder, tokenizer, torch.float32, draw)


def save_mistral(folder: Path, tokenizer: PreTrainedTokenizerFast, draw: Draw) -> Saved:
    """Mistral in bf16: grouped queries, and a window that the golden tokens outgrow."""
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        sliding_window=24, rope_parameters=PLAIN, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return save(MistralForCausalLM(config), folder, tokenizer, torch.bfloat16, draw)


def save_tuned(
    origin: Path, folder: Path, tokenizer: PreTrainedTokenizerFast, changed: list[str], draw: Draw
) -> Saved:
    """`origin` with noise on the tensors `changed`."""
    model = load(origin, torch.float32)
    for key in changed:
        weight = model.get_parameter(key)
        weight.data = exact(weight + draw.normal(f"{folder.name}/{key}", weight.shape, 0.06))
    saved = save_as(torch.float32, model, folder, tokenizer)
    before, after = (load_file(f / "model.safetensors") for f in [origin, folder])
    assert [key for key in before if not torch.equal(before[key], after[key])] == sorted(changed)
    return saved


def save(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype,
    draw: Draw, shard: str = "1GB",
) -> Saved:
    """A new model with random weights."""
    fill(model, folder.name, draw)
    model.eval().set_attn_implementation("eager")
    return save_as(dtype, model, folder, tokenizer, shard)


def save_as(
    dtype: torch.dtype, model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast,
    shard: str = "1GB",
) -> Saved:
    probe = probe_tokens(len(tokenizer))
    logits = logits_of(model, probe)  # in float32, whatever the file's dtype
    start_folder(folder)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(tokenizer, folder)
    return Saved(folder, tokenizer, probe, logits)


def start_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """With the chat template in `tokenizer_config.json`, as older versions did, or in
    `chat_template.jinja`, as newer ones do."""
    in_config = getattr(tokenizer, "template_in_config", False)
    tokenizer.save_pretrained(folder, save_jinja_files=not in_config)


def load(folder: Path, dtype: torch.dtype, **changes: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", **changes
    ).eval()


def probe_tokens(vocab: int) -> Tensor:
    """Some tokens to compare logits with, all over the vocabulary."""
    return torch.arange(64) * 37 % vocab
