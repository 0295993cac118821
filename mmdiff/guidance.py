"""Guidance: functions from denoisers to a denoiser, so that samplers never hear of conditions.

Everything acts on x0-hat. For a fixed x and t, x0, noise, score and v are affine in one another, so that
`no + scale (yes - no)` says the same in each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.process import Denoise, widen


def cfg(
    yes: Denoise, no: Denoise, *, scale: float, rescale: float = 0.0, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoise:
    """no + scale (yes - no): classifier-free guidance (Ho and Salimans 2022); scale 1 is off and never calls `no`.

    With a weaker model as `no` this is autoguidance (Karras et al. 2024). `interval` bounds the t at which it acts,
    both ends included; elsewhere `yes` stands alone (Kynkaanniemi et al. 2024; costs one wait for the device a step).
    `rescale` in [0, 1] brings each sample's standard deviation back to that of `yes` (Lin et al. 2023, eq. 15-16).
    """
    if scale == 1:
        return yes

    def guided(x: Tensor, t: Tensor) -> Tensor:
        with_condition = yes(x, t)
        if tuple(interval) == (0, 1):
            return _restore(with_condition, no(x, t), scale, rescale)
        inside = (t >= interval[0]) & (t <= interval[1])
        if not inside.any():
            return with_condition
        return torch.where(widen(inside, x), _restore(with_condition, no(x, t), scale, rescale), with_condition)

    return guided


def _restore(yes: Tensor, no: Tensor, scale: float, rescale: float) -> Tensor:
    strong = no + scale * (yes - no)
    if rescale == 0:
        return strong
    ratio = yes.flatten(1).std(1) / strong.flatten(1).std(1)  # b
    return strong * widen(rescale * ratio + 1 - rescale, strong)


def given(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Hold x0 at `known` where `mask` (bool; both broadcast against x): those entries enter clean, at their own t = 0.

    The denoiser then gets a time for every entry, of x's shape. One wrapper is image-to-video, extension,
    interpolation, inpainting, and sound from picture or picture from sound. Its fills are unbiased only if the training
    drew such mixed times too.
    """

    def held(x: Tensor, t: Tensor) -> Tensor:
        t = torch.where(mask, 0.0, widen(t, x)).expand_as(x)
        return torch.where(mask, known, denoise(torch.where(mask, known, x), t))

    return held
