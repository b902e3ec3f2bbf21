"""The search with all that transformers' caches allow: the prompt is run once per model, and the
scorers run each new token once, with a cache per candidate that is reordered at each selection."""

import torch
from cbs import Search, prefill
from protocol import serve
from transformers_peer import logprobs


class Scorer:
    def __init__(self, model, prompt, candidates):
        self.model = model
        self.cache = prefill(model, prompt, candidates, once=True)
        self.last = prompt[:, -1:].repeat(candidates, 1)
        self.total = torch.zeros(candidates)
        self.seen = 0

    def __call__(self, response):
        chunk = response[:, self.seen :]
        fed = torch.cat([self.last, chunk[:, :-1]], 1)
        logits = self.model(fed, past_key_values=self.cache).logits
        self.total = self.total + logprobs(logits, chunk).sum(-1)
        self.seen, self.last = response.shape[1], chunk[:, -1:]
        return self.total

    def select(self, rows):
        self.total, self.last = self.total[rows], self.last[rows]
        self.cache.reorder_cache(rows)


def peer(folder, precision, threads):
    return Search(folder, precision, threads, Scorer, prefill_once=True)


if __name__ == "__main__":
    serve(peer)
