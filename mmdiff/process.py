"""Noise processes and prediction targets: the conventions of the whole house, and its one 2x2 system.

`x0` is data, `noise` ~ N(0, I), `t` in [0, 1] with t=0 data and t=1 noise, and `x = a(t) x0 + s(t) noise`. A process is
the row (a, s) with `process(0) == (1, 0)` exactly; a target is the row (p, q): the network predicts
`y = p x0 + q noise`. One inversion serves every pair of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

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


# ---- targets -------------------------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[Tensor, Tensor], Row]] = {
    "x0": lambda a, s: (torch.ones_like(a), torch.zeros_like(a)),
    "eps": lambda a, s: (torch.zeros_like(a), torch.ones_like(a)),
    "flow": lambda a, s: (-torch.ones_like(a), torch.ones_like(a)),
    "v": lambda a, s: (-s / torch.hypot(a, s), a / torch.hypot(a, s)),
}


def mix(x0: Tensor, noise: Tensor, row: Row) -> Tensor:
    """row[0] x0 + row[1] noise: the noisy x for a process row, the regression target for a target row."""
    return row[0] * x0 + row[1] * noise


def to_x0(x: Tensor, y: Tensor, process_row: Row, target_row: Row) -> Tensor:
    """Invert {x = a x0 + s noise, y = p x0 + q noise} for x0; where s = 0 the answer is x itself, whatever y says.

    Ill-conditioned for eps as a -> 0, and infinite or nan at a = 0: pure noise and its own estimate say nothing of x0.
    """
    (a, s), (p, q) = process_row, target_row
    clean = s == 0
    return torch.where(clean, x, (q * x - s * y) / torch.where(clean, 1.0, a * q - s * p))


def to_noise(x: Tensor, x0: Tensor, process_row: Row) -> Tensor:
    """The noise that x holds if its clean part is x0; zero where the process has no noise."""
    a, s = process_row
    return torch.where(s == 0, 0.0, (x - a * x0) / torch.where(s == 0, 1.0, s))


def widen(t: Tensor, x: Tensor) -> Tensor:
    """Append axes to t (b,) until it broadcasts against x (b ...); a t of x's rank passes through."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


# ---- draws of t ----------------------------------------------------------------------------------------------------


def shift(t: Tensor, factor: float) -> Tensor:
    """t' = f t / (1 + (f - 1) t): moves times to high noise for f > 1 (Esser et al. 2024, eq. 23).

    Divided through by f, because so 0 and 1 stay exactly where they are.
    """
    return t / (t + (1 - t) / factor)


@dataclass(frozen=True)
class Uniform:
    """Every level of noise equally often."""

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2) (Esser et al. 2024, eq. 19), as the inverse distribution function of u."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Shifted:
    """Another draw, shifted by sqrt(tokens / base): a larger clip needs more noise to hide the same content."""

    draw: Callable[..., Tensor]
    base: int = 256

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        return shift(self.draw(u, tokens=tokens), math.sqrt(tokens / self.base))
