"""Samplers that draw fresh noise on the way: it heals errors of earlier steps, at the price of more steps.

`noise(i)` is the i-th fresh noise, like x; it is not asked for where none is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mmdiff.errors import UserError
from mmdiff.process import Denoise, Process, Row, time_of
from mmdiff.sampling.moments import (
    Moment,
    Report,
    gone,
    inside,
    like,
    moments,
    noisier,
    posterior_std,
    share,
    stochastic,
    tell,
    time,
)
from mmdiff.sampling.multistep import Memory, second
from mmdiff.sampling.odes import heun_step

Fresh = Callable[[int], Tensor]


def ancestral(
    denoise: Denoise,
    x: Tensor,
    *,
    process: Process,
    times: Tensor,
    noise: Fresh,
    eta: float = 1.0,
    report: Report | None = None,
) -> Tensor:
    """DDIM with any eta in [0, 1] (Song et al. 2020, eq. 16): 1 draws from DDPM's posterior, 0 is `euler`."""
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        fresh = eta * posterior_std(now, then)
        x = share(x, denoise(x, time(now, x)), now, stochastic(now, then, fresh))
        x = x if gone(fresh) else x + like(fresh, x) * noise(i)
        tell(report, i, len(times) - 1)
    return x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    *,
    process: Process,
    times: Tensor,
    noise: Fresh,
    eta: float = 1.0,
    report: Report | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, eq. 19): `ancestral` with the extrapolated x0 of `dpmpp_2m`.

    The noise that is kept shrinks by (s' / s)^eta more than the ODE says; eta = 0 is `dpmpp_2m`.
    """
    memory: Memory = []
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        (_, a, s), (_, a_then, s_then) = now, then
        kept = s_then * (a * s_then / (a_then * s)) ** eta
        fresh = (s_then**2 - kept**2).clamp(min=0).sqrt()
        memory = [(now, denoise(x, time(now, x))), *memory[:1]]
        x = share(x, second(memory, then), now, (then[0], a_then, kept))
        x = x if gone(fresh) else x + like(fresh, x) * noise(i)
        tell(report, i, len(times) - 1)
    return x


def churn(
    denoise: Denoise,
    x: Tensor,
    *,
    process: Process,
    times: Tensor,
    noise: Fresh,
    amount: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    inflate: float = 1.0,
    report: Report | None = None,
) -> Tensor:
    """EDM's stochastic sampler (Karras et al. 2022, alg. 2): a little back towards noise, then a step of `heun`.

    `amount`, `low`, `high` and `inflate` are their S_churn, S_tmin, S_tmax (of sigma = s / a) and S_noise. It never
    goes back beyond t = 1, where no network was trained.
    """
    path = moments(process, times)
    for i, (now, then) in enumerate(pairwise(path)):
        back = _churned(process, now, amount / (len(path) - 1), low, high)
        if back is not now:
            x = noisier(x, inflate * noise(i), now, back)
        x = heun_step(denoise, x, back, then)
        tell(report, i, len(path) - 1)
    return x


def restart(
    denoise: Denoise,
    x: Tensor,
    *,
    process: Process,
    times: Tensor,
    noise: Fresh,
    low: float = 0.1,
    high: float = 0.4,
    again: int = 2,
    report: Report | None = None,
) -> Tensor:
    """Restart sampling (Xu et al. 2023, alg. 1): `heun`, and the stretch of the grid from t `high` to `low` is walked
    `again` times more, each time after forward noise has brought the state back to its beginning.
    """
    path = moments(process, times)
    legs = _legs(times.tolist(), low, high, again)
    for i, (begin, end) in enumerate(legs):
        if i and legs[i - 1][1] != begin:
            x = noisier(x, noise(i), path[legs[i - 1][1]], path[begin])
        x = heun_step(denoise, x, path[begin], path[end])
        tell(report, i, len(legs))
    return x


def _churned(process: Process, now: Moment, amount: float, low: float, high: float) -> Moment:
    """The noisier moment from which a step starts; `now` itself outside [low, high] and at the end of the process."""
    gamma = min(amount, math.sqrt(2) - 1)
    if not inside(now) or gamma <= 0:
        return now
    at = torch.tensor([now[0]], dtype=torch.float64)
    a, s = _first_entry(process, at)
    if not low <= s / a <= high:
        return now
    back = time_of(lambda t: _first_entry(process, t), (1 + gamma) * s / a)
    return moments(process, back)[0] if back > at else now


def _first_entry(process: Process, t: Tensor) -> Row:
    """The row (k,) of a process, or of the first entry of each sample (k,) where every entry has its own."""
    a, s = (row.reshape(len(t), -1)[:, 0] for row in process(t))
    return a, s


def _legs(times: list[float], low: float, high: float, again: int) -> list[tuple[int, int]]:
    """Steps of the grid by their ends, with the stretch between high and low repeated."""
    steps = list(pairwise(range(len(times))))
    if not 0 < low < high < 1 or again < 0:
        raise UserError(
            f"restart: low {low} and high {high} must lie in order between 0 and 1, and again {again} at 0."
        )
    within = [i for i, t in enumerate(times) if low <= t <= high]
    if len(within) < 2:
        return steps
    first, last = within[0], within[-1]
    return steps[:last] + again * steps[first:last] + steps[last:]
