"""How many bits a number of a held-out clip costs a model: the variational bound of losses/likelihood.py, for a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch
from mmdiff.coupling import SharedCoupling
from mmdiff.errors import UserError
from mmdiff.evaluate.asking import Asked
from mmdiff.losses import bits_per_dim
from mmdiff.metrics.statistics import interval

Bits = dict[str, dict[str, float]]


def bits(asked: Asked, *, steps: int, out: str | Path | None = None) -> tuple[Bits, Path]:
    """ "prior", "steps", "data" and "total" -> interval over the clips, and the JSON file that holds them."""
    parts = list(asked.each(partial(bound, steps=steps, seed=asked.seed), label="bits"))
    found = {name: interval([v for part in parts for v in part[name]], seed=asked.seed).row() for name in parts[0]}
    return found, asked.keep(out, "bits.json", steps=steps, bits=found)


@torch.no_grad()
def bound(system: Any, batch: Batch, *, steps: int, seed: int) -> dict[str, list[float]]:
    """ "prior", "steps", "data" and "total" -> bits per number of each clip, with fresh noise at each of `steps`.

    Numbers are pixels of 8 bits where nothing codes them, else those of the latents, as continuous as they are, so that
    bits of two codecs do not compare. Raises UserError where there is no one path from noise to the clip.
    """
    if steps < 2:
        raise UserError(f"A bound of {steps} steps is none: take 2 or more; the more, the tighter.")
    if not isinstance(system.coupling, SharedCoupling):
        raise UserError("Bits are those of one path from noise to a clip, but here modalities walk at their own pace.")
    system.denoiser.check_start(torch.ones(1))
    x0, cond = system.encode(batch), system.condition(batch)

    def fresh(step: int) -> torch.Tensor:
        return noise.normal(x0.shape[1:], keys=noise.keys(seed, "bits", step, batch["id"]), device=x0.device)

    told = bits_per_dim(
        lambda x, t: system.denoiser.predict(x, t, cond),
        x0,
        process=system.denoiser.process,
        steps=steps,
        noise=fresh,
        levels=256 if all(isinstance(codec, Pixels) for codec in system.codecs.values()) else None,
    )
    return {name: value.tolist() for name, value in told.items()}


def table(found: Bits) -> str:
    """The result as lines to print."""
    lines = [f"{'term':<8} bits per number"]
    return "\n".join(lines + [f"{k:<8} {v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for k, v in found.items()])
