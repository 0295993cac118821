"""From a track of centres to motion and impacts: the piecewise arcs that explain it best.

The one idea: between impacts a coordinate is an arc with one curvature (gravity for a drop, zero for a slide), so
impacts are where the best segmentation breaks. Optimal segmentation is a dynamic programme over prefix sums (Bellman,
1961; Jackson et al., "optimal partitioning", 2005), run at once for a grid of curvatures; an impact lies where arcs
meet, between frames and so finer than a frame. Frame k is shown at (k + .5) / fps. Lengths are in canvas heights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

TRAVEL = 0.07  # canvas heights: an object that strays less than this is still
TURN = 0.3  # canvas heights a clip: an impact changes the velocity by more than this
BREAK = 0.02  # canvas heights: an arc more must lower the root of the summed squared error by about this much
SHAKE = 6.0  # degrees of freedom of an arc: level, slope and where it breaks, chosen as the best of many
GRAVITIES = np.concatenate([[0.0], np.geomspace(4.0, 20.0, 25)])  # canvas heights a clip^2; 0 is a slide


@dataclass(frozen=True)
class Arcs:
    """A coordinate as arcs x = a + v t + g t^2 / 2 over [start, stop) frames, and the summed cost of the fit."""

    gravity: float
    starts: tuple[int, ...]
    offset: Floats  # a of each arc
    speed: Floats  # v of each arc, at t = 0
    cost: float

    def slope(self, arc: int, t: float) -> float:
        """Velocity of an arc at t seconds."""
        return float(self.speed[arc] + self.gravity * t)


def _line_costs(t: Floats, y: Floats) -> Floats:
    """Squared error of the least-squares line through samples i..j, both included; y (g, n) -> (g, n, n), inf below."""
    n = len(t)

    def sums(x: Floats) -> Floats:
        total = np.concatenate([np.zeros((*x.shape[:-1], 1)), np.cumsum(x, axis=-1)], axis=-1)
        return total[..., None, 1:] - total[..., :-1, None]  # ... i j

    count = np.arange(n)[None] - np.arange(n)[:, None] + 1.0
    safe = np.maximum(count, 1.0)
    st, sy = sums(t), sums(y)
    spread = sums(t * t) - st * st / safe
    cross = sums(t * y) - st * sy / safe
    error = sums(y * y) - sy * sy / safe - np.where(spread > 1e-12, cross**2 / np.maximum(spread, 1e-12), 0.0)
    return np.where(count >= 2, np.maximum(error, 0.0), np.inf)  # g n n


def fit(t: Floats, x: Floats, gravities: Floats, *, tremble: float = 0.0) -> Arcs:
    """The best arcs through x (n,) at times t (n,), n >= 2, over a grid of curvatures (canvas heights / s^2).

    tremble: standard deviation of a track that shakes; an arc more must pay for the noise that it could fit.
    """
    n = len(t)
    bent = x - gravities[:, None] * t**2 / 2  # g n
    costs = _line_costs(t, bent) + BREAK**2 + SHAKE * tremble**2  # g n n
    best = np.full((len(gravities), n + 1), np.inf)
    best[:, 0] = 0.0
    origin = np.zeros((len(gravities), n + 1), dtype=np.int64)
    for stop in range(2, n + 1):
        options = best[:, :stop] + costs[:, :stop, stop - 1]  # g stop
        origin[:, stop] = options.argmin(axis=1)
        best[:, stop] = options.min(axis=1)
    winner = int(best[:, n].argmin())
    starts, stop = [], n
    while stop > 0:
        starts.append(stop := int(origin[winner, stop]))
    return _refit(t, bent[winner], float(gravities[winner]), tuple(starts[::-1]), float(best[winner, n]))


def _refit(t: Floats, bent: Floats, gravity: float, starts: tuple[int, ...], cost: float) -> Arcs:
    lines = [np.polyfit(t[a:b], bent[a:b], 1) for a, b in zip(starts, (*starts[1:], len(t)), strict=True)]
    slope, offset = np.array(lines).T
    return Arcs(gravity, starts, offset, slope, cost)


def impacts(arcs: Arcs, t: Floats, length: float) -> list[float]:
    """Seconds at which consecutive arcs meet and the velocity reverses; under gravity only from falling to rising.

    t: (n,) times of the track; length: seconds of the clip.
    """
    found: list[float] = []
    for arc in range(1, len(arcs.starts)):
        before, after = t[arcs.starts[arc] - 1], t[arcs.starts[arc]]
        turn = arcs.speed[arc - 1] - arcs.speed[arc]  # > 0: a downward or rightward motion is thrown back
        middle = (before + after) / 2
        meet = (arcs.offset[arc] - arcs.offset[arc - 1]) / turn if abs(turn) > 1e-9 else middle
        meet = float(np.clip(meet, before - 0.25 * (after - before), after + 0.25 * (after - before)))
        into, out = arcs.slope(arc - 1, meet), arcs.slope(arc, meet)
        if into * out < 0 and abs(turn) > TURN / length and (arcs.gravity == 0 or into > 0):
            found.append(meet)
    return found


def follow(track: Floats, fps: float) -> tuple[str, str | None, tuple[float, ...]]:
    """Motion (drop, slide or still), direction (of a slide, else None) and impacts in seconds of a track (t, 2) x, y.

    Frames in which the object is not seen are nan. Motion is that of the axis with more travel, and a drop is vertical
    motion which arcs under gravity explain better than straight ones.
    """
    length = len(track) / max(fps, 1e-6)
    t = (np.arange(len(track)) + 0.5) / max(fps, 1e-6)
    known = np.isfinite(track).all(axis=1)
    t, track = t[known], track[known]
    if len(t) < 3:
        return "still", None, ()
    axis = int(np.ptp(track, axis=0).argmax())
    if np.ptp(track[:, axis]) < TRAVEL:
        return "still", None, ()
    tremble = float(np.median(np.abs(np.diff(track[:, 1 - axis])))) / 0.954  # of normal noise: nothing moves this way
    arcs = fit(t, track[:, axis], GRAVITIES / length**2 if axis else np.zeros(1), tremble=tremble)
    hits = tuple(impacts(arcs, t, length))
    if arcs.gravity > 0:
        return "drop", None, hits
    return "slide", (("left", "right"), ("up", "down"))[axis][int(arcs.speed[0] > 0)], hits
