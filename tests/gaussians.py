"""What both tests of samplers measure against: Gaussian data, whose denoiser and whose ODE are known exactly."""

from __future__ import annotations

import pytest
from torch import Tensor

from mmdiff import noise
from mmdiff.process import DDPM, EDM, Cosine, Denoise, Linear, Process, ScaledLinear, widen

PROCESSES = [Linear(), Cosine(), DDPM(), ScaledLinear(), EDM()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
MEAN, STD = 0.4, 0.6  # of the Gaussian data


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise.normal(shape, keys=[noise.key(seed)])[0].double()


def fresh(i: int) -> Tensor:
    return normal(64, 3, seed=1000 + i)


def gaussian(process: Process) -> Denoise:
    """E[x0 | x] for x0 ~ N(MEAN, STD^2)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = process(widen(t, x))
        return MEAN + STD**2 * a / (a**2 * STD**2 + s**2) * (x - a * MEAN)

    return denoise


def transported(x: Tensor, process: Process, times: Tensor) -> Tensor:
    """Where the exact ODE takes x from the first time to the last: every quantile of a Gaussian stays a quantile."""
    a, s = (row[[0, -1]] for row in process(times))
    std = (a**2 * STD**2 + s**2).sqrt()
    return a[1] * MEAN + std[1] * (x - a[0] * MEAN) / std[0]
