"""Pictures of a scene: shapes of one colour on a ground, without aliasing, at the frame's centre in time.

The one idea: a shape is a width at every height, so its coverage of pixels is exact along a scan line, and four lines
a pixel are averaged, in a small window around the object and for all frames at once. Frame k shows the scene at
(k + 0.5) / fps. Shapes touch a surface with their bounding box, so that the picture and the impacts agree. A tier may
look at the scene with texture, light and a shaking camera (`view.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmdiff.world.physics import position, radius
from mmdiff.world.things import CANVAS, COLOURS, Object, Scene, Tier
from mmdiff.world.view import View, view_of

LINES = 4  # scan lines a pixel
_AT_ONCE = 2**17  # pixels, so that what is at hand stays in the cache


def render(scene: Scene, tier: Tier) -> NDArray[np.uint8]:
    """The clip's frames -> (t h w 3) uint8, later objects before earlier ones."""
    times, view = (np.arange(tier.frames) + 0.5) / tier.fps, view_of(scene, tier.view)
    parts = np.array_split(times, -(-tier.frames * tier.size**2 // _AT_ONCE))
    return np.concatenate([_frames(scene, view, part, tier.size) for part in parts])  # (t h w c)


def _frames(scene: Scene, view: View, times: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    scale = size / CANVAS
    pad = max([_window(thing, scale) for thing in scene.objects], default=0)
    side, camera = size + 2 * pad, view.camera(times)  # t 2
    frames = np.empty((len(times), side, side, 3), np.float32)  # (t h w c)
    frames[:] = np.asarray(scene.background, np.float32)
    seen = (np.arange(-pad, size + pad) + 0.5) / scale  # canvas units of the picture's rows and columns
    for frame, (x, y) in zip(frames, camera, strict=True):
        frame += view.grain(seen + x, seen + y)
    for thing in scene.objects:
        x, y = position(thing, times)
        _paint(frames, thing, (x - camera[:, 0]) * scale + pad, (y - camera[:, 1]) * scale + pad, scale)
    for frame, t in zip(frames, times, strict=True):
        frame *= view.light(t, seen, seen)
    return np.rint(frames[:, pad : side - pad, pad : side - pad] * 255).astype(np.uint8)


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
    edge = np.arange(wide * LINES, dtype=np.float32) / LINES - y[:, None].astype(np.float32)  # (t n) top of each line
    top, bottom = np.clip(edge, -r, r), np.clip(edge + 1 / LINES, -r, r)
    half = _half_width(shape, (top + bottom) / 2, r)[..., None]  # (t n 1)
    left = np.arange(wide, dtype=np.float32) - x[:, None, None].astype(np.float32)  # (t 1 wide)
    across = np.clip(np.minimum(left + 1, half) - np.maximum(left, -half), 0, 1)  # (t n wide)
    across *= (bottom - top)[..., None]
    return across.reshape(len(x), wide, LINES, wide).sum(2, dtype=np.float32)  # (t wide wide)


def _half_width(shape: str, v: NDArray[np.floating], r: float) -> NDArray[np.floating]:
    """Half the width of the shape at height `v` below its centre."""
    if shape == "circle":
        return np.sqrt(np.maximum(r * r - v * v, 0))
    return np.full_like(v, r) if shape == "square" else (v + r) / 2
