"""Token grids of different sizes laid one after another, so that one sequence runs through the layers of a network.

The one idea: only attention, and whatever else knows neighbours, has to see where one clip ends and the next begins;
`each` calls such a function on every run of equal grids as an ordinary batch. That is attention with a block-diagonal
mask (Dehghani et al. 2023, NaViT) without the mask and without the arithmetic that it would throw away, for every
pattern of attention and on every device. A batch of one size is the identity, `WHOLE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How the tokens that a block is given lie on grids."""

    def each(self, f: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        """f of tensors whose tokens lie on grids (b t h w ...) -> the same tokens, anew."""

    def heard(self, f: Callable[[Tensor, Any], Tensor], x: Tensor, memory: Any) -> Tensor:
        """The same for a function of tokens and of what the clips have been told."""

    def spread(self, m: Tensor) -> Tensor:
        """What was said of clips, or of tokens, in the places of the tokens."""


class Whole:
    """Clips of one size: tokens are (b t h w d) everywhere."""

    def each(self, f: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        return f(*xs)

    def heard(self, f: Callable[[Tensor, Any], Tensor], x: Tensor, memory: Any) -> Tensor:
        return f(x, memory)

    def spread(self, m: Tensor) -> Tensor:
        return m


WHOLE = Whole()


class Packing:
    """Runs of `grids[i]` = (b, t, h, w) tokens, laid out as (1 n 1 1 d); memory is a list, one for each run."""

    def __init__(self, grids: Sequence[tuple[int, ...]], device: torch.device | str = "cpu") -> None:
        self.grids = [tuple(grid) for grid in grids]
        self.lengths = [math.prod(grid) for grid in self.grids]
        sizes = [math.prod(grid[1:]) for grid in self.grids for _ in range(grid[0])]  # tokens of every clip
        clips = torch.arange(len(sizes), device=device)
        self.clip = clips.repeat_interleave(torch.tensor(sizes, device=device), output_size=sum(sizes))  # (n) of tokens

    def join(self, xs: Sequence[Tensor]) -> Tensor:
        """(b t h w ...) each -> (1 n 1 1 ...)"""
        return torch.cat([x.flatten(0, 3) for x in xs])[None, :, None, None]

    def split(self, x: Tensor) -> list[Tensor]:
        """(1 n 1 1 ...) -> (b t h w ...) each, views"""
        pieces = x.flatten(0, 3).split(self.lengths)
        return [piece.unflatten(0, grid) for piece, grid in zip(pieces, self.grids, strict=True)]

    def told(self, cs: Sequence[Tensor]) -> Tensor:
        """(b t|1 h|1 w|1 d) each -> (1 b 1 1 d) of all clips, or (1 n 1 1 d) where tokens of a clip differ."""
        if all(c.shape[1:4] == (1, 1, 1) for c in cs):
            return torch.cat([c.flatten(0, 3) for c in cs])[None, :, None, None]
        return self.join([c.expand(*grid, -1) for c, grid in zip(cs, self.grids, strict=True)])

    def each(self, f: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        return self.join([f(*pieces) for pieces in zip(*map(self.split, xs), strict=True)])

    def heard(self, f: Callable[[Tensor, Any], Tensor], x: Tensor, memory: Any) -> Tensor:
        return self.join([f(piece, m) for piece, m in zip(self.split(x), memory, strict=True)])

    def spread(self, m: Tensor) -> Tensor:
        return m if m.shape[1] == len(self.clip) else m.index_select(1, self.clip)
