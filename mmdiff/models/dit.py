"""A diffusion transformer for grids of any dimension (Peebles and Xie 2023; Ma et al. 2024, Latte).

Video is a grid (t h w); sound is the same grid with one token per time step. Blocks (block.py) attend in a pattern
(layers/attention.py) with queries and keys rotated by (seconds, h, w); `octaves` above 0 also adds absolute places to
the tokens. Networks know no diffusion: they map (x, t, cond) to a tensor shaped like x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import PATTERNS
from mmdiff.layers.embed import TimeEmbedding, patchify, unpatchify
from mmdiff.layers.packing import Packing
from mmdiff.layers.rope import grid_angles, grid_sincos, places
from mmdiff.models.block import MODERN, NORMS, Block, Grid, Style, TextAttention, read, zero


class DiT(nn.Module):
    """One branch with its own time embedding: (x (b c t h w) or (b c n), t, cond) -> like x.

    `text_width` is the width of the condition's tokens and vector; `vector_width` alone is for a vector without text,
    such as a class label's. `concat`: channels that the condition puts beside those of x.
    """

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
        concat: int = 0,
        text_width: int = 0,
        vector_width: int = 0,
        style: Style = MODERN,
    ) -> None:
        super().__init__()
        self.modality, self.concat = modality, concat
        self.time = TimeEmbedding(width)
        vector_width = vector_width or text_width
        self.vector = nn.Linear(vector_width, width) if vector_width else None
        text = [TextAttention(width, heads, text_width, style.qk) for _ in range(depth)] if text_width else None
        self.branch = Branch(
            channels, width, depth, heads, patch, attention, window, ratio, conv, text, octaves, style, concat
        )

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        h, angles = self.branch.open(x, cond["seconds"][self.modality], beside(x, cond, self.concat))
        c = condition(self.time(self.branch.token_time(t, x)), self.vector, cond)
        for i, block in enumerate(self.branch.blocks):
            if i not in cond.get("skip", ()):
                h = block.feed(block.attend(h, c, angles, read(block.text, cond)), c)
        return self.branch.close(h, c, x)

    def packed(self, xs: Sequence[Tensor], ts: Sequence[Tensor], conds: Sequence[Cond]) -> list[Tensor]:
        """What `forward` says of each, for clips of many sizes whose tokens run through the blocks as one sequence."""
        opened = [
            self.branch.open(x, cond["seconds"][self.modality], beside(x, cond, self.concat))
            for x, cond in zip(xs, conds, strict=True)
        ]  # (b t h w d) and angles, each
        layout = Packing([h.shape[:4] for h, _ in opened], xs[0].device)
        h, angles = layout.join([h for h, _ in opened]), layout.join([a for _, a in opened])  # (1 n 1 1 d)
        parts = zip(xs, ts, conds, strict=True)
        told = [condition(self.time(self.branch.token_time(t, x)), self.vector, cond) for x, t, cond in parts]
        c = layout.told(told)
        for block in self.branch.blocks:
            memory = [read(block.text, cond) for cond in conds]
            h = block.feed(block.attend(h, c, angles, memory, layout), c, layout)
        return [self.branch.close(*part) for part in zip(layout.split(h), told, xs, strict=True)]

    @property
    def skippable(self) -> int:
        """How many blocks a condition may name in its `skip`."""
        return len(self.branch.blocks)


class Branch(nn.Module):
    """Everything of one modality: patch embedding, blocks, final layer. Tokens are (b t h w d) throughout."""

    blocks: Sequence[Block]
    wider = ("embed.weight",)  # what a checkpoint without `concat` lacks begins at zero

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
        style: Style = MODERN,
        concat: int = 0,
    ) -> None:
        super().__init__()
        if pattern not in PATTERNS:
            raise UserError(f"attention: {pattern!r} is not one of {', '.join(PATTERNS)}.")
        if width % heads or (width // heads) % 2:
            raise UserError(f"width {width} must divide into {heads} heads of an even size; change width or heads.")
        if conv and conv % 2 == 0:
            raise UserError(f"conv: a kernel of {conv} time steps has no middle; choose an odd number, or 0 for none.")
        if len(patch) != 3 or min(patch) < 1:
            raise UserError(f"patch is {list(patch)}: give three positive sizes, [time, height, width].")
        self.patch: Grid = (patch[0], patch[1], patch[2])
        self.channels, self.head = channels, width // heads
        volume = channels * patch[0] * patch[1] * patch[2]
        patterns = PATTERNS[pattern]
        self.embed = nn.Linear(volume + concat * volume // channels, width)
        self.octaves, self.style = octaves, style
        self.place = nn.Linear(6 * octaves, width) if octaves else None
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(width, heads, patterns[i % len(patterns)], window, ratio, conv, text[i] if text else None, style)
            for i in range(depth)
        )
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, volume))

    def open(self, x: Tensor, seconds: Tensor, others: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """x (b c t h w) or (b c n), seconds (b t) -> tokens (b t h w d), angles (b t h w head/2); others beside x."""
        grids = [self.fitting(as_grid(x)), *others]
        tokens = torch.cat([patchify(grid, self.patch) for grid in grids], -1)
        seconds, size = self.times(seconds), (tokens.shape[2], tokens.shape[3])
        h = self.embed(tokens).float()
        if self.place is not None:
            h = h + self.place(places(seconds, size, octaves=self.octaves)).float()
        if self.style.positions == "sincos":
            h = h + grid_sincos(size, h.shape[-1], device=h.device)
            return h, h.new_zeros(*h.shape[:4], self.head // 2)
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
        y = self.out(torch.addcmul(shift, NORMS[self.style.norm](h), 1 + scale))
        return unpatchify(y, self.patch).reshape(like.shape)

    def token_time(self, t: Tensor, x: Tensor) -> Tensor:
        """t (b,) -> (b 1 1 1); t shaped like x -> the mean of each token's patch (b t h w)."""
        if t.ndim == 1:
            return t[:, None, None, None]
        return patchify(as_grid(t.expand_as(x)), self.patch).mean(-1)


def condition(time: Tensor, vector: nn.Linear | None, cond: Cond) -> Tensor:
    """The time embedding (b t h w d), plus the condition's vector (b d) where there is one."""
    if "vector" not in cond:
        return time
    if vector is None:
        raise UserError(
            "The conditioner describes the clips but the network does not listen: set text_width "
            "(or vector_width, where it gives no text) to its width."
        )
    if cond["vector"].shape[-1] != vector.in_features:
        raise UserError(
            f"text_width (or vector_width): the network listens to {vector.in_features} numbers about a clip, but its "
            f"conditioner gives {cond['vector'].shape[-1]}; make them equal."
        )
    return time + vector(cond["vector"])[:, None, None, None]


def beside(x: Tensor, cond: Cond, channels: int) -> list[Tensor]:
    """What the condition puts beside the channels of x, as one grid (b c t h w), or none; it has to be as expected."""
    grids = [as_grid(cond["concat"]).to(x.dtype)] if "concat" in cond else []
    found = sum(g.shape[1] for g in grids)
    if found != channels:
        raise UserError(f"concat: the network takes {channels} channels beside its input, but gets {found}.")
    return grids


def as_grid(x: Tensor) -> Tensor:
    """(b c n) -> (b c n 1 1); a grid passes through."""
    return x[..., None, None] if x.ndim == 3 else x
