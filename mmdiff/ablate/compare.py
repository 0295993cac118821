"""Arms against each other: means over seeds and prompts with their intervals, paired differences with their p-values.

The one idea: the unit is not the clip. Values form a table of seeds by prompts whose rows and columns both vary, so the
variance of the mean is that of a crossed random-effects model, with Student's t for as few seeds as people train:

    var(mean) = (MS_seeds + MS_prompts - MS_rest) / (S P)         (Cornfield and Tukey 1956; Satterthwaite's degrees)

Arms share seeds and prompts, so a difference is a table of its own. It answers two questions: does the recipe differ
(over seeds and prompts: t), and do these very models differ (over prompts alone: signs flipped at random, Fisher 1935).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.noise import key, rng

LEVEL = 0.95
FLIPS = 9_999  # random ones, where there are too many to try all
EXACT = 13  # differences of which all 2^n sign patterns are tried
GRID = 40_001  # points of the numerical integral under Student's density
Table = NDArray[np.float64]  # seeds prompts


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and prompts, its 95 % interval, and how many of each it rests on."""

    value: float
    low: float
    high: float
    seeds: int
    prompts: int

    def row(self) -> dict[str, Any]:
        """For JSON, in which nothing to say is null."""
        return {name: clean(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Difference(Estimate):
    """An arm minus the first arm: p of the recipe (seeds and prompts vary) and of these models (prompts vary)."""

    p: float
    p_models: float


def clean(value: Any) -> Any:
    """nan as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- one table -----------------------------------------------------------------------------------------------------


def complete(*tables: Table) -> list[Table]:
    """The same tables without the prompts for which any of them has nothing to say (nan)."""
    kept = ~np.isnan(np.concatenate(tables)).any(axis=0)  # prompts
    return [table[:, kept] for table in tables]


def estimate(values: Table) -> Estimate:
    """Mean of a table (seeds prompts) with its interval; a single number has no interval."""
    (values,) = complete(values)
    if not values.size:
        return Estimate(math.nan, math.nan, math.nan, len(values), 0)
    mean, (error, degrees) = float(values.mean()), spread(values)
    half = error * quantile((1 + LEVEL) / 2, degrees) if degrees else math.nan
    return Estimate(mean, mean - half, mean + half, *values.shape)


def difference(ours: Table, theirs: Table, *, seed: int) -> Difference:
    """ours - theirs, paired by seed and prompt."""
    ours, theirs = complete(ours, theirs)
    gap = ours - theirs
    found, (error, degrees) = estimate(gap), spread(gap)
    p = math.nan
    if degrees:
        p = two_sided(found.value / error, degrees) if error else float(found.value == 0)
    flipped = flip_test(gap.mean(0), seed=seed) if gap.shape[1] > 1 else math.nan
    return Difference(**asdict(found), p=p, p_models=flipped)


def spread(values: Table) -> tuple[float, float]:
    """(standard error of the mean, degrees of freedom) of a table (seeds prompts); (nan, 0) where nothing repeats."""
    seeds, prompts = values.shape
    if values.size < 2:
        return math.nan, 0.0
    rows, columns, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    between = [
        (prompts * float(((rows - mean) ** 2).sum()), seeds - 1),
        (seeds * float(((columns - mean) ** 2).sum()), prompts - 1),
        (float(((values - rows - columns + mean) ** 2).sum()), (seeds - 1) * (prompts - 1)),
    ]
    (a, n_a), (b, n_b), (rest, n_rest) = [(total / n if n else 0.0, n) for total, n in between]
    square = max(a + b - rest, a, b)  # an estimate of a sum of variances is at least either of them
    bottom = sum(part**2 / n for part, n in ((a, n_a), (b, n_b), (rest, n_rest)) if n)
    degrees = max(square**2 / bottom, min(n for n in (n_a, n_b) if n)) if bottom else float(max(n_a, n_b))
    return math.sqrt(square / values.size), degrees


def flip_test(gaps: Sequence[float] | Table, *, seed: int) -> float:
    """p of a mean this far from 0 if each difference were as likely to have the other sign; exact for few of them."""
    gaps = np.asarray([g for g in gaps if g != 0], np.float64)
    if not len(gaps):
        return 1.0
    if len(gaps) <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(gaps))))
        return float((np.abs(signs @ gaps) >= abs(gaps.sum()) * (1 - 1e-12)).mean())
    signs = rng(key(seed, "flips", len(gaps))).integers(0, 2, (FLIPS, len(gaps))) * 2.0 - 1
    beyond = int((np.abs(signs @ gaps) >= abs(gaps.sum()) * (1 - 1e-12)).sum())
    return (beyond + 1) / (FLIPS + 1)  # the data themselves are one of the patterns


def holm(ps: Sequence[float]) -> list[float]:
    """p-values that allow for their number (Holm 1979); nan stays nan."""
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    found, worst = [math.nan] * len(ps), 0.0
    for rank, (p, i) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        found[i] = worst
    return found


# ---- Student's t ---------------------------------------------------------------------------------------------------


def _student(degrees: float) -> tuple[Table, Table]:
    """(t, P(T <= t)) on a grid: with t = sqrt(df) tan(a), the density of a is proportional to cos(a)^(df - 1)."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, GRID)[1:-1]
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * np.tan(angle), mass / mass[-1]


def quantile(share: float, degrees: float) -> float:
    """Student's t below which this share lies."""
    t, below = _student(degrees)
    return float(np.interp(share, below, t))


def two_sided(t: float, degrees: float) -> float:
    """P(|T| >= |t|)."""
    grid, below = _student(degrees)
    return float(2 * np.interp(-abs(t), grid, below))


# ---- all arms ------------------------------------------------------------------------------------------------------

Values = Mapping[str, Mapping[int, Mapping[str, Sequence[float | None]]]]  # arm -> seed -> metric -> one a prompt


def tables(values: Values, metric: str) -> dict[str, dict[int, Table]]:
    """arm -> seed -> (prompts,) of a metric, for the cells that have it."""
    return {
        arm: {seed: _numbers(row[metric]) for seed, row in cells.items() if metric in row}
        for arm, cells in values.items()
    }


def _numbers(values: Sequence[float | None]) -> Table:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def compare(values: Values, metric: str, *, seed: int) -> tuple[dict[str, Estimate], dict[str, Difference]]:
    """(arm -> mean, arm -> its difference from the first arm) over the seeds that both have; what failed is absent."""
    found = tables(values, metric)
    first = next(iter(values))
    means = {arm: estimate(np.stack(list(cells.values()))) for arm, cells in found.items() if cells}
    gaps = {}
    for arm, cells in found.items():
        common = [s for s in cells if s in found[first]]
        if arm != first and common:
            pair = [np.stack([found[name][s] for s in common]) for name in (arm, first)]
            gaps[arm] = difference(*pair, seed=seed)
    return means, gaps
