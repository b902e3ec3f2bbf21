"""Answers a file of prompts on a Ray cluster, each line once. See README.md beside this file."""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import ray
import ray.data

# Fields that an answer has itself; a prompt's other fields go on to it.
ANSWER = {
    "id", "prompt", "response", "gain", "logp_tuned", "logp_untuned", "tokens", "finish_reason",
    "eos", "stop_reason", "seed", "method", "guide_tokens", "token_ids", "error",
}


class Worker:
    """One `trimtab stdio` process on one device."""

    def __init__(self, command, parts):
        self.parts = pathlib.Path(parts)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, batch):
        """Answers the shards of a batch, those that are not there yet."""
        for shard, lines in zip(batch["shard"], batch["lines"]):
            part = part_of(self.parts, int(shard))
            if not part.exists():
                write_whole(part, self.answer(json.loads(lines)))
        return {"shard": batch["shard"]}

    def answer(self, requests):
        asked = {
            number: json.dumps({"id": number, "path": "/v1/completions", "body": request["body"]})
            for number, request in enumerate(requests)
            if "error" not in request
        }

        def ask():
            try:
                self.process.stdin.writelines(f"{line}\n" for line in asked.values())
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # seen below, where the answers end

        # Both at once: the process reads on only while its answers are taken.
        asking = threading.Thread(target=ask)
        asking.start()
        answers = {}
        while len(answers) < len(asked):
            line = self.process.stdout.readline()
            if not line:
                # Ray starts another worker and runs the shard again.
                os._exit(1)
            answer = json.loads(line)
            if answer["status"] == 503 and answer["body"]["error"]["code"] == "device_failed":
                # Its device has failed: likewise.
                os._exit(1)
            answers[answer["id"]] = answer
        asking.join()
        return "".join(
            json.dumps(result(request, answers.get(number)), ensure_ascii=False) + "\n"
            for number, request in enumerate(requests))


def result(request, answer):
    """A line of the output, with the id and the other fields of the prompt's line."""
    if answer is None:
        return {"id": request["id"], "error": request["error"], **request["rest"]}
    if answer["status"] != 200:
        error = answer["body"]["error"]["message"]
        return {"id": request["id"], "error": error, **request["rest"]}
    choice = answer["body"]["choices"][0]
    own = choice["trimtab"]
    return {
        "id": request["id"],
        "prompt": request["body"]["prompt"],
        "response": choice["text"],
        "gain": own["gain"],
        "logp_tuned": own["logp_tuned"],
        "logp_untuned": own["logp_untuned"],
        "tokens": own["tokens"],
        "finish_reason": choice["finish_reason"],
        "eos": own["eos"],
        "stop_reason": own["stop_reason"],
        "seed": own["seed"],
        "method": own["method"],
        **request["rest"],
    }


def part_of(parts, shard):
    return parts / f"{shard:08}.jsonl"


def write_whole(path, text):
    """The file is there whole, or not at all, whoever dies and whoever else writes it."""
    draft = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def requests_of(path):
    """A request per line that is not blank; ids are the lines' numbers where they give none."""
    for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            # What is handed on must be JSON, and text.
            json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
            if not isinstance(item["prompt"], str):
                raise ValueError("prompt must be a string")
            rest = {name: value for name, value in item.items() if name not in ANSWER}
            body = {"prompt": item["prompt"]}
            yield {"id": item.get("id", number), "body": body, "rest": rest}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield {"id": number, "body": None, "error": f"line {number}: {error!r}", "rest": {}}


def begin(parts, prompts, settings):
    """Makes the folder of parts, or refuses one that was begun otherwise."""
    parts.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(pathlib.Path(prompts).read_bytes()).hexdigest()
    text = json.dumps({"prompts": digest, **settings}, indent=1) + "\n"
    kept = parts / "settings.json"
    if not kept.exists():
        write_whole(kept, text)
    elif kept.read_text() != text:
        sys.exit(f"{parts} was begun with other prompts or settings; name another folder")


def join(parts, shards, output):
    """All parts in order; every line must be there."""
    text = []
    for shard, requests in enumerate(shards):
        lines = part_of(parts, shard).read_text(encoding="utf-8").splitlines()
        ids = [json.loads(line)["id"] for line in lines]
        if ids != [request["id"] for request in requests]:
            sys.exit(f"{part_of(parts, shard)} does not answer its lines; delete it and run again")
        text += [line + "\n" for line in lines]
    write_whole(output, "".join(text))
    return len(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--parts", required=True, type=pathlib.Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard", type=int, default=64, help="lines of a shard")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--trimtab", default="trimtab", help="the program, on every machine")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --: those of trimtab stdio")
    args = parser.parse_args()
    flags = [flag for flag in args.flags if flag != "--"]
    if "--seed" not in flags:
        flags += ["--seed", "1"]
    parts = args.parts.resolve()
    begin(parts, args.prompts, {"shard": args.shard, "flags": flags})
    requests = list(requests_of(args.prompts))
    shards = [requests[i:i + args.shard] for i in range(0, len(requests), args.shard)]
    missing = [
        {"shard": shard, "lines": json.dumps(requests)}
        for shard, requests in enumerate(shards)
        if not part_of(parts, shard).exists()
    ]
    if missing:
        data = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            Worker,
            fn_constructor_kwargs={
                "command": [args.trimtab, "stdio", *flags], "parts": str(parts)},
            batch_size=1,
            concurrency=args.workers,
            num_cpus=args.cpus,
            num_gpus=args.gpus,
            # A shard is run again as often as workers die.
            max_restarts=-1,
            max_task_retries=-1,
        )
        data.materialize()
    print(f"{join(parts, shards, args.output)} answers in {args.output}")


if __name__ == "__main__":
    main()
