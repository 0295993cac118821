"""Intervals: how far a measured mean can be trusted when the unit is the prompt.

The one idea: clips of one prompt are averaged first and prompts are resampled (Efron's percentile bootstrap, 1979), so
that many samples of few prompts do not look like evidence. Draws come from `mmdiff.noise`: the same values and seed
give the same interval. The bootstrap cannot see what never happened: where all values agree its interval is a point,
and `caution` says how little a small number of prompts shows.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmdiff.noise import key, normal

ENOUGH = 100  # prompts: below this a proportion's 95 % interval is wider than about +-.1


@dataclass(frozen=True)
class Interval:
    """A mean over prompts, its bootstrap interval and the number of prompts that had something to say."""

    value: float
    low: float
    high: float
    n: int

    def row(self) -> dict[str, float]:
        """{value, low, high, n}, the form in which results are stored."""
        return asdict(self)


def resample(n: int, *, draws: int, seed: int) -> NDArray[np.int64]:
    """Indices with replacement -> (draws, n) in [0, n); the same for the same seed, n and draws."""
    gauss = normal((draws, n), keys=[key(seed, "bootstrap", n)])[0].double()  # draws n
    return (torch.special.ndtr(gauss) * n).long().clamp(0, n - 1).numpy()


def per_prompt(values: Sequence[float], prompts: Sequence[Hashable] | None = None) -> NDArray[np.float64]:
    """Mean of each prompt without nan -> (prompts,) in order of first appearance; nan where nothing is left."""
    if prompts is None:
        return np.asarray(values, np.float64)
    places: dict[Hashable, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        places.setdefault(prompt, []).append(float(value))
    kept = [[v for v in group if not math.isnan(v)] for group in places.values()]
    return np.array([np.mean(group) if group else math.nan for group in kept])


def interval(
    values: Sequence[float],
    *,
    seed: int,
    prompts: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Mean over prompts and its percentile bootstrap interval; nan (nothing to say) is left out and not counted."""
    units = per_prompt(values, prompts)
    return _summary(units[~np.isnan(units)], seed=seed, draws=draws, level=level)


def difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int,
    prompts: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Interval of mean(a - b) over the same clips of the same prompts, paired: an interval off zero is a finding."""
    gap = per_prompt(np.asarray(a, float) - np.asarray(b, float), prompts)
    return _summary(gap[~np.isnan(gap)], seed=seed, draws=draws, level=level)


def _summary(units: NDArray[np.float64], *, seed: int, draws: int, level: float) -> Interval:
    if not len(units):
        return Interval(math.nan, math.nan, math.nan, 0)
    means = units[resample(len(units), draws=draws, seed=seed)].mean(axis=1)  # draws
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(units.mean()), float(low), float(high), len(units))


def caution(n: int) -> str:
    """A sentence to print beside a number of n prompts; empty where n is enough."""
    if n >= ENOUGH:
        return ""
    half = 0.98 / math.sqrt(max(n, 1))
    return f"only {n} prompts: a proportion is uncertain by up to +-{min(half, 1.0):.2f}; use at least {ENOUGH}"
