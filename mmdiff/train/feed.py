"""Which clips a rank sees at which step: the loop's view of the loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from mmdiff import noise
from mmdiff.batch import Batch
from mmdiff.train.ranks import Ranks
from mmdiff.train.settings import Run


FITTED_ON = 1024  # clips


def order(train: Any, run: Run, ranks: Ranks, *, after: int) -> Iterator[Batch]:
    """This rank's share of the clips of every step from `after` + 1 on."""
    size = run.batch // ranks.world
    for step in range(after + 1, run.steps + 1):
        first = (step - 1) * run.batch + ranks.rank * size
        yield train.collate([train[_shuffled(len(train), i, run.seed)] for i in range(first, first + size)])


def _shuffled(n: int, i: int, seed: int) -> int:
    return int(noise.permutation(n, key=noise.key(seed, "order", i // n))[i % n])


def some(clips: Any, indices: Sequence[int]) -> Batch:
    """A batch of chosen clips."""
    return clips.collate([clips[i] for i in indices])  # type: ignore[no-any-return]


def rows(batch: Batch, part: slice) -> Batch:
    """Some of the clips of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cut(v) for name, v in value.items()}
        return value[part] if isinstance(value, Tensor | list) else value

    return Batch(**{name: cut(value) for name, value in batch.items()})  # type: ignore[typeddict-item]


def fitting(train: Any, run: Run) -> Iterator[Batch]:
    """The clips from which autoencoders take their statistics."""
    n = min(FITTED_ON, len(train))
    for first in range(0, n, run.batch):
        places = range(first, min(first + run.batch, n))
        yield some(train, [_shuffled(len(train), i, run.seed) for i in places])
