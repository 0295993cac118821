"""Picture and sound as one random variable.

Both latents are packed into one flat vector, so process, samplers, guidance and loss never learn that there are two
modalities; the vector is unpacked at the network's door, here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, cast

import torch
from torch import Tensor, nn

from mmdiff import tasks as masks
from mmdiff.batch import Batch, ClipShape, Cond
from mmdiff.coupling import Coupling, SharedCoupling
from mmdiff.denoiser import Denoiser
from mmdiff.process import widen
from mmdiff.sampling import uniform
from mmdiff.systems.base import Autoencoder, Conditioner
from mmdiff.systems.diffusion import UNSAID, Diffusion, decode_with, latents
from mmdiff.systems.weights import FixedWeights, Weights

SHARED, EQUAL = SharedCoupling(), FixedWeights()
Shapes = dict[str, tuple[int, ...]]


class Joint(Diffusion):
    """Joint diffusion of video and audio: their noise is coupled, and their errors are weighed, as the keys say."""

    def __init__(
        self,
        *,
        video: Annotated[nn.Module, Autoencoder],
        audio: Annotated[nn.Module, Autoencoder],
        conditioner: Annotated[nn.Module, Conditioner],
        denoiser: Denoiser,
        shape: ClipShape,
        drop: float = 0.1,
        grid: Callable[[int], Tensor] = uniform,
        coupling: Coupling = SHARED,
        weights: Weights = EQUAL,
        tasks: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            autoencoder=video, conditioner=conditioner, denoiser=denoiser, shape=shape, drop=drop, grid=grid
        )
        self.autoencoders["audio"] = audio
        self.coupling, self.weights, self.tasks = coupling, weights, tasks or {}
        masks.check(self.tasks, list(self.autoencoders))
        if isinstance(weights, nn.Module):  # learned with the rest
            self.learner["weights"] = weights
        denoiser.net = Door(denoiser.net)

    def encode(self, batch: Batch) -> Tensor:
        """Clips -> (b n), video first; a modality that a clip lacks is zero."""
        parts = {}
        for name, codec in self.codecs.items():
            z = latents(batch, name, codec, self.device)
            here = batch["valid"][name].to(z.device).reshape(-1, *[1] * (z.ndim - 1))
            parts[name] = torch.where(here, z, 0.0)
        return pack(parts)

    def decode(self, x: Tensor, batch: Batch, *, keys: Sequence[int]) -> Batch:
        parts = unpack(x, self.latent_shapes(batch))
        decoded = {name: decode_with(self.codecs[name], z, keys) for name, z in parts.items()}
        here = {name: batch["valid"][name].to(clip.device) for name, clip in decoded.items()}
        silent = {name: torch.where(widen(here[name], clip), clip, 0.0) for name, clip in decoded.items()}
        return cast(Batch, {**batch, **silent})

    def parts(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        return unpack(x, self.latent_shapes(batch))

    def joined(self, parts: dict[str, Tensor]) -> Tensor:
        return pack(parts)

    def latent_shape(self, batch: Batch = UNSAID) -> tuple[int, ...]:
        return (sum(math.prod(shape) for shape in self.latent_shapes(batch).values()),)


class Door(nn.Module):
    """Unpack (b n) for a network of named modalities, as the condition says its shapes, and pack what it answers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x (b n); t (b,), or (b n) where entries have a time of their own."""
        shapes = cond["shapes"]
        times = dict.fromkeys(shapes, t) if t.ndim == 1 else unpack(t.expand_as(x), shapes)
        return pack(self.net(unpack(x, shapes), {name: simplest(part) for name, part in times.items()}, cond))


def simplest(t: Tensor) -> Tensor:
    """Times (b ...) of one modality -> (b,) where all entries of a clip have one, which costs a network less."""
    first = t.flatten(1)[:, :1] if t.ndim > 1 else t
    return t if t.ndim == 1 or not bool((t.flatten(1) == first).all()) else first[:, 0]


def pack(parts: dict[str, Tensor]) -> Tensor:
    """name: (b ...) -> (b n), in the order of the names given."""
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


def unpack(x: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """(b n) -> name: (b *shape), views."""
    pieces = x.split([math.prod(shape) for shape in shapes.values()], 1)
    return {name: piece.unflatten(1, shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
