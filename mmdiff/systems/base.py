"""What a system is: it owns a loss and a `generate`, and the loop asks nothing else of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch import Tensor, nn

from mmdiff.batch import Batch, ClipShape, Cond
from mmdiff.guidance import Guide
from mmdiff.sampling import Sampler

Logs = dict[str, Tensor]  # detached scalars, or (2,) a sum and its count, to be divided when all ranks are counted
Report = Callable[[int, int], None]  # (steps done, steps in all)


class Autoencoder(Protocol):
    """What a system asks of its codecs; z has unit variance, and shapes are those of one clip."""

    fitted: bool

    def fit(self, x: Tensor) -> None:
        """Take statistics from clips (b c ...)."""

    def encode(self, x: Tensor) -> Tensor:
        """Clips -> latents (b c ...)."""

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> clips; a codec that has to invent a phase also takes a key per clip."""

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The latent's shape for a clip's shape."""

    def seconds(self, steps: int, *, rate: float) -> Tensor:
        """Midpoints of the latent time steps (steps,)."""


class Conditioner(Protocol):
    """What a system asks of its conditioner."""

    def __call__(self, batch: Batch) -> Cond:
        """What a batch says of its clips."""


class System(nn.Module):
    """Something that learns and dreams. Every random draw is a function of (seed, purpose, step, batch["id"])."""

    redraws = False  # whether `generate` wants clips to make again, beside their captions

    @abstractmethod
    def players(self) -> dict[str, nn.Module]:
        """The trainable modules, each with an optimizer of its own; a GAN has two."""

    @abstractmethod
    def loss(self, batch: Batch, *, seed: int, step: int, player: str) -> tuple[Tensor, Logs]:
        """Mean loss of one player over the batch, and what to log of it."""

    @abstractmethod
    def generate(
        self,
        batch: Batch,
        *,
        seed: int,
        steps: int,
        sampler: str | Sampler,
        guidance: float | Guide,
        shape: ClipShape | None = None,
        report: Report | None = None,
    ) -> Batch:
        """Clips for batch["text"], named by batch["id"]; an id and a seed give the same clip in any batch.

        `shape` None makes clips of the shape that the system was built for.
        """

    def tokens(self, shape: ClipShape) -> int:
        """What a clip of this shape costs, in the units of the config's `tokens`: its picture's pixels by default."""
        return shape.frames * math.prod(shape.size)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take from data what is not learned by gradients (statistics of a codec); nothing by default."""

    def held_out(self, batch: Batch, *, times: Sequence[float], seed: int) -> dict[str, list[float]]:
        """Errors on held-out clips at fixed noise levels with fixed noise, per modality; nothing by default."""
        return {}
