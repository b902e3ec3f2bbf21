#!/usr/bin/env python3
"""A real model answers as it does in transformers: log-probabilities of whole texts, chats, and
greedy continuations.

    .venv/bin/python tools/real_models.py    makes the model's folder
    python3 tests/real/check.py [FOLDER]     runs target/release/trimtab, or what TRIMTAB names

smollm2.json holds the right values, by transformers in float64. The tokens themselves are compared by
`cargo test --release --test text -- --ignored`.
"""

import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRIMTAB = os.environ.get("TRIMTAB", str(ROOT / "target" / "release" / "trimtab"))
FOLDER = ROOT / ".real" / "smollm2-135m-instruct"
GOLDEN = ROOT / "tests" / "real" / "smollm2.json"

# Nats a token. Rounding to bf16 moves a token's log p by 0.03 in the mean square, up or down and each
# token almost by itself. So the mean of a text is the better the longer the text is, by the root of its
# tokens; below MOST_FROM tokens it may be off by that much more.
MOST = 0.02
MOST_FROM = 50
# The error of one token, as all texts together show it: its mean, and the root of its mean square. The
# latter was 0.024 to 0.037 on five instruction sets, and is 0.09 with positions that are wrong by 2 %.
MOST_MEAN = 0.005
MOST_SPREAD = 0.06
# Logits: transformers' best two tokens may change places if they are this near. Rounding moves their
# difference by a fifth of that in the mean square.
NEAR = 0.2


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    about, *cases = json.loads(GOLDEN.read_text("utf-8"))
    check_files(folder, about["files"])
    scores = [case for case in cases if "logp" in case]
    greedy = [case for case in cases if "gaps" in case]
    wrong = check_scores(folder, scores) + check_greedy(folder, greedy)
    if wrong:
        raise SystemExit(f"{wrong} of {len(cases)} are wrong")
    print(f"all {len(cases)} are right")


def check_files(folder, sums):
    for name, right in sums.items():
        path = folder / name
        if not path.is_file():
            raise SystemExit(f"{path} is missing; tools/real_models.py makes it")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != right:
                raise SystemExit(f"{path} is not the file that {GOLDEN} is of; "
                                 f"make both with tools/real_models.py")


def by_chat(cases):
    """Texts and chats by themselves: --chat is for a whole run."""
    return [(chat, [case for case in cases if isinstance(case["prompt"], list) == chat])
            for chat in (False, True)]


def trimtab(command, chat, lines):
    """The answers to some lines, one for each."""
    command = [TRIMTAB, *map(str, command), *(["--chat"] if chat else [])]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, timeout=600)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    if run.returncode != 0 or len(answers) != len(lines):
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode} and gave "
                         f"{len(answers)} answers for {len(lines)} lines: {answers[:3]}")
    return answers


# ---------------------------------------------------------------- scores


def check_scores(folder, cases):
    print(f"{'text':24} {'tokens':>6} {'log p':>11} {'a token':>9}")
    wrong, off = 0, []
    for chat, part in by_chat(cases):
        fields = ("prompt", "response", "eos")
        lines = [{"id": case["name"], **{field: case[field] for field in fields}} for case in part]
        command = ["score", "--tuned", folder, "--untuned", folder, "--input", "-"]
        for case, answer in zip(part, trimtab(command, chat, lines)):
            wrong += not right_score(case, answer)
            off.append((answer["logp_tuned"] - case["logp"], case["tokens"]))
    tokens = sum(n for _, n in off)
    mean = sum(x for x, _ in off) / tokens
    spread = math.sqrt(sum(x * x / n for x, n in off) / len(off))
    right = abs(mean) <= MOST_MEAN and spread <= MOST_SPREAD
    verdict = "ok" if right else f"WRONG: at most {MOST_MEAN} and {MOST_SPREAD} are right"
    print(f"{'all':24} {tokens:6} {'':11} {mean:+9.5f}  {spread:.5f} in the mean square  {verdict}")
    return wrong + (not right)


def right_score(case, answer):
    tokens = case["tokens"]
    off = (answer["logp_tuned"] - case["logp"]) / tokens
    most = MOST * max(1, math.sqrt(MOST_FROM / tokens))
    complaints = []
    if answer["tokens"] != tokens:
        complaints.append(f"{answer['tokens']} tokens are scored, {tokens} are right")
    # Written so that NaN is too much.
    if not abs(off) <= most:
        complaints.append(f"at most {most:.3f} a token is right")
    if answer["logp_untuned"] != answer["logp_tuned"] or answer["gain"] != 0:
        complaints.append("a model differs from itself")
    verdict = "ok" if not complaints else "WRONG: " + "; ".join(complaints)
    print(f"{case['name']:24} {tokens:6} {case['logp']:11.4f} {off:+9.5f}  {verdict}")
    return not complaints


# ---------------------------------------------------------------- continuations


def check_greedy(folder, cases):
    print("\ngreedy continuations")
    wrong = 0
    for chat, part in by_chat(cases):
        longest = max(len(case["pieces"]) for case in cases)
        command = ["search", "--base", folder, "--method", "sample", "--temperature", "0",
                   "--max-new-tokens", longest, "--prompts", "-"]
        for case, answer in zip(part, trimtab(command, chat, [{"prompt": c["prompt"]} for c in part])):
            verdict = judge(case, answer)
            print(f"{''.join(case['pieces'])!r:.70} {verdict}")
            wrong += verdict.startswith("WRONG")
    return wrong


def judge(case, answer):
    """Compares token by token; behind a near tie the answer may be another."""
    response, so_far = answer["response"], ""
    for step, (piece, second, gap) in enumerate(zip(case["pieces"], case["seconds"], case["gaps"])):
        if not response.startswith(so_far + piece) or (not piece and response != so_far):
            if gap < NEAR and response.startswith(so_far + second):
                return f"ok up to token {step + 1}, where {second!r} is as near as {gap:.3f}"
            return f"WRONG at token {step + 1}, {piece!r} by {gap:.3f}: {response!r}"
        so_far += piece
    if response != so_far or answer["finish_reason"] != case["finish_reason"]:
        return f"WRONG at its end, {answer['finish_reason']}: {response!r}"
    return "ok"


if __name__ == "__main__":
    main()
