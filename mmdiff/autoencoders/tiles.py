"""Frames larger than memory: an autoencoder applied tile by tile, each tile seen with a halo that is cut away again.

The one idea: an output depends on inputs within the reach of its convolutions and no further, so with a halo of
`reach(plan)` the tiles are the whole, up to rounding. That holds where nothing else looks across the frame: no
attention (`heads: 0`) and normalisation point by point (`groups: 0`). With either, or a smaller halo, tiles are an
approximation, whose seams a test should measure. Clips longer than memory go through `VAE.encode_stream` and
`decode_stream`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmdiff.autoencoders.coder import Plan
from mmdiff.autoencoders.vae import VAE

Sides = tuple[int, int]  # rows, columns


def reach(plan: Plan) -> Sides:
    """How far, in latent rows and columns, either half of an autoencoder can look; rounded up."""
    return _reach(plan, 1), _reach(plan, 2)


def _reach(plan: Plan, axis: int) -> int:
    """Pixels that a convolution looks aside at each resolution, the larger of both halves, in latent units."""
    side, pixels = plan.kernel[axis] // 2, float(plan.patch[axis])
    far = side * pixels * (1 + 2 * (plan.blocks + 1))  # the first layer and stage
    for stride in plan.strides:
        far += plan.wide(stride)[axis] * pixels  # the change of resolution
        pixels *= stride[axis]
        far += side * pixels * 2 * (plan.blocks + 1)
    far += side * pixels * 5  # the middle, and the layer next to the latent
    return math.ceil(far / plan.factor[axis])


@torch.no_grad()
def encode_tiled(codec: VAE, x: Tensor, *, tile: Sides, halo: Sides) -> Tensor:
    """Clips (b c t h w) -> latents (b latent t' h' w'), `tile` latent rows and columns at a time."""
    _, _, h, w = codec.grid(x.shape[1:])
    return _tiled(codec.encode, x, (h, w), tile, halo, into=codec.plan.factor[1:], out=(1, 1))


@torch.no_grad()
def decode_tiled(codec: VAE, z: Tensor, *, tile: Sides, halo: Sides) -> Tensor:
    """Latents (b latent t' h' w') -> clips (b c t h w), `tile` latent rows and columns at a time."""
    h, w = z.shape[-2:]
    return _tiled(codec.decode, z, (h, w), tile, halo, into=(1, 1), out=codec.plan.factor[1:])


def _tiled(
    act: Callable[[Tensor], Tensor], x: Tensor, size: Sides, tile: Sides, halo: Sides, *, into: Sides, out: Sides
) -> Tensor:
    """Act on overlapping tiles of x, whose entries are `into` to a latent's one, and keep their insides."""
    rows = []
    for down in _spans(size[0], tile[0], halo[0]):
        row = []
        for across in _spans(size[1], tile[1], halo[1]):
            seen = x[..., _slice(down[0], into[0]), _slice(across[0], into[1])]
            row.append(act(seen)[..., _slice(down[1], out[0]), _slice(across[1], out[1])])
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)


def _spans(n: int, tile: int, halo: int) -> Iterator[tuple[Sides, Sides]]:
    """Tiles of range(n): what to look at, and what to keep, counted from where looking begins."""
    for first in range(0, n, tile):
        last = min(first + tile, n)
        begin, end = max(0, first - halo), min(n, last + halo)
        yield (begin, end), (first - begin, last - begin)


def _slice(span: Sides, factor: int) -> slice:
    return slice(span[0] * factor, span[1] * factor)
