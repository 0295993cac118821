"""A text encoder that is trained with the model.

The one idea: a word is its bytes. There is no vocabulary to make, and any language can be written.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdiff.batch import Batch, Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import attention, heads_of, merge_heads
from mmdiff.layers.norm import RMSNorm

PAD, BOS, FIRST = 0, 1, 2  # byte v is the symbol FIRST + v
SYMBOLS, PIECE = FIRST + 256, 8  # a piece of text is at most so many bytes
ROUND = 8  # token counts are multiples of this, so that few shapes occur


class Text(nn.Module):
    """A small transformer over pieces of the caption, trained with the model: any language, no vocabulary file.

    A piece is a space and the bytes of a word, PIECE at most (a longer word is several), and its embedding is the sum
    of its UTF-8 bytes in their places and a two-layer function of that sum: as exact as bytes, at an eighth of their
    number.
    tokens (b l width), mask (b l), vector (b width); l is the longest of the batch rounded up to a multiple of 8, at
    most `length`. The beginning is a token of its own, so the empty text is a text too. A caption that does not fit is
    cut between two pieces, and the first one is named in a warning.
    """

    def __init__(self, *, width: int, depth: int = 2, heads: int = 3, length: int = 64) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"text: width {width} is not a multiple of heads {heads}.")
        if length < ROUND or length % ROUND:
            raise UserError(f"text: length {length} is not a positive multiple of {ROUND}.")
        self.length = length
        self.bytes = nn.Embedding(PIECE * SYMBOLS, width)
        self.piece = nn.Sequential(RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.positions = nn.Embedding(length, width)
        self.positions.weight.data.mul_(0.1)  # at first a word says more than its place
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.vector = nn.Linear(width, width)
        self._told = False

    def forward(self, batch: Batch) -> Cond:
        ids = self.ids(batch["text"]).to(self.positions.weight.device)  # (b l p)
        mask = (ids != PAD).any(-1)
        places = torch.arange(PIECE, device=ids.device) * SYMBOLS
        code = self.bytes(ids + places).sum(-2) / PIECE**0.5  # (b l d), nearly orthogonal for different words
        x = code + self.piece(code)
        x = x + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Cond(tokens=x, mask=mask, vector=self.vector(masked_mean(x, mask)))

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (b l p) int64: the beginning, then pieces of p bytes, padded."""
        rows = [[[BOS], *([FIRST + v for v in piece] for piece in self._pieces(text))] for text in texts]
        longest = -(-max(map(len, rows)) // ROUND) * ROUND
        full = [row + [[]] * (longest - len(row)) for row in rows]
        return torch.tensor([[piece + [PAD] * (PIECE - len(piece)) for piece in row] for row in full])

    def _pieces(self, text: str) -> list[bytes]:
        pieces, room = re.findall(rb" ?[^ ]{1,%d}| " % (PIECE - 1), text.encode(errors="replace")), self.length - 1
        if len(pieces) > room:
            self._told = self._told or tell_cut(text, f"{len(pieces)} pieces", room)
        return pieces[:room]


class TextBlock(nn.Module):
    """Pre-norm self-attention, in which every real token sees every real token, then a feed-forward of ratio 4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (b l d), mask (b l) -> (b l d)"""
        q, k, v = (heads_of(z, self.heads) for z in self.qkv(self.norm_attention(x)).chunk(3, -1))  # 3 x (b k l e)
        x = x + self.out(merge_heads(attention(q, k, v, mask=mask)))
        return x + self.mlp(self.norm_mlp(x))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens: (b l d), (b l) -> (b d)."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1)


def tell_cut(text: str, has: str, room: int) -> bool:
    """Warn that captions are being cut, naming this one -> True: it has been said."""
    warnings.warn(
        f"The caption {text[:60]!r}... has {has} and is cut to {room}, and so is every other that does not fit. "
        "Raise the conditioner's `length` if the rest matters.",
        stacklevel=4,
    )
    return True
