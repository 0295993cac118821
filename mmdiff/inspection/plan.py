"""What a training makes of the clips: buckets, tokens a step, epochs.

The one idea: the steps are those of training's own plan, made of the same numbers, and their tokens are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmdiff.data.buckets import spoken
from mmdiff.data.plans import Epoch, Line, Plan, Unit
from mmdiff.errors import UserError
from mmdiff.inspection.recipe import Recipe
from mmdiff.inspection.verdicts import Verdict

COUNTED = 1000  # steps whose tokens are counted


@dataclass(frozen=True)
class Room:
    """One bucket."""

    shape: str
    clips: int  # that training looks for here
    kept: int
    tokens: int | None  # of one clip
    clips_a_step: float | None  # on average over the steps in which it occurs
    share: float | None  # of all steps' tokens


@dataclass(frozen=True)
class Outlook:
    """A training's steps over these clips; None where no config says what a step is."""

    rooms: list[Room]
    steps: int | None = None
    clips_a_step: float | None = None
    epochs: float | None = None  # times that an average kept clip is read
    tokens_a_step: tuple[int, float, int] | None = None  # least, mean, most
    room_for: int | None = None  # tokens that a step may hold
    problem: str | None = None  # why there can be no such training


def outlook(verdicts: Sequence[Verdict], recipe: Recipe, *, listed: int) -> Outlook:
    """Buckets, steps and epochs; a training that the numbers do not allow is said in `problem`.

    If not all of the `listed` clips were looked at, the others are taken to be like those that were.
    """
    shapes, scale = recipe.shapes, listed / max(1, len(verdicts))
    looked = Counter(v.bucket or 0 for v in verdicts)  # training looks for what it cannot read in its first bucket
    good = Counter(v.bucket for v in verdicts if v.reason is None)
    counts, kept = ([round(n[b] * scale) for b in range(len(shapes))] for n in (looked, good))
    rooms = [Room(spoken(shape), counts[b], kept[b], None, None, None) for b, shape in enumerate(shapes)]
    if recipe.cost is None or recipe.steps is None:
        return Outlook(rooms)
    try:
        costs = [recipe.cost(shape) for shape in shapes]
        plan = planned(recipe, counts, costs)
    except UserError as error:
        return Outlook(rooms, steps=recipe.steps, room_for=recipe.tokens, problem=str(error))
    rooms = [replace(room, tokens=cost) for room, cost in zip(rooms, costs)]
    return _counted(rooms, plan, recipe, sum(kept))


def planned(recipe: Recipe, counts: Sequence[int], costs: Sequence[int]) -> Plan:
    """The plan that training would make (Clips.plan). Raises UserError where the numbers do not allow one."""
    if recipe.buckets is None:
        return Line(recipe.batch or max(1, (recipe.tokens or 0) // costs[0]))
    if recipe.tokens is None:
        raise UserError("data.buckets needs `tokens`, what a step may hold, in place of `batch`.")
    names = tuple(map(spoken, recipe.shapes))
    return recipe.buckets.layout(Epoch(names, tuple(counts), tuple(costs), recipe.seed), recipe.tokens)


def _counted(rooms: list[Room], plan: Plan, recipe: Recipe, kept: int) -> Outlook:
    """Count the first steps."""
    steps = recipe.steps or 0
    taken = [_clips(plan.step(step)) for step in range(min(steps, COUNTED))]
    tokens = [sum(n * (rooms[b].tokens or 0) for b, n in clips.items()) for clips in taken]
    total = max(1, sum(tokens))
    for b, room in enumerate(rooms):
        found = [clips[b] for clips in taken if clips[b]]
        mean = sum(found) / len(found) if found else 0.0
        rooms[b] = Room(room.shape, room.clips, room.kept, room.tokens, mean, sum(found) * (room.tokens or 0) / total)
    return Outlook(
        rooms,
        steps=steps,
        clips_a_step=plan.mean,
        epochs=steps * plan.mean / kept if kept else None,
        tokens_a_step=(min(tokens), sum(tokens) / len(tokens), max(tokens)) if tokens else None,
        room_for=recipe.tokens,
    )


def _clips(units: Sequence[Unit]) -> Counter[int]:
    """Bucket -> its clips in a step."""
    return Counter(index[0] if isinstance(index, tuple) else 0 for unit in units for index in unit)
