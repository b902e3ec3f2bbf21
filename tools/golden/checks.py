"""That the checkpoints are what they should be, and that what is special in them matters."""

from pathlib import Path

import torch

from golden.checkpoints import Draw, Saved, load, logits_of
from golden.files import read_json


def check_files(saved: Saved, draw: Draw) -> None:
    """The folder gives the model that was made, and each of its tensors matters."""
    model = load(saved.folder, torch.float32)
    logits = logits_of(model, saved.probe)
    error = (logits - saved.logits).abs().max().item()
    assert error < 1e-5, f"{saved.folder.name}: loads as another model ({error})"
    spread = logits.std().item()
    assert 1 < spread < 3.5, f"{saved.folder.name}: logits spread by {spread}"

    least = float("inf")
    for key, weight in model.named_parameters():
        value = weight.data
        assert torch.equal(value, value.bfloat16().float()), f"{key} is not bf16"
        weight.data = value + draw.normal(key, value.shape, 0.05)
        least = min(least, (logits_of(model, saved.probe) - logits).abs().max().item())
        weight.data = value
    assert least > 0.02, f"{saved.folder.name}: a tensor hardly matters ({least})"
    print(f"{saved.folder.name:12} spread {spread:.2f}, reloaded within {error:.0e}, "
          f"noise of 0.05 on any one tensor moves a logit by {least:.2f} or more")


def check_scaling_matters(folder: Path) -> None:
    """Llama 3.1's slowed positions are seen in the logits."""
    plain = {"rope_type": "default", "rope_theta": 500_000.0}
    tokens = torch.tensor(read_json(folder / "golden.json")["tokens"])
    models_ = load(folder, torch.float32), load(folder, torch.float32, rope_parameters=plain)
    scaled, unscaled = (logits_of(model, tokens)[-1] for model in models_)
    frequencies = [model.model.rotary_emb.inv_freq for model in models_]
    ratios = (frequencies[0] / frequencies[1]).tolist()
    assert ratios[0] == 1 and 1 / 8 < ratios[1] < 1 and all(abs(r - 1 / 8) < 1e-6 for r in ratios[2:])
    assert (scaled - unscaled).abs().max() > 0.1
    print(f"{folder.name:12} scaled positions move the last logits by "
          f"{(scaled - unscaled).abs().max():.2f}; frequencies × {[round(r, 4) for r in ratios]}")


def check_window_matters(folder: Path) -> None:
    """transformers applies the window: a position sees itself and the 23 before it, no more."""
    tokens = torch.tensor(read_json(folder / "golden.json")["tokens"])
    model, unlimited = load(folder, torch.float32), load(folder, torch.float32, sliding_window=None)
    with_window, without = logits_of(model, tokens), logits_of(unlimited, tokens)
    differs = (with_window - without).abs().amax(dim=1) > 1e-4
    first = int(differs.nonzero()[0])
    assert first == 24 and differs[-1], f"the window is first seen at {first}"
    print(f"{folder.name:12} the window is first seen at position {first} and moves the last logits "
          f"by {(with_window[-1] - without[-1]).abs().max():.2f}")
