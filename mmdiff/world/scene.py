"""Scenes of the sounding world, drawn from a key, and the rule that says to which split a scene belongs.

The one idea: the discrete choices (colours, motions, numbers of bounces) are drawn first and then the continuous
ones from the set that is admissible for them, so that no rejection biases the mix. A tier changes resolution and
not the picture: its clock is stretched by seconds / 2, and a clip of any tier holds the same kinds of motion.
Membership of a split is a hash of the scene, never of the seed; the compositional hold-outs follow Johnson et al.,
"CLEVR" (2017), section 4.7.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np

from mmdiff import noise
from mmdiff.errors import UserError
from mmdiff.world.physics import events, impacts, position, radius, truth
from mmdiff.world.things import (
    BINDINGS,
    BY_SHAPE,
    CANVAS,
    COLOURS,
    DIRECTIONS,
    HELD_OUT_BINDINGS,
    HELD_OUT_PAIRS,
    MATERIALS,
    SHAPES,
    SIZES,
    SPLITS,
    TIERS,
    TIMBRES,
    Event,
    Facts,
    Motion,
    Object,
    ObjectFacts,
    Scene,
    Tier,
)

__all__ = [
    "BINDINGS",
    "BY_SHAPE",
    "CANVAS",
    "COLOURS",
    "DIRECTIONS",
    "HELD_OUT_BINDINGS",
    "HELD_OUT_PAIRS",
    "MATERIALS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TIERS",
    "TIMBRES",
    "Event",
    "Facts",
    "Motion",
    "Object",
    "ObjectFacts",
    "Scene",
    "Tier",
    "admissible",
    "events",
    "impacts",
    "position",
    "radius",
    "sample_scene",
    "split_of",
    "truth",
]

RESTITUTION = (0.6, 0.85)
GRAVITY = (45.0, 120.0)  # units / s^2 at a clip of 2 s
SPEED = (12.0, 45.0)  # units / s at a clip of 2 s
FALL = 4.0  # the least first way to the floor or to a wall, in units
END_FRAMES, APART_FRAMES, APART_SECONDS = 2.1, 2.3, 0.08
_TRIES = 64  # draws of the continuous choices before the discrete ones are drawn again
_GRID = (np.arange(128) + 0.5) / 128

Kind = tuple[str, str, int]  # motion, direction, number of bounces (drop only)


def sample_scene(*, seed: int, index: int, split: str, tier: Tier, binding: str = "by_shape") -> Scene:
    """Scene number `index` of a split: a pure function of its arguments.

    Training mix: 80 % one object and 20 % two; the first object drops (50 %), slides (40 %) or stays (10 %, half
    of these beside a moving object and half alone and silent). `count` holds three objects or a drop with four impacts.
    """
    _check(split, binding)
    rng = noise.rng(noise.key(seed, "scene", split, tier.name, binding, index))
    while True:
        scene = _draw(rng, split, tier, binding)
        if scene is not None and split_of(scene, tier.seconds) == split:
            return scene


def _check(split: str, binding: str) -> None:
    if split not in SPLITS or binding not in BINDINGS:
        raise UserError(
            f"Unknown split {split!r} or binding {binding!r} of the sounding world. Splits: {', '.join(SPLITS)}; "
            f"bindings: {', '.join(BINDINGS)}."
        )
    if split == "bind" and binding != "by_material_text":
        raise UserError(f"The split 'bind' exists only with binding 'by_material_text', not with {binding!r}.")


def split_of(scene: Scene, seconds: float) -> str:
    """The split to which a scene belongs: held-out combinations first, then a hash of its coarse description.

    train, val, iid and para share a distribution; the hash is of a coarse cell, so that near twins share a split too.
    """
    if scene.binding == "by_material_text" and any((o.timbre, o.shape) in HELD_OUT_BINDINGS for o in scene.objects):
        return "bind"
    if any((o.colour, o.shape) in HELD_OUT_PAIRS for o in scene.objects):
        return "comp"
    if len(scene.objects) > 2 or any(one.bounces is not None and one.bounces > 3 for one in truth(scene, seconds)):
        return "count"
    bucket = noise.key("split", json.dumps([_cell(thing, seconds) for thing in scene.objects])) % 16
    return {13: "val", 14: "iid", 15: "para"}.get(bucket, "train")


def _cell(thing: Object, seconds: float) -> list[str | float]:
    hits = impacts(thing, seconds)
    first = int(16 * hits[0][0] / seconds) if hits else -1
    x, y = thing.motion.start
    return [
        *(thing.colour, thing.shape, thing.size, thing.timbre, thing.motion.direction),
        len(hits),
        first,
        x // 4,
        y // 4,
    ]


def admissible(scene: Scene, tier: Tier) -> bool:
    """Whether impacts are far enough from the ends (2.1 frames), each other (80 ms) and their own kind (2.3 frames)."""
    found = events(scene, tier.seconds)
    times = np.array([event.t for event in found])
    if len(times) and (times[0] < END_FRAMES / tier.fps or times[-1] > tier.seconds - END_FRAMES / tier.fps):
        return False
    own = [np.diff([e.t for e in found if e.object == i]) for i in range(len(scene.objects))]
    return bool(np.all(np.diff(times) >= APART_SECONDS) and np.all(np.concatenate(own) >= APART_FRAMES / tier.fps))


def _draw(rng: np.random.Generator, split: str, tier: Tier, binding: str) -> Scene | None:
    kinds = _kinds(rng, split, tier)
    colours = [str(name) for name in rng.permutation(list(COLOURS))[: len(kinds)]]
    shapes = [_shape(rng, colour, held_out=split == "comp" and i == 0) for i, colour in enumerate(colours)]
    sizes = [str(rng.choice(list(SIZES))) for _ in kinds]
    timbres = [_timbre(rng, shape, binding, held_out=split == "bind" and i == 0) for i, shape in enumerate(shapes)]
    grey = round(255 * float(rng.uniform(0.05, 0.2))) / 255  # a level that uint8 holds exactly
    for _ in range(_TRIES):
        motions = _motions(rng, kinds, sizes, tier)
        things = tuple(map(Object, colours, shapes, sizes, motions, timbres))
        scene = Scene((grey, grey, grey), things, binding)
        if admissible(scene, tier):
            return scene
    return None


def _kinds(rng: np.random.Generator, split: str, tier: Tier) -> list[Kind]:
    four = split == "count" and _possible(tier, 4) and rng.random() < 0.5
    kind = "drop" if four else str(rng.choice(["drop", "slide", "still"], p=[0.5, 0.4, 0.1]))
    alone = 0.5 if kind == "still" else 0.75 / 0.9
    number = 3 if split == "count" and not four else 1 if rng.random() < alone else 2
    across = kind != "drop" and rng.random() < 0.5  # tracks do not cross: all motion is along one axis, in lanes
    first = _kind(rng, kind, across, tier)
    rest = [_kind(rng, _other(rng, across, number, first), across, tier) for _ in range(number - 1)]
    return [("drop", "", 4) if four else first, *rest]


def _other(rng: np.random.Generator, across: bool, number: int, first: Kind) -> str:
    if first[0] != "still" and rng.random() < 0.1:
        return "still"
    return "slide" if across or rng.random() < 0.4 else "drop"


def _kind(rng: np.random.Generator, kind: str, across: bool, tier: Tier) -> Kind:
    if kind == "drop":
        return kind, "", int(rng.choice([n for n in (1, 2, 3) if _possible(tier, n)]))
    return kind, str(rng.choice(DIRECTIONS[:2] if across else DIRECTIONS[2:])) if kind == "slide" else "", 0


def _shape(rng: np.random.Generator, colour: str, held_out: bool) -> str:
    return str(rng.choice([shape for shape in SHAPES if ((colour, shape) in HELD_OUT_PAIRS) == held_out]))


def _timbre(rng: np.random.Generator, shape: str, binding: str, held_out: bool) -> str:
    if binding == "by_shape":
        return BY_SHAPE[shape]
    text = binding == "by_material_text"
    return str(rng.choice([t for t in TIMBRES if not text or ((t, shape) in HELD_OUT_BINDINGS) == held_out]))


def _motions(rng: np.random.Generator, kinds: list[Kind], sizes: list[str], tier: Tier) -> list[Motion]:
    across = any(direction in ("left", "right") for _, direction, _ in kinds)
    wide = CANVAS / len(kinds)
    lanes = rng.permutation(len(kinds)) * wide
    drawn = []
    for (kind, direction, number), size, lane in zip(kinds, sizes, lanes, strict=True):
        r = SIZES[size]
        beside = float(rng.uniform(lane + r + 0.5, lane + wide - r - 0.5))
        if kind == "drop":
            drawn.append(_drop(rng, beside, size, number, tier))
        elif kind == "slide":
            drawn.append(_slide(rng, beside, size, direction, tier))
        else:
            along = float(rng.uniform(r + 1, CANVAS - r - 1))
            drawn.append(Motion("still", start=(along, beside) if across else (beside, along)))
    return drawn


def _possible(tier: Tier, number: int) -> bool:
    return len(_falls(tier, "large", number)[0]) > 0


@lru_cache(maxsize=256)
def _falls(tier: Tier, size: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Restitutions for which `number` impacts fit the clip, with the least and the greatest time of the first one.

    Impact k is at t1 c_k with c_k = 1 + 2 (e + ... + e^(k-1)): the last is early enough, the next after the clip.
    """
    e = RESTITUTION[0] + (RESTITUTION[1] - RESTITUTION[0]) * _GRID
    last = 1 + 2 * sum((e**k for k in range(1, number)), np.zeros_like(e))
    gravity, way = np.array(GRAVITY) / (tier.seconds / 2) ** 2, CANVAS - 2 * SIZES[size]
    gap = APART_FRAMES / tier.fps / 2 / e ** (number - 1) if number > 1 else 0 * e
    least = np.maximum(np.maximum(END_FRAMES / tier.fps, gap), tier.seconds / (last + 2 * e**number) + 1e-6)
    least = np.maximum(least, np.sqrt(2 * FALL / gravity[1]))
    most = np.minimum((tier.seconds - END_FRAMES / tier.fps) / last, np.sqrt(2 * way / gravity[0]))
    fits = most > least
    return e[fits], least[fits], most[fits]


def _drop(rng: np.random.Generator, x: float, size: str, number: int, tier: Tier) -> Motion:
    e, least, most = _falls(tier, size, number)
    i = int(
        rng.choice(len(e), p=(most - least) / (most - least).sum())
    )  # uniform on the set of (restitution, first time)
    t = float(rng.uniform(least[i], most[i]))
    way = CANVAS - 2 * SIZES[size]
    low, high = np.array(GRAVITY) / (tier.seconds / 2) ** 2
    gravity = float(rng.uniform(max(low, 2 * FALL / t**2), min(high, 2 * way / t**2)))
    start = (x, CANVAS - SIZES[size] - gravity * t**2 / 2)
    return Motion("drop", gravity=gravity, restitution=float(e[i]), start=start)


def _slide(rng: np.random.Generator, beside: float, size: str, direction: str, tier: Tier) -> Motion:
    """One impact at a time uniform in the admissible window, at a speed that brings no second one within the clip."""
    r, end, slow = SIZES[size], END_FRAMES / tier.fps, tier.seconds / 2
    t, e = float(rng.uniform(end, tier.seconds - end)), float(rng.uniform(*RESTITUTION))
    way = CANVAS - 2 * r
    greatest = min(SPEED[1] / slow, way / t, way / e / (tier.seconds - t))
    speed = float(rng.uniform(min(max(SPEED[0] / slow, FALL / t), greatest), greatest))
    along = r + speed * t if direction in ("left", "up") else CANVAS - r - speed * t
    start = (along, beside) if direction in ("left", "right") else (beside, along)
    return Motion("slide", direction, speed=speed, restitution=e, start=start)
