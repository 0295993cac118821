"""Faithfulness: does a generated clip show and sound what its caption states.

The one idea: read the generated clip back into facts with `mmdiff.world.measure` and `mmdiff.world.listen`, give every
stated object the seen object that fits it best, and compare fact by fact; the headline is the conjunction of all that
is stated, so that no failed fact is averaged away. A clip that cannot be read fails. Judging by detected objects rather
than by an embedding follows Ghosh et al., "GenEval" (2023).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from numpy.typing import ArrayLike

from mmdiff.world.listen import Strike, read_strikes
from mmdiff.world.measure import SeenObject, read_objects
from mmdiff.world.things import Facts, ObjectFacts

FIELDS = ("colour", "shape", "size", "direction", "bounces", "timbre")
JUDGED = ("count", "colour_count", *FIELDS)


@dataclass(frozen=True)
class Reading:
    """What was seen and heard in one clip."""

    objects: tuple[SeenObject, ...]
    strikes: tuple[Strike, ...]

    @property
    def impacts(self) -> list[float]:
        """Times in seconds at which something is seen to hit, in order."""
        return sorted(t for thing in self.objects for t in thing.impacts)

    @property
    def onsets(self) -> list[float]:
        """Times in seconds at which something is heard, in order."""
        return [strike.t for strike in self.strikes]


def read(video: ArrayLike, audio: ArrayLike, *, fps: float, rate: int) -> Reading:
    """Read one clip: video (t h w 3) uint8 or float in [0, 1], audio (n,) in [-1, 1]."""
    return Reading(tuple(read_objects(video, fps)), tuple(read_strikes(audio, rate)))


def score_clip(video: ArrayLike, audio: ArrayLike, *, fps: float, rate: int, facts: Facts) -> dict[str, bool | None]:
    """Read and compare one clip; see `compare`."""
    return compare(read(video, audio, fps=fps, rate=rate), facts)


def compare(reading: Reading, facts: Facts, *, judged: Collection[str] = JUDGED) -> dict[str, bool | None]:
    """Whether each kind of fact holds for all stated objects; None where the caption states none of that kind.

    count: as many objects as stated; colour: every stated colour is there; colour_count: both, and no other colour;
    shape, size, bounces: of every object that has one stated; direction: the kind of motion and, where stated, the way;
    timbre: of the sounds at the object's impacts (all sounds if it is the only one), by majority; facts: all of these.
    An object that is not there fails every fact stated about it. Kinds outside `judged` are not judged (a picture alone
    has no timbre); where no motion is judged, the timbre holds if all stated ones and no others are heard.
    """
    seen = assign(reading.objects, facts)
    named = Counter(one.colour for one in facts), Counter(thing.colour for thing in reading.objects)
    result: dict[str, bool | None] = {
        "count": len(reading.objects) == len(facts),
        "colour_count": named[0] == named[1],
    }
    for field in FIELDS:
        marks = [_holds(field, one, thing, reading) for one, thing in zip(facts, seen, strict=True)]
        stated = [mark for mark in marks if mark is not None]
        result[field] = all(stated) if stated else None
    if "direction" not in judged and result["timbre"] is not None:
        result["timbre"] = _heard(reading, facts)
    result = {name: mark if name in judged else None for name, mark in result.items()}
    marks = [mark for mark in result.values() if mark is not None]
    return result | {"facts": all(marks) if marks else None}


def assign(objects: Sequence[SeenObject], facts: Facts) -> tuple[SeenObject | None, ...]:
    """The seen object of each stated one, or None: the one-to-one choice with most colours, then most facts, right."""
    pool: list[SeenObject | None] = [*objects[:6], *[None] * len(facts)]
    if len(facts) > 3:  # beyond the grammar: by colour alone, since trying all orders would take for ever
        by_colour = {thing.colour: thing for thing in objects}
        return tuple(by_colour.get(one.colour) for one in facts)

    def fit(choice: Iterable[SeenObject | None]) -> float:
        return sum(_likeness(one, thing) for one, thing in zip(facts, choice, strict=True))

    return max(permutations(pool, len(facts)), key=fit)


def _likeness(one: ObjectFacts, thing: SeenObject | None) -> float:
    if thing is None:
        return 0.0
    same = (thing.shape == one.shape, thing.motion == one.motion, one.size in (None, thing.size))
    return (10.0 if thing.colour == one.colour else -1.0) + sum(same)


def _holds(field: str, one: ObjectFacts, thing: SeenObject | None, reading: Reading) -> bool | None:
    """Whether one kind of fact of one object holds; None where it is not stated."""
    if field == "direction":
        return thing is not None and thing.motion == one.motion and one.direction in (None, thing.direction)
    if field == "bounces":
        return None if one.bounces is None else thing is not None and len(thing.impacts) == one.bounces
    if field == "timbre":
        return None if one.timbre is None else thing is not None and timbre_of(thing, reading) == one.timbre
    wanted = getattr(one, field)
    return None if wanted is None else thing is not None and getattr(thing, field) == wanted


def _heard(reading: Reading, facts: Facts) -> bool:
    """Whether all stated timbres are heard, and no others unless something that moves has none stated."""
    stated, heard = {one.timbre for one in facts} - {None}, {strike.timbre for strike in reading.strikes}
    open_ended = any(one.timbre is None and one.motion != "still" for one in facts)
    return stated <= heard if open_ended else stated == heard


def timbre_of(thing: SeenObject, reading: Reading) -> str | None:
    """The commonest timbre of the strikes that are nearer to this object's impacts than to another's; None if silent.

    If nothing else moves, all strikes are its own, whenever they sound: synchrony is judged elsewhere (`sync.py`).
    """

    def distance(other: SeenObject, t: float) -> float:
        return min((abs(t - hit) for hit in other.impacts), default=math.inf)

    others = [other for other in reading.objects if other is not thing and other.impacts]
    mine = [
        strike.timbre
        for strike in reading.strikes
        if all(distance(thing, strike.t) <= distance(other, strike.t) for other in others)
    ]
    return Counter(mine).most_common(1)[0][0] if mine else None
