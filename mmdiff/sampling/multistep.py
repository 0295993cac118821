"""Multistep samplers: one evaluation a step, and the estimates of earlier steps for the order.

The one idea: in lambda = log(a / s) the exact solution is x / s = (x / s)_now + the integral of exp(lambda) x0, so
every method of this family is `euler` with x0 replaced by a mixture of the last few. Where lambda is infinite (a = 0 or
s = 0) there is nothing to extrapolate along, and the mixture is x0 itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mmdiff.errors import UserError
from mmdiff.process import Denoise, Process
from mmdiff.sampling.moments import Moment, Report, inside, like, log_ratio, moments, share, tell, time

Memory = list[tuple[Moment, Tensor]]  # the newest first: where an estimate was made, and the estimate


def dpmpp_2m(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): x0 is extrapolated linearly in lambda to the middle of the step."""
    memory: Memory = []
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        memory = [(now, denoise(x, time(now, x))), *memory[:1]]
        x = share(x, second(memory, then), now, then)
        tell(report, i, len(times) - 1)
    return x


def dpmpp_3m(
    denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, bend: float = 1.0, report: Report | None = None
) -> Tensor:
    """Third order in the same family (Lu et al. 2022, appendix B): the parabola of x0 in lambda.

    `bend` is the share of its quadratic term. Published code has 0.5, with which the order is two (measured).
    """
    memory: Memory = []
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        memory = [(now, denoise(x, time(now, x))), *memory[:2]]
        x = share(x, third(memory, then, bend), now, then)
        tell(report, i, len(times) - 1)
    return x


def unipc(
    denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, order: int = 2, report: Report | None = None
) -> Tensor:
    """UniPC (Zhao et al. 2023) with B(h) = exp(h) - 1: a predictor of any order, and a corrector that costs nothing.

    The evaluation at the end of a step is that of the next one, and corrects the state before it goes on.
    """
    if order < 1:
        raise UserError(f"unipc: order is {order}, but must be 1 or more; 2 with guidance, 3 without.")
    memory: Memory = []
    before = x
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        here = (now, denoise(x, time(now, x)))
        if memory and inside(memory[0][0]):
            x = share(before, unified(memory[:order], now, here[1]), memory[0][0], now)
        memory, before = [here, *memory[: order - 1]], x
        x = share(x, unified(memory, then), now, then)
        tell(report, i, len(times) - 1)
    return x


# ---- mixtures ------------------------------------------------------------------------------------------------------


def known(memory: Memory, then: Moment) -> Memory:
    """The newest estimate, and those before it as far as lambda is finite from there to the end of the step."""
    reach = 0
    while inside(then) and reach < len(memory) and inside(memory[reach][0]):
        reach += 1
    return memory[: max(reach, 1)]


def second(memory: Memory, then: Moment) -> Tensor:
    """x0 in the middle of the step, on the line through the last two."""
    (now, x0), *old = known(memory, then)
    if not old:
        return x0
    h, past = log_ratio(then) - log_ratio(now), log_ratio(now) - log_ratio(old[0][0])
    return x0 + like(h / past / 2, x0) * (x0 - old[0][1])


def third(memory: Memory, then: Moment, bend: float) -> Tensor:
    """The mean of x0 under exp(lambda), on the parabola through the last three."""
    (now, x0), *old = known(memory, then)
    if len(old) < 2:
        return second(memory, then)
    (last, x1), (first, x2) = old
    h = log_ratio(then) - log_ratio(now)
    r0, r1 = (log_ratio(now) - log_ratio(last)) / h, (log_ratio(last) - log_ratio(first)) / h
    slope, older = (x0 - x1) / like(r0, x0), (x1 - x2) / like(r1, x0)
    curve = (slope - older) / like(r0 + r1, x0)  # x0 + (slope + r0 curve) u + curve u^2, u from 0 to 1 in this step
    whole = -torch.expm1(-h)
    linear = 1 - whole / h
    square = bend * (1 - 2 * linear / h)
    return x0 + like(linear / whole, x0) * (slope + like(r0, x0) * curve) + like(square / whole, x0) * curve


def unified(memory: Memory, then: Moment, x0_then: Tensor | None = None) -> Tensor:
    """Zhao et al. 2023, eq. 9, and eq. 3 where the estimate at the end of the step is there already."""
    (now, x0), *old = known(memory, then)
    if not inside(then) or not inside(now):
        return x0
    h = log_ratio(then) - log_ratio(now)
    ratios = [(log_ratio(moment) - log_ratio(now)) / h for moment, _ in old]
    changes = [(past - x0) / like(r, x0) for r, (_, past) in zip(ratios, old, strict=True)]
    if x0_then is not None:
        ratios, changes = [*ratios, torch.ones_like(h)], [*changes, x0_then - x0]
    mixture = x0
    for share_of, change in zip(_shares(ratios, h), changes, strict=True):
        mixture = mixture + like(share_of, x0) * change
    return mixture


def _shares(ratios: Sequence[Tensor], h: Tensor) -> Sequence[Tensor]:
    """Solve sum_k rho_k r_k^i = i-th moment of the step, i < p; one unknown has the paper's 1/2 in its place."""
    if len(ratios) < 2:
        return [torch.full_like(h, 0.5) for _ in ratios]
    powers = torch.stack([torch.stack([r**i for r in ratios], -1) for i in range(len(ratios))], -2)
    whole, phi, sides = torch.expm1(-h), torch.expm1(-h), []
    for i in range(1, len(ratios) + 1):
        phi = -phi / h - 1 / math.factorial(i)
        sides.append(phi * math.factorial(i) / whole)
    return torch.linalg.solve(powers, torch.stack(sides, -1)[..., None])[..., 0].unbind(-1)
