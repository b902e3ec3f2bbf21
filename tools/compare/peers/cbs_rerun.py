"""The search as the paper's code does it: at every chunk both scorers run prompt and response anew
and take a log-softmax over the whole vocabulary at every position."""

import torch
from cbs import Search
from protocol import serve


class Scorer:
    def __init__(self, model, prompt, candidates):
        self.model, self.prompt = model, prompt.repeat(candidates, 1)

    def __call__(self, response):
        tokens = torch.cat([self.prompt, response], 1)
        logits = self.model(tokens, use_cache=False).logits.to(torch.float32)
        logps = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return logps[:, self.prompt.shape[1] - 1 :].sum(-1)

    def select(self, rows):
        pass


def peer(folder, precision, threads):
    return Search(folder, precision, threads, Scorer, prefill_once=False)


if __name__ == "__main__":
    serve(peer)
