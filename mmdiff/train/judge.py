"""How a run looks from outside while it trains: its error on held-out clips, and clips that it dreams.

Both use the averaged weights, fixed clips and fixed noise, so that two steps, and two runs, differ by what was learned.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mmdiff.batch import Batch
from mmdiff.data.loader import gather
from mmdiff.train.engine import Engine
from mmdiff.train.ranks import Ranks
from mmdiff.train.settings import Run

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95)  # of noise
CLIPS = 64  # held-out clips, always the same
Curves = dict[str, dict[str, float]]


def evaluate(engine: Engine, held_out: Any, run: Run, ranks: Ranks) -> Curves:
    """Modality -> noise level -> mean error; the ranks share the clips."""
    size = max(1, run.batch // ranks.world // run.accumulate)
    rounds = max(1, min(CLIPS, len(held_out)) // (size * ranks.world))
    sums: dict[str, list[float]] = {}
    for i in range(rounds):
        first = (i * ranks.world + ranks.rank) * size
        batch = gather(held_out, [k % len(held_out) for k in range(first, first + size)])
        curves = engine.evaluate(partial(_errors, batch=batch, seed=run.seed))
        for name, errors in curves.items():
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * len(LEVELS)), errors)]
    return {name: _mean(sums[name], ranks, rounds) for name in sorted(sums)}


def _errors(system: Any, *, batch: Batch, seed: int) -> dict[str, list[float]]:
    return system.held_out(batch, times=LEVELS, seed=seed)  # type: ignore[no-any-return]


def _mean(errors: list[float], ranks: Ranks, rounds: int) -> dict[str, float]:
    return {str(level): e / rounds / ranks.world for level, e in zip(LEVELS, ranks.total(*errors))}


def preview(engine: Engine, held_out: Any, run: Run) -> Batch:
    """Clips for the run's prompts, or for captions of held-out clips; every rank makes the same ones.

    A system that redraws clips gets held-out ones.
    """
    wanted = run.sample
    if engine.system.redraws:
        return _on_host(engine.evaluate(partial(_redrawn, batch=gather(held_out, range(wanted.number)), run=run)))
    texts = wanted.prompts or gather(held_out, range(min(wanted.number, len(held_out))))["text"]
    texts = [texts[i % len(texts)] for i in range(wanted.number)]
    batch = Batch(text=texts, id=[f"preview-{i}" for i in range(len(texts))])

    def act(system: Any) -> Batch:
        made = system.generate(
            batch, seed=run.seed, steps=wanted.steps, sampler=wanted.sampler, guidance=wanted.guidance
        )
        return made  # type: ignore[no-any-return]

    return _on_host(engine.evaluate(act))


def _redrawn(system: Any, *, batch: Batch, run: Run) -> Batch:
    wanted = run.sample
    return system.generate(  # type: ignore[no-any-return]
        batch, seed=run.seed, steps=wanted.steps, sampler=wanted.sampler, guidance=wanted.guidance
    )


def _on_host(clips: Batch) -> Batch:
    return Batch(**{name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in clips.items()})  # type: ignore
