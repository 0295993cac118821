"""Rotary positions (Su et al. 2021) over seconds and space: the score of two tokens depends only on their difference.

Time is measured in seconds in every modality, so a frame and the sound that belongs to it have the same angle. The
channels of a head are split between the axes; the pairs that are rotated together are (first half, second half) of the
head, as in GPT-NeoX and transformers' `rotate_half`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequencies(pairs: int, *, shortest: float, longest: float, device: torch.device | str = "cpu") -> Tensor:
    """(pairs,) angular frequencies whose periods are geometric from `shortest` to `longest`."""
    exponent = torch.linspace(0, 1, pairs, device=device) if pairs > 1 else torch.zeros(pairs, device=device)
    return 2 * math.pi / (shortest * (longest / shortest) ** exponent)


def split_pairs(pairs: int, axes: int) -> list[int]:
    """Share a head's pairs between the axes: equal parts, the remainder to the first axis (time)."""
    return [pairs - (axes - 1) * (pairs // axes)] + [pairs // axes] * (axes - 1)


def grid_angles(seconds: Tensor, size: tuple[int, int], *, head: int) -> Tensor:
    """Angles of a token grid: seconds (b t), size (h, w) -> (b t h w head/2).

    Periods: 1/8 s to 16 s in time, 2 to 64 tokens in space. A grid of one token per time step (sound) spends every pair
    on time.
    """
    h, w = size
    parts = split_pairs(head // 2, 3 if h * w > 1 else 1)
    b, t = seconds.shape
    time = seconds[..., None] * frequencies(parts[0], shortest=0.125, longest=16.0, device=seconds.device)  # (b t e)
    angles = [time[:, :, None, None].expand(b, t, h, w, -1)]
    for part, n, shape in zip(parts[1:], (h, w), ((1, 1, h, 1, -1), (1, 1, 1, w, -1)), strict=False):
        place = torch.arange(n, device=seconds.device, dtype=torch.float32)[:, None]
        space = place * frequencies(part, shortest=2.0, longest=64.0, device=seconds.device)  # (n e)
        angles.append(space.reshape(shape).expand(b, t, h, w, -1))
    return torch.cat(angles, -1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate x (... k e) by angles (... e/2), the same for every head k."""
    cos, sin = angles.cos().to(x.dtype)[..., None, :], angles.sin().to(x.dtype)[..., None, :]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def places(seconds: Tensor, size: tuple[int, int], *, octaves: int) -> Tensor:
    """Absolute positions as features: seconds (b t), size (h, w) -> (b t h w 6*octaves).

    Sine and cosine of the time and of the place in the frame (0 and 1 are its borders, whatever its size), with periods
    of 8 s and of 4 frames, halved from octave to octave. Rotary scores alone cannot tell the floor from the ceiling.
    """
    (h, w), (b, t) = size, seconds.shape
    y, x = ((torch.arange(n, device=seconds.device) + 0.5) / n for n in size)
    axes = seconds[:, :, None, None] / 8, y[:, None] / 4, x / 4  # in the longest periods
    at = torch.stack([axis.expand(b, t, h, w) for axis in axes], -1)[..., None]  # (b t h w 3 1)
    angles = 2 * math.pi * at * 2.0 ** torch.arange(octaves, device=seconds.device)  # (b t h w 3 o)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def grid_sincos(size: tuple[int, int], width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The fixed table of DiT (after He et al. 2022, MAE): size (h, w) -> (h w width), the column's half first.

    Each half is the sine and then the cosine of the place times 10000^(-i / (width / 4)).
    """
    rates = 10000 ** (-torch.arange(width // 4, device=device, dtype=torch.float64) / (width // 4))
    h, w = (torch.arange(n, device=device)[:, None] * rates for n in size)
    row, column = (torch.cat([angles.sin(), angles.cos()], -1).float() for angles in (h, w))
    return torch.cat([column.expand(size[0], -1, -1), row[:, None].expand(-1, size[1], -1)], -1)
