"""Pictures of a scene: shapes of one colour on a plain ground, sampled 4 x 4 times per pixel at the frame's centre.

The one idea: coverage is computed only in a small window around each object, for all frames at once. Frame k shows
the scene at (k + 0.5) / fps. Shapes touch a surface with their bounding box, so the picture and the impacts agree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmdiff.world.physics import position, radius
from mmdiff.world.things import CANVAS, COLOURS, Object, Scene, Tier

SUPERSAMPLE = 4
_SUB = (np.arange(SUPERSAMPLE) + 0.5) / SUPERSAMPLE


def render(scene: Scene, tier: Tier) -> NDArray[np.uint8]:
    """The clip's frames -> (t h w 3) uint8, later objects before earlier ones."""
    scale, times = tier.size / CANVAS, (np.arange(tier.frames) + 0.5) / tier.fps
    pad = max([_window(thing, scale) for thing in scene.objects], default=0)
    side = tier.size + 2 * pad
    frames = np.empty((tier.frames, side, side, 3), np.float32)  # (t h w c)
    frames[:] = np.asarray(scene.background, np.float32)
    for thing in scene.objects:
        x, y = position(thing, times)
        _paint(frames, thing, x * scale + pad, y * scale + pad, scale)
    inside = frames[:, pad : side - pad, pad : side - pad]
    return np.ascontiguousarray(np.rint(inside * 255).astype(np.uint8))


def _window(thing: Object, scale: float) -> int:
    return int(np.ceil(2 * radius(thing) * scale)) + 2


def _paint(
    frames: NDArray[np.float32], thing: Object, x: NDArray[np.float64], y: NDArray[np.float64], scale: float
) -> None:
    wide, r = _window(thing, scale), radius(thing) * scale
    left, top = np.floor(x - r).astype(int), np.floor(y - r).astype(int)
    mask = coverage(thing.shape, x - left, y - top, r, wide)  # (t wide wide)
    colour = np.asarray(COLOURS[thing.colour], np.float32)
    for frame, alpha, i, j in zip(frames, mask[..., None], top, left, strict=True):
        patch = frame[i : i + wide, j : j + wide]
        patch += alpha * (colour - patch)


def coverage(shape: str, x: NDArray[np.float64], y: NDArray[np.float64], r: float, wide: int) -> NDArray[np.float32]:
    """Share of each pixel of a `wide` x `wide` window that a shape with centre (x, y) covers -> (t wide wide).

    `r` is half the shape's bounding box; all lengths in pixels of the window. A triangle points up.
    """
    grid = (np.arange(wide)[:, None] + _SUB).ravel().astype(np.float32)
    across = grid - x[:, None].astype(np.float32)  # (t n)
    down = grid - y[:, None].astype(np.float32)
    u, v = across[:, None, :], down[:, :, None]
    if shape == "circle":
        inside = u * u + v * v <= r * r
    elif shape == "square":
        inside = (np.abs(u) <= r) & (np.abs(v) <= r)
    else:
        inside = (v <= r) & (2 * np.abs(u) <= v + r)
    cells = inside.reshape(len(x), wide, SUPERSAMPLE, wide, SUPERSAMPLE)
    return cells.mean(axis=(2, 4), dtype=np.float32)  # (t wide wide)
