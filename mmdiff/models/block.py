"""The block of the transformers: adaLN-zero around self-attention, text and a feed-forward (Peebles and Xie 2023).

By default it is RMSNorm, QK-norm, rotary positions and SwiGLU, the best of the published ablations; a `Style` names the
parts of older models, so that their weights run here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import attention, grouped_attention, heads_of, merge_heads
from mmdiff.layers.norm import RMSNorm, layer_norm, rms_norm
from mmdiff.layers.packing import WHOLE, Layout
from mmdiff.layers.rope import rotate

Grid = tuple[int, int, int]
Memory = tuple[Tensor, Tensor, Tensor | None]  # keys and values (b k l e) of the text, mask (b l)


@dataclass(frozen=True)
class Style:
    """Which parts a transformer is made of; DiT and Latte are layer, gelu, none and sincos.

    `norm` stands before every half of a block and before the output, without weights of its own; `qk` normalises
    queries and keys per head, and the tokens that ask the text; `positions` are rotary, or a fixed table of (h, w)
    added to the tokens.
    """

    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    qk: Literal["rms", "none"] = "rms"
    positions: Literal["rope", "sincos"] = "rope"


MODERN = Style()
NORMS: dict[str, Callable[[Tensor], Tensor]] = {"rms": rms_norm, "layer": layer_norm}


class Block(nn.Module):
    """adaLN-zero block of one modality, in two halves so that a joint model can let branches meet in between.

    At initialisation both halves are the identity: modulation gates and the text output are zero.
    """

    hot = ("attend", "feed")  # the methods that are worth compiling, or computing twice to save memory

    def __init__(
        self,
        width: int,
        heads: int,
        pattern: str,
        window: Sequence[int],
        ratio: float,
        conv: int,
        text: TextAttention | None,
        style: Style = MODERN,
    ) -> None:
        super().__init__()
        self.norm = NORMS[style.norm]
        self.attention = SelfAttention(width, heads, pattern, window, style.qk)
        self.text = text
        self.mlp = MLPS[style.mlp](width, int(ratio * width))
        self.conv = TimeConv(width, conv) if conv else None
        self.modulation = zero(nn.Linear(width, 6 * width))

    def attend(self, x: Tensor, c: Tensor, angles: Tensor, memory: Any, layout: Layout = WHOLE) -> Tensor:
        """x (b t h w d), c (b t|1 h|1 w|1 d): self-attention, then the text that `read` has made ready."""
        shift, scale, gate = layout.spread(self.modulation(F.silu(c))).chunk(6, -1)[:3]
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        if self.conv is not None:
            h = layout.each(self.conv, h)
        x = x + gate * self.attention(h, angles, layout)
        if self.text is None or memory is None:
            return x
        return x + layout.heard(self.text, x, memory)

    def feed(self, x: Tensor, c: Tensor, layout: Layout = WHOLE) -> Tensor:
        """The feed-forward half."""
        shift, scale, gate = layout.spread(self.modulation(F.silu(c))).chunk(6, -1)[3:]
        return x + gate * self.mlp(torch.addcmul(shift, self.norm(x), 1 + scale))


class SelfAttention(nn.Module):
    """Attention of a grid to itself in one pattern, with per-head QK-norm (Henry et al. 2020) and RoPE."""

    def __init__(self, width: int, heads: int, pattern: str, window: Sequence[int], qk: str = "rms") -> None:
        super().__init__()
        self.heads, self.pattern = heads, pattern
        self.window: Grid = (window[0], window[1], window[2])
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = (RMSNorm(width // heads) if qk == "rms" else nn.Identity() for _ in range(2))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor, layout: Layout = WHOLE) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # 3 x (b t h w k e)
        q, k = rotate(self.norm_q(q), angles), rotate(self.norm_k(k), angles)
        y = layout.each(partial(grouped_attention, pattern=self.pattern, window=self.window), q, k, v)
        return self.out(y.flatten(-2))  # (b t h w d)


class TextAttention(nn.Module):
    """Cross-attention to the text tokens, whose keys and values are computed once a clip, not once a frame."""

    def __init__(self, width: int, heads: int, text_width: int, qk: str = "rms") -> None:
        super().__init__()
        self.heads = heads
        self.norm: Callable[[Tensor], Tensor] = rms_norm if qk == "rms" else nn.Identity()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(text_width, 2 * width)
        self.norm_q, self.norm_k = (RMSNorm(width // heads) if qk == "rms" else nn.Identity() for _ in range(2))
        self.out = zero(nn.Linear(width, width))

    def memory(self, cond: Cond) -> Memory:
        """Keys and values (b k l e) of the text, and its mask (b l)."""
        if "tokens" not in cond:
            raise UserError(
                "The network reads text (text_width > 0) but its conditioner gives none: set text_width: 0."
            )
        if cond["tokens"].shape[-1] != self.kv.in_features:
            raise UserError(
                f"text_width: the network reads text of width {self.kv.in_features}, "
                f"but its conditioner gives {cond['tokens'].shape[-1]}; make them equal."
            )
        k, v = self.kv(cond["tokens"]).chunk(2, -1)  # (b l d)
        return self.norm_k(heads_of(k, self.heads)), heads_of(v, self.heads), cond.get("mask")

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """x (b t h w d) -> like x"""
        k, v, mask = memory
        q = self.norm_q(heads_of(self.q(self.norm(x)).flatten(1, -2), self.heads))  # (b k n e)
        return self.out(merge_heads(attention(q, k, v, mask=mask))).view_as(x)


class SwiGLU(nn.Module):
    """(silu(x W1) * x W2) W3 (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class GELU(nn.Module):
    """gelu(x W1) W2, with the approximation by tanh that DiT uses."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


MLPS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}


class TimeConv(nn.Module):
    """x + a depthwise convolution along time: a prior that neighbouring moments matter most. Initially the identity."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(kernel, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (b t h w d); an odd kernel keeps the length."""
        reach, n = len(self.taps) // 2, x.shape[1]
        padded = F.pad(x, (0, 0, 0, 0, 0, 0, reach, reach))
        for i, tap in enumerate(self.taps):
            x = torch.addcmul(x, padded[:, i : i + n], tap)
        return x


def read(text: TextAttention | None, cond: Cond) -> Memory | None:
    """The text as one block sees it; nothing for a network without text."""
    return None if text is None else text.memory(cond)


def zero(layer: nn.Linear) -> nn.Linear:
    """Start as the zero map."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
