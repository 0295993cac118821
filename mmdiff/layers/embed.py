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
    """Sinusoid, then two layers: t (...) -> (... d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoid(t, 256).to(next(self.parameters()).dtype))


def patchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(b c t h w) -> (b t' h' w' (pt ph pw c))"""
    pt, ph, pw = patch
    return rearrange(x, "b c (t pt) (h ph) (w pw) -> b t h w (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(b t' h' w' (pt ph pw c)) -> (b c t h w)"""
    pt, ph, pw = patch
    return rearrange(x, "b t h w (pt ph pw c) -> b c (t pt) (h ph) (w pw)", pt=pt, ph=ph, pw=pw)
