"""Questions to a model about real clips, whose answers need no sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mmdiff import build
from mmdiff.batch import Batch
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.evaluate.clips import data_of
from mmdiff.progress import bar

PART = 32  # clips at once
Answer = TypeVar("Answer")


def each(
    run: str | Path,
    ask: Callable[[Any, Batch], Answer],
    *,
    split: str,
    n: int,
    ema: bool,
    device: str,
    label: str,
    progress: bool,
) -> Iterator[Answer]:
    """What `ask(system, batch)` says of the first n clips of a split, part by part. Raises UserError."""
    system, _, _ = build.load(run, ema=ema, device=device)
    if not hasattr(system, "denoiser"):
        raise UserError(f"{run} is no diffusion model, so that its likelihood cannot be asked for.")
    source = build.make(build.overlay(data_of(run), {"split": split}))
    count = min(n, len(source))
    with bar(label, total=count, show=progress) as advance:
        for first in range(0, count, PART):
            batch = gather(source, range(first, min(first + PART, count)))
            yield ask(system, batch)
            advance(len(batch["id"]))
