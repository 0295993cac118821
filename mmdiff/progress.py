"""A line of progress with the time left, for every tool that makes a person wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float], None]


@contextmanager
def bar(label: str, *, total: float, show: bool = True) -> Iterator[Advance]:
    """Yield a function that advances the bar by some of `total`; negative amounts take back what was lost."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, TimeRemainingColumn(), disable=not show) as progress:
        task = progress.add_task(label, total=total)
        yield lambda amount: progress.advance(task, amount)
