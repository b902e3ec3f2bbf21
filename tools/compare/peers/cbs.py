"""The search in transformers, as the paper's code does it but for the scorers, which are given.

W·K candidates are one batch with one cache, which is reordered when W of them are selected. Where
the paper's code makes text of the tokens and tokens of the text, the tokens are taken as they are,
which is less work. No candidate ends before the limit.
"""

import torch
from transformers import DynamicCache
from transformers_peer import load, sample

SCORERS = ("tuned", "untuned")


class Search:
    """`make_scorer(model, prompt, candidates)` gives a function from the response tokens to
    log-probabilities, one per candidate, with a `select(rows)`."""

    def __init__(self, folder, precision, threads, make_scorer, prefill_once):
        torch.set_num_threads(threads)
        self.base = load(folder / "base", precision)
        self.pair = [load(folder / role, precision) for role in SCORERS]
        self.make_scorer, self.prefill_once = make_scorer, prefill_once
        self.settings = f"torch {torch.__version__}, eager, sdpa"

    @torch.inference_mode()
    def search(self, prompt, w, k, l, new_tokens, seed):
        torch.manual_seed(seed)
        prompt = torch.tensor([prompt])
        cache = prefill(self.base, prompt, w * k, self.prefill_once)
        scorers = [self.make_scorer(model, prompt, w * k) for model in self.pair]
        last = prompt[:, -1:].repeat(w * k, 1)
        response = prompt.new_empty(w * k, 0)
        while response.shape[1] < new_tokens:
            for _ in range(min(l, new_tokens - response.shape[1])):
                last = sample(self.base(last, past_key_values=cache).logits[:, -1])
                response = torch.cat([response, last], 1)
            tuned, untuned = (scorer(response) for scorer in scorers)
            gains, best = (tuned - untuned).topk(w)
            rows = best.repeat(k)
            response, last = response[rows], last[rows]
            cache.reorder_cache(rows)
            for scorer in scorers:
                scorer.select(rows)
        return response[0].tolist(), gains[0].item()


def prefill(model, prompt, rows, once):
    """A cache of all but the prompt's last token for `rows` candidates."""
    cache = DynamicCache(config=model.config)
    copies = 1 if once else rows
    model(prompt[:, :-1].repeat(copies, 1), past_key_values=cache, logits_to_keep=1)
    if once:
        cache.batch_repeat_interleave(rows)
    return cache
