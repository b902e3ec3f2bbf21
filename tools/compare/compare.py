#!/usr/bin/env python3
"""Measures trimtab and its peers in turns, on the same weights. compare.sh installs and starts it."""

import argparse
import json
import os
import sys
from pathlib import Path

import checkpoints
import table
from contenders import Failure, Peer, Search, Trimtab

HERE = Path(__file__).parent
WORK = HERE.parent.parent / "target/compare"
ENGINES = {
    "transformers": ("transformers_peer.py", ["f32", "bf16"]),
    "llama.cpp": ("llama_cpp_peer.py", ["f32", "bf16", "int8"]),
    "CTranslate2": ("ctranslate2_peer.py", ["f32", "bf16", "int8"]),
    "OpenVINO": ("openvino_peer.py", ["f32", "bf16"]),
}
SEARCHES = {
    "transformers, prefixes re-run": ("cbs_rerun.py", ["f32", "bf16"]),
    "transformers, caches": ("cbs_cached.py", ["f32", "bf16"]),
}
TINY = {"n_layer": 2, "n_embd": 128, "n_head": 2}
PROMPT, SCORED = 64, 64
BATCHES = [1, 16]
# Of a text's 64 log-probabilities together. Texts differ by about 4, so that another model, another
# text or a shift by one token is seen.
TOLERANCE = {"f32": 0.5, "bf16": 1.0, "int8": 2.0}


def main() -> int:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    shape = TINY if args.quick else {}
    models = checkpoints.make(WORK / ("models-quick" if args.quick else "models"), **shape)
    with open(args.output / "log.txt", "w") as log:
        comparison = Comparison(args, models, log)
        if "engines" in args.parts:
            comparison.engines()
        if "search" in args.parts:
            comparison.searches()
    machine = table.machine(args.threads)
    with open(args.output / "results.jsonl", "w") as file:
        for line in [{"machine": machine}, *comparison.rows]:
            file.write(json.dumps(line) + "\n")
    text = table.markdown(machine, comparison.rows)
    (args.output / "table.md").write_text(text)
    print(text)
    return 1 if comparison.wrong else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (5)")
    parser.add_argument("--rerun-rounds", type=int, default=3, help="of the search that re-runs prefixes (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for everyone (all cores)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="peers by name, such as OpenVINO,llama.cpp")
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["f32", "bf16", "int8"])
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["engines", "search"])
    parser.add_argument("--quick", action="store_true", help="one round, tiny models, few tokens: to try it")
    parser.add_argument("--output", type=Path, default=WORK / "results", help="folder for results and log")
    args = parser.parse_args()
    if args.quick:
        args.rounds = args.rerun_rounds = 1
    args.decoded = 4 if args.quick else 32
    args.search = Search(2, 2, 3, PROMPT, 6) if args.quick else Search(4, 4, 10, PROMPT, 60)
    return args


class Comparison:
    def __init__(self, args, models, log):
        self.args, self.models, self.log = args, models, log
        self.trimtab = Trimtab(models, args.threads, log)
        self.rows, self.wrong = [], False

    def peers(self, kinds: dict, folder: Path) -> list[Peer]:
        args, started = self.args, []
        for name, (script, precisions) in kinds.items():
            for precision in precisions:
                if precision in args.precisions and (not args.only or name in args.only):
                    say(f"starting {name}, {precision}")
                    started.append(Peer(name, script, folder, precision, args.threads, self.log))
        return started

    def engines(self) -> None:
        """Decoding and scoring by one model."""
        args = self.args
        peers = self.peers(ENGINES, self.models["base"])
        scored = checkpoints.texts(16, SCORED + 1)
        truth = [
            base
            for base, _ in self.trimtab.logprobs(
                [(checkpoints.written(text[:1]), checkpoints.written(text[1:])) for text in scored]
            )
        ]
        for peer in peers:
            self.check_sums(peer, scored, truth)
        decode = {batch: f"Decoding, batch {batch}, {PROMPT} + {args.decoded} tokens" for batch in BATCHES}
        score = f"Scoring, 16 × {SCORED} tokens"
        results = Results([self.trimtab, *peers], [*decode.values(), score], "tokens/s")
        for turn in range(args.rounds):
            say(f"engines, round {turn + 1} of {args.rounds}")
            rates = self.trimtab.decode(BATCHES, PROMPT, args.decoded)
            for batch, measure in decode.items():
                results.add(measure, self.trimtab, lambda: rates[batch])
            results.add(score, self.trimtab, lambda: self.trimtab.score(16, SCORED))
            for peer in peers:
                for batch, measure in decode.items():
                    request = {"texts": checkpoints.texts(batch, PROMPT), "new_tokens": args.decoded}
                    results.add(measure, peer, lambda: peer.ask(task="decode", **request)["value"])
                results.add(score, peer, lambda: peer.ask(task="score", texts=scored)["value"])
        self.rows += results.rows()
        for peer in peers:
            peer.close()

    def searches(self) -> None:
        """The search end to end."""
        args, search = self.args, self.args.search
        peers = self.peers(SEARCHES, self.models["base"].parent)
        shape = {"w": search.w, "k": search.k, "l": search.l, "new_tokens": search.new_tokens}
        request = {"task": "search", "prompt": checkpoints.texts(1, PROMPT)[0], "seed": 1, **shape}
        measure = (
            f"Search, W,K,L = {search.w},{search.k},{search.l}, {PROMPT} + {search.new_tokens} tokens"
        )
        results, answers = Results([self.trimtab, *peers], [measure], "s"), {}

        def searched(peer):
            answer = peer.ask(**request)
            answers[peer] = answer["tokens"], answer["gain"]
            return answer["value"]

        for turn in range(args.rounds):
            say(f"searches, round {turn + 1} of {args.rounds}")
            results.add(measure, self.trimtab, lambda: self.trimtab.search(search))
            for peer in peers:
                if turn < args.rerun_rounds or "re-run" not in peer.name:
                    results.add(measure, peer, lambda: searched(peer))
        self.rows += results.rows()
        self.check_gains(request["prompt"], answers)
        for peer in peers:
            peer.close()

    def check_sums(self, peer, texts, truth) -> None:
        """Whether a peer computes with the same model at all."""
        try:
            sums = peer.ask(task="score", texts=texts)["sums"]
        except Failure as failure:
            peer.failure = str(failure)
            return say(f"{peer.name}, {peer.precision}: {failure}")
        worst = max(abs(ours - theirs) for ours, theirs in zip(truth, sums, strict=True))
        self.judge(peer, worst, f"sums of {SCORED} log-probabilities")

    def check_gains(self, prompt, answers) -> None:
        """Whether the searches' gains are those that trimtab gives the same answers."""
        pairs = [(checkpoints.written(prompt), checkpoints.written(tokens)) for tokens, _ in answers.values()]
        truth = [gain for _, gain in self.trimtab.logprobs(pairs)] if pairs else []
        for (peer, (_, theirs)), ours in zip(answers.items(), truth, strict=True):
            self.judge(peer, abs(ours - theirs), "gains of the answers")
        exact = [answers[peer] for peer in answers if peer.precision == "f32"]
        if len(exact) == 2:
            (tokens, gain), (others, other) = exact
            same = tokens == others and abs(gain - other) < 1e-2
            self.wrong |= not same
            say(f"both searches in f32 give {'the same answer' if same else 'DIFFERENT ANSWERS'}")

    def judge(self, peer, difference: float, what: str) -> None:
        limit = TOLERANCE[peer.precision]
        # The negation also catches a NaN.
        verdict = "agree with" if difference <= limit else "DIFFER FROM"
        self.wrong |= not difference <= limit
        say(f"{peer.name}, {peer.precision}: {what} {verdict} trimtab's: {difference:.3f} at most, {limit} allowed")


class Results:
    """Samples of each measure and contender, or why there are none."""

    def __init__(self, contenders, measures, unit):
        self.contenders, self.measures, self.unit = contenders, measures, unit
        self.samples = {(m, c): [] for m in measures for c in contenders}
        self.errors = {}

    def add(self, measure, contender, run) -> None:
        if (measure, contender) in self.errors:
            return
        try:
            self.samples[measure, contender].append(run())
        except Failure as failure:
            self.errors[measure, contender] = str(failure)
            say(f"{contender.name}, {contender.precision}: {failure}")

    def rows(self) -> list[dict]:
        return [self.row(measure, contender) for measure, contender in self.samples]

    def row(self, measure, contender) -> dict:
        head = {
            "measure": measure,
            "unit": self.unit,
            "name": contender.name,
            "precision": contender.precision,
            "settings": contender.settings,
        }
        if (measure, contender) in self.errors:
            return head | {"error": self.errors[measure, contender]}
        samples = self.samples[measure, contender]
        return head | table.summary(samples) | {"samples": samples}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
