"""Embeddings of the noise level, and the patches of a grid."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def sinusoid(t: Tensor, width: int, *, scale: float = 1000.0) -> Tensor:
    """t (...) in [0, 1] -> (... width), order [cos, sin], periods as in DiT (`flip_sin_to_cos`, no frequency shift)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = (scale * t.float())[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimeEmbedding(nn.Module):
    """Sinusoid of so many `features`, then two layers: t (...) -> (... d)."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.waves(t).to(next(self.parameters()).dtype))

    def waves(self, t: Tensor) -> Tensor:
        """t (...) -> (... features)"""
        return sinusoid(t, self.mlp[0].in_features)  # type: ignore[arg-type]


class FourierEmbedding(TimeEmbedding):
    """The same with random frequencies of log t, drawn from N(0, 16^2) and kept (Song et al. 2021, appendix C).

    log t is that of 1e-4 for every smaller t, so that clean entries have an embedding too.
    """

    rates: Tensor  # (features / 2)

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__(width, features)
        self.register_buffer("rates", nn.init.normal_(torch.empty(features // 2), std=16.0))

    def waves(self, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t.float().clamp(min=1e-4).log()[..., None] * self.rates
        return torch.cat([angles.cos(), angles.sin()], -1)


def patchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(b c t h w) -> (b t' h' w' (pt ph pw c))"""
    pt, ph, pw = patch
    return rearrange(x, "b c (t pt) (h ph) (w pw) -> b t h w (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(b t' h' w' (pt ph pw c)) -> (b c t h w)"""
    pt, ph, pw = patch
    return rearrange(x, "b t h w (pt ph pw c) -> b c (t pt) (h ph) (w pw)", pt=pt, ph=ph, pw=pw)
