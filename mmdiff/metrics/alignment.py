"""Synchrony of ordinary clips, of which no scene is known: do moments of motion and onsets of sound meet?

The one idea: something that hits turns round, so the change of the picture undoes the change before it. The cosine of
two neighbouring frame differences, negated, peaks there without tracking anything. Peaks are matched with onsets one
to one, so that neither silence nor a click every frame can win (sync.py). The usual choice, peaks of motion energy
(AV-Align: Yariv et al., "Diverse and aligned audio-to-video generation", 2024, eq. 4, which is not one-to-one), is
given beside it. How well each tells true pairs from shuffled ones in the sounding world, where truth is known, is
measured in tests/metrics/test_alignment.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmdiff.metrics import sync
from mmdiff.metrics.score import Clip, pairings
from mmdiff.world.listen import read_onsets
from mmdiff.world.measure import pixels

Floats = NDArray[np.float64]
WINDOW = 0.1  # s within which a moment and an onset meet; wider than sync's, since these moments are coarser
PROMINENT = 0.3  # of the curve's range


def turns(video: NDArray[np.uint8], fps: float) -> list[float]:
    """Seconds at which the picture's change reverses; frame k is shown at (k + .5) / fps."""
    change = np.diff(pixels(video).astype(np.float64), axis=0)  # t-1 h w 3
    if len(change) < 3:
        return []
    power = np.square(change).mean(axis=(1, 2, 3))  # t-1
    product = (change[1:] * change[:-1]).mean(axis=(1, 2, 3))  # t-2
    undone = -product / (np.sqrt(power[1:] * power[:-1]) + 1e-6)
    return peaks(undone, start=1.5 / fps, step=1 / fps)


def bursts(video: NDArray[np.uint8], fps: float) -> list[float]:
    """Seconds at which the mean absolute frame difference peaks."""
    energy = np.abs(np.diff(pixels(video).astype(np.float64), axis=0)).mean(axis=(1, 2, 3))  # t-1
    return peaks(energy, start=1 / fps, step=1 / fps)


def peaks(curve: Floats, *, start: float, step: float) -> list[float]:
    """Seconds of the local maxima whose prominence is PROMINENT of the range, placed between samples by a parabola."""
    if len(curve) < 3 or not np.ptp(curve) > 1e-9:
        return []
    wide = np.pad(curve, 1, constant_values=curve.min())
    tops = [k for k in range(1, len(wide) - 1) if wide[k - 1] < wide[k] >= wide[k + 1]]
    kept = [k for k in tops if _prominence(wide, k) >= PROMINENT * np.ptp(curve)]
    return [start + (k - 1 + _between(*wide[k - 1 : k + 2])) * step for k in kept]


def _prominence(curve: Floats, k: int) -> float:
    """How far one must go down from a peak before one can go up to a higher one."""
    higher = np.flatnonzero(curve > curve[k])
    left = higher[higher < k].max(initial=-1) + 1
    right = higher[higher > k].min(initial=len(curve))
    return float(curve[k] - max(curve[left : k + 1].min(), curve[k:right].min()))


def _between(left: float, middle: float, right: float) -> float:
    """Where a parabola through three equidistant values peaks, from the middle one, in steps."""
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0


def alignment_values(clips: Sequence[Clip], *, seed: int) -> dict[str, list[float]]:
    """Per clip: onset_f1 and onset_lag_ms of turns, energy_f1 of bursts, and each F1 with the sound of other clips.

    A clip in which nothing turns and nothing sounds has nothing to say (nan).
    """
    sounds = [read_onsets(audio, rate) for _, audio, _, rate in clips]
    values: dict[str, list[float]] = {}
    for name, look in (("onset", turns), ("energy", bursts)):
        sights = [look(video, fps) for video, _, fps, _ in clips]
        own = [sync.match(*both, window=WINDOW, expected=False) for both in zip(sights, sounds, strict=True)]
        values[f"{name}_f1"] = [one.f1 for one in own]
        values[f"{name}_f1_shuffled"] = _chance(sights, sounds, seed=seed)
        if name == "onset":
            values["onset_lag_ms"] = [1000 * one.lag for one in own]
    return values


def _chance(sights: list[list[float]], sounds: list[list[float]], *, seed: int) -> list[float]:
    """Each clip's mean F1 with the sounds of other clips."""
    others = pairings(len(sights), seed=seed)
    table = [
        [sync.match(sights[i], sounds[order[i]], window=WINDOW, expected=False).f1 for order in others]
        for i in range(len(sights))
    ]
    kept = [[f1 for f1 in line if not math.isnan(f1)] for line in table]
    return [float(np.mean(line)) if line else math.nan for line in kept]
