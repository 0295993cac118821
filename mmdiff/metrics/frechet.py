"""Distances between two sets of clips: Frechet and kernel, in any space of features.

The one idea: a set is what its features' mean and covariance say (Frechet distance, Dowson and Landau 1982; Heusel et
al., "GANs trained by a two time-scale update rule", 2017, eq. 6) or what a kernel says (MMD, Gretton et al. 2012,
eq. 3, the unbiased estimate). Both depend on how many clips there are - the Frechet distance of two draws from one
world falls as 1 / N - so both sets have the same number and every distance stands beside that of real clips from real
clips. The kernel is Gaussian with the median distance as its bandwidth: the cubic kernel has heavy tails on raw
features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mmdiff.metrics import statistics
from mmdiff.metrics.statistics import Interval

Floats = NDArray[np.floating]
DRAWS = 100  # resamples of the prompts for an interval


def frechet(a: Floats, b: Floats) -> float:
    """Squared Frechet distance of two sets of features (n d), (m d): |mean gap|^2 + tr(A + B - 2 (A B)^1/2)."""
    first, second = _moments(a), _moments(b)
    return _between(first, second, _root(second[1]))


def _moments(x: Floats) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and covariance (d d) in float64."""
    flat = torch.from_numpy(np.asarray(x, np.float64))
    return flat.mean(0), torch.cov(flat.T, correction=0).reshape(flat.shape[1], flat.shape[1])


def _root(cov: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _between(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor], root: torch.Tensor) -> float:
    """tr (A B)^1/2 is the sum of the roots of the eigenvalues of B^1/2 A B^1/2."""
    inner = torch.linalg.eigvalsh(root @ a[1] @ root).clamp(min=0).sqrt().sum()
    gap = (a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * inner
    return max(0.0, float(gap))


def bandwidth(reference: Floats) -> float:
    """The median distance between different members of a set (n d); 1 where they are all the same."""
    flat = torch.from_numpy(np.asarray(reference, np.float64))
    middle = float(torch.pdist(flat).median()) if len(flat) > 1 else 0.0
    return middle or 1.0


def mmd(a: Floats, b: Floats, *, width: float) -> float:
    """Squared maximum mean discrepancy of (n d) and (m d), unbiased, so that it may be a little below zero."""
    return _discrepancy(*_kernels(a, b, width=width))


def _kernels(a: Floats, b: Floats, *, width: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = (torch.from_numpy(np.asarray(one, np.float64)) for one in (a, b))
    within, across, other = (
        torch.exp(-torch.cdist(p, q).square() / (2 * width**2)) for p, q in ((x, x), (x, y), (y, y))
    )
    return within, across, other


def _discrepancy(within: torch.Tensor, across: torch.Tensor, other: torch.Tensor) -> float:
    return float(_off(within) + _off(other) - 2 * across.mean())


def _off(kernel: torch.Tensor) -> torch.Tensor:
    """The mean off the diagonal."""
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


# ---- with intervals ------------------------------------------------------------------------------------------------


def frechet_interval(clips: Floats, reference: Floats, *, prompts: list[str], seed: int) -> Interval:
    """Frechet distance of (clips samples d) from (m samples d), with an interval over prompts; see `_interval`."""
    second = _moments(reference.reshape(-1, reference.shape[-1]))
    root = _root(second[1])

    def distance(rows: NDArray[np.int64]) -> float:
        return _between(_moments(clips[rows].reshape(-1, clips.shape[-1])), second, root)

    found = _interval(distance, prompts, seed=seed)
    return replace(found, low=max(found.low, 0.0)) if found.n > 1 else found


def mmd_interval(clips: Floats, reference: Floats, *, prompts: list[str], seed: int) -> Interval:
    """Kernel distance of (clips samples d) from (m samples d), each clip the mean of its samples."""
    a, b = clips.mean(1), reference.mean(1)
    within, across, other = _kernels(a, b, width=bandwidth(b))

    def distance(rows: NDArray[np.int64]) -> float:
        places = torch.from_numpy(rows)
        same = places[:, None] == places  # a clip drawn twice is not a pair
        inner = within[places][:, places][~same].mean()
        return float(inner + _off(other) - 2 * across[places].mean())

    return _interval(distance, prompts, seed=seed)


def _interval(distance: Callable[[NDArray[np.int64]], float], prompts: list[str], *, seed: int) -> Interval:
    """The distance of all clips, plus and minus 1.96 standard deviations over resampled prompts.

    Not the percentiles: a resample repeats clips, which widens every distance, so that the value could lie below them.
    """
    names = list(dict.fromkeys(prompts))
    groups = {name: [i for i, prompt in enumerate(prompts) if prompt == name] for name in names}
    value = distance(np.arange(len(prompts)))
    if len(names) < 2:
        return Interval(value, math.nan, math.nan, len(names))
    drawn = statistics.resample(len(names), draws=DRAWS, seed=seed)
    values = [distance(np.array([i for k in draw for i in groups[names[k]]])) for draw in drawn]
    spread = 1.96 * float(np.std(values))
    return Interval(value, value - spread, value + spread, len(names))
