"""Root-mean-square normalisation (Zhang and Sennrich 2019), one function that chooses its implementation by device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """x / rms(x) * weight over the last axis; statistics in float32, the result in x's dtype.

    On a CPU the fused kernel's backward in bf16 is slower than these elementary operations; elsewhere it is faster.
    """
    if x.device.type != "cpu":
        return F.rms_norm(x, x.shape[-1:], weight if weight is None else weight.to(x.dtype), eps)
    norm = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps).to(x.dtype)
    return norm if weight is None else norm * weight.to(x.dtype)


def layer_norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """(x - mean) / std over the last axis (Ba et al. 2016), without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight per channel (initially 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)
