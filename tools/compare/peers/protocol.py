"""How the driver talks to a peer: one process each, a line of JSON for a request and one for its answer.

    python NAME_peer.py FOLDER PRECISION THREADS

A peer is a class with some of

    Peer(folder, precision, threads)     loads the model; raises if it has no such precision
    settings                             what it was set to, for people
    decode(texts, new_tokens)            (seconds, steps): the prompts' own time is left out of both
    score(texts)                         the sum of log-probabilities of each text but its first token
    search(prompt, w, k, l, new_tokens, seed)      (tokens of the answer, its gain)

The first time a request comes it is carried out twice, and the second time counts.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

TEMPERATURE, TOP_K = 0.7, 50  # trimtab's defaults


def serve(peer_class) -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    folder, precision, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        peer = peer_class(folder, precision, threads)
        answers.write(json.dumps({"ready": peer.settings}) + "\n")
    except BaseException as error:
        answers.write(json.dumps({"error": reason(error)}) + "\n")
        return
    seen = set()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if line not in seen:
                perform(peer, dict(request))
                seen.add(line)
            answer = perform(peer, request)
        except Exception as error:
            answer = {"error": reason(error)}
        answers.write(json.dumps(answer) + "\n")


def perform(peer, request: dict) -> dict:
    task = request.pop("task")
    started = time.perf_counter()
    if task == "decode":
        seconds, steps = peer.decode(**request)
        return {"value": len(request["texts"]) * steps / seconds}
    if task == "score":
        sums = peer.score(**request)
        tokens = sum(len(text) - 1 for text in request["texts"])
        return {"value": tokens / (time.perf_counter() - started), "sums": sums}
    tokens, gain = peer.search(**request)
    return {"value": time.perf_counter() - started, "tokens": tokens, "gain": gain}


def reason(error: BaseException) -> str:
    traceback.print_exc()
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
