"""Convolutions on the space-time grid (b c t h w): one family for pictures, clips and sound.

A picture is a clip of one frame and a wave is a clip of one pixel, so kernels [1, 3, 3], [3, 3, 3] and [3, 1, 1] make
the 2-D, the 3-D and the 1-D network out of the same blocks. Time may be causal: then nothing looks ahead, and a layer
needs only its last few inputs to go on, which it keeps in a `Past` that the caller carries from one chunk of a long
clip to the next (Yu et al. 2024, MAGVIT-v2, section 3; the first frame stands alone, so that pictures are clips too).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.layers.attention import attention, heads_of, merge_heads

Size = tuple[int, int, int]  # of time, rows, columns
Past = dict[nn.Module, Tensor]  # what each causal layer still needs of the frames before; empty before the first


def lead(first: int, stride: int) -> int:
    """Of `first` frames that come before the even rest, how many one step of a causal stride begins with."""
    return (first - 1) % stride + 1


class Conv(nn.Module):
    """(b c t h w) -> (b out t' h' w'), each length divided by its stride.

    An axis is padded with kernel - stride zeros, the odd one behind (the asymmetric padding of the KL autoencoders).
    `first` > 0 makes time causal: the frames before the clip are copies of its first one, and the first output sees
    no further than the first `lead(first, stride)` frames; 0 pads time as space. A `past` holds the frames before.
    """

    def __init__(
        self, channels: int, out: int, *, kernel: Sequence[int], stride: Sequence[int] = (1, 1, 1), first: int = 0
    ) -> None:
        super().__init__()
        conv = nn.Conv3d(channels, out, tuple(kernel), tuple(stride))  # type: ignore[arg-type]
        self.weight, self.stride, self.first = conv.weight, tuple(stride), first
        self.bias: nn.Parameter = conv.bias  # type: ignore[assignment]
        pads = [((k - s) // 2, k - s - (k - s) // 2) for k, s in zip(kernel, stride, strict=True)]
        if first:
            pads[0] = (kernel[0] - lead(first, stride[0]), 0)
        self.before = pads[0][0]
        self.around = [n for pad in reversed(pads) for n in pad]  # in the order of F.pad

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.first:
            x = self._joined(x, past)
            return F.conv3d(F.pad(x, self.around[:4]), self.weight, self.bias, self.stride)
        return F.conv3d(F.pad(x, self.around), self.weight, self.bias, self.stride)

    def _joined(self, x: Tensor, past: Past | None) -> Tensor:
        """The clip behind the frames before it; what the next chunk will need goes into the past."""
        if past is not None and self in past:
            x = torch.cat([past[self], x], 2)
        elif self.before > 0:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.before, -1, -1), x], 2)
        if past is not None:
            steps = (x.shape[2] - self.weight.shape[2]) // self.stride[0] + 1
            past[self] = x[:, :, steps * self.stride[0] :]
        return x


class Upsample(nn.Module):
    """Repeat every entry `stride` times along each axis, then convolve; the opposite of a `Conv` with that stride."""

    def __init__(self, channels: int, *, kernel: Sequence[int], stride: Sequence[int], first: int = 0) -> None:
        super().__init__()
        self.stride, self.skipped = tuple(stride), stride[0] - lead(first, stride[0]) if first else 0
        self.conv = Conv(channels, channels, kernel=kernel, first=first)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        begins = past is None or self.conv not in past
        for axis, n in enumerate(self.stride, 2):
            x = x.repeat_interleave(n, axis) if n > 1 else x  # (b c t*n h w), then h, then w
        return self.conv(x[:, :, self.skipped :] if begins else x, past)


class FrameNorm(nn.GroupNorm):
    """Group normalisation of each frame by itself: statistics never look along time."""

    def __init__(self, channels: int, *, groups: int, eps: float = 1e-6) -> None:
        super().__init__(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = super().forward(x.transpose(1, 2).reshape(b * t, c, h, w))  # (b*t c h w)
        return y.unflatten(0, (b, t)).transpose(1, 2)


class PointNorm(nn.Module):
    """RMS normalisation over the channels of each point by itself: it looks along neither time nor space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x.dtype)
        return x * scale * self.weight.to(x.dtype)[:, None, None, None]


def norm(channels: int, groups: int) -> nn.Module:
    """`FrameNorm` of so many groups; of none, `PointNorm`."""
    return FrameNorm(channels, groups=groups) if groups else PointNorm(channels)


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside a skip that is a 1x1x1 convolution where the width changes."""

    def __init__(self, channels: int, out: int, *, kernel: Sequence[int], groups: int, first: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels, groups), norm(out, groups)
        self.conv1 = Conv(channels, out, kernel=kernel, first=first)
        self.conv2 = Conv(out, out, kernel=kernel, first=first)
        self.skip = Conv(channels, out, kernel=(1, 1, 1)) if channels != out else nn.Identity()

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), past)
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)), past)


class FrameAttention(nn.Module):
    """Self-attention between the points of each frame, beside a skip."""

    def __init__(self, channels: int, *, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm(channels, groups)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        b, _, t, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(b * t, h * w, -1)  # (b*t n c)
        q, k, v = (heads_of(z, self.heads) for z in self.qkv(tokens).chunk(3, -1))
        y = self.out(merge_heads(attention(q, k, v)))  # (b*t n c)
        return x + y.reshape(b, t, h, w, -1).permute(0, 4, 1, 2, 3)
