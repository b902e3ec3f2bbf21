"""Who is compared: peers as processes that stay, trimtab as its own command."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TRIMTAB = HERE.parent.parent / "target/release/trimtab"


class Failure(Exception):
    """Why a contender has no value."""


@dataclass(frozen=True)
class Search:
    w: int
    k: int
    l: int
    prompt_len: int
    new_tokens: int


class Peer:
    """A script in peers/, started once. It waits without work while others are measured."""

    def __init__(self, name: str, script: str, folder: Path, precision: str, threads: int, log):
        self.name, self.precision, self.log = name, precision, log
        self.logged = self.log_length()
        command = [sys.executable, HERE / "peers" / script, folder, precision, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self.settings, self.failure = "", None
        try:
            self.settings = self.answer()["ready"]
        except Failure as failure:
            self.failure = str(failure)

    def ask(self, **request) -> dict:
        if self.failure:
            raise Failure(self.failure)
        self.logged = self.log_length()
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
            # Such as a module that is missing: what was said last, since it was asked.
            said = Path(self.log.name).read_text()[self.logged :].strip().splitlines()[-1:]
            self.failure = ": ".join([how, *said])[:200]
            raise Failure(self.failure)
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def log_length(self) -> int:
        return len(Path(self.log.name).read_text())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Trimtab:
    """One run of `trimtab bench` per measurement: loaded, warmed up and measured once."""

    def __init__(self, models: dict[str, Path], threads: int, log):
        self.name, self.precision, self.failure = "trimtab", "bf16", None
        self.models, self.threads, self.log = models, threads, log
        self.settings = self.run("--version").strip()

    def decode(self, batches: list[int], prompt_len: int, new_tokens: int) -> dict[int, float]:
        """Tokens per second by batch."""
        rows = self.bench(
            "decode", "--base", self.models["base"], "--batch", ",".join(map(str, batches)),
            "--prompt-len", prompt_len, "--max-new-tokens", new_tokens,
        )  # fmt: skip
        return {row["batch"]: row["median"] for row in rows if row["name"] == "decode_tokens_per_s"}

    def score(self, batch: int, length: int) -> float:
        """Tokens per second."""
        rows = self.bench(
            "score", "--base", self.models["base"], "--batch", batch, "--prompt-len", length
        )
        return only(rows, "score_tokens_per_s")

    def search(self, search: Search) -> float:
        """Seconds."""
        folders = [f for role, path in self.models.items() for f in (f"--{role}", path)]
        rows = self.bench(
            "search", *folders, "-w", search.w, "-k", search.k, "-l", search.l,
            "--prompt-len", search.prompt_len, "--max-new-tokens", search.new_tokens,
        )  # fmt: skip
        return only(rows, "search_s")

    def logprobs(self, pairs: list[tuple[str, str]]) -> list[tuple[float, float]]:
        """Sums of the log-probabilities of responses to prompts: by base, and tuned minus untuned."""
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in pairs]
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()

            def score(tuned, untuned):
                output = self.run(
                    "score", "--tuned", tuned, "--untuned", untuned, "--input", file.name,
                    "--guide-tokens", "ids", "--threads", self.threads, "--device", "cpu",
                )  # fmt: skip
                return [json.loads(line) for line in output.splitlines()]

            base = score(self.models["base"], self.models["untuned"])
            pair = score(self.models["tuned"], self.models["untuned"])
        return [(b["logp_tuned"], p["gain"]) for b, p in zip(base, pair, strict=True)]

    def bench(self, what: str, *arguments) -> list[dict]:
        output = self.run(
            "bench", what, *arguments, "--repeat", 1, "--warmup", 1, "--format", "json",
            "--threads", self.threads, "--device", "cpu",
        )  # fmt: skip
        return [json.loads(line) for line in output.splitlines()]

    def run(self, *arguments) -> str:
        command = [str(part) for part in (TRIMTAB, *arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        if done.returncode != 0:
            raise Failure(f"`{' '.join(command[1:3])}` ended with status {done.returncode}")
        return done.stdout


def only(rows: list[dict], name: str) -> float:
    (value,) = [row["median"] for row in rows if row["name"] == name]
    return value
