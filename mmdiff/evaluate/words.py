"""Which words does a model hear? Exact facts, no samples, and an answer long before clips are right.

The one idea: a denoiser is a likelihood. Under captions c and c' the log-likelihoods of a clip differ by half the
integral, over the signal-to-noise ratio, of the difference of their errors in x0 (Guo, Shamai and Verdu 2005; Kong et
al. 2023, eq. 8), which is how a diffusion model classifies (Li et al. 2023). So one fact of a real clip's own caption
is exchanged, and nats say how much less the model believes in it. Both captions meet the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.batch import Batch
from mmdiff.coupling import local
from mmdiff.errors import UserError
from mmdiff.evaluate.asking import Asked
from mmdiff.metrics.statistics import interval
from mmdiff.process import time_of, widen
from mmdiff.world.exchange import WORDS, exchanged

LEVELS = torch.logspace(1.5, 0, 10, dtype=torch.float64)  # s / a: where less noise is left, the clip speaks for itself
Errors = dict[str, Tensor]  # modality -> squared error of x0, summed over a clip (b,)
Result = dict[str, dict[str, Any]]


def listen(asked: Asked, *, out: str | Path | None = None) -> tuple[Result, Path]:
    """fact -> {"right": interval, "nats": {modality: interval}}, and the JSON file that holds them.

    right: the share of clips, of those whose caption states the fact, whose own caption is the likelier one (chance:
    0.5). Raises UserError where no caption states a fact of the world, or the run is no diffusion with a caption.
    """
    found = cast(dict[str, dict[str, list[float]]], {})
    for heard in asked.each(partial(listened, seed=asked.seed), label="listening"):
        for fact, nats in heard.items():
            for name, values in nats.items():
                found.setdefault(fact, {}).setdefault(name, []).extend(values.tolist())
    if not found:
        raise UserError(f"No caption of {asked.split} states a fact that could be exchanged ({', '.join(WORDS)}).")
    result = {fact: summary(nats, seed=asked.seed) for fact, nats in found.items()}
    return result, asked.keep(out, "words.json", facts=result)


@torch.no_grad()
def listened(system: Any, batch: Batch, *, seed: int) -> dict[str, Errors]:
    """fact -> modality -> nats by which each clip that states it is likelier under its own caption (clips,)."""
    own = _errors(system, batch, seed=seed)
    heard = {}
    for fact in WORDS:
        keys = noise.keys(seed, f"exchange/{fact}", 0, batch["id"])
        said = [exchanged(text, fact, key=k) for text, k in zip(batch["text"], keys, strict=True)]
        rows = [i for i, text in enumerate(said) if text is not None]
        if rows:
            other = cast(Batch, {**batch, "text": [new or old for new, old in zip(said, batch["text"], strict=True)]})
            gaps = [{m: (e[m] - o[m])[rows] for m in o} for e, o in zip(_errors(system, other, seed=seed), own)]
            heard[fact] = {name: nats([gap[name] for gap in gaps], _ratios(system, name)) for name in gaps[0]}
    return heard


def nats(gaps: Sequence[Tensor], ratios: Tensor) -> Tensor:
    """Half the integral of the gaps, each (b,), over signal-to-noise ratios (k,) that grow from almost nothing -> (b,).

    Below the first ratio the gap is taken to be that of the first; between two it is linear.
    """
    y, x = torch.stack([gaps[0], *gaps]).double(), torch.cat([ratios.new_zeros(1), ratios])
    return torch.trapezoid(y, x, dim=0) / 2


def _errors(system: Any, batch: Batch, *, seed: int) -> list[Errors]:
    """At each of LEVELS, the error of every modality that a clip has."""
    keys, errors = noise.keys(seed, "words", 0, batch["id"]), []
    cond = system.condition(batch)
    for t in _times(system):
        at = torch.full((len(batch["id"]),), float(t), device=system.device)
        x0, times, fresh = system.noisy(batch, t=local(system.coupling, at, cond["shapes"]), keys=keys)
        a, s = system.denoiser.process(widen(times, x0))
        off = system.denoiser(a * x0 + s * fresh, times, cond) - x0
        parts = {name: part.square().flatten(1).sum(1).cpu() for name, part in system.parts(off, batch).items()}
        errors.append({name: torch.where(batch["valid"][name], part, 0.0) for name, part in parts.items()})
    return errors


def _times(system: Any) -> Tensor:
    return time_of(system.denoiser.process, LEVELS)


def _ratios(system: Any, name: str) -> Tensor:
    """Signal-to-noise ratios of a modality at the times of the grid (k,)."""
    a, s = system.denoiser.process(system.coupling.at(_times(system), name))
    return (a / s).square()


def summary(found: dict[str, list[float]], *, seed: int) -> dict[str, Any]:
    """Nats of each modality, one number a clip -> their intervals, and the share of clips of more than 0 in all."""
    together = torch.tensor(list(found.values())).sum(0)
    right = interval((together.sign() / 2 + 0.5).tolist(), seed=seed).row()  # a model that is deaf to the word: 0.5
    return {"right": right, "nats": {name: interval(values, seed=seed).row() for name, values in found.items()}}


def table(result: Result) -> str:
    """The result as lines to print."""
    lines = [f"{'fact':<14}{'clips':>6}   own caption likelier   nats"]
    for fact, row in result.items():
        right = row["right"]
        each = ", ".join(f"{m} {v['value']:.2f} ({v['low']:.2f} to {v['high']:.2f})" for m, v in row["nats"].items())
        lines.append(f"{fact:<14}{right['n']:>6}   {_share(right):<20}   {each}")
    return "\n".join(lines)


def _share(row: dict[str, float]) -> str:
    return f"{row['value']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
