"""Samplers: plain functions that walk a denoiser from noise to data, and the grids of times they walk on.

A state is x = a x0 + s noise, so one evaluation of the denoiser gives both parts, and the ODE of every process is
dx = x0 da + noise ds: no sampler knows which process it serves. The caller draws the first state (`start`) and decides
about gradients. Coefficients are Python floats made before the loop, so that no step waits for the device; where the
process gives every entry of a sample a row of its own (coupling.py), they are tensors of a sample's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mmdiff.process import EDM, Denoise, Process
from mmdiff.process import shift as _shift

Number = float | Tensor  # one for all entries, or float64 of a sample's shape
Moment = tuple[float, Number, Number]  # (t, a, s)
Report = Callable[[int, int], None]  # (steps done, steps in all), called after every step

# ---- grids: n steps are n + 1 times from exactly 1 to exactly 0, in float64 ----------------------------------------


def uniform(n: int) -> Tensor:
    """Equal steps of t -> (n + 1,)."""
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


def shifted(n: int, *, shift: float) -> Tensor:
    """Equal steps, shifted: above 1 most of them are spent at high noise (Esser et al. 2024, eq. 23) -> (n + 1,)."""
    return _shift(uniform(n), shift)


def karras(n: int, *, process: EDM, sigma_min: float = 0.002) -> Tensor:
    """Equal steps of sigma^(1 / rho) from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5) -> (n + 1,)."""
    floor = (sigma_min / process.sigma_max) ** (1 / process.rho)
    return torch.cat([torch.linspace(1, floor, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


# ---- samplers: (denoise, x, *, process, times) -> x at the last time -----------------------------------------------


def start(noise: Tensor, *, process: Process, times: Tensor) -> Tensor:
    """The state at the first time when nothing is known of x0: s noise, of noise's shape."""
    return noise * _like(_moments(process, times)[0][2], noise)


def euler(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """First order: keep x0 and noise, change their shares. This is DDIM with eta = 0 (Song et al. 2020, eq. 12)."""
    moments = _moments(process, times)
    for i, (now, then) in enumerate(pairwise(moments)):
        x = _share(x, denoise(x, _time(now, x)), now, then)
        _tell(report, i, moments)
    return x


def heun(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """Second order: trapezoids of x0 da + noise ds (Karras et al. 2022, alg. 1), two evaluations a step.

    A step that ends at s = 0 has one and is first order: its end holds no noise to be read.
    """
    moments = _moments(process, times)
    for i, (now, then) in enumerate(pairwise(moments)):
        x0 = denoise(x, _time(now, x))
        guess = _share(x, x0, now, then)
        x = guess if _gone(then[2]) else _trapezoid(x, x0, guess, denoise(guess, _time(then, x)), now, then)
        _tell(report, i, moments)
    return x


def ancestral(
    denoise: Denoise,
    x: Tensor,
    *,
    process: Process,
    times: Tensor,
    noise: Callable[[int], Tensor],
    eta: float = 1.0,
    report: Report | None = None,
) -> Tensor:
    """DDIM with any eta in [0, 1] (Song et al. 2020, eq. 16): 1 draws from DDPM's posterior, 0 is `euler`.

    `noise(i)` is the fresh noise of step i, like x; it is not asked for where none is needed.
    """
    moments = _moments(process, times)
    for i, (now, then) in enumerate(pairwise(moments)):
        fresh = eta * posterior_std(now, then)
        kept = _root(then[2] ** 2 - fresh**2)
        x = _share(x, denoise(x, _time(now, x)), now, (then[0], then[1], kept))
        x = x if _gone(fresh) else x + _like(fresh, x) * noise(i)
        _tell(report, i, moments)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, *, process: Process, times: Tensor, report: Report | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): second order with one evaluation a step.

    x0 is extrapolated linearly in log(a / s) to the middle of the step; where either end of this step or of the one
    before is infinitely far (a = 0 or s = 0) there is nothing to extrapolate along, and the step is `euler`'s.
    """
    moments = _moments(process, times)
    previous: Tensor | None = None
    for i, (now, then) in enumerate(pairwise(moments)):
        x0 = denoise(x, _time(now, x))
        weight = _extrapolation(moments[i - 1], now, then) if i > 0 else 0.0
        middle = x0 if previous is None or _gone(weight) else x0 + _like(weight, x) * (x0 - previous)
        x, previous = _share(x, middle, now, then), x0
        _tell(report, i, moments)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "ancestral": ancestral,
    "dpmpp_2m": dpmpp_2m,
}

# ---- formulas ------------------------------------------------------------------------------------------------------


def posterior_std(now: Moment, then: Moment) -> Number:
    """Standard deviation of the less noisy state `then` given `now` and x0: DDPM's beta-tilde, for any process."""
    (_, a, s), (_, a_then, s_then) = now, then
    return s_then * _root(1 - (a * s_then / (a_then * s)) ** 2)


def _share(x: Tensor, x0: Tensor, now: Moment, then: Moment) -> Tensor:
    """x = a x0 + s noise -> a' x0 + s' noise; exactly x0 at (1, 0)."""
    (_, a, s), (_, a_then, s_then) = now, then
    return _like(s_then / s, x) * x + _like(a_then - a * s_then / s, x) * x0


def _trapezoid(x: Tensor, x0: Tensor, guess: Tensor, x0_then: Tensor, now: Moment, then: Moment) -> Tensor:
    """x + mean(x0) (a' - a) + mean(noise) (s' - s)."""
    (a, s), (a_then, s_then) = ([_like(c, x) for c in moment[1:]] for moment in (now, then))
    noise, noise_then = (x - a * x0) / s, (guess - a_then * x0_then) / s_then
    return x + (a_then - a) / 2 * (x0 + x0_then) + (s_then - s) / 2 * (noise + noise_then)


def _extrapolation(before: Moment, now: Moment, then: Moment) -> Number:
    """Half the ratio of this step to the one before, both measured in log(a / s); 0 if either is infinite."""
    if _gone(before[1]) or _gone(then[2]):
        return 0.0
    lambdas = [_log(a / s) for _, a, s in (before, now, then)]
    return (lambdas[2] - lambdas[1]) / (lambdas[1] - lambdas[0]) / 2


def _moments(process: Process, times: Tensor) -> list[Moment]:
    times = times.double().cpu()
    a, s = process(times)
    if a.ndim == 1:
        return list(zip(times.tolist(), a.tolist(), s.tolist(), strict=True))
    return list(zip(times.tolist(), a.unbind(), s.unbind(), strict=True))


def _time(moment: Moment, x: Tensor) -> Tensor:
    """The moment's t for every sample -> (b,), float32 or better, on x's device."""
    return torch.full((len(x),), moment[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def _like(number: Number, x: Tensor) -> Number:
    """A coefficient that multiplies x without changing its precision."""
    return number.to(x) if isinstance(number, Tensor) else number


def _gone(number: Number) -> bool:
    """Whether a coefficient is zero; all entries of a sample begin and end together."""
    return bool((number == 0).all()) if isinstance(number, Tensor) else number == 0


def _root(number: Number) -> Number:
    return number.clamp(min=0).sqrt() if isinstance(number, Tensor) else math.sqrt(max(number, 0.0))


def _log(number: Number) -> Number:
    return number.log() if isinstance(number, Tensor) else math.log(number)


def _tell(report: Report | None, i: int, moments: list[Moment]) -> None:
    if report is not None:
        report(i + 1, len(moments) - 1)
