"""The algebra that all samplers share: a state x = a x0 + s noise, and how it gets from one moment to another.

Coefficients are float64 on the CPU, made before the loop, so that no step waits for the device. They are numbers
(0-dim) unless the process gives every entry of a sample a row of its own (coupling.py): then they have its shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmdiff.process import Process

Moment = tuple[float, Tensor, Tensor]  # (t, a, s)
Report = Callable[[int, int], None]  # (steps done, steps in all), called after every step


def moments(process: Process, times: Tensor) -> list[Moment]:
    """The moments of a grid of times (k,)."""
    times = times.double().cpu()
    a, s = process(times)
    return list(zip(times.tolist(), a.unbind(), s.unbind(), strict=True))


def start(noise: Tensor, *, process: Process, times: Tensor) -> Tensor:
    """The state at the first time when nothing is known of x0: s noise, of noise's shape."""
    return noise * like(moments(process, times)[0][2], noise)


def share(x: Tensor, x0: Tensor, now: Moment, then: Moment) -> Tensor:
    """x = a x0 + s noise -> a' x0 + s' noise; exactly x0 at (1, 0)."""
    (_, a, s), (_, a_then, s_then) = now, then
    return like(s_then / s, x) * x + like(a_then - a * s_then / s, x) * x0


def noisier(x: Tensor, noise: Tensor, now: Moment, then: Moment) -> Tensor:
    """Diffuse x from `now` on to the noisier `then` with fresh noise, like x."""
    (_, a, s), (_, a_then, s_then) = now, then
    return like(a_then / a, x) * x + like(_root(s_then**2 - (a_then / a * s) ** 2), x) * noise


def posterior_std(now: Moment, then: Moment) -> Tensor:
    """Standard deviation of the less noisy state `then` given `now` and x0: DDPM's beta-tilde, for any process."""
    (_, a, s), (_, a_then, s_then) = now, then
    return s_then * _root(1 - (a * s_then / (a_then * s)) ** 2)


def stochastic(now: Moment, then: Moment, fresh: Tensor) -> Moment:
    """`then` without that part of its noise, of standard deviation `fresh`, which is drawn anew."""
    return then[0], then[1], _root(then[2] ** 2 - fresh**2)


def log_ratio(moment: Moment) -> Tensor:
    """lambda = log(a / s), half the log signal-to-noise ratio; infinite where one of them is zero."""
    return (moment[1] / moment[2]).log()


def inside(moment: Moment) -> bool:
    """Whether there are both signal and noise, so that lambda is finite."""
    return not (gone(moment[1]) or gone(moment[2]))


def gone(number: Tensor) -> bool:
    """Whether a coefficient is zero; all entries of a sample begin and end together."""
    return bool((number == 0).all())


def like(number: Tensor, x: Tensor) -> Tensor:
    """A coefficient that multiplies x without changing its precision."""
    return number.to(x) if number.ndim else number


def time(moment: Moment, x: Tensor) -> Tensor:
    """The moment's t for every sample -> (b,), float32 or better, on x's device."""
    return torch.full((len(x),), moment[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def tell(report: Report | None, i: int, n: int) -> None:
    """Step i of n is done."""
    if report is not None:
        report(i + 1, n)


def _root(number: Tensor) -> Tensor:
    return number.clamp(min=0).sqrt()
