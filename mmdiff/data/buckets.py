"""Clips of many shapes in one run: which clip is read in which shape.

The one idea: a clip's bucket is a pure function of what the clip offers, its length and the size of its picture, so
nothing is drawn, balanced or dropped behind one's back; plans.py makes steps of the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from mmdiff import noise
from mmdiff.batch import ClipShape
from mmdiff.data.plans import Bucketed, Layout
from mmdiff.errors import UserError

BUCKETED = Bucketed()


@dataclass(frozen=True)
class Extent:
    """What a clip offers: its length in seconds (infinite for a still), and (h, w) where it has a picture."""

    seconds: float
    size: tuple[int, int] | None


def fits(shape: ClipShape, clip: Extent) -> bool:
    """Whether the clip fills the window, to half a frame; a still fills one frame."""
    return shape.frames == 1 if clip.seconds == inf else shape.seconds <= clip.seconds + 0.5 / shape.fps


def kept(shape: ClipShape, clip: Extent) -> float:
    """The share of the clip's seconds, of its frame and of its resolution that the shape keeps, in (0, 1].

    Enlarging counts against a shape as much as reducing.
    """
    seconds = 1.0 if clip.seconds in (0, inf) else min(1.0, shape.seconds / clip.seconds)
    if clip.size is None:
        return seconds
    (h, w), (high, wide) = shape.size, clip.size
    aspect, area = (h * wide) / (w * high), (h * w) / (high * wide)
    return seconds * min(aspect, 1 / aspect) * min(area, 1 / area)


def nearest(shapes: Sequence[ClipShape], clip: Extent) -> int:
    """The shape that keeps most of the clip among those that it fills; the shortest of all where it fills none."""
    able = [i for i, shape in enumerate(shapes) if fits(shape, clip)]
    if not able:
        shortest = min(shape.seconds for shape in shapes)
        able = [i for i, shape in enumerate(shapes) if shape.seconds == shortest]
    return max(able, key=lambda i: kept(shapes[i], clip))


def spread(shapes: Sequence[ClipShape], clip: Extent, name: str) -> int:
    """One of the shapes that the clip fills without being enlarged, by a hash of its name; else the nearest."""
    high, wide = clip.size or (inf, inf)
    able = [i for i, s in enumerate(shapes) if fits(s, clip) and s.size[0] <= high and s.size[1] <= wide]
    return able[noise.key(0, "bucket", name) % len(able)] if able else nearest(shapes, clip)


class Buckets:
    """The shapes in which clips are read, and how they make up steps.

    shapes   mappings of frames, size [h, w] and fps (the data's own where it is not said)
    assign   nearest: each clip goes to the shape that keeps most of it (see `nearest`); spread: to any shape that it
             fills without being enlarged, always the same one, so that data of one shape trains a model of many
    layout   Bucketed or Packed
    """

    def __init__(
        self,
        *,
        shapes: Sequence[dict[str, Any]],
        assign: Literal["nearest", "spread"] = "nearest",
        layout: Layout = BUCKETED,
    ) -> None:
        if assign not in ("nearest", "spread"):
            raise UserError(f"data.buckets.assign is nearest or spread, not {assign!r}.")
        for shape in shapes:
            if not {"frames", "size"} <= set(shape) <= {"frames", "size", "fps"}:
                raise UserError(f"data.buckets.shapes: {shape} is not a mapping of frames, size and, if wanted, fps.")
        if not shapes:
            raise UserError("data.buckets.shapes is empty: give at least one shape, or leave data.buckets out.")
        self.asked, self.assign, self.layout = list(shapes), assign, layout

    def shapes(self, own: ClipShape) -> list[ClipShape]:
        """The buckets, completed by what the data says."""
        fps = [float(shape.get("fps", own.fps)) for shape in self.asked]
        sizes = [(int(shape["size"][0]), int(shape["size"][1])) for shape in self.asked]
        frames = [int(shape["frames"]) for shape in self.asked]
        return [ClipShape(*made, own.rate) for made in zip(frames, fps, sizes, strict=True)]

    def bucket(self, shapes: Sequence[ClipShape], clip: Extent, name: str) -> int:
        """The bucket of one clip."""
        return spread(shapes, clip, name) if self.assign == "spread" else nearest(shapes, clip)


def spoken(shape: ClipShape) -> str:
    """A bucket as a person would name it: 16 x 32 x 32 at 8 fps."""
    return f"{shape.frames} x {shape.size[0]} x {shape.size[1]} at {shape.fps:g} fps"
