"""The variational bound on the likelihood (Ho et al. 2020, eq. 5), for any process: steps back, their variances, bits.

The one idea: a step back from t to t - 1 / steps has two natural variances, the posterior's when x0 is known and that
of data of unit variance, which for a variance-preserving process is beta; a network only says where between them, in
log, the truth lies (Nichol and Dhariwal 2021, eq. 15).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.process import Process, widen

BITS = math.log(2)  # nats in a bit
Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]  # (x, t) -> x0-hat, the network's second half


@dataclass(frozen=True)
class Back:
    """A step back from x: mean = kept x + share x0, with bounds on the variance; everything broadcasts against x."""

    share: Tensor  # how much the mean moves with x0
    posterior: Tensor  # variance if x0 is known; 0 for the step that ends in the data
    low: Tensor  # the same, and the second step's for the last, whose log would be infinite
    high: Tensor  # variance for data of unit variance


def step_back(process: Process, t: Tensor, steps: int) -> Back:
    """The step from t to t - 1 / steps, or to 0 where t is less."""
    t = t.double()
    share, posterior, high = _step(process, t, (t - 1 / steps).clamp(min=0))
    second = torch.full_like(t, 2 / steps).clamp(max=1)
    low = torch.where(posterior > 0, posterior, _step(process, second, second / 2)[1])
    return Back(share, posterior, torch.minimum(low, high), high)


def _step(process: Process, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (a, s), (a_then, s_then) = process(now), process(then)
    forgotten = a * s_then / (a_then * s)  # of the noise, by the step back
    share = a_then - a * s_then * forgotten / s
    posterior = s_then**2 * (1 - forgotten**2).clamp(min=0)
    return share, posterior, posterior + share**2 * s**2 / (a**2 + s**2)


def variance(back: Back, where: Tensor) -> Tensor:
    """The variance at -1 (low) to 1 (high), geometrically between."""
    high = (where + 1) / 2
    return (high * back.high.log() + (1 - high) * back.low.log()).exp()


def kl(x0: Tensor, x0_hat: Tensor, back: Back, var: Tensor) -> Tensor:
    """Nats at every entry: KL(q(step | x, x0) || p(step | x)), or -log p(x0 | x) for the step that ends in the data."""
    distance = (back.share * (x0 - x0_hat)).square()
    inner = back.posterior > 0
    ratio = torch.where(inner, back.posterior, 1.0) / var
    divergence = (ratio - 1 - ratio.log() + distance / var) / 2
    return torch.where(inner, divergence, ((2 * math.pi * var).log() + distance / var) / 2).to(x0.dtype)


def prior(x0: Tensor, process: Process) -> Tensor:
    """Nats at every entry: KL of the last state from N(0, s^2), s being the last noise."""
    a, s = process(torch.ones((), dtype=torch.float64))
    return ((a / s * x0).square() / 2).to(x0.dtype)


def discretised(x0: Tensor, mean: Tensor, var: Tensor, *, levels: int) -> Tensor:
    """-log of the mass of N(mean, var) in the bin of x0, of `levels` equal ones in [-1, 1], the outer ones open.

    Ho et al. 2020, eq. 13: the last step's term for pictures of 8 bits.
    """
    half, std = 1 / (levels - 1), var.sqrt()
    above = torch.special.ndtr((x0 - mean + half) / std)
    below = torch.special.ndtr((x0 - mean - half) / std)
    above = torch.where(x0 > 1 - half, 1.0, above)
    below = torch.where(x0 < -1 + half, 0.0, below)
    return -(above - below).clamp(min=1e-12).log()


def bits_per_dim(
    predict: Predict,
    x0: Tensor,
    *,
    process: Process,
    steps: int,
    noise: Callable[[int], Tensor],
    levels: int | None = None,
) -> dict[str, Tensor]:
    """The bound in bits per entry, of each sample (b,): "prior", "steps", "data" and their sum "total".

    x0 (b c ...); noise(k) is like it, fresh for step k. `levels` None takes the data as continuous, so that bits may be
    negative; 256 takes them as 8-bit pictures in [-1, 1]. A network without a second half has the higher variance.
    """
    terms = {"prior": prior(x0, process), "steps": torch.zeros_like(x0), "data": torch.zeros_like(x0)}
    for k in range(steps, 0, -1):
        t = widen(torch.full((len(x0),), k / steps, dtype=torch.float64, device=x0.device), x0)
        a, s = (row.to(x0.dtype) for row in process(t))
        x = a * x0 + s * noise(k)
        x0_hat, where = predict(x, t.flatten().to(torch.promote_types(x0.dtype, torch.float32)))
        back = step_back(process, t, steps)
        var = variance(back, torch.ones_like(x0) if where is None else where)
        last = discretised(x0, x0_hat, var, levels=levels or 2).to(x0.dtype) if levels and k == 1 else None
        terms["data" if k == 1 else "steps"] += kl(x0, x0_hat, back, var) if last is None else last
    bits = {name: value.flatten(1).mean(1) / BITS for name, value in terms.items()}
    return bits | {"total": bits["prior"] + bits["steps"] + bits["data"]}
