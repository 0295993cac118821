"""What the numbers of a config may be, beyond their types: refused before anything is built, by the name of the key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmdiff.errors import UserError

Range = tuple[float, float]  # both ends belong to it
COUNT, SOME, SHARE, AMOUNT = (0.0, math.inf), (1.0, math.inf), (0.0, 1.0), (0.0, 1e9)

RANGES: dict[str, Range] = {
    "sample.steps": SOME,
    "sample.number": COUNT,
    **{f"every.{name}": COUNT for name in ("log", "save", "sample", "evaluate")},
    **{f"engine.{name}": COUNT for name in ("workers", "threads")},
    "engine.timeout": (0.001, 1e9),
    **{f"optimizer.{name}": AMOUNT for name in ("lr", "muon_lr", "weight_decay", "warmup", "clip")},
    **{f"optimizer.{name}": SHARE for name in ("final", "ema", "betas")},
    **{f"health.{name}": AMOUNT for name in ("spike", "rollbacks", "beat")},
    "data.frames": SOME,
    "data.fps": (0.001, 1e6),
    "data.size": SOME,
    "data.rate": SOME,
    "keep": COUNT,
}


def check(tree: Mapping[str, Any]) -> None:
    """Raises UserError for a number out of its range, and for one that is no number (nan) wherever it stands."""
    for path, value in _numbers(tree, ""):
        low, high = RANGES.get(path, (-math.inf, math.inf))
        if not low <= value <= high:
            allowed = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{path} is {value}, but must be {'a number' if low == -math.inf else allowed}.")


def _numbers(node: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every number with the path of its key; those of a list have the list's."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _numbers(child, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _numbers(child, path)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, node
