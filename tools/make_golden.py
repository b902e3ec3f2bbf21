#!/usr/bin/env python3
"""Writes the tiny random checkpoints in tests/golden, and what transformers computes with them.

    python3 -m venv .venv && .venv/bin/pip install torch transformers tokenizers safetensors numpy
    .venv/bin/python tools/make_golden.py --out tests/golden

Nothing is downloaded: tokenizers are trained on the text below, weights are drawn. Written are

    NAME/            a checkpoint as save_pretrained writes it, and golden.json: logits, log-probs
    text.json        what the tokenizers and chat templates make of difficult texts
    gains.json       the gain of whole texts for a tuned and an untuned model
    README.md        what there is, with the versions that it was made with

All weights are bf16 numbers, whatever dtype a file has, and the golden values are computed in
float64. So whoever loads the files as bf16 has the very same model, and differs by the rounding of
his own arithmetic alone. The same seed and versions give the same files, byte for byte.
"""

import argparse
import json
import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

Json = dict[str, Any]

GPT2_VOCAB = 400
LLAMA3_VOCAB = 500
LLAMA_VOCAB = 600  # of both SentencePiece-style tokenizers
GOLDEN_TOKENS = 80
PAIRS = [("gpt2_tuned", "gpt2"), ("llama_tuned", "llama")]


def main() -> None:
    args = parse_args()
    quiet_and_deterministic()
    args.out.mkdir(parents=True, exist_ok=True)
    draw = Draw(args.seed)

    first, second = split_in_two(PROSE)
    gpt2 = gpt2_tokenizer(PROSE)
    llama3 = llama3_tokenizer(PROSE)
    llama = llama_tokenizer(first, template_in_config=True)
    mistral = llama_tokenizer(second, template_in_config=False)
    assert llama.vocab != mistral.vocab and len(llama.vocab) == len(mistral.vocab) == LLAMA_VOCAB

    made = [
        save_gpt2(args.out / "gpt2", gpt2, draw),
        save_tuned(args.out / "gpt2", args.out / "gpt2_tuned", gpt2, GPT2_TUNED, draw),
        save_gpt2_bare(args.out / "gpt2", args.out / "gpt2_bare", gpt2),
        save_llama3(args.out / "llama3", llama3, draw),
        save_llama(args.out / "llama", llama, draw),
        save_tuned(args.out / "llama", args.out / "llama_tuned", llama, LLAMA_TUNED, draw),
        save_mistral(args.out / "mistral", mistral, draw),
    ]
    for saved in made:
        check_files(saved, draw)
        golden = golden_values(saved, draw)
        write_json(saved.folder / "golden.json", golden)
    check_scaling_matters(args.out / "llama3")
    check_window_matters(args.out / "mistral")

    chat = ["llama3", "llama", "mistral"]
    texts = [case for name in ["gpt2", *chat] for case in text_cases(args.out, name)]
    chats = [case for name in chat for case in chat_cases(args.out, name)]
    write_json(args.out / "text.json", texts + chats)
    write_json(args.out / "gains.json", [c for pair in PAIRS for c in gain_cases(args.out, *pair)])
    write_readme(args.out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def quiet_and_deterministic() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)


def versions() -> dict[str, str]:
    modules = [torch, transformers, tokenizers]
    return {module.__name__: str(module.__version__) for module in modules}


# ---------------------------------------------------------------- text

PROSE = """\
The film opens on a quiet harbour. A woman walks along the pier, counts the boats, and waits for \
somebody who does not come. Nothing happens for ten minutes, and yet I could not look away.
"What a strange little movie," my friend said when the lights came on. It's slow, it's odd, and \
it's the best thing I've seen this year!
We went to the café at the corner. The waiter, naïve or merely polite, asked whether we had liked \
it: 8 out of 10, we answered, perhaps 9. The second time I watched it, in 2019, I gave it 10.
你好，世界。 这部电影很好看 🎬 — that was all the poster said, and I never found out who wrote it.
\tFirst act: the harbour.\n\tSecond act: the house on the hill.\n\tThird act: the sea again.

She has two brothers; one is a sailor, the other one paints. The painter thinks that the sailor is \
lost, the sailor thinks that the painter is mad, and both of them are right in their own way.
The music is wonderful. Long notes of the cello under the sound of rain, then silence, then a \
single piano. Whoever wrote this score has listened to the weather for a very long time.
I did not like the ending. Was it necessary to explain everything? A good story trusts the people \
who watch it; this one trusts them for ninety minutes and then suddenly does not any more.
Für Kinder ist das nichts, says the sign, and señor Muñoz agrees: ¡qué película! 👩‍👩‍👧 would leave \
after the first half hour. 🙂 好看，但是太长了。
def rate(film):\n    return 10 if film.ending is None else 7
All in all: go and see it, stay for the credits, and take somebody with you who likes to talk.
"""


def split_in_two(text: str) -> tuple[str, str]:
    """Both halves of the prose; the empty line is between them."""
    first, second = text.split("\n\n")
    return first, second


# ---------------------------------------------------------------- tokenizers


def gpt2_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """GPT-2's: byte-level BPE, one special token, nothing added to a text."""
    end = "<|endoftext|>"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    train_byte_level(inner, text, GPT2_VOCAB - 1)
    inner.add_special_tokens([end])
    assert inner.get_vocab_size() == GPT2_VOCAB
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=end, eos_token=end, unk_token=end,
        model_max_length=128, clean_up_tokenization_spaces=False,
    )


def llama3_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Llama 3's: byte-level BPE over its own split of words, special tokens behind the vocabulary,
    the beginning-of-text token in front of a text, and a chat template."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                "<|eom_id|>", "<|eot_id|>"]
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    inner = Tokenizer(models.BPE(ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    inner.decoder = decoders.ByteLevel()
    train_byte_level(inner, text, LLAMA3_VOCAB - len(specials))
    inner.add_special_tokens(specials)
    assert inner.get_vocab_size() == LLAMA3_VOCAB
    bos = specials[0]
    inner.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        bos_first(inner, bos),
    ])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token="<|eot_id|>",
        model_max_length=256, clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = LLAMA3_TEMPLATE
    tokenizer.template_in_config = True
    return tokenizer


def train_byte_level(inner: Tokenizer, text: str, size: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([text], trainer)


def llama_tokenizer(text: str, template_in_config: bool) -> PreTrainedTokenizerFast:
    """Llama 2's, as converted from SentencePiece: BPE over characters with spaces as ▁, bytes for
    characters that are not in the vocabulary, <s> in front of a text."""
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces_as_marks()
    # Merges stay inside words, as SentencePiece learns them. The split is of the training alone.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=LLAMA_VOCAB, special_tokens=specials + byte_tokens, show_progress=False
    )
    trained.train_from_iterator(without_rare(text, kept=64).splitlines(), trainer)

    # Again with the same merges: there, bytes were special tokens; here they are ordinary ones.
    learnt = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    inner = Tokenizer(models.BPE(
        vocab=learnt["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    ))
    inner.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    assert inner.get_vocab_size() == LLAMA_VOCAB
    inner.normalizer = spaces_as_marks()
    inner.decoder = decoders.Sequence([
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])
    inner.post_processor = bos_first(inner, "<s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=256, clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = ZEPHYR_TEMPLATE
    tokenizer.template_in_config = template_in_config
    return tokenizer


def without_rare(text: str, kept: int) -> str:
    """Only the `kept` most frequent characters: a tokenizer writes the others as bytes. (The
    trainer's own `limit_alphabet` breaks ties differently in each run.)"""
    counts = Counter(text.replace("\t", " "))
    frequent = {"\n", *sorted(counts, key=lambda c: (-counts[c], c))[:kept]}
    return "".join(c if c in frequent else " " for c in text)


def spaces_as_marks() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def bos_first(inner: Tokenizer, token: str) -> processors.PostProcessor:
    number = inner.token_to_id(token)
    assert number is not None
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, number)]
    )


LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- checkpoints

# What tuning changes; all other tensors stay the untuned model's, byte for byte. Of llama's
# queries, keys and values only the queries: an engine that joins the three must see it.
GPT2_TUNED = ["transformer.h.0.mlp.c_proj.weight", "transformer.h.1.attn.c_attn.weight",
              "transformer.h.1.mlp.c_fc.bias", "transformer.ln_f.weight"]
LLAMA_TUNED = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight",
               "model.norm.weight"]

PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


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


# ---------------------------------------------------------------- checks


def check_files(saved: Saved, draw: Draw) -> None:
    """The folder gives the model that was made, and each of its tensors matters."""
    model = load(saved.folder, torch.float32)
    logits = logits_of(model, saved.probe)
    error = (logits - saved.logits).abs().max().item()
    assert error < 1e-5, f"{saved.folder.name}: loads as another model ({error})"
    spread = logits.std().item()
    assert 1 < spread < 3.5, f"{saved.folder.name}: logits spread by {spread}"

    least = float("inf")
    for key, weight in model.named_parameters():
        value = weight.data
        assert torch.equal(value, value.bfloat16().float()), f"{key} is not bf16"
        weight.data = value + draw.normal(key, value.shape, 0.05)
        least = min(least, (logits_of(model, saved.probe) - logits).abs().max().item())
        weight.data = value
    assert least > 0.02, f"{saved.folder.name}: a tensor hardly matters ({least})"
    print(f"{saved.folder.name:12} spread {spread:.2f}, reloaded within {error:.0e}, "
          f"noise of 0.05 on any one tensor moves a logit by {least:.2f} or more")


def check_scaling_matters(folder: Path) -> None:
    """Llama 3.1's slowed positions are seen in the logits."""
    plain = {"rope_type": "default", "rope_theta": 500_000.0}
    tokens = torch.tensor(read_json(folder / "golden.json")["tokens"])
    models_ = load(folder, torch.float32), load(folder, torch.float32, rope_parameters=plain)
    scaled, unscaled = (logits_of(model, tokens)[-1] for model in models_)
    frequencies = [model.model.rotary_emb.inv_freq for model in models_]
    ratios = (frequencies[0] / frequencies[1]).tolist()
    assert ratios[0] == 1 and 1 / 8 < ratios[1] < 1 and all(abs(r - 1 / 8) < 1e-6 for r in ratios[2:])
    assert (scaled - unscaled).abs().max() > 0.1
    print(f"{folder.name:12} scaled positions move the last logits by "
          f"{(scaled - unscaled).abs().max():.2f}; frequencies × {[round(r, 4) for r in ratios]}")


def check_window_matters(folder: Path) -> None:
    """transformers applies the window: a position sees itself and the 23 before it, no more."""
    tokens = torch.tensor(read_json(folder / "golden.json")["tokens"])
    model, unlimited = load(folder, torch.float32), load(folder, torch.float32, sliding_window=None)
    with_window, without = logits_of(model, tokens), logits_of(unlimited, tokens)
    differs = (with_window - without).abs().amax(dim=1) > 1e-4
    first = int(differs.nonzero()[0])
    assert first == 24 and differs[-1], f"the window is first seen at {first}"
    print(f"{folder.name:12} the window is first seen at position {first} and moves the last logits "
          f"by {(with_window[-1] - without[-1]).abs().max():.2f}")


# ---------------------------------------------------------------- golden values


def golden_values(saved: Saved, draw: Draw) -> Json:
    """Logits and log-probs of a text and random tokens behind it."""
    vocab = len(saved.tokenizer)
    text = saved.tokenizer("The film opens on a quiet harbour, says señor Muñoz. 好看 🎬").input_ids
    noise = draw.stream("golden").integers(0, vocab, GOLDEN_TOKENS).tolist()
    tokens = (text[: GOLDEN_TOKENS // 2 + 10] + noise)[:GOLDEN_TOKENS]
    logits, logprobs = run_float64(load(saved.folder, torch.float64), tokens)
    rough = logits_of(load(saved.folder, torch.float32), torch.tensor(tokens))
    rough_logprobs = token_logprobs(rough, tokens)
    print(f"{saved.folder.name:12} float32 is off by {(rough - logits).abs().max():.1e} in logits, "
          f"{(rough_logprobs - logprobs).abs().max():.1e} in log-probs")
    return {
        "versions": versions(),
        "tokens": tokens,
        "logits_first": rounded(logits[0], 9),
        "logits_last": rounded(logits[-1], 9),
        "logprobs": rounded(logprobs, 12),
        "argmax": logits.argmax(dim=-1).tolist(),
    }


def run_float64(model: PreTrainedModel, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """A float64 model's logits, and the log-prob of each token but the first."""
    with float64_throughout():
        logits = logits_of(model, torch.tensor(tokens))
    assert logits.dtype == torch.float64
    return logits, token_logprobs(logits, tokens)


def token_logprobs(logits: Tensor, tokens: list[int]) -> Tensor:
    targets = torch.tensor(tokens[1:])[:, None]
    return logits[:-1].log_softmax(dim=-1).gather(1, targets)[:, 0]


@contextmanager
def float64_throughout() -> Iterator[None]:
    """transformers computes RMSNorm and attention's softmax in float32 whatever the model's dtype.
    In here it does not.

    The angles of rotary positions, and their cos and sin, stay float32: engines compute them so,
    and at position p an angle of p radians has an error of about p · 6e-8.
    """

    def rms_norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    softmax = functional.softmax
    with (
        mock.patch.object(LlamaRMSNorm, "forward", rms_norm),
        mock.patch.object(MistralRMSNorm, "forward", rms_norm),
        mock.patch.object(functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim)),
    ):
        yield


# ---------------------------------------------------------------- texts

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "The film opens on a quiet harbour.",
    " It's odd: we'd 12345 boats, 10%!",
    "spaces  inside and behind  ",
    "\tone\ttab,\r\ntwo\n\nlines\n",
    "the café, naïve; e\u0301 is not é, ¡qué película!",
    "你好，世界。這部電影",
    "🎬🙂 👩‍👩‍👧 🇩🇪",
    "a ▁ mark, a <0x41> byte, \x00 and \x7f",
    "<|endoftext|>",
    "<s> The end.</s>\nMore<unk>",
    "The end.<|endoftext|>More <|eot_id|><|begin_of_text|>Hello",
]


def text_cases(out: Path, name: str) -> list[Json]:
    """What a tokenizer makes of texts: ids, and the text again."""
    tokenizer = AutoTokenizer.from_pretrained(out / name)
    plain = Tokenizer.from_file(str(out / name / "tokenizer.json"))
    cases = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == plain.encode(text, add_special_tokens=False).ids, "transformers changes it"
        cases.append({
            "model": name,
            "text": text,
            "ids_without_special": ids,
            "ids_with_special": tokenizer(text).input_ids,
            "decoded": tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            ),
        })
    return cases


CONVERSATIONS = [
    [("user", "Shall I watch it?")],
    [("system", "You are a critic."), ("user", "Shall I watch it?")],
    [("user", "  Hello 🎬\n"), ("assistant", "Good evening."), ("user", "What's <b>on</b> & 'où'?")],
]


def chat_cases(out: Path, name: str) -> list[Json]:
    """What a chat template makes of conversations, up to where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(out / name)
    cases = []
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        cases.append({"model": name, "messages": messages, "rendered": rendered})
    return cases


# ---------------------------------------------------------------- gains

# Prompt, response, whether the response has ended. Prompts without a space at their end, and
# responses that go on inside a word, make the boundary merge.
GAINS = [
    ("The film opens on", " a quiet harbour.", True),
    ("The film opens on", " a quiet harbour.", False),
    ("The film opens on ", "a quiet harbour.", False),
    ("The mus", "ic is wonderful.", True),
    ("I did not like the harb", "our. It is th", False),
    ("A good story trusts the people", "", True),
    ("A good story trusts the people", "", False),
    ("你好，世界", "。 这部电影很好看 🎬", True),
    ("Review: the café 👩‍👩‍", "👧 was naïve; señor", False),
    ("What a strange movie!\n", "It's slow, it's odd. We liked it. 8 out of 10!\n\tGo and see it.", True),
    ("", "The music is wonderful.", True),
    ("", "The", False),
    ("T", "he painter", True),
    ("The ending?\n\n", "\n\n  All in all: 10 ", False),
]


def gain_cases(out: Path, tuned: str, untuned: str) -> list[Json]:
    """The gain of whole texts, as the code of weak-to-strong search defines it.

    Prompt, and prompt and response together, are tokenised without special tokens; the end token
    is put behind the latter if the response has ended. The response's tokens are those after the
    longest common beginning of both. The first token of all has nothing before it that could
    predict it; it is not scored, nor counted in `tokens`.
    """
    tokenizer = AutoTokenizer.from_pretrained(out / untuned)
    pair = [load(out / name, torch.float64) for name in [tuned, untuned]]
    cases = []
    for prompt, response, eos in GAINS:
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        tokens = tokenizer(prompt + response, add_special_tokens=False).input_ids
        tokens += [tokenizer.eos_token_id] if eos else []
        first = max(common_prefix(before, tokens), 1)
        logp_tuned, logp_untuned = (
            run_float64(model, tokens)[1][first - 1 :].sum().item() for model in pair
        )
        cases.append({
            "tuned": tuned, "untuned": untuned, "prompt": prompt, "response": response, "eos": eos,
            "logp_tuned": significant(logp_tuned, 12), "logp_untuned": significant(logp_untuned, 12),
            "gain": significant(logp_tuned - logp_untuned, 12), "tokens": len(tokens) - first,
        })
        if common_prefix(before, tokens) < len(before):
            print(f"{untuned:12} boundary merges: {prompt!r} + {response!r}")
    return cases


def common_prefix(a: list[int], b: list[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


# ---------------------------------------------------------------- files


def rounded(values: Tensor, digits: int) -> list[float]:
    return [significant(value, digits) for value in values.tolist()]


def significant(value: float, digits: int) -> float:
    """Enough digits to compare with, and none of those in which machines differ."""
    return float(f"{value:.{digits}g}")


def read_json(path: Path) -> Json:
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, value: Json | list[Json], indent: int | None = None) -> None:
    """A list has one entry a line."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=indent) + "\n"
    path.write_text(text, "utf-8")


def write_readme(out: Path) -> None:
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    (out / "README.md").write_text(README.format(made_with=made_with), "utf-8")


README = textwrap.dedent("""\
    # Golden values

    Tiny checkpoints with random weights, and what transformers computes with them in float64.
    Written by

        python3 -m venv .venv && .venv/bin/pip install torch transformers tokenizers safetensors numpy
        .venv/bin/python tools/make_golden.py --out tests/golden

    with {made_with}.
    Nothing here is edited by hand, this file neither.

    | folder | model | file | what is special |
    |---|---|---|---|
    | `gpt2` | GPT-2 | f32 | names begin with `transformer.`; `n_inner` is given |
    | `gpt2_bare` | GPT-2, the same weights | f16 | names without prefix, mask buffers `h.N.attn.bias`, `torch_dtype` |
    | `gpt2_tuned` | `gpt2`, 4 tensors changed | f32 | the rest is byte-identical |
    | `llama3` | Llama 3.1 | bf16, shards | grouped queries, `head_dim` × heads ≠ `hidden_size`, all biases, llama3 positions, 3 end tokens; old spelling of `config.json` |
    | `llama` | Llama 1 | f32 | tied head, 3 heads; a SentencePiece-style tokenizer |
    | `llama_tuned` | `llama`, 3 tensors changed | f32 | of queries, keys and values only the queries changed |
    | `mistral` | Mistral | bf16 | grouped queries, a window of 24; another vocabulary of `llama`'s size; chat template in `chat_template.jinja` |

    All weights are bf16 numbers, also in f32 and f16 files: loading them as bf16 loses nothing.

    - `NAME/golden.json`: `tokens`; `logits_first` and `logits_last`, the whole vocabulary after the
      first and the last token; `logprobs[i]`, of `tokens[i + 1]` given all before it; `argmax` of
      the logits after each token. Norms and softmax are float64 too; only the angles of rotary
      positions are float32, as everywhere. transformers in float32 is within 2e-5 of all values.
    - `text.json`: `ids_without_special` and `ids_with_special` of a text, `decoded` from the
      former (special tokens written out); `rendered`, the chat template's text for `messages`, with
      the beginning of the answer.
    - `gains.json`: Σ log p of the response's tokens by the tuned and by the untuned model, and
      their difference. Prompt, and prompt and response together, are tokenised by `untuned`'s
      tokenizer without special tokens; behind the latter comes the end token where `eos` is true.
      Scored are the `tokens` behind the longest common beginning of both; never the very first
      token, which nothing predicts (see the cases with an empty prompt).

    How transformers 5 spells what older versions wrote, both of which are in use:

    | new (`mistral`, `llama`) | old (`llama3`) |
    |---|---|
    | `"rope_parameters": {{"rope_type": …, "rope_theta": …, …}}` | `"rope_theta": …, "rope_scaling": {{"rope_type": …, …}}`, `"rope_scaling": null` without scaling; still older: `"type"` for `"rope_type"` |
    | `"dtype": "bfloat16"` | `"torch_dtype": "bfloat16"` |
    | `chat_template.jinja` (`mistral`) | `chat_template` in `tokenizer_config.json` (`llama3`, `llama`) |
    """)


if __name__ == "__main__":
    main()
