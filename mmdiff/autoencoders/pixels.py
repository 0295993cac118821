"""The identity codec: a network that paints pixels gets the same interface as one that paints latents.

The one idea: an identity object instead of a question, so that no caller ever asks whether its tensors are latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdiff.errors import UserError


class Pixels(nn.Module):
    """Latents are the pixels themselves: (b c t h w) in [-1, 1], one latent time step a frame."""

    fitted = True

    def __init__(self, *, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def fit(self, x: Tensor) -> None:
        """Nothing to learn."""

    def encode(self, x: Tensor) -> Tensor:
        """(b c t h w) -> the same."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """(b c t h w) -> the same, clamped to [-1, 1]."""
        return z.clamp(-1, 1)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A clip's shape (c t h w) -> the same, checked."""
        if shape[0] != self.channels:
            raise UserError(f"Pixels was built for {self.channels} channels, but the clip's shape is {tuple(shape)}.")
        return tuple(shape)

    def seconds(self, steps: int, *, rate: float) -> Tensor:
        """Frame k is shown at (k + 0.5) / rate seconds -> (steps,)."""
        return (torch.arange(steps) + 0.5) / rate
