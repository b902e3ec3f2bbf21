"""The cluster recipe with two local workers: one is killed midway, then the whole run is, and the
result is byte for byte that of an undisturbed run.

Run by hand in a virtual environment with ray[data] in it: tools/cluster/README.md.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from serving import ROOT, TRIMTAB

RECIPE = ROOT / "tools" / "cluster" / "ray_search.py"
PROMPTS = 240


def run(folder, name, wait=True):
    models = [flag for name in ("base", "tuned", "untuned")
              for flag in (f"--{name}", str(ROOT / "models" / name))]
    command = [
        sys.executable, str(RECIPE), "--prompts", str(folder / "prompts.jsonl"),
        "--output", str(folder / f"{name}.jsonl"), "--parts", str(folder / f"{name}.parts"),
        "--shard", "10", "--trimtab", str(TRIMTAB), "--", *models, "--kv-memory", "200M",
        "-w", "8", "-k", "8", "-l", "2", "--max-new-tokens", "60", "--threads", "1",
    ]
    log = open(folder / f"{name}.log", "a")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    if wait:
        code = process.wait(timeout=300)
        assert code == 0, (folder / f"{name}.log").read_text()[-3000:]
    return process


def parts(folder, name):
    return len(list((folder / f"{name}.parts").glob("[0-9]*.jsonl")))


def wait_for(what, holds):
    until = time.time() + 120
    while not holds():
        assert time.time() < until, f"waited in vain: {what}"
        time.sleep(0.02)


def workers(folder):
    """Processes of `trimtab stdio`, of this test alone."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [str(TRIMTAB).encode(), b"stdio"]:
            found.append(int(process.name))
    return found


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        openings = (ROOT / "models" / "openings.jsonl").read_text().splitlines()
        lines = [json.loads(openings[i % len(openings)]) for i in range(PROMPTS)]
        lines = [json.dumps({"id": f"{i}", "prompt": line["prompt"]}) for i, line in enumerate(lines)]
        lines[7] = '{"prompt": 3}'
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")

        run(folder, "undisturbed")
        whole = (folder / "undisturbed.jsonl").read_bytes()
        assert len(whole.splitlines()) == PROMPTS

        disturbed = run(folder, "disturbed", wait=False)
        wait_for("some shards", lambda: parts(folder, "disturbed") >= 3)
        victims = workers(folder)
        assert len(victims) == 2, victims
        os.kill(victims[0], signal.SIGKILL)
        killed_at = parts(folder, "disturbed")
        wait_for("more shards", lambda: parts(folder, "disturbed") >= killed_at + 4)
        # And then everything.
        os.killpg(disturbed.pid, signal.SIGKILL)
        disturbed.wait()
        assert not (folder / "disturbed.jsonl").exists(), "it was too fast to be killed"
        there = parts(folder, "disturbed")
        wait_for("the workers to end with their input", lambda: not workers(folder))
        run(folder, "disturbed")
        assert (folder / "disturbed.jsonl").read_bytes() == whole
        print(f"killed a worker after {killed_at} of {PROMPTS // 10} shards and the run after {there}; "
              "resumed, the answers are the same, each once")


main()
