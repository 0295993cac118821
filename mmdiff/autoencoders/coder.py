"""The two halves of a convolutional autoencoder: clip to moments, latent to clip.

Stages of residual blocks, each stage but the last ending in a stride, then a middle with attention inside each frame;
the decoder is the mirror image with one block more a stage (Esser et al. 2021, appendix B; Rombach et al. 2022,
appendix G). `patch` folds pixels into channels at the door, which takes the costliest resolution out of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.layers.conv import Conv, FrameAttention, Past, ResBlock, Size, Upsample, norm


@dataclass(frozen=True)
class Plan:
    """What both halves are built from; `widths` has one entry a stage and `strides` one between two stages.

    kernel: of every 3x3-like convolution, [time, rows, columns]. blocks: residual blocks a stage. heads: of the
    attention in the middle, 0 for none. groups: of the normalisation inside a frame; 0 normalises every point by
    itself. first: frames that the first latent step covers, which makes time causal; 0 treats time as space.
    """

    widths: Sequence[int]
    strides: Sequence[Sequence[int]]
    kernel: Sequence[int] = (1, 3, 3)
    blocks: int = 2
    heads: int = 1
    groups: int = 32
    patch: Sequence[int] = (1, 1, 1)
    first: int = 0

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.widths) - 1:
            raise UserError(f"{len(self.widths)} widths need {len(self.widths) - 1} strides, not {len(self.strides)}.")
        if any(len(triple) != 3 for triple in (self.kernel, self.patch, *self.strides)):
            raise UserError("kernel, patch and each of the strides are three numbers: [time, rows, columns].")
        if any(n % 2 == 0 for n in self.kernel):
            raise UserError(f"kernel is {list(self.kernel)}: its sizes must be odd.")
        if self.first and self.patch[0] > 1:
            raise UserError("A causal autoencoder (first > 0) cannot fold frames: its patch must begin with 1.")

    @property
    def factor(self) -> Size:
        """How many times shorter the latent is along each axis."""
        t, h, w = (math.prod(ns) for ns in zip(self.patch, *self.strides))
        return t, h, w

    @property
    def firsts(self) -> list[int]:
        """`first` as every stage sees it, from the pixels inwards."""
        found = [self.first]
        for stride in self.strides:
            found.append(-(-found[-1] // stride[0]))
        return found

    def wide(self, stride: Sequence[int]) -> Size:
        """The kernel of a strided convolution: no entry may be passed over."""
        t, h, w = (max(k, s + 1) if s > 1 else k for k, s in zip(self.kernel, stride, strict=True))
        return t, h, w

    def middle(self, width: int, first: int) -> list[nn.Module]:
        """Two blocks, attention between them."""
        block = [ResBlock(width, width, kernel=self.kernel, groups=self.groups, first=first) for _ in range(2)]
        seen = [FrameAttention(width, heads=self.heads, groups=self.groups)] if self.heads else []
        return [block[0], *seen, block[1]]


class Chain(nn.Module):
    """Layers one after another, each handed the past."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, past)
        return x


class Encoder(nn.Module):
    """Clips (b channels t h w) -> moments (b out t' h' w')."""

    def __init__(self, channels: int, out: int, plan: Plan) -> None:
        super().__init__()
        firsts, widths = plan.firsts, [plan.widths[0], *plan.widths]
        self.patch = plan.patch
        layers: list[nn.Module] = []
        self.enter = Conv(channels * math.prod(plan.patch), widths[0], kernel=plan.kernel, first=firsts[0])
        for i, (before, width) in enumerate(zip(widths, widths[1:])):
            for k in range(plan.blocks):
                into = width if k else before
                layers.append(ResBlock(into, width, kernel=plan.kernel, groups=plan.groups, first=firsts[i]))
            if i < len(plan.strides):
                stride = plan.strides[i]
                layers.append(Conv(width, width, kernel=plan.wide(stride), stride=stride, first=firsts[i]))
        self.body = Chain([*layers, *plan.middle(widths[-1], firsts[-1])])
        self.norm = norm(widths[-1], plan.groups)
        self.leave = Conv(widths[-1], out, kernel=plan.kernel, first=firsts[-1])

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        pt, ph, pw = self.patch
        x = rearrange(x, "b c (t pt) (h ph) (w pw) -> b (c pt ph pw) t h w", pt=pt, ph=ph, pw=pw)
        h = self.body(self.enter(x, past), past)
        return self.leave(F.silu(self.norm(h)), past)


class Decoder(nn.Module):
    """Latents (b latent t' h' w') -> clips (b channels t h w), not clamped. `leave` is the last layer."""

    def __init__(self, latent: int, channels: int, plan: Plan) -> None:
        super().__init__()
        firsts, widths = plan.firsts[::-1], [plan.widths[-1], *reversed(plan.widths)]
        self.patch = plan.patch
        self.enter = Conv(latent, widths[0], kernel=plan.kernel, first=firsts[0])
        layers: list[nn.Module] = plan.middle(widths[0], firsts[0])
        for i, (before, width) in enumerate(zip(widths, widths[1:])):
            for k in range(plan.blocks + 1):
                into = width if k else before
                layers.append(ResBlock(into, width, kernel=plan.kernel, groups=plan.groups, first=firsts[i]))
            if i < len(plan.strides):
                stride = plan.strides[-1 - i]
                layers.append(Upsample(width, kernel=plan.kernel, stride=stride, first=firsts[i + 1]))
        self.body, self.norm = Chain(layers), norm(widths[-1], plan.groups)
        out = channels * math.prod(plan.patch)
        self.leave = Conv(widths[-1], out, kernel=plan.kernel, first=firsts[-1])

    def forward(self, z: Tensor, past: Past | None = None) -> Tensor:
        pt, ph, pw = self.patch
        h = self.body(self.enter(z, past), past)
        x = self.leave(F.silu(self.norm(h)), past)
        return rearrange(x, "b (c pt ph pw) t h w -> b c (t pt) (h ph) (w pw)", pt=pt, ph=ph, pw=pw)
