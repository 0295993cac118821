"""Clips whose decoding takes far longer than the others': each named once, since one of them may hold up every step.

What is measured is told and nothing else: no draw, no order and no value depends on a clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

TIMES, SECONDS = 10.0, 1.0  # a slow clip takes more than so many medians, and more than so many seconds
RECENT, ENOUGH = 1000, 20  # readings that the median is of, and those that it needs
TOLD = 5  # slow clips that the console names; the run's log names all
Row = dict[str, Any]
log = logging.getLogger(__name__)


class Slow:
    """What one process has seen; `count` clips were slow, of which `new` are not in the run's log yet."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.named: set[str] = set()
        self.new: list[Row] = []

    @property
    def count(self) -> int:
        """Clips that were slow so far."""
        return len(self.named)

    def see(self, name: str, seconds: float) -> None:
        """Take note of one reading, in seconds; the reading itself does not count towards the median before it."""
        if seconds > SECONDS and len(self.recent) >= ENOUGH and name not in self.named:
            usual = median(self.recent)
            if seconds > TIMES * usual:
                self.named.add(name)
                self.new.append({"id": name, "seconds": seconds, "median": usual})
                self._tell(name, seconds, usual)
        self.recent.append(seconds)

    def _tell(self, name: str, seconds: float, usual: float) -> None:
        """On the console, where a busy machine makes every clip slow: the first few, then where the others stand."""
        if self.count <= TOLD:
            log.warning("slow clip %s: %.1f s to decode, the median is %.2f s", name, seconds, usual)
        elif self.count == TOLD + 1:
            log.warning("more clips are slow; log.jsonl names every one. Is the machine or its storage busy?")

    def news(self) -> tuple[int, list[Row]]:
        """(count, new), after which nothing is new."""
        new, self.new = self.new, []
        return self.count, new


def described(everyone: Iterable[tuple[int, list[Row]]]) -> Row:
    """The news of all ranks as a part of a line in log.jsonl; nothing where nobody has any."""
    counts, lists = zip(*everyone, strict=True)
    new = [row for rows in lists for row in rows]
    return {"slow": {"clips": sum(counts), "new": new}} if new else {}
