"""Scaled dot-product attention and the patterns in which tokens of a space-time grid may see one another.

A pattern is nothing but a rearrangement of the grid into groups: tokens attend inside their group. Factorised attention
(Bertasius et al. 2021; Ma et al. 2024, Latte) alternates `spatial` and `temporal`; windowed attention alternates local
`window`s with a dilated `grid` (Tu et al. 2022, MaxViT), which mixes globally without masks or shifts.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmdiff.errors import UserError

PATTERNS: dict[str, tuple[str, ...]] = {
    "full": ("full",),
    "factorised": ("spatial", "temporal"),
    "windowed": ("window", "grid"),
}

_GROUPS = {
    "full": "b t h w k e -> b k (t h w) e",
    "spatial": "b t h w k e -> (b t) k (h w) e",
    "temporal": "b t h w k e -> (b h w) k t e",
    "window": "b (T t) (H h) (W w) k e -> (b T H W) k (t h w) e",
    "grid": "b (t T) (h H) (w W) k e -> (b T H W) k (t h w) e",
}


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(e)) v for q (b k n e), k and v (b k m e) -> (b k n e).

    The mask, (b m) or (b n m), is True where a key is real; every row of it needs a real key. On a CPU the backward of
    the fused kernel is slower in bf16 than the plain formula, so the plain formula runs there; a test holds the two
    equal.
    """
    bias = mask if mask is None else mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return math_attention(q, k, v, bias)


def math_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, with a boolean bias that broadcasts against (b k n m)."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)  # (b k n m)
    if bias is not None:
        scores = scores.masked_fill(~bias, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, *, pattern: str, window: tuple[int, int, int]) -> Tensor:
    """Self-attention on a grid: q, k, v (b t h w k e) -> (b t h w k e), inside the groups of the pattern.

    `window` is the size of a group for the patterns window and grid. Along an axis that it exceeds, the group is the
    whole axis; otherwise it must divide the axis (UserError).
    """
    b, t, h, w = q.shape[:4]
    sizes = {"b": b, "t": t, "h": h, "w": w}
    if pattern in ("window", "grid"):
        size = [min(have, want) for have, want in zip((t, h, w), window, strict=True)]
        if any(n % s for n, s in zip((t, h, w), size, strict=True)):
            raise UserError(
                f"The attention window {list(window)} does not divide the grid of {[t, h, w]} tokens "
                "(time, height, width). Choose a `window` that does, or another `attention`."
            )
        sizes = {"b": b, "t": size[0], "h": size[1], "w": size[2]}
        sizes |= {"T": t // size[0], "H": h // size[1], "W": w // size[2]}
    q, k, v = (rearrange(z, _GROUPS[pattern], **_named(pattern, sizes)) for z in (q, k, v))
    inverse = " -> ".join(reversed(_GROUPS[pattern].split(" -> ")))
    return rearrange(attention(q, k, v), inverse, **_named(pattern, sizes))


def _named(pattern: str, sizes: dict[str, int]) -> dict[str, int]:
    """Only the axes that the pattern names: einops refuses others."""
    return {axis: size for axis, size in sizes.items() if axis in _GROUPS[pattern]}


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(b n d) -> (b k n e), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(b k n e) -> (b n d)"""
    return x.transpose(1, 2).flatten(-2)


def attention_flops(queries: int, keys: int, width: int) -> int:
    """FLOPs (2 per multiply-add) of q k' and the weighted sum, for one sample."""
    return 4 * queries * keys * width


def groups(pattern: str, grid: tuple[int, int, int], window: tuple[int, int, int]) -> int:
    """How many keys a token sees."""
    t, h, w = grid
    inside = math.prod(min(a, b) for a, b in zip(grid, window, strict=True))
    return {"full": t * h * w, "spatial": h * w, "temporal": t}.get(pattern, inside)
