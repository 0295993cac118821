"""Kinematics of the sounding world: where every object is and exactly when it strikes a surface.

The one idea: between impacts the acceleration is constant, so that impact times are sums of a geometric series and
positions are polynomials, both in float64 and never read off frames. The frame's edges are the floor and the walls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmdiff.world.things import CANVAS, SIZES, Event, Facts, Object, ObjectFacts, Scene

_SURFACE = {"left": "left", "right": "right", "up": "top", "down": "floor"}
_BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}
_MOST_IMPACTS = 64  # a ball that would bounce more often than this rests


def radius(thing: Object) -> float:
    """Half the width, and half the height, of the object in canvas units: where it touches a surface."""
    return SIZES[thing.size]


def impacts(thing: Object, seconds: float) -> list[tuple[float, str, float]]:
    """Impacts of one object in [0, seconds) as (time, surface, speed), by the kinematics of constant acceleration.

    A drop from height h lands at t1 = sqrt(2 h / g) with speed g t1, and again every 2 t1 e^k; a slide crosses the free
    width at v e^k after its k-th impact.
    """
    if thing.motion.kind == "drop":
        return _bounces(thing, seconds)
    return _walls(thing, seconds) if thing.motion.kind == "slide" else []


def _bounces(thing: Object, seconds: float) -> list[tuple[float, str, float]]:
    move = thing.motion
    found: list[tuple[float, str, float]] = []
    t = float(np.sqrt(2 * max(CANVAS - radius(thing) - move.start[1], 0.0) / move.gravity))
    speed = move.gravity * t
    while t < seconds and len(found) < _MOST_IMPACTS:
        found.append((t, "floor", speed))
        speed *= move.restitution
        t += 2 * speed / move.gravity
    return found


def _walls(thing: Object, seconds: float) -> list[tuple[float, str, float]]:
    move, r = thing.motion, radius(thing)
    along = move.start[0] if move.direction in ("left", "right") else move.start[1]
    way = along - r if move.direction in ("left", "up") else CANVAS - r - along
    found: list[tuple[float, str, float]] = []
    t, speed, toward = way / move.speed, move.speed, move.direction
    while t < seconds and len(found) < _MOST_IMPACTS:
        found.append((t, _SURFACE[toward], speed))
        speed *= move.restitution
        toward = _BACK[toward]
        t += (CANVAS - 2 * r) / speed if speed > 0 else np.inf
    return found


def events(scene: Scene, seconds: float) -> list[Event]:
    """Every impact of the scene in [0, seconds), in order of time, exact in float64."""
    found = [Event(t, i, where, v) for i, one in enumerate(scene.objects) for t, where, v in impacts(one, seconds)]
    return sorted(found, key=lambda event: event.t)


def position(thing: Object, t: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of the object at times `t` in seconds (any shape) -> x, y of that shape, in canvas units."""
    t = np.asarray(t, dtype=np.float64)
    x0, y0 = thing.motion.start
    if thing.motion.kind == "still":
        return np.full(t.shape, x0), np.full(t.shape, y0)
    hits = impacts(thing, float(t.max(initial=0.0)) + 1e-9)
    after = np.searchsorted([hit[0] for hit in hits], t, side="right")  # number of impacts before each time
    return (
        (np.full(t.shape, x0), _height(thing, t, hits, after))
        if thing.motion.kind == "drop"
        else _slid(thing, t, hits, after)
    )


def _height(
    thing: Object, t: NDArray[np.float64], hits: list[tuple[float, str, float]], after: NDArray[np.intp]
) -> NDArray[np.float64]:
    move, floor = thing.motion, CANVAS - radius(thing)
    since = t - np.array([0.0] + [hit[0] for hit in hits])[after]
    up = np.array([0.0] + [move.restitution * hit[2] for hit in hits])[after]
    base = np.array([move.start[1]] + [floor] * len(hits))[after]
    return np.minimum(base - up * since + move.gravity * since**2 / 2, floor)


def _slid(
    thing: Object, t: NDArray[np.float64], hits: list[tuple[float, str, float]], after: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    move, r = thing.motion, radius(thing)
    across = move.direction in ("left", "right")
    sign = -1.0 if move.direction in ("left", "up") else 1.0
    start = move.start[0] if across else move.start[1]
    walls = [r if where in ("left", "top") else CANVAS - r for _, where, _ in hits]
    since = t - np.array([0.0] + [hit[0] for hit in hits])[after]
    turns = sign * (-1.0) ** np.arange(len(hits) + 1)
    speed = np.array([move.speed] + [move.restitution * hit[2] for hit in hits]) * turns
    along = np.clip(np.array([start, *walls])[after] + speed[after] * since, r, CANVAS - r)
    return (along, np.full(t.shape, move.start[1])) if across else (np.full(t.shape, move.start[0]), along)


def truth(scene: Scene, seconds: float) -> Facts:
    """Everything that can be stated about the scene; an object without an impact has no timbre."""
    return tuple(_truth(thing, seconds) for thing in scene.objects)


def _truth(thing: Object, seconds: float) -> ObjectFacts:
    number = len(impacts(thing, seconds))
    return ObjectFacts(
        colour=thing.colour,
        shape=thing.shape,
        size=thing.size,
        motion=thing.motion.kind,
        direction=thing.motion.direction or None,
        bounces=number if thing.motion.kind == "drop" else None,
        timbre=thing.timbre if number else None,
    )
