"""The reader of pictures: pixels back to the objects that are in them, how they move and when they hit something.

The one idea: the grammar of scenes is the specification, so any clip - rendered, blurred, generated - is explained by
it. A colour is a ray from the background in RGB; the projection on it is a soft mask, whose centre is a sub-pixel
position and whose form is compared with sub-pixel templates, all frames having a vote; the track of centres, less what
the camera shakes (`steady.py`), is cut into arcs (`arcs.py`). What cannot be explained is not reported, so a broken
clip reads as wrong facts and never as an exception. Lengths are in canvas heights unless they say pixels; x points
right, y down; frame k is shown at (k + .5) / fps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmdiff.world.arcs import follow
from mmdiff.world.steady import camera
from mmdiff.world.things import CANVAS, COLOURS, SHAPES, SIZES

Floats = NDArray[np.float32]

FINEST = 32  # pixels: taller frames are averaged down to about this, which loses nothing that is read here
COSINE, FAINT, SOLID = 0.93, 0.15, 0.4  # to the palette ray; amounts of its colour, 1 is pure
LEAST = 0.3  # of the area of a small object: less than this in a frame is not an object
PRESENT = 0.5  # share of the frames in which an object must be seen
LIKE = 0.45  # mean correlation with the best template: below it a mass of colour is no object
SUB, BLURS = 5, (0.0, 0.8)  # template positions along an axis of a pixel; standard deviations of their blur in pixels
NAMES, PALETTE = tuple(COLOURS), np.array(list(COLOURS.values()), dtype=np.float32)


@dataclass(frozen=True)
class SeenObject:
    """One object as read from a clip; `direction` is None unless it slides, `impacts` are seconds."""

    colour: str
    shape: str
    size: str
    track: NDArray[np.float64]  # (t, 2) centre x, y in canvas heights as if the camera stood, nan where it is not seen
    motion: str
    direction: str | None
    impacts: tuple[float, ...]


def pixels(video: ArrayLike) -> Floats:
    """A clip (t h w 3), uint8 or float in [0, 1] -> (t h w 3) float32 in [0, 1], finite, FINEST to 2 FINEST - 1 high.

    Smaller clips stay as they are; what is no clip at all becomes one without frames.
    """
    raw = np.asarray(video)
    if raw.ndim != 4 or 0 in raw.shape or raw.shape[-1] != 3:
        return np.zeros((0, 1, 1, 3), np.float32)
    by = max(1, raw.shape[1] // FINEST)
    t, h, w = raw.shape[0], raw.shape[1] // by, raw.shape[2] // by
    x = raw if raw.dtype == np.uint8 else np.clip(np.nan_to_num(raw.astype(np.float32), nan=0.0), 0.0, 1.0)
    if by > 1:
        x = x[:, : h * by, : w * by].reshape(t, h, by, w * by, 3).mean(axis=2, dtype=np.float32)
        x = x.reshape(t, h, w, by, 3).mean(axis=3)
    return x.astype(np.float32) / np.float32(255.0 if raw.dtype == np.uint8 else 1.0)  # t h w 3


def background(x: Floats) -> Floats:
    """The commonest colour of a clip, by the median over all its pixels -> (3,)."""
    return np.median(x.reshape(-1, 3), axis=0)


def amounts(x: Floats) -> tuple[Floats, Floats]:
    """How much of each palette colour a pixel holds -> (t c h w) raw projections, (t c h w) those whose colour it is.

    Projections are 0 on the background and 1 on the pure colour; the second is 0 but where the pixel lies within the
    cosine of that colour's ray, nearer to it than to any other, and is not faint.
    """
    ground = background(x)
    rays = PALETTE - ground  # c 3
    length = np.linalg.norm(rays, axis=1)  # c
    delta = x - ground  # t h w 3
    along = np.moveaxis(delta @ (rays / np.maximum(length[:, None] ** 2, 1e-6)).T, -1, 1)  # t c h w
    cosine = along * length[:, None, None] / np.maximum(np.linalg.norm(delta, axis=-1), 1e-6)[:, None]
    best = cosine.max(axis=1, keepdims=True)
    own = (cosine == best) & (cosine > COSINE) & (along > FAINT)
    return along, np.where(own, np.minimum(along, 1.0), np.float32(0.0))


def read_objects(video: ArrayLike, fps: float) -> list[SeenObject]:
    """The objects of a clip (t h w 3; uint8, or float in [0, 1]) in palette order; [] where there is none."""
    x = pixels(video)
    if not len(x):
        return []
    along, own = amounts(x)
    unit = x.shape[1] / CANVAS
    found: list[SeenObject] = []
    moved = camera(x, np.any(own, axis=1)) / x.shape[1]  # t 2
    solid = np.maximum(own - SOLID, 0.0).sum(axis=1)  # t h w
    for c, name in enumerate(NAMES):
        if own[:, c].any():
            other = solid > np.maximum(own[:, c] - SOLID, 0.0)  # a neighbour, whose colour has a share in this ray too
            mine = np.where(other, np.float32(0.0), along[:, c])
            found.extend(_of_colour(name, mine, edged(own[:, c], mine), moved, unit, fps))
    return found


def edged(own: Floats, along: Floats) -> Floats:
    """`own`, and what lies beside its solid pixels, where codecs wash the colour out -> (t h w) in 0..1."""
    _, h, w = own.shape
    wide = np.pad(own > SOLID, ((0, 0), (1, 1), (1, 1)))
    beside = np.any([wide[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)
    return np.where(beside, np.clip(along, 0.0, 1.0), own)


def _of_colour(
    name: str, along: Floats, own: Floats, moved: NDArray[np.floating], unit: float, fps: float
) -> list[SeenObject]:
    """The objects of one colour: the heaviest mass of each frame, then what is left beside it, if that is one too."""
    found: list[SeenObject] = []
    least = LEAST * np.pi * (SIZES["small"] * unit) ** 2
    reach = 1.4 * SIZES["large"] * unit
    while len(found) < 3:
        centre = heaviest(own, reach)  # t 2
        near = _near(own, centre, reach)
        seen = (own * near).sum(axis=(1, 2)) > least  # t
        if seen.mean() < PRESENT:
            return found
        shape, size, likeness = read_shape(along[seen], centre[seen], unit)
        if likeness < LIKE:
            return found
        track = np.where(seen[:, None], (centre + 0.5) / own.shape[1] + moved, np.nan)
        motion, direction, hits = follow(track, fps)
        found.append(SeenObject(name, shape, size, track, motion, direction, hits))
        own = np.where(near, np.float32(0.0), own)
    return found


def _grid(own: Floats, axis: int) -> Floats:
    """Pixel indices along x (0) or y (1), broadcastable to (t, h, w)."""
    return np.arange(own.shape[2 - axis], dtype=np.float32).reshape((1, -1) if axis == 0 else (-1, 1))


def _near(own: Floats, centre: NDArray[np.float64], reach: float) -> NDArray[np.bool_]:
    """Which pixels lie in the square of half-side `reach` about each frame's centre -> (t h w)."""
    x, y = (np.abs(_grid(own, axis) - centre[:, axis, None, None]) <= reach for axis in (0, 1))
    return x & y


def heaviest(own: Floats, reach: float) -> NDArray[np.float64]:
    """Centre of the heaviest square of half-side `reach` pixels in each frame: (t h w) -> (t, 2) x, y in pixels."""
    side = int(2 * round(reach) + 1)
    padded = np.pad(own, ((0, 0), (side // 2 + 1, side // 2), (side // 2 + 1, side // 2)))
    table = padded.cumsum(axis=1).cumsum(axis=2)
    mass = (
        table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]
    )  # t h w
    best = mass.reshape(len(mass), -1).argmax(axis=1)
    centre = np.stack([best % own.shape[2], best // own.shape[2]], axis=1).astype(np.float64)
    for _ in range(2):  # the square holds all of the object but is not centred on it
        held = (own * _near(own, centre, reach)).astype(np.float64)
        total = np.maximum(held.sum(axis=(1, 2)), 1e-9)
        centre = np.stack([(held * _grid(own, axis)).sum(axis=(1, 2)) / total for axis in (0, 1)], axis=1)
    return centre


def read_shape(along: Floats, centre: NDArray[np.float64], unit: float) -> tuple[str, str, float]:
    """Shape and size whose template, at its best sub-pixel place in each frame, correlates most, and how much.

    along: (t h w) projection on the colour's ray; centre: (t, 2) in pixel indices; unit: pixels a canvas unit.
    """
    bank = templates(round(unit, 4))  # shape-size place pixel
    side = round(bank.shape[-1] ** 0.5)
    pad = side // 2 + 1
    wide = np.pad(np.clip(along, -0.2, 1.2), ((0, 0), (pad, pad), (pad, pad)))
    corner = np.rint(np.nan_to_num(centre)).astype(int) + pad - side // 2  # t 2
    windows = np.stack(
        [one[y : y + side, x : x + side] for one, (x, y) in zip(wide, corner, strict=True)]
    )  # t side side
    flat = _normal(windows.reshape(len(windows), -1))  # t pixel
    scores = np.einsum("kpn,tn->tkp", bank, flat, optimize=True).max(axis=2)  # t shape-size
    mean = scores.mean(axis=0)  # shape-size
    best = int(mean.argmax())
    return SHAPES[best // len(SIZES)], tuple(SIZES)[best % len(SIZES)], float(mean[best])


def _normal(flat: Floats) -> Floats:
    """Vectors along the last axis with mean 0 and norm 1."""
    flat = flat - flat.mean(axis=-1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)


@lru_cache(maxsize=8)
def templates(unit: float) -> Floats:
    """Pictures of every shape and size about their centre -> (shapes x sizes, places x blurs, side^2), normalised."""
    side = 2 * round(1.6 * SIZES["large"] * unit) + 1
    fine = 8
    at = (np.arange(side * fine) + 0.5) / fine - side / 2  # pixels from the middle
    places = (np.arange(SUB) - SUB // 2) / (SUB - 1)
    bank = []
    for shape in SHAPES:
        for radius in SIZES.values():
            cover = [
                inside(shape, (at[None, :] - dx) / (radius * unit), (at[:, None] - dy) / (radius * unit))
                for dx in places
                for dy in places
            ]
            sharp = np.stack(cover).reshape(-1, side, fine, side, fine).mean(axis=(2, 4), dtype=np.float32)
            bank.append(np.concatenate([_blur(sharp, sigma).reshape(len(sharp), -1) for sigma in BLURS]))
    return _normal(np.stack(bank))  # shape-size place pixel


def inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points, in half-widths from the centre of mass and y down, lie in the shape (half-side of its box 1)."""
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return (np.abs(x) <= 1) & (np.abs(y) <= 1)
    y = y + 1 / 3  # the centre of mass of a triangle lies a third of its half-height below that of its box
    return (np.abs(x) <= (y + 1) / 2) & (np.abs(y) <= 1)


def _blur(pictures: Floats, sigma: float) -> Floats:
    """Gaussian blur of (n h w) by `sigma` pixels; 0 leaves them alone."""
    if sigma == 0:
        return pictures
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    kernel /= kernel.sum()
    h, w = pictures.shape[1:]
    wide = np.pad(pictures, ((0, 0), (3, 3), (3, 3)))
    rows = sum(k * wide[:, i : i + h] for i, k in enumerate(kernel))
    return np.asarray(sum(k * rows[:, :, i : i + w] for i, k in enumerate(kernel)), dtype=np.float32)
