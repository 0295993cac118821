"""A codec that another run has trained, frozen.

The config holds what it is made of (`part`), so that it can be built anywhere, and where its weights come from (`run`).
Training reads them from there once; from then on they are kept with the run that uses them, and the other may be
deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.errors import UserError


class Pretrained(nn.Module):
    """The autoencoder of `run`: every call goes to `part`. Statistics of the latents are fitted where it is used."""

    source = "autoencoder"  # its name in the system that trained it
    adopted: Tensor  # () bool

    def __init__(self, *, run: str, part: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.part: Any = part.requires_grad_(False)
        self.register_buffer("adopted", torch.tensor(False))

    def adopt(self, state: dict[str, Tensor]) -> None:
        """Take the weights that the other run trained."""
        self.part.load_state_dict(state)
        self.adopted.fill_(True)

    @property
    def fitted(self) -> bool:
        """Whether the weights were adopted and the statistics of the latents taken."""
        return bool(self.adopted) and self.part.fitted

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.part.channels)

    @property
    def invents_phase(self) -> bool:
        """Whether decode takes keys."""
        return getattr(self.part, "invents_phase", False)

    def fit(self, x: Tensor) -> None:
        """Statistics of the latents of clips (b c ...)."""
        if not self.adopted:
            raise UserError(f"The autoencoder of {self.run} has no weights yet: they are adopted when training starts.")
        self.part.fit(x)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Clips -> latents, in float32 whatever the autocast: this is data, not a layer."""
        with torch.autocast(x.device.type, enabled=False):
            return self.part.encode(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, z: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        """Latents -> clips."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            return self.part.decode(z, keys=keys) if self.invents_phase else self.part.decode(z)  # type: ignore[no-any-return]

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The latent's shape for a clip's shape."""
        return self.part.grid(shape)  # type: ignore[no-any-return]

    def seconds(self, steps: int, *, rate: float) -> Tensor:
        """Midpoints of the latent time steps (steps,)."""
        return self.part.seconds(steps, rate=rate)  # type: ignore[no-any-return]
