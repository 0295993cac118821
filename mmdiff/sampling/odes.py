"""One-step samplers of the ODE dx = x0 da + noise ds, which is that of every process, and the way back to noise."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from mmdiff.process import Denoise, Process
from mmdiff.sampling.moments import Moment, Report, gone, like, moments, share, tell, time


def euler(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """First order: keep x0 and noise, change their shares. This is DDIM with eta = 0 (Song et al. 2020, eq. 12)."""
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        x = share(x, denoise(x, time(now, x)), now, then)
        tell(report, i, len(times) - 1)
    return x


def heun(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """Second order: trapezoids of x0 da + noise ds (Karras et al. 2022, alg. 1), two evaluations a step.

    A step that ends at s = 0 has one and is first order: its end holds no noise to be read.
    """
    for i, (now, then) in enumerate(pairwise(moments(process, times))):
        x = heun_step(denoise, x, now, then)
        tell(report, i, len(times) - 1)
    return x


def heun_step(denoise: Denoise, x: Tensor, now: Moment, then: Moment) -> Tensor:
    """From one moment to another."""
    x0 = denoise(x, time(now, x))
    guess = share(x, x0, now, then)
    return guess if gone(then[2]) else _trapezoid(x, x0, guess, denoise(guess, time(then, x)), now, then)


def invert(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """DDIM inversion (Song et al. 2020, section 4.3): `euler` walked backwards, from data x to the noise it came from.

    `times` are those of the sampling, from 1 to 0. Data hold no noise to be read, so that the first step reads it as if
    they stood at its end.
    """
    path = list(pairwise(moments(process, times.flip(0))))
    for i, (now, then) in enumerate(path):
        x = _first(denoise, x, then) if gone(now[2]) else share(x, denoise(x, time(now, x)), now, then)
        tell(report, i, len(path))
    return x


def _first(denoise: Denoise, x: Tensor, then: Moment) -> Tensor:
    """a' x, and the noise that the denoiser sees if x stands at `then` already."""
    a = like(then[1], x)
    return a * x + (x - a * denoise(x, time(then, x)))


def _trapezoid(x: Tensor, x0: Tensor, guess: Tensor, x0_then: Tensor, now: Moment, then: Moment) -> Tensor:
    """x + mean(x0) (a' - a) + mean(noise) (s' - s)."""
    (a, s), (a_then, s_then) = ((like(c, x) for c in moment[1:]) for moment in (now, then))
    noise, noise_then = (x - a * x0) / s, (guess - a_then * x0_then) / s_then
    return x + (a_then - a) / 2 * (x0 + x0_then) + (s_then - s) / 2 * (noise + noise_then)
