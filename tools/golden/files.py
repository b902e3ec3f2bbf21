"""The files that are written: JSON, with as many digits as machines agree in."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

Json = dict[str, Any]


def versions() -> dict[str, str]:
    modules = [torch, transformers, tokenizers]
    return {module.__name__: str(module.__version__) for module in modules}


def rounded(values: Tensor, digits: int) -> list[float]:
    return [significant(value, digits) for value in values.tolist()]


def significant(value: float, digits: int) -> float:
    """Enough digits to compare with, and none of those in which machines differ."""
    return float(f"{value:.{digits}g}")


def read_json(path: Path) -> Json:
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, value: Json | list[Json], indent: int | None = None) -> None:
    """A list has one entry a line."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=indent) + "\n"
    path.write_text(text, "utf-8")
