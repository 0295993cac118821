"""Pictures of clips as text that fits into one HTML file: strips of frames, sound over time, curves.

The one idea: everything is a data URI or inline SVG, so that a report is one file which needs no network, no
script and no plotting library. Times are in seconds, and sound and strip share one axis.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.data import media

WIDTH = 480  # of a strip and of the sound below it, in CSS pixels
Point = tuple[float, float]
Span = tuple[float, float]
Place = Callable[[Point], str]
COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)", "var(--five)", "var(--six)")

# Anchors of a perceptually even map from black over purple to pale yellow, interpolated in RGB.
_INFERNO = torch.tensor(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ]
).float()


def embed(path: Path) -> str:
    """A file as a data URI."""
    kind = {".mp4": "video/mp4", ".png": "image/png", ".wav": "audio/wav"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def png(image: Tensor) -> str:
    """An image uint8 (h w 3) as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        media.write_png(path, image)
        return embed(path)


def strip(video: Tensor, *, frames: int = 8) -> str:
    """uint8 (t h w 3) -> an <img> of frames side by side, each the one on screen at the middle of its place in time."""
    n = min(frames, len(video))
    places = ((torch.arange(n) + 0.5) / n * len(video)).long()
    gap = max(1, video.shape[1] // 40)
    row = torch.cat(
        [torch.nn.functional.pad(video[k], (0, 0, 0, gap), value=128) for k in places], 1
    )  # (h n*(w+gap) 3)
    return f'<img class="strip" alt="{n} of {len(video)} frames" src="{png(row[:, :-gap])}">'


def sound(level: Tensor, *, seconds: float, onsets: Sequence[float], impacts: Sequence[float], height: int = 72) -> str:
    """A log-mel picture (bands frames) in [0, 1] with what was heard (solid lines) and what was seen (triangles above).

    `onsets` and `impacts` are in seconds from the start of the clip, which lasts `seconds`.
    """
    picture = png(_heat(level.flip(0)))  # low pitch below
    x = [WIDTH * t / seconds for t in onsets]
    y = [WIDTH * t / seconds for t in impacts]
    heard = "".join(f'<line class="heard" x1="{v:.1f}" x2="{v:.1f}" y1="14" y2="{height + 14}"/>' for v in x)
    seen = "".join(f'<path class="seen" d="M{v:.1f} 13 l-5 -9 h10 z"/>' for v in y)
    return (
        f'<svg class="sound" viewBox="0 0 {WIDTH} {height + 14}" role="img" '
        f'aria-label="{len(onsets)} onsets heard, {len(impacts)} impacts seen">'
        f'<image href="{picture}" x="0" y="14" width="{WIDTH}" height="{height}" preserveAspectRatio="none"/>'
        f"{heard}{seen}</svg>"
    )


def _heat(level: Tensor) -> Tensor:
    """(h w) in [0, 1] -> uint8 (h w 3) on the colour map."""
    place = level.clamp(0, 1) * (len(_INFERNO) - 1)
    low = place.floor().long().clamp(max=len(_INFERNO) - 2)
    return torch.lerp(_INFERNO[low], _INFERNO[low + 1], (place - low)[..., None]).round().to(torch.uint8)


def curves(lines: Mapping[str, Sequence[Point]], *, x: str, log: bool = True, height: int = 220) -> str:
    """Named lines of (x, y) points as an SVG with axes and a legend; points that are not finite are left out."""
    width, left, bottom = 560, 52, 30
    kept = {name: _finite(points, log) for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return '<p class="note">Nothing was logged yet.</p>'
    xs, ys = zip(*[point for points in kept.values() for point in points])
    (x0, x1), (y0, y1) = _span(min(xs), max(xs), 0.0), _span(min(ys), max(ys), 0.06)

    def place(point: Point) -> str:
        across = left + (point[0] - x0) / (x1 - x0) * (width - left - 12)
        return f"{across:.1f},{8 + (y1 - point[1]) / (y1 - y0) * (height - bottom - 8):.1f}"

    parts = [_grid(place, (x0, x1), (y0, y1), log=log, name=x, width=width, height=height, bottom=bottom)]
    coloured = dict(zip(kept, cycle(COLOURS)))
    for name, points in kept.items():
        parts.append(f'<polyline class="curve" stroke="{coloured[name]}" points="{" ".join(map(place, points))}"/>')
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in coloured.items()
    )
    svg = f'<svg class="plot" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
    return f'<figure>{svg}<figcaption class="legend">{legend}</figcaption></figure>'


def _finite(points: Sequence[Point], log: bool) -> list[Point]:
    good = [(a, b) for a, b in points if math.isfinite(b) and (b > 0 or not log)]
    return [(a, math.log10(b) if log else b) for a, b in good]


def _span(low: float, high: float, margin: float) -> Span:
    extra = max((high - low) * margin, 0.0 if high > low else 0.5)
    return low - extra, high + extra


def _grid(place: Place, xs: Span, ys: Span, *, log: bool, name: str, width: int, height: int, bottom: int) -> str:
    """Axis lines with round numbers."""
    marks = []
    for value in decades(*ys) if log else ticks(*ys):
        across, up = place((xs[0], value)).split(",")
        label = f"{10**value:.{2 if ys[1] - ys[0] > 0.1 else 4}g}" if log else f"{value:.3g}"
        marks.append(f'<line class="axis" x1="{across}" x2="{width - 12}" y1="{up}" y2="{up}"/>')
        marks.append(f'<text x="{float(across) - 6}" y="{up}" dy="4" text-anchor="end">{label}</text>')
    for value in ticks(*xs):
        across = place((value, ys[0])).split(",")[0]
        marks.append(f'<text x="{across}" y="{height - bottom + 16}" text-anchor="middle">{value:g}</text>')
    return "".join(marks) + f'<text x="{width - 12}" y="{height - 2}" text-anchor="end">{escape(name)}</text>'


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers in [low, high], about this many."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """log10 of 1, 2 and 5 times powers of ten in [low, high]; evenly spaced marks where fewer than two lie there."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [n + math.log10(m) for n in powers for m in ((1, 2, 5) if high - low < 3 else (1,))]
    inside = [mark for mark in marks if low <= mark <= high]
    return inside if len(inside) > 1 else ticks(low, high)
