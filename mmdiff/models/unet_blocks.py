"""What a space-time U-Net is made of: residual blocks that are told the noise level, attention, and mixed-in time.

Every layer maps a grid (b c t h w) to a grid. A layer for pictures sees frames one by one; `Mixed` sets a layer that
looks along time behind it, with a learned share that begins at 0, so that a clip model begins as the picture model it
was made from (Blattmann et al. 2023). Residual blocks are those of Ho et al. 2020, with the adaptive group
normalisation of Dhariwal and Nichol 2021 as the other way in; transformers are those of Rombach et al. 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.layers.attention import attention, grouped_attention, heads_of, merge_heads
from mmdiff.layers.conv import Conv, FrameNorm
from mmdiff.layers.embed import FourierEmbedding, TimeEmbedding, sinusoid

UNIT = 8.0  # the sinusoid of a frame's place counts eighths of a second
Layer = TypeVar("Layer", bound=nn.Module)


class Told(NamedTuple):
    """What a layer is told beside the grid; t is the grid's length at its level of the network."""

    c: Tensor  # (b t|1 e) noise level and what is said of the clip as a whole
    seconds: Tensor  # (b t) midpoints
    tokens: Tensor | None  # (b l d) text
    mask: Tensor | None  # (b l) True where a token is real

    def coarser(self, stride: int) -> Told:
        """Where `stride` steps in time have become one: the mean of what was said of them."""
        if stride == 1:
            return self
        pooled = lambda z: z if z.shape[1] == 1 else z.unflatten(1, (-1, stride)).mean(2)
        return self._replace(c=pooled(self.c), seconds=pooled(self.seconds))


@dataclass(frozen=True)
class Style:
    """What all rows of a network have in common; see `UNet` for the meaning of the keys."""

    level: int  # width of c
    kernel: Sequence[int]
    groups: int
    inject: str
    attention: str
    pattern: str
    temporal: str
    mix: float
    text_width: int


class Row(nn.Module):
    """A residual block, then attention; with time mixed in behind each of them where the style says so."""

    again = ("forward",)  # worth computing twice to save memory; compiled it would be anew for every width

    def __init__(self, channels: int, out: int, *, heads: int, style: Style) -> None:
        super().__init__()
        self.width, mixed = out, style.temporal == "mixed"
        self.still = ResBlock(channels, out, kernel=style.kernel, style=style)
        self.moving = Mixed(ResBlock(out, out, kernel=(3, 1, 1), style=style), style.mix) if mixed else None
        look: Callable[..., nn.Module] = {"plain": Plain, "transformer": Transformer}[style.attention]
        self.attention = look(out, heads=heads, style=style) if heads else None

    def forward(self, x: Tensor, told: Told) -> Tensor:
        x = self.still(x, told)
        if self.moving is not None:
            x = self.moving(x, told)
        return x if self.attention is None else self.attention(x, told)


class Mixed(nn.Module):
    """x + mix (layer(x) - x): all that a clip model adds to a picture model. Blattmann et al.'s mix is 1 - sigmoid."""

    def __init__(self, layer: nn.Module, mix: float) -> None:
        super().__init__()
        self.layer, self.mix = layer, nn.Parameter(torch.full((1,), mix))

    def forward(self, x: Tensor, told: Told) -> Tensor:
        y = self.layer(x, told)
        return torch.lerp(x, y.to(x.dtype), self.mix.to(x.dtype))


# ---- residual blocks -----------------------------------------------------------------------------------------------


def add(norm: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    """The noise level is added before the second normalisation (Ho et al. 2020)."""
    return norm(h + e)


def scale_shift(norm: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    """It scales and shifts what is normalised: adaptive group normalisation (Dhariwal and Nichol 2021, section 3.1)."""
    scale, shift = e.chunk(2, 1)
    return torch.addcmul(shift, norm(h), 1 + scale)


INJECT: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], int]] = {  # and numbers a channel
    "add": (add, 1),
    "scale_shift": (scale_shift, 2),
}
Inject = Literal["add", "scale_shift"]


class ResBlock(nn.Module):
    """norm, SiLU, convolution, the noise level, norm, SiLU, convolution (zero at first), beside a skip."""

    def __init__(self, channels: int, out: int, *, kernel: Sequence[int], style: Style) -> None:
        super().__init__()
        self.inject, numbers = INJECT[style.inject]
        self.norm1 = normal(channels, style.groups, within_frames=kernel[0] == 1)
        self.norm2 = normal(out, style.groups, within_frames=kernel[0] == 1)
        self.conv1, self.conv2 = Conv(channels, out, kernel=kernel), silent(Conv(out, out, kernel=kernel))
        self.skip = Conv(channels, out, kernel=(1, 1, 1)) if channels != out else nn.Identity()
        self.modulation = nn.Linear(style.level, numbers * out)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.modulation(F.silu(told.c)).transpose(1, 2)[..., None, None]  # (b c t|1 1 1)
        return self.skip(x) + self.conv2(F.silu(self.inject(self.norm2, h, e)))


class Down(Conv):
    """A convolution with a stride and the odd zero before the clip, as U-Nets have it (layers/conv.py: behind)."""

    def __init__(self, channels: int, *, kernel: Sequence[int], stride: Sequence[int]) -> None:
        wide = [max(k, s + 1) if s > 1 else k for k, s in zip(kernel, stride, strict=True)]  # no entry is passed over
        super().__init__(channels, channels, kernel=wide, stride=stride)
        self.around = [n for i in (0, 2, 4) for n in (self.around[i + 1], self.around[i])]


# ---- attention -----------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """norm, self-attention, output (zero at first), beside a skip: the attention of Ho et al. 2020."""

    def __init__(self, width: int, *, heads: int, style: Style) -> None:
        super().__init__()
        self.look = Look(width, heads, style.groups, style.pattern)
        self.moving = None
        if style.temporal == "mixed":
            self.moving = Mixed(Look(width, heads, style.groups, "temporal"), style.mix)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        x = self.look(x, told)
        return x if self.moving is None else self.moving(x, told)


class Look(nn.Module):
    """Such attention in one pattern of layers/attention.py."""

    def __init__(self, width: int, heads: int, groups: int, pattern: str) -> None:
        super().__init__()
        self.norm = normal(width, groups, within_frames=pattern == "spatial")
        self.attention = SelfAttention(width, heads, pattern, bias=True)
        silent(self.attention.out)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        return x + grid(self.attention(tokens(self.norm(x))))


class Transformer(nn.Module):
    """norm, a linear layer, one transformer block, a linear layer (zero at first), beside a skip.

    Where time is mixed in, a second block that looks along it follows inside; it knows when each frame is shown.
    """

    def __init__(self, width: int, *, heads: int, style: Style) -> None:
        super().__init__()
        self.norm = normal(width, style.groups, within_frames=style.pattern == "spatial", eps=1e-6)
        self.enter, self.leave = nn.Linear(width, width), silent(nn.Linear(width, width))
        self.block = Block(width, heads, style.pattern, style.text_width)
        self.moving = (
            Mixed(MovingBlock(width, heads, style.text_width), style.mix) if style.temporal == "mixed" else None
        )

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.block(self.enter(tokens(self.norm(x))), told)  # (b t h w d)
        if self.moving is not None:
            h = self.moving(h, told)
        return x + grid(self.leave(h))


class Block(nn.Module):
    """Self-attention in one pattern, cross-attention to the text, GEGLU, each behind a layer norm: (b t h w d)."""

    def __init__(self, width: int, heads: int, pattern: str, text_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, pattern, bias=False)
        self.text = TextAttention(width, heads, text_width) if text_width else None
        self.feed = GEGLU(width)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        x = x + self.attention(self.norm1(x))
        if self.text is not None:
            x = x + self.text(x, told)
        return x + self.feed(self.norm2(x))


class MovingBlock(nn.Module):
    """A block that looks along time, behind a GEGLU of its own and told the second of each frame."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.place = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.norm, self.feed = nn.LayerNorm(width), GEGLU(width)
        self.block = Block(width, heads, "temporal", text_width)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        place = sinusoid(told.seconds, x.shape[-1], scale=UNIT).to(x.dtype)  # (b t d)
        x = x + self.place(place)[:, :, None, None]
        return self.block(x + self.feed(self.norm(x)), told)


class SelfAttention(nn.Module):
    """Attention of a grid of tokens (b t h w d) to itself, in one pattern."""

    def __init__(self, width: int, heads: int, pattern: str, *, bias: bool) -> None:
        super().__init__()
        self.heads, self.pattern = heads, pattern
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # 3 x (b t h w k e)
        return self.out(grouped_attention(q, k, v, pattern=self.pattern, window=(1, 1, 1)).flatten(-2))


class TextAttention(nn.Module):
    """Cross-attention of (b t h w d) to the text, behind a layer norm; keys and values are made once a clip."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.kv = nn.Linear(text_width, 2 * width, bias=False)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        assert told.tokens is not None  # the network has checked it
        q = heads_of(self.q(self.norm(x)).flatten(1, 3), self.heads)  # (b k n e)
        k, v = (heads_of(z, self.heads) for z in self.kv(told.tokens).chunk(2, -1))  # (b k l e)
        return self.out(merge_heads(attention(q, k, v, mask=told.mask))).view_as(x)


class GEGLU(nn.Module):
    """(x W1 * gelu(x W2)) W3 of ratio 4 (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * F.gelu(gate))


# ---- small things --------------------------------------------------------------------------------------------------


def level_embedding(kind: str, features: int, width: int) -> TimeEmbedding:
    """The embedding of the noise level: `sinusoid`, or `fourier` with twice the features."""
    return FourierEmbedding(width, 2 * features) if kind == "fourier" else TimeEmbedding(width, features)


def normal(channels: int, groups: int, *, within_frames: bool, eps: float = 1e-5) -> nn.Module:
    """Group normalisation of each frame, for layers that see frames one by one, or of the clip, for those that do not.

    A wave has one point a frame, so what looks along it must be normalised along it.
    """
    return FrameNorm(channels, groups=groups, eps=eps) if within_frames else nn.GroupNorm(groups, channels, eps=eps)


def tokens(x: Tensor) -> Tensor:
    """(b c t h w) -> (b t h w c), a view."""
    return x.permute(0, 2, 3, 4, 1)


def grid(x: Tensor) -> Tensor:
    """(b t h w c) -> (b c t h w), a view."""
    return x.permute(0, 4, 1, 2, 3)


def silent(layer: Layer) -> Layer:
    """Start as the zero map."""
    parts: Any = layer
    nn.init.zeros_(parts.weight)
    nn.init.zeros_(parts.bias)
    return layer
