"""The space-time U-Net: from DDPM's network for pictures to Stable Video Diffusion's for clips, and waves as well.

One flat list of blocks (unet_blocks.py) goes down, through the middle and up again; what the way down keeps, the way
up takes, last in, first out (Ronneberger et al. 2015; Ho et al. 2020). Networks know no diffusion: they map
(x, t, cond) to a tensor shaped like x. Where entries have times of their own, each time step is told the mean over its
frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.conv import Conv, Upsample
from mmdiff.models.dit import as_grid, beside
from mmdiff.models.unet_blocks import Down, Inject, Row, Style, Told, level_embedding, normal, silent


@dataclass
class Track:
    """A clip on its way through the blocks."""

    h: Tensor  # (b c t h w)
    kept: list[Tensor]  # for the way up
    told: dict[int, Told]  # by how many times shorter the clip is at that level


class UNet(nn.Module):
    """(x (b c t h w) or (b c n), t, cond) -> like x.

    widths: channels of each level. strides: [time, rows, columns] between two levels. blocks: rows a level on the way
    down, one more on the way up. heads: of the attention at each level, 0 for none; `middle` of the middle.
    kernel: [1, 3, 3] for frames, [3, 1, 1] for waves. attention: `plain` (DDPM) or `transformer` (latent diffusion),
    in a `pattern` of layers/attention.py. temporal: `mixed` puts a convolution and an attention along time behind each
    layer, whose share in the result begins at `mix`. time: how the noise level is embedded; inject: how it enters.
    concat, text_width, vector_width: widths of what the condition brings by these routes.
    """

    wider = ("enter.weight",)  # what a checkpoint without `concat` lacks begins at zero

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        heads: Sequence[int],
        middle: int,
        blocks: int = 2,
        kernel: Sequence[int] = (1, 3, 3),
        groups: int = 32,
        attention: Literal["plain", "transformer"] = "transformer",
        pattern: Literal["spatial", "temporal", "full"] = "spatial",
        temporal: Literal["none", "mixed"] = "none",
        mix: float = 0.0,
        time: Literal["sinusoid", "fourier"] = "sinusoid",
        inject: Inject = "add",
        concat: int = 0,
        text_width: int = 0,
        vector_width: int = 0,
        modality: str = "video",
    ) -> None:
        super().__init__()
        check(widths, strides, heads, [*heads, middle], groups)
        if text_width and attention == "plain":
            raise UserError("text_width: plain attention reads no text; set attention: transformer, or text_width: 0.")
        self.channels, self.concat, self.modality = channels, concat, modality
        self.widths, self.text_width, self.vector_width = list(widths), text_width, vector_width
        self.factor = [math.prod(s[axis] for s in strides) for axis in range(3)]
        level = 4 * widths[0]
        self.time = level_embedding(time, widths[0], level)
        describe = lambda: nn.Sequential(nn.Linear(vector_width, level), nn.SiLU(), nn.Linear(level, level))
        self.vector = describe() if vector_width else None
        self.style = Style(level, kernel, groups, inject, attention, pattern, temporal, mix, text_width)
        self.enter = Conv(channels + concat, widths[0], kernel=kernel)
        self.blocks = nn.ModuleList()
        self.keeps: list[bool] = []  # whether the way up gets the result of a block
        self.takes: list[bool] = []  # whether a block gets what was kept
        self.levels: list[int] = []  # of each block; the middle is one deeper than the last
        self.shorter: list[int] = []  # how many times shorter the clip is before it
        self._build(blocks, strides, [*heads, middle])
        self.norm = normal(widths[0], groups, within_frames=kernel[0] == 1)
        self.leave = silent(Conv(widths[0], channels, kernel=kernel))

    def _build(self, blocks: int, strides: Sequence[Sequence[int]], heads: Sequence[int]) -> None:
        """The flat list: down, the middle, up."""
        width, kept, short = self.widths[0], [self.widths[0]], 1

        def row(channels: int, out: int, level: int, heads: int, keeps: bool = False, takes: bool = False) -> None:
            self._append(Row(channels, out, heads=heads, style=self.style), level, short, keeps, takes)

        for i, out in enumerate(self.widths):
            for _ in range(blocks):
                row(width, out, i, heads[i], keeps=True)
                width = out
                kept.append(width)
            if i < len(strides):
                self._append(Down(width, kernel=self.style.kernel, stride=strides[i]), i, short, keeps=True)
                kept.append(width)
                short *= strides[i][0]
        for look in (heads[-1], 0):
            row(width, width, len(self.widths), look)
        for i in reversed(range(len(self.widths))):
            for _ in range(blocks + 1):
                row(width + kept.pop(), self.widths[i], i, heads[i], takes=True)
                width = self.widths[i]
            if i:
                self._append(Upsample(width, kernel=self.style.kernel, stride=strides[i - 1]), i, short)
                short //= strides[i - 1][0]

    def _append(self, block: nn.Module, level: int, short: int, keeps: bool = False, takes: bool = False) -> None:
        self.blocks.append(block)
        self.levels.append(level)
        self.shorter.append(short)
        self.keeps.append(keeps)
        self.takes.append(takes)

    # ---- the way of a clip -----------------------------------------------------------------------------------------

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        track = self.open(x, t, cond)
        for i in range(len(self.blocks)):
            self.step(i, track)
            self.keep(i, track)
        return self.close(track, x)

    def open(self, x: Tensor, t: Tensor, cond: Cond) -> Track:
        """x (b c t h w) or (b c n), t (b,) or shaped like x -> the clip before the first block."""
        told = self.tell(x, t, cond)
        h = self.enter(torch.cat([self.fitting(as_grid(x)), *beside(x, cond, self.concat)], 1))
        return Track(h, [h], {short: told.coarser(short) for short in set(self.shorter)})

    def step(self, i: int, track: Track) -> None:
        """Take the clip through block i."""
        block = self.blocks[i]
        if self.takes[i]:
            track.h = torch.cat([track.h, track.kept.pop()], 1)
        track.h = block(track.h, track.told[self.shorter[i]]) if isinstance(block, Row) else block(track.h)

    def keep(self, i: int, track: Track) -> None:
        """Lay the result of block i aside, if the way up will want it."""
        if self.keeps[i]:
            track.kept.append(track.h)

    def close(self, track: Track, like: Tensor) -> Tensor:
        """Back to the shape of the input."""
        return self.leave(F.silu(self.norm(track.h))).reshape(like.shape)

    # ---- what it is told -------------------------------------------------------------------------------------------

    def tell(self, x: Tensor, t: Tensor, cond: Cond) -> Told:
        """The noise level of each time step with the vector, the seconds and the text."""
        steps = t[:, None] if t.ndim == 1 else as_grid(t.expand_as(x)).mean((1, 3, 4))  # (b 1) or (b t)
        c = self.time(steps)  # (b t|1 e)
        if "vector" in cond:
            c = c + self._described(cond["vector"])[:, None]
        tokens = self._text(cond) if self.text_width else None
        return Told(c, cond["seconds"][self.modality], tokens, cond.get("mask"))

    def fitting(self, x: Tensor) -> Tensor:
        """x (b c t h w), if it has the channels of the network and can be halved as often as it will be."""
        if x.shape[1] != self.channels:
            raise UserError(f"channels: the network was built for {self.channels}, but the latent has {x.shape[1]}.")
        if any(n % f for n, f in zip(x.shape[2:], self.factor, strict=True)):
            raise UserError(
                f"strides: the network shortens time, height and width {self.factor} times, which does not divide a "
                f"latent of {list(x.shape[2:])}; use fewer strides or another size."
            )
        return x

    def _described(self, vector: Tensor) -> Tensor:
        if self.vector is None or vector.shape[-1] != self.vector_width:
            raise UserError(
                f"vector_width: the conditioner describes clips in {vector.shape[-1]} numbers, but the network "
                f"listens to {self.vector_width}; make them equal."
            )
        return self.vector(vector)

    def _text(self, cond: Cond) -> Tensor:
        found = cond["tokens"].shape[-1] if "tokens" in cond else 0
        if found != self.text_width:
            raise UserError(
                f"text_width: the network reads text of width {self.text_width}, but its conditioner gives {found}; "
                "make them equal."
            )
        return cond["tokens"]


def check(
    widths: Sequence[int], strides: Sequence[Sequence[int]], heads: Sequence[int], looks: Sequence[int], groups: int
) -> None:
    """Refuse lists of lengths that do not fit each other, and widths that do not divide."""
    if len(heads) != len(widths) or len(strides) != len(widths) - 1:
        raise UserError(
            f"{len(widths)} widths need {len(widths)} heads and {len(widths) - 1} strides, "
            f"not {len(heads)} and {len(strides)}."
        )
    for width, head in zip([*widths, widths[-1]], looks, strict=True):
        if groups < 1 or width % groups or (head and width % head):
            raise UserError(f"widths: {width} must be a multiple of groups ({groups}) and of its heads ({head}).")
