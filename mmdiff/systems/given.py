"""What is given of a clip, as the latents and the mask that `guidance.given` and the loss hold clean.

The one idea: a batch names what is known by latent masks (`held`), and says it by clips or by the latents themselves;
latents win, so that a long video continues from numbers that were never decoded. Nothing here knows how many
modalities there are or how a system packs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from mmdiff.batch import Batch
from mmdiff.errors import UserError
from mmdiff.systems.base import Autoencoder

Shapes = Mapping[str, Sequence[int]]
Held = Mapping[str, Tensor]


def whole(held: Held, shapes: Shapes, b: int) -> dict[str, Tensor]:
    """Masks that broadcast against latents -> name: (b *shape) bool, False for a modality that is not named."""
    masks = {}
    for name, shape in shapes.items():
        mask = held.get(name, torch.zeros(1, dtype=torch.bool))
        try:
            masks[name] = mask.expand(b, *shape)
        except RuntimeError:
            raise UserError(
                f"held: the mask of {name} is {tuple(mask.shape)}, which does not fit {b} latents of {tuple(shape)}."
            ) from None
    return masks


def known(batch: Batch, codecs: Mapping[str, Autoencoder], shapes: Shapes, device: torch.device) -> dict[str, Tensor]:
    """name -> latents (b *shape): those of the batch, else those of its clips; zeros where nothing is held."""
    found, b = {}, len(batch["text"])
    for name, shape in shapes.items():
        if name not in batch.get("held", {}):
            z = torch.zeros(b, *shape)
        elif name in batch.get("latents", {}):
            z = batch["latents"][name]
        elif name in batch:
            z = codecs[name].encode(cast(Tensor, batch[name]).to(device))  # type: ignore[literal-required]
        else:
            raise UserError(f"held: the batch holds {name}, but has neither clips nor latents of it.")
        if tuple(z.shape) != (b, *shape):
            raise UserError(f"held: {name} is given as latents {tuple(z.shape)}, but {(b, *shape)} are being made.")
        found[name] = z.to(device)
    return found


def unknown_mean(errors: Tensor, held: Tensor | None) -> Tensor:
    """Errors (b ...) -> their mean over the entries that are not held (b,); zero where all are."""
    if held is None:
        return errors.flatten(1).mean(1)
    free = (~held).flatten(1)
    return torch.where(free, errors.flatten(1), 0.0).sum(1) / free.sum(1).clamp(min=1)


def learned(valid: dict[str, Tensor], held: Held) -> dict[str, Tensor]:
    """name -> (b,) bool: the clips that have the modality and do not hold all of it."""
    return {
        name: here & ~held[name].flatten(1).all(1).to(here.device) if name in held else here
        for name, here in valid.items()
    }
