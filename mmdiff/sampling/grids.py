"""Grids of sampling times: n steps are n + 1 times from exactly 1, or `first`, to exactly 0, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.process import EDM
from mmdiff.process import shift as _shift


def uniform(n: int, *, first: float = 1.0) -> Tensor:
    """Equal steps of t -> (n + 1,). A network of target eps cannot start where a = 0: give it a `first` below 1."""
    return torch.linspace(first, 0, n + 1, dtype=torch.float64)


def shifted(n: int, *, shift: float, first: float = 1.0) -> Tensor:
    """Equal steps, shifted: above 1 most of them are spent at high noise (Esser et al. 2024, eq. 23) -> (n + 1,)."""
    return _shift(uniform(n, first=first), shift)


def karras(n: int, *, process: EDM, sigma_min: float = 0.002) -> Tensor:
    """Equal steps of sigma^(1 / rho) from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5) -> (n + 1,)."""
    floor = (sigma_min / process.sigma_max) ** (1 / process.rho)
    return torch.cat([torch.linspace(1, floor, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
