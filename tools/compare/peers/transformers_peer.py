"""transformers on torch, eager, with its own cache and scaled dot product attention."""

import time

import torch
from protocol import TEMPERATURE, TOP_K, serve
from transformers import DynamicCache, GPT2LMHeadModel

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# A precision that the processor has no instructions for runs so many times slower than f32 in torch's
# own loops that it says nothing: one search would take hours.
EMULATED = 10


class Peer:
    def __init__(self, folder, precision, threads):
        torch.set_num_threads(threads)
        self.model = load(folder, precision)
        self.settings = f"torch {torch.__version__}, eager, sdpa"

    @torch.inference_mode()
    def decode(self, texts, new_tokens):
        tokens = torch.tensor(texts)
        cache = DynamicCache(config=self.model.config)
        self.model(tokens[:, :-1], past_key_values=cache, logits_to_keep=1)
        last = tokens[:, -1:]
        started = time.perf_counter()
        for _ in range(new_tokens):
            last = sample(self.model(last, past_key_values=cache).logits[:, -1])
        return time.perf_counter() - started, new_tokens

    @torch.inference_mode()
    def score(self, texts):
        tokens = torch.tensor(texts)
        logits = self.model(tokens[:, :-1], use_cache=False).logits
        return logprobs(logits, tokens[:, 1:]).sum(-1).tolist()


def load(folder, precision):
    if precision not in DTYPES:
        raise ValueError(f"transformers has no {precision} on CPUs without further packages")
    f32, wanted = products_per_s(torch.float32), products_per_s(DTYPES[precision])
    if wanted * EMULATED < f32:
        raise ValueError(
            f"torch has only its own loops for {precision} on this CPU: "
            f"{wanted / 1e9:.1f} GFLOP/s, {f32 / 1e9:.0f} in f32"
        )
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=DTYPES[precision])
    return model.eval()


def products_per_s(dtype):
    """Operations of a matmul of GPT-2's size in a second."""
    x, weight = torch.ones(16, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        x @ weight
        times.append(time.perf_counter() - started)
    return 2 * 16 * 768 * 3072 / min(times)


def sample(logits):
    """One token a row, as a column."""
    best, ids = (logits.float() / TEMPERATURE).topk(TOP_K)
    return ids.gather(-1, torch.multinomial(best.softmax(-1), 1))


def logprobs(logits, targets):
    """Of each target; the softmax is never written down."""
    logits = logits.float()
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


if __name__ == "__main__":
    serve(Peer)
