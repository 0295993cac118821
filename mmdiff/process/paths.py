"""Processes: how data turns into noise as t goes from 0 to 1, each a function t -> (a, s) of x = a x0 + s noise.

The one idea: a process is nothing but this row, and `process(0) == (1, 0)` exactly. What papers call schedules, signal
to noise ratios and sigmas are functions of it, so two wrappers change any process: one takes the last signal away, the
other moves all signal-to-noise ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.errors import UserError

Row = tuple[Tensor, Tensor]  # two coefficients: one of x0 and one of noise
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> an estimate of x0, of x's shape; t is (b,) or shaped like x


class Process(Protocol):
    """t (any shape, in [0, 1]) -> (a, s), each of t's shape."""

    def __call__(self, t: Tensor) -> Row: ...


@dataclass(frozen=True)
class Linear:
    """Rectified flow (Liu et al. 2022; Lipman et al. 2022): x = (1 - t) x0 + t noise."""

    def __call__(self, t: Tensor) -> Row:
        return 1 - t, t


@dataclass(frozen=True)
class Cosine:
    """Variance preserving on the quarter circle: a = cos(pi t / 2), s = sin(pi t / 2) (Salimans and Ho 2022)."""

    def __call__(self, t: Tensor) -> Row:
        angle = t * (math.pi / 2)
        return torch.where(t == 1, 0.0, angle.cos()), angle.sin()


@dataclass(frozen=True)
class DDPM:
    """Betas linear in the step (Ho et al. 2020): step k of T is t = (k + 1) / T; log(alpha-bar) is linear between."""

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __call__(self, t: Tensor) -> Row:
        return _from_log_alpha_bar(t, _log_alpha_bar(self.steps, self.first, self.last, 1.0))


@dataclass(frozen=True)
class ScaledLinear:
    """Betas linear in their square root (Rombach et al. 2022); the terminal signal is not zero."""

    steps: int = 1000
    first: float = 0.00085
    last: float = 0.012

    def __call__(self, t: Tensor) -> Row:
        return _from_log_alpha_bar(t, _log_alpha_bar(self.steps, self.first, self.last, 0.5))


@dataclass(frozen=True)
class EDM:
    """Variance exploding (Karras et al. 2022): a = 1, s = sigma_max t^rho, so their grid (eq. 5) is linear in t."""

    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, t: Tensor) -> Row:
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def time(self, sigma: Tensor) -> Tensor:
        """The t at which the noise has standard deviation `sigma`."""
        return (sigma / self.sigma_max) ** (1 / self.rho)


@dataclass(frozen=True)
class SVD(EDM):
    """EDM with the noise of Stable Video Diffusion (Blattmann et al. 2023); its preconditioned network is our v."""

    sigma_max: float = 700.0


@dataclass(frozen=True)
class ZeroTerminal:
    """A variance-preserving process whose signal is moved so that none is left at t = 1 (Lin et al. 2023, alg. 1).

    The paper keeps a of its first step where it is, we keep a(0) = 1: for published schedules the two differ by 4e-5.
    """

    process: Process

    def __post_init__(self) -> None:
        a, s = self.process(torch.tensor([0.5, 1.0], dtype=torch.float64))
        if not torch.allclose(a**2 + s**2, torch.ones_like(a)):
            raise UserError(
                f"zero_terminal: {type(self.process).__name__} does not keep the variance (a^2 + s^2 = 1), so its "
                "signal cannot be moved this way; use it with ddpm or scaled_linear."
            )

    def __call__(self, t: Tensor) -> Row:
        lost = _lost(self.process(t)) / _lost(self.process(torch.ones_like(t)))
        return 1 - lost, (lost * (2 - lost)).sqrt()


@dataclass(frozen=True)
class ShiftedSNR:
    """a / s of another process divided by `factor` at every t, as a variance-preserving process.

    A clip with factor^2 times as many pixels hides its content behind as much noise (Hoogeboom et al. 2023, eq. 3).
    """

    process: Process
    factor: float

    def __call__(self, t: Tensor) -> Row:
        a, s = self.process(t)
        size = torch.hypot(a, self.factor * s)
        return a / size, self.factor * s / size


def time_of(process: Process, ratio: Tensor) -> Tensor:
    """The float64 t in [0, 1] at which s / a is `ratio` (any shape), by bisection; 1 where it is never reached."""
    low, high = torch.zeros_like(ratio, dtype=torch.float64), torch.ones_like(ratio, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        a, s = process(middle)
        below = s < ratio * a
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def _lost(row: Row) -> Tensor:
    """1 - a of a variance-preserving row, without cancellation."""
    a, s = row
    return s**2 / (1 + a)


@cache
def _log_alpha_bar(steps: int, first: float, last: float, power: float) -> Tensor:
    """(steps + 1,) float64 log of the cumulated product of 1 - beta, with 0 in front for t = 0."""
    betas = torch.linspace(first**power, last**power, steps, dtype=torch.float64) ** (1 / power)
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])


def _from_log_alpha_bar(t: Tensor, table: Tensor) -> Row:
    table = table.to(t.device)
    place = t.double() * (len(table) - 1)
    low = place.floor().long().clamp(0, len(table) - 2)
    log_ab = torch.lerp(table[low], table[low + 1], place - low)
    return (log_ab / 2).exp().to(t.dtype), (-torch.expm1(log_ab)).sqrt().to(t.dtype)
