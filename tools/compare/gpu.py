#!/usr/bin/env python3
"""The search in transformers on a GPU, with random weights of published shapes: seconds as lines of JSON.

    tools/compare/gpu.py [gpt2:gpt2 gpt2-xl:gpt2 llama-8b:llama-1b]      base:pair, each with W,K = 4,4

Needs torch with CUDA and transformers. The implementations are those that compare.py measures on CPUs: with all that
transformers' caches allow, and with both scorers run anew at every chunk. `trimtab bench search --device cuda --shape`
measures the same search.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import cbs_cached
import cbs_rerun
from cbs import Search

SHAPES = {
    "gpt2": ("GPT2", {}),
    "gpt2-xl": ("GPT2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "llama-1b": ("Llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie": True}),
    "llama-8b": ("Llama", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie": False}),
}
W, K, PROMPT, NEW = 4, 4, 128, 60
# Of each, after one that is not counted.
RUNS = 3


def model(name: str):
    family, sizes = SHAPES[name]
    if family == "GPT2":
        config = transformers.GPT2Config(**sizes)
    else:
        tie = sizes["tie"]
        sizes = {key: value for key, value in sizes.items() if key != "tie"}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
        config = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=tie)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


class OnGpu(Search):
    def __init__(self, models, make_scorer, prefill_once):
        self.base, *self.pair = models
        self.make_scorer, self.prefill_once = make_scorer, prefill_once


def main() -> None:
    torch.set_default_device("cuda")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for names in sys.argv[1:] or ["gpt2:gpt2", "gpt2-xl:gpt2", "llama-8b:llama-1b"]:
        base, pair = names.split(":")
        length = 30 if base == "llama-8b" else 10
        models = [model(base), model(pair), model(pair)]
        kinds = {"caches": (cbs_cached.Scorer, True), "prefixes re-run": (cbs_rerun.Scorer, False)}
        for kind, (scorer, once) in kinds.items():
            search = OnGpu(models, scorer, once)
            prompt = torch.randint(1000, (PROMPT,)).tolist()
            times = []
            for _ in range(1 + RUNS):
                torch.cuda.synchronize()
                began = time.perf_counter()
                search.search(prompt, W, K, length, NEW, 1)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            median = sorted(times[1:])[len(times[1:]) // 2]
            row = {"name": "search_s", "peer": f"transformers, {kind}", "base": base, "pair": pair, "l": length}
            gpu = torch.cuda.get_device_name()
            print(json.dumps({**row, "median": median, "samples": times[1:], "versions": versions, "gpu": gpu}), flush=True)
        del models
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
