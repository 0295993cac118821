"""The reader of the camera: how a clip's ground moves, so that tracks can be told in the world's coordinates.

The one idea: where nothing stands before it, a frame is the clip's mean ground, moved a little and lit a little
otherwise; both are linear to first order, so one least-squares fit a frame tells them apart (Lucas and Kanade, 1981).
A move is believed only if it explains most of what light leaves unexplained: plain, noisy and compressed grounds say
nothing, and their camera is at rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

EXPLAINED = 0.5  # share of the residual's power that a move must take away over the clip
CONTRAST = 0.0005  # of full white: less residual than this is rounding
TEXTURE = 0.012  # of full white: deviation of the mean ground; a plain one has less, noisy or not, a live one more
ENOUGH = 240  # pixels of ground a frame, twenty for each number that is fitted; fewer prove nothing
SEEN = 0.25  # of the frames in which a pixel must show the ground
SMOOTH = 3  # degree of a polynomial that tells how light changes over the picture
ROUNDS = 4  # until light and ground are told apart
CLEAR = 3  # pixels about an object that may hold some of its colour


def camera(x: Floats, objects: NDArray[np.bool_]) -> Floats:
    """Where the camera is at each frame, less where it is on average, in pixels: (t, 2) x, y, zeros if at rest.

    x: (t h w 3) in 0..1; objects: (t h w) what is no ground. A ground that goes right is a camera that goes left.
    """
    grey = x.mean(axis=-1, dtype=np.float64)  # t h w
    free = ~_grown(objects, CLEAR)
    known = _inner(~_grown((free.mean(axis=0) < SEEN)[None], 1)[0])
    weight = (free & known).reshape(len(x), -1).astype(np.float64)  # t n
    even, rest = grey, np.zeros((len(x), 2))
    if weight.sum() < ENOUGH * len(x) or _mean(grey, free)[known].std() < TEXTURE:
        return rest
    for _ in range(ROUNDS):  # parts of the ground that are seen at different times are seen in different light
        mean = _mean(even, free)
        error = (grey - mean).reshape(len(x), -1)
        lights, moves = _effects(mean)
        both, found = _fit(error, weight, np.concatenate([lights, moves]))
        change = (found[:, :-2] @ lights).reshape(grey.shape)
        even = grey * np.clip(mean / np.maximum(mean + change, 1e-6), 0.25, 4.0)
    dim, _ = _fit(error, weight, lights)
    if dim <= CONTRAST**2 * weight.sum() or both > (1 - EXPLAINED) * dim:
        return rest
    return found[:, -2:] - found[:, -2:].mean(axis=0)


def _mean(grey: Floats, free: NDArray[np.bool_]) -> Floats:
    """The clip's ground where it is free (t h w) -> (h w)."""
    return np.asarray((grey * free).sum(axis=0) / np.maximum(free.sum(axis=0), 1))


def _effects(mean: Floats) -> tuple[Floats, Floats]:
    """What smooth light and a camera's unit move (x, y) change in the mean ground -> (l, n), (2, n)."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in mean.shape[::-1]))
    lights = mean * np.stack([x**i * y**j for i in range(SMOOTH + 1) for j in range(SMOOTH + 1 - i)])  # n h w
    moves = np.stack([_slope(mean, axis) for axis in (1, 0)])  # 2 h w
    return lights.reshape(len(lights), -1), moves.reshape(2, -1)


def _slope(mean: Floats, axis: int) -> Floats:
    """The derivative along an axis, good for waves of six pixels and longer."""
    first = np.gradient(mean, axis=axis)
    return np.asarray(first - np.gradient(np.gradient(first, axis=axis), axis=axis) / 6)


def _fit(error: Floats, weight: Floats, effects: Floats) -> tuple[float, Floats]:
    """Least squares in each frame -> the power that is left over the clip, coefficients (t, effects)."""
    normal = np.einsum("tn,in,jn->tij", weight, effects, effects, optimize=True)
    normal += 1e-9 * np.eye(len(effects))
    found = np.linalg.solve(normal, ((weight * error) @ effects.T)[..., None])[..., 0]
    return float((weight * (error - found @ effects) ** 2).sum()), found


def _inner(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels at the edge of the picture, where a floor and walls come and go."""
    inner = np.zeros_like(known)
    inner[1:-1, 1:-1] = known[1:-1, 1:-1]
    return inner


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """(t h w) and what lies within `by` pixels."""
    for _ in range(by):
        wide = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
        tall = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]  # t h w+2
        mask = tall[:, :, :-2] | tall[:, :, 1:-1] | tall[:, :, 2:]
    return mask
