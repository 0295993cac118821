"""A diffusion transformer for grids of any dimension (Peebles and Xie 2023; Ma et al. 2024, Latte).

Video is a grid (t h w); sound is the same grid with one token per time step. Blocks are adaLN-zero around
self-attention in a pattern (layers/attention.py), cross-attention to text, and SwiGLU; queries and keys are normalised
per head and rotated by (seconds, h, w); `octaves` above 0 also adds absolute places to the tokens. Networks know no
diffusion: they map (x, t, cond) to a tensor shaped like x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import PATTERNS, attention, grouped_attention, heads_of, merge_heads
from mmdiff.layers.embed import TimeEmbedding, patchify, unpatchify
from mmdiff.layers.norm import RMSNorm, rms_norm
from mmdiff.layers.rope import grid_angles, places, rotate

Grid = tuple[int, int, int]
Memory = tuple[Tensor, Tensor, Tensor | None]  # keys and values (b k l e) of the text, mask (b l)


class DiT(nn.Module):
    """One branch with its own time embedding: (x (b c t h w) or (b c n), t, cond) -> like x."""

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        modality: str = "video",
        patch: Sequence[int] = (1, 1, 1),
        attention: str = "factorised",
        window: Sequence[int] = (4, 4, 4),
        ratio: float = 8 / 3,
        conv: int = 0,
        octaves: int = 0,
        text_width: int = 0,
    ) -> None:
        super().__init__()
        self.modality = modality
        self.time = TimeEmbedding(width)
        self.vector = nn.Linear(text_width, width) if text_width else None
        text = [TextAttention(width, heads, text_width) for _ in range(depth)] if text_width else None
        self.branch = Branch(channels, width, depth, heads, patch, attention, window, ratio, conv, text, octaves)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        h, angles = self.branch.open(x, cond["seconds"][self.modality])
        c = condition(self.time(self.branch.token_time(t, x)), self.vector, cond)
        for block in self.branch.blocks:
            h = block.feed(block.attend(h, c, angles, read(block.text, cond)), c)
        return self.branch.close(h, c, x)


class Branch(nn.Module):
    """Everything of one modality: patch embedding, blocks, final layer. Tokens are (b t h w d) throughout."""

    blocks: Sequence[Block]

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        pattern: str,
        window: Sequence[int],
        ratio: float,
        conv: int,
        text: Sequence[TextAttention] | None,
        octaves: int = 0,
    ) -> None:
        super().__init__()
        if pattern not in PATTERNS:
            raise UserError(f"attention: {pattern!r} is not one of {', '.join(PATTERNS)}.")
        if width % heads or (width // heads) % 2:
            raise UserError(f"width {width} must divide into {heads} heads of an even size; change width or heads.")
        if conv and conv % 2 == 0:
            raise UserError(f"conv: a kernel of {conv} time steps has no middle; choose an odd number, or 0 for none.")
        self.patch: Grid = (patch[0], patch[1], patch[2])
        self.channels, self.head = channels, width // heads
        volume = channels * patch[0] * patch[1] * patch[2]
        patterns = PATTERNS[pattern]
        self.embed = nn.Linear(volume, width)
        self.octaves = octaves
        self.place = nn.Linear(6 * octaves, width) if octaves else None
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(width, heads, patterns[i % len(patterns)], window, ratio, conv, text[i] if text else None)
            for i in range(depth)
        )
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, volume))

    def open(self, x: Tensor, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """x (b c t h w) or (b c n), seconds (b t) -> tokens (b t h w d), angles (b t h w head/2)."""
        tokens = patchify(self.fitting(as_grid(x)), self.patch)
        seconds, size = self.times(seconds), (tokens.shape[2], tokens.shape[3])
        h = self.embed(tokens).float()
        if self.place is not None:
            h = h + self.place(places(seconds, size, octaves=self.octaves)).float()
        return h, grid_angles(seconds, size, head=self.head)

    def fitting(self, x: Tensor) -> Tensor:
        """x (b c t h w), if it has the channels of the branch and is made of whole patches."""
        if x.shape[1] != self.channels:
            raise UserError(f"channels: the network was built for {self.channels}, but the latent has {x.shape[1]}.")
        size = list(x.shape[2:])
        if any(n % p for n, p in zip(size, self.patch, strict=True)):
            raise UserError(f"patch: {list(self.patch)} does not divide a latent of {size} (time, height, width).")
        return x

    def times(self, seconds: Tensor) -> Tensor:
        """Midpoints of latent time steps (b t) -> of the tokens, which are patches of them (b t')."""
        return seconds.unflatten(1, (-1, self.patch[0])).mean(-1)

    def close(self, h: Tensor, c: Tensor, like: Tensor) -> Tensor:
        """Tokens back to the shape of the input."""
        shift, scale = self.modulation(F.silu(c)).chunk(2, -1)
        y = self.out(torch.addcmul(shift, rms_norm(h), 1 + scale))
        return unpatchify(y, self.patch).reshape(like.shape)

    def token_time(self, t: Tensor, x: Tensor) -> Tensor:
        """t (b,) -> (b 1 1 1); t shaped like x -> the mean of each token's patch (b t h w)."""
        if t.ndim == 1:
            return t[:, None, None, None]
        return patchify(as_grid(t.expand_as(x)), self.patch).mean(-1)


class Block(nn.Module):
    """adaLN-zero block of one modality, in two halves so that a joint model can let branches meet in between.

    At initialisation both halves are the identity: modulation gates and the text output are zero.
    """

    hot = ("attend", "feed")  # the methods that are worth compiling

    def __init__(
        self,
        width: int,
        heads: int,
        pattern: str,
        window: Sequence[int],
        ratio: float,
        conv: int,
        text: TextAttention | None,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, pattern, window)
        self.text = text
        self.mlp = SwiGLU(width, int(ratio * width))
        self.conv = TimeConv(width, conv) if conv else None
        self.modulation = zero(nn.Linear(width, 6 * width))

    def attend(self, x: Tensor, c: Tensor, angles: Tensor, memory: Memory | None) -> Tensor:
        """x (b t h w d), c (b t|1 h|1 w|1 d): self-attention, then the text that `read` has made ready."""
        shift, scale, gate = self.modulation(F.silu(c)).chunk(6, -1)[:3]
        h = torch.addcmul(shift, rms_norm(x), 1 + scale)
        if self.conv is not None:
            h = self.conv(h)
        x = x + gate * self.attention(h, angles)
        if self.text is None or memory is None:
            return x
        return x + self.text(x.flatten(1, 3), memory).view_as(x)

    def feed(self, x: Tensor, c: Tensor) -> Tensor:
        """The feed-forward half."""
        shift, scale, gate = self.modulation(F.silu(c)).chunk(6, -1)[3:]
        return x + gate * self.mlp(torch.addcmul(shift, rms_norm(x), 1 + scale))


class SelfAttention(nn.Module):
    """Attention of a grid to itself in one pattern, with per-head QK-norm (Henry et al. 2020) and RoPE."""

    def __init__(self, width: int, heads: int, pattern: str, window: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.pattern = heads, pattern
        self.window: Grid = (window[0], window[1], window[2])
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # 3 x (b t h w k e)
        q, k = rotate(self.norm_q(q), angles), rotate(self.norm_k(k), angles)
        y = grouped_attention(q, k, v, pattern=self.pattern, window=self.window)
        return self.out(y.flatten(-2))  # (b t h w d)


class TextAttention(nn.Module):
    """Cross-attention to the text tokens, whose keys and values are computed once a clip, not once a frame."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(text_width, 2 * width)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
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
        """x (b n d) -> (b n d)"""
        k, v, mask = memory
        q = self.norm_q(heads_of(self.q(rms_norm(x)), self.heads))  # (b k n e)
        return self.out(merge_heads(attention(q, k, v, mask=mask)))


class SwiGLU(nn.Module):
    """(silu(x W1) * x W2) W3 (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


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


def condition(time: Tensor, vector: nn.Module | None, cond: Cond) -> Tensor:
    """The time embedding (b t h w d), plus the condition's vector (b d) where there is one."""
    if "vector" not in cond:
        return time
    if vector is None:
        raise UserError(
            "The conditioner describes the clips but the network does not listen: set text_width to its width."
        )
    return time + vector(cond["vector"])[:, None, None, None]


def read(text: TextAttention | None, cond: Cond) -> Memory | None:
    """The text as one block sees it; nothing for a network without text."""
    return None if text is None else text.memory(cond)


def as_grid(x: Tensor) -> Tensor:
    """(b c n) -> (b c n 1 1); a grid passes through."""
    return x[..., None, None] if x.ndim == 3 else x


def zero(layer: nn.Linear) -> nn.Linear:
    """Start as the zero map."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
