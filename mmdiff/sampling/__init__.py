"""Samplers: plain functions that walk a denoiser from noise to data, and the grids of times they walk on.

A state is x = a x0 + s noise, so one evaluation of the denoiser gives both parts, and the ODE of every process is
dx = x0 da + noise ds: no sampler knows which process it serves. The caller draws the first state (`start`) and decides
about gradients. Every sampler is (denoise, x, *, process, times, report) -> x at the last time; those that draw also
take `noise`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdiff.process import Process
from mmdiff.sampling.grids import karras, shifted, uniform
from mmdiff.sampling.moments import Moment, Report, posterior_std, start
from mmdiff.sampling.multistep import dpmpp_2m, dpmpp_3m, unipc
from mmdiff.sampling.odes import euler, heun, invert
from mmdiff.sampling.stochastic import ancestral, churn, dpmpp_2m_sde, restart

__all__ = [
    "SAMPLERS",
    "Moment",
    "Report",
    "Sampler",
    "ancestral",
    "calls",
    "churn",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "draws",
    "euler",
    "heun",
    "invert",
    "karras",
    "posterior_std",
    "restart",
    "shifted",
    "start",
    "uniform",
    "unipc",
]

Sampler = Callable[..., Tensor]

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "ancestral": ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "churn": churn,
    "restart": restart,
}


def draws(sampler: Sampler) -> bool:
    """Whether a sampler takes fresh noise."""
    return "noise" in inspect.signature(sampler).parameters


def calls(sampler: Sampler, *, process: Process, times: Tensor) -> int:
    """How often a sampler asks the denoiser on this grid: it is walked once with one that answers zero."""
    asked = 0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return torch.zeros_like(x)

    x = torch.zeros(1, 1)
    more: dict[str, Any] = {"noise": lambda i: x} if draws(sampler) else {}
    sampler(denoise, x, process=process, times=times, **more)
    return asked
