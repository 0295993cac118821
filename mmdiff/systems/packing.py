"""The loss of a packed batch: clips of many shapes, whose tokens the network takes as one sequence.

The one idea: nothing but the network's call is shared. Times, noise, masks and dropped texts are those that each clip
has in any other batch, and so is its error; a packed step is an unpacked one that wastes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mmdiff import noise as draws
from mmdiff.batch import Batch
from mmdiff.errors import UserError
from mmdiff.systems.base import Logs
from mmdiff.systems.given import learned
from mmdiff.systems.levels import by_level, positions, present


def packed_loss(system: Any, batch: Batch, *, seed: int, step: int) -> tuple[Tensor, Logs]:
    """Sum over all clips of tokens times mean error, divided by the tokens that the batch has room for.

    Every token counts the same, and ranks and micro steps, whose packs have the same room, may be averaged. Logs are
    means over clips. Raises UserError for a system of several modalities.
    """
    if len(system.autoencoders) > 1:
        raise UserError("Packs are of one modality; train a joint system on buckets (layout: {kind: bucketed}).")
    (name,) = system.autoencoders
    drawn = [system.drawn(part, seed=seed, step=step) for part in batch["parts"]]
    parts, times = [part for part, _ in drawn], [t[name] for _, t in drawn]
    errors = _errors(system, parts, times, keys=[draws.keys(seed, "noise", step, part["id"]) for part in parts])
    here = [learned(part["valid"], part["held"])[name].to(system.device) for part in parts]
    loss = torch.zeros((), device=system.device)
    for part, t, error, valid in zip(parts, times, errors, here, strict=True):
        share = positions(system.latent_shapes(part)) / batch["budget"]
        loss = loss + share * torch.where(valid, system.denoiser.draw.balance(t, error), 0.0).sum()
    every = {name: torch.cat(errors)}
    logs = {f"loss/{name}": present(every[name], torch.cat(here))}
    return loss, logs | by_level(every, {name: torch.cat(times)}, {name: torch.cat(here)})


def _errors(system: Any, parts: Sequence[Batch], times: Sequence[Tensor], *, keys: Sequence[list[int]]) -> list[Tensor]:
    """Mean error of each clip (b,), part by part."""
    noisy = [system.noisy(part, t=t, keys=k) for part, t, k in zip(parts, times, keys, strict=True)]
    x0s, ts, noises = zip(*noisy, strict=True)
    conds = [system.condition(chanced(part, keys=k)) for part, k in zip(parts, keys, strict=True)]
    found = system.denoiser.packed_errors(x0s, conds, ts=ts, noises=noises)
    return [next(iter(system.means(error, part).values())) for error, part in zip(found, parts, strict=True)]


def chanced(batch: Batch, *, keys: Sequence[int]) -> Batch:
    """The batch with the chance that each clip has under the key of its noise."""
    return cast(Batch, {**batch, "chance": draws.uniform(keys=[draws.key(k, "chance") for k in keys])})
