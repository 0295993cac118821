"""Draws of training times: uniforms u, which belong to (seed, step, sample id), become t with any density.

The one idea: a draw is an inverse distribution function, so that randomness stays outside. The number of tokens may
move it (a larger clip needs more noise), the batch may spread it, and losses that were seen may steer it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.process.paths import EDM

FINEST = 1 << 12  # steps inside a stratum
ENDS = 1e-7  # no draw is 0 or 1
QUIET = 1e-4  # of what a draw learns in the gradient: Adam does not notice, the clipping of the norm would


def shift(t: Tensor, factor: float) -> Tensor:
    """t' = f t / (1 + (f - 1) t): moves times to high noise for f > 1 (Esser et al. 2024, eq. 23).

    Divided through by f, because so 0 and 1 stay exactly where they are.
    """
    return t / (t + (1 - t) / factor)


class Draw(ABC):
    """u (b,) in (0, 1), tokens -> t (b,). What a draw favours it may pay back: `balance` keeps the loss unbiased."""

    @abstractmethod
    def __call__(self, u: Tensor, *, tokens: int) -> Tensor: ...

    def balance(self, t: Tensor, error: Tensor) -> Tensor:
        """The errors (b,) of clips that were drawn at t (b,), weighed."""
        return error


@dataclass(frozen=True)
class Uniform(Draw):
    """Every level of noise equally often."""

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal(Draw):
    """logit(t) ~ N(mean, std^2) (Esser et al. 2024, eq. 19), as the inverse distribution function of u."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Shifted(Draw):
    """Another draw, shifted by sqrt(tokens / base): a larger clip needs more noise to hide the same content."""

    draw: Draw
    base: int = 256

    def __post_init__(self) -> None:
        _passive(self.draw, "shifted")

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        return shift(self.draw(u, tokens=tokens), math.sqrt(tokens / self.base))


@dataclass(frozen=True)
class LogNormal(Draw):
    """log(sigma) ~ N(mean, std^2) (Karras et al. 2022, table 1), for EDM and SVD; beyond sigma_max it is sigma_max."""

    process: EDM
    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return self.process.time(sigma).clamp(max=1.0)


@dataclass(frozen=True)
class Stratified(Draw):
    """Another draw, of which every b-th part gives one time to a batch of b: less noise in the gradient.

    The times are still a function of the uniforms alone (their order chooses the parts, their last digits the places),
    and each is distributed as before; but clips that share a micro-batch now decide about one another's times, so that
    the number of ranks and of accumulated parts matters to them.
    """

    draw: Draw

    def __post_init__(self) -> None:
        _passive(self.draw, "stratified")

    def __call__(self, u: Tensor, *, tokens: int) -> Tensor:
        part = u.argsort().argsort()
        place = (u.double() * FINEST).frac()
        spread = ((part + place) / len(u)).clamp(ENDS, 1 - ENDS).to(u.dtype)
        return self.draw(spread, tokens=tokens)


class LossAware(nn.Module, Draw):
    """Times in proportion to the root of the mean squared loss there, and losses divided by it (Nichol and Dhariwal
    2021, section 3.3): the same mean with the least variance.

    What it knows is a parameter, the log of the second moment of each of `bins` equal ranges of t, learned beside the
    network: ranks average its gradient like any other, and checkpoints hold it. `floor` is the share of uniform times.
    """

    def __init__(self, *, bins: int = 50, floor: float = 0.1, speed: float = 30.0) -> None:
        super().__init__()
        if bins < 1 or not 0 < floor <= 1:
            raise UserError(f"loss_aware: bins {bins} must be at least 1 and floor {floor} in (0, 1].")
        self.floor, self.speed = floor, speed
        self.level = nn.Parameter(torch.zeros(bins))

    def forward(self, u: Tensor, *, tokens: int) -> Tensor:
        density = self.density().double()
        above = density.cumsum(0) / len(density)
        k = torch.searchsorted(above, u.double()).clamp(max=len(density) - 1)
        t = (k + 1 - (above[k] - u) * len(density) / density[k]) / len(density)
        return t.clamp(ENDS, 1 - ENDS).to(u.dtype)

    def density(self) -> Tensor:
        """Of t in each range, relative to uniform (bins,): its mean is 1."""
        share = (self.speed * self.level.detach() / 2).softmax(0)
        return self.floor + (1 - self.floor) * share * len(share)

    def balance(self, t: Tensor, error: Tensor) -> Tensor:
        k = (t * len(self.level)).long().clamp(0, len(self.level) - 1)
        seen, log = error.detach().nan_to_num(), self.speed * self.level[k]
        fit = QUIET * (seen.square() * (-log).exp() + log)  # least where exp(log) is the mean square of `seen`
        return error / self.density()[k] + (fit - fit.detach())


def _passive(draw: Draw, name: str) -> None:
    if isinstance(draw, LossAware):
        raise UserError(f"{name}: loss_aware has to know the times that are drawn; make it the draw itself.")
