"""The numbers that transformers computes in float64 with the model of tools/real_models.py."""

import hashlib
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from golden.checkpoints import load, logits_of
from golden.files import Json, rounded, significant, versions, write_json
from golden.real_texts import CHATS, GREEDY, LONG_TOKENS, SPLITS, TEXTS, long_text, messages
from golden.values import common_prefix, float64_throughout, run_float64

GREEDY_TOKENS = 24


def write(folder: Path, out: Path) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    check_saved_again(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder, torch.float64)
    scores = [score(model, tokenizer, *case) for case in cases(tokenizer)]
    greedy = [continuation(model, tokenizer, prompt) for prompt in GREEDY]
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"versions": versions(), "files": sums(folder)}
    write_json(out, [about, *scores, *greedy])


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())}


def check_saved_again(folder: Path) -> None:
    """transformers reads the folder, and would write the same bytes."""
    with tempfile.TemporaryDirectory() as again:
        load(folder, torch.bfloat16).save_pretrained(again)
        AutoTokenizer.from_pretrained(folder).save_pretrained(again, save_jinja_files=False)
        for path in sorted(folder.iterdir()):
            ours, theirs = path.read_bytes(), (Path(again) / path.name).read_bytes()
            if path.name == "tokenizer_config.json":
                # transformers notes how it found the files.
                theirs = theirs.replace(b'  "is_local": true,\n  "local_files_only": false,\n', b"")
            assert ours == theirs, f"transformers would write another {path.name}"


# ---------------------------------------------------------------- scores


def cases(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str | list[Json], str, bool]]:
    """Name, prompt, response, and whether the response has ended."""
    long = tokenizer.decode(tokenizer(long_text()).input_ids[:LONG_TOKENS])
    assert len(tokenizer(long).input_ids) == LONG_TOKENS and "\ufffd" not in long
    texts = [(name, "", text, False) for name, text in [*TEXTS.items(), ("long", long)]]
    splits = [(name, prompt, response, False) for name, prompt, response in SPLITS]
    chats = [(f"chat: {name}", messages(turns), *end) for name, turns, *end in CHATS]
    return [*texts, *splits, *chats]


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, prompt: str | list[Json],
    response: str, eos: bool,
) -> Json:
    """Σ log p of a response, as gains.json has it: see `golden.values.gain_cases`."""
    front = render(tokenizer, prompt)
    before = tokenizer(front, add_special_tokens=False).input_ids
    ids = tokenizer(front + response, add_special_tokens=False).input_ids
    assert ids == tokenizer(front + response).input_ids, "no token is added in front"
    ids += [tokenizer.eos_token_id] if eos else []
    first = max(common_prefix(before, ids), 1)
    logprobs = run_float64(model, ids)[1][first - 1 :]
    total = logprobs.sum().item()
    print(f"{name:24} {len(ids):5} tokens, {len(logprobs):5} scored, {total / len(logprobs):8.4f} each")
    return {
        "name": name, "prompt": prompt, "response": response, "eos": eos,
        **({} if isinstance(prompt, str) else {"rendered": front}),
        "tokens": len(logprobs), "logp": significant(total, 12), "ids": ids,
    }


def render(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Json]) -> str:
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


# ---------------------------------------------------------------- continuations


def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str | list[tuple[str, str]]
) -> Json:
    """The most probable token, again and again; `gaps` are the logits that it is ahead by, and
    `seconds` the tokens that it is ahead of."""
    turns = prompt if isinstance(prompt, str) else messages(prompt)
    ids = tokenizer(render(tokenizer, turns), add_special_tokens=False).input_ids
    start, gaps, seconds = len(ids), [], []
    while len(ids) < start + GREEDY_TOKENS and tokenizer.eos_token_id not in ids[start:]:
        with float64_throughout():
            best = logits_of(model, torch.tensor(ids))[-1].topk(2)
        ids.append(best.indices[0].item())
        gaps.append(best.values[0] - best.values[1])
        seconds.append(best.indices[1].item())
    answer = ids[start:]
    ended = answer[-1] == tokenizer.eos_token_id
    pieces = [tokenizer.decode([id], skip_special_tokens=True) for id in answer]
    assert "\ufffd" not in "".join(pieces), "a character of several tokens"
    print(f"{'stop' if ended else 'length':7} least gap {min(gaps):.3f}: {''.join(pieces)!r}")
    return {
        "prompt": turns, "finish_reason": "stop" if ended else "length", "answer": answer,
        "pieces": pieces,
        "seconds": [tokenizer.decode([id], skip_special_tokens=True) for id in seconds],
        "gaps": rounded(torch.stack(gaps), 6),
    }
