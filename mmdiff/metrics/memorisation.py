"""Memorisation: are generated clips nearer to the training clips than unseen real clips are?

The one idea: a distance means nothing alone, so held-out real clips set the bar. A clip counts as memorised in a
modality where it lies nearer to its nearest training clip than all but 1 % of the held-out clips do: fresh clips read
about .01, a copier 1. Nearest pairs are returned to be looked at. (Compare Meehan et al., "A non-parametric test to
detect data-copying in generative models", 2020.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.metrics.features import frames, loudness
from mmdiff.metrics.score import Clip

QUANTILE = 0.01  # of held-out distances: nearer than this is a copy
SIDE, FRAMES, STEPS = 16, 8, 50  # pixels, frames and moments of sound that are compared
CHUNK = 1024  # training clips at once
Descriptors = dict[str, Tensor]  # modality -> (clips d) uint8


def describe(clips: Sequence[Clip]) -> Descriptors:
    """Small pictures (FRAMES of SIDE x SIDE) and small log-band spectrograms -> modality: (clips d) uint8."""
    found: Descriptors = {}
    if all(len(clip[0]) for clip in clips):
        found["video"] = torch.stack([_picture(clip) for clip in clips])
    if all(len(clip[1]) for clip in clips):
        found["audio"] = torch.stack([_sound(clip) for clip in clips])
    return found


def _picture(clip: Clip) -> Tensor:
    x = frames(clip)[None]  # 1 c t h w
    small = F.adaptive_avg_pool3d(x, (min(FRAMES, x.shape[2]), SIDE, SIDE))
    return ((small.flatten() + 1) * 127.5).round().to(torch.uint8)


def _sound(clip: Clip) -> Tensor:
    level = F.adaptive_avg_pool1d(loudness(clip)[None], STEPS)  # 1 bands steps
    return (level.flatten() * 255).round().to(torch.uint8)


def sounds(x: Tensor) -> NDArray[np.bool_]:
    """Which descriptors (n d) are not all zero: silence is the same in every silent clip, and nobody's copy."""
    return np.asarray((x > 0).any(1).numpy(), np.bool_)


def nearest(x: Tensor, training: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Root mean square distance (bytes / 255) to the nearest training clip, and its place -> (n,), (n,)."""
    mine = x.double()
    best, place = torch.full((len(x),), torch.inf, dtype=torch.float64), torch.zeros(len(x), dtype=torch.int64)
    for first in range(0, len(training), CHUNK):
        theirs = training[first : first + CHUNK].double()
        square = mine.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * mine @ theirs.T  # exact: whole numbers
        least, at = square.min(1)
        place = torch.where(least < best, first + at, place)
        best = torch.minimum(best, least)
    return (best / x.shape[1]).sqrt().numpy() / 255, place.numpy()


@dataclass(frozen=True)
class Bar:
    """The training set's descriptors, and for each modality the distance below which a clip is a copy."""

    training: Descriptors
    limits: Mapping[str, float]
    held_out: int  # clips that set the limits

    @classmethod
    def of(cls, training: Descriptors, held_out: Descriptors) -> Bar:
        """Set the limits by real clips that were not trained on."""
        both = sorted(set(training) & set(held_out))
        told = {name: held_out[name][torch.from_numpy(sounds(held_out[name]))] for name in both}
        distances = {name: nearest(x, training[name])[0] for name, x in told.items() if len(x)}
        limits = {name: float(np.quantile(distance, QUANTILE)) for name, distance in distances.items()}
        return cls(training, limits, len(next(iter(held_out.values()), [])))


@dataclass(frozen=True)
class Pair:
    """A generated clip (its place) and its nearest training clip (its place); distance 1 is the limit of a copy."""

    clip: int
    training: int
    modality: str
    distance: float


def compare(clips: Sequence[Clip], bar: Bar) -> tuple[dict[str, list[float]], list[Pair]]:
    """Per clip 1 where it is a copy: {"memorised_video", "memorised_audio"}; and its nearest pairs, nearest first.

    A clip that is all silence (or all black) is nan: it says nothing about copying.
    """
    marks: dict[str, list[float]] = {}
    pairs: list[Pair] = []
    described = describe(clips)
    for name, limit in bar.limits.items():
        if name in described:
            distance, place = nearest(described[name], bar.training[name])
            told, relative = sounds(described[name]), distance / max(limit, 1e-9)
            marks[f"memorised_{name}"] = [float(d < 1) if says else math.nan for d, says in zip(relative, told)]
            pairs += [Pair(i, int(place[i]), name, float(relative[i])) for i in np.flatnonzero(told).tolist()]
    return marks, sorted(pairs, key=lambda pair: pair.distance)
