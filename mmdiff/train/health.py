"""What a run does when its numbers go wrong: a step that is not finite, a loss that leaps, steps to be left out.

All ranks look at the same loss, so they come to the same verdict without a word. What the verdict depends on is kept in
the checkpoints, so a resumed run judges as it would have. Leaving out the clips before a spike is what helped PaLM
(Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from mmdiff.errors import UserError
from mmdiff.train.settings import Health

RECENT, ENOUGH = 50, 20  # losses that the median is of, and those that it needs
STRIKES = 3  # steps in a row that may fail to be finite
Notes = dict[str, Any]


class Watch:
    """Judges every step; `notes` is where checkpoints keep what it remembers, and one rank tells of it."""

    def __init__(self, settings: Health, notes: Notes, *, tell: bool = True) -> None:
        self.settings, self.notes, self.tell = settings, notes, tell
        for name, nothing in (("recent", []), ("strikes", 0), ("spikes", 0)):
            notes.setdefault(name, nothing)

    def see(self, loss: float, *, skipped: bool) -> float:
        """Take note of a step -> its loss over the recent median if that is a spike, else 0."""
        self.notes["strikes"] = self.notes["strikes"] + 1 if skipped else 0
        if skipped or not math.isfinite(loss):
            return 0.0
        recent = self.notes["recent"]
        usual = median(recent) if len(recent) >= ENOUGH else 0.0
        self.notes["recent"] = [*recent, loss][-RECENT:]
        return loss / usual if usual > 0 and 0 < self.settings.spike * usual < loss else 0.0

    def answer(self, step: int, spike: float, ids: Sequence[str], *, back: Callable[[], int]) -> dict[str, Any]:
        """Do something about a spike and tell -> its record; `back` restores a checkpoint -> its step, 0 for none."""
        spikes, record, done = self.notes["spikes"] + 1, {"spike": spike}, ""
        if spikes <= self.settings.rollbacks and (to := back()):
            record["rolled_back_to"] = to
            done = f"; back to the weights of step {to}, without the clips since"
        self.notes["spikes"] = spikes
        if self.tell:
            print(f"step {step}: loss {spike:.1f} times the usual{done}; clips {', '.join(ids[:8])}", file=sys.stderr)
        return record

    def check(self, step: int, record: dict[str, Any]) -> None:
        """UserError that names the clips, for a run that should not go on."""
        if self.notes["strikes"] == STRIKES:
            raise diverged(step, record["ids"])
        if 0 < self.settings.rollbacks < self.notes["spikes"]:
            raise leapt(step, record)


def diverged(step: int, ids: Sequence[str]) -> UserError:
    """The error that ends a run whose numbers are gone."""
    return UserError(
        f"Three steps in a row, up to step {step}, gave a loss or a gradient that is not finite. The last was about "
        f"the clips {', '.join(ids[:8])}. Lower optimizer.lr, lengthen optimizer.warmup, or look at these "
        "clips; the same command goes on from the last checkpoint."
    )


def leapt(step: int, record: dict[str, Any]) -> UserError:
    """The error that ends a run whose loss spiked once too often."""
    return UserError(
        f"The loss at step {step} is {record['spike']:.1f} times the usual, and the run has gone back as often as "
        f"health.rollbacks allows. The clips were {', '.join(record['ids'][:8])}. Lower optimizer.lr in a new run, or "
        "leave more steps out with health.skip; the same command goes on from the last checkpoint."
    )


def spoken_steps(text: str) -> list[list[int]]:
    """ "120-140,300" -> [[120, 140], [300, 300]], as `health.skip` has it; UserError for other words."""
    found = [re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part.strip(), re.ASCII) for part in text.split(",")]
    pairs = [[int(match[1]), int(match[2] or match[1])] for match in found if match]
    if len(pairs) < len(found) or any(first > last for first, last in pairs):
        raise UserError(f"health.skip: {text[:80]!r} must name steps and stretches of them, such as 120-140,300.")
    return pairs


def stretches(skip: Sequence[Sequence[int]] | str, *, after: int, steps: int) -> list[tuple[int, int]]:
    """The steps after `after` without those of `skip`, each [first, last], as (the step before it, its last step)."""
    found, begin = [], after
    skip = spoken_steps(skip) if isinstance(skip, str) else skip
    for first, last in sorted(map(tuple, skip)):
        if not 1 <= first <= last < steps:
            raise UserError(
                f"health.skip: [{first}, {last}] must be [first, last], from 1 to before the last, {steps}."
            )
        if first - 1 > begin:
            found.append((begin, first - 1))
        begin = max(begin, last)
    return [*found, (begin, steps)] if begin < steps else found
