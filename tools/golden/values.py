"""What transformers computes with the checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from golden.checkpoints import Draw, Saved, load, logits_of
from golden.files import Json, rounded, significant, versions

GOLDEN_TOKENS = 80


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
