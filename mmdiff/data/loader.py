"""Positions to batches: every step's clips, cut into the ranks' and the micro steps' contiguous shares.

The one idea: which clips make a step is a function of the step (plans.py), whatever the ranks, micro steps and workers
are; so to resume is to begin at another step, and nothing is replayed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from mmdiff import noise
from mmdiff.batch import Batch
from mmdiff.data.clips import Clips, Sample
from mmdiff.data.latents import collated
from mmdiff.data.plans import Index, Plan
from mmdiff.data.window import FULL_SCALE
from mmdiff.errors import UserError


def loader(
    clips: Clips,
    *,
    plan: Plan,
    steps: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start_step: int = 0,
    workers: int = 0,
) -> Iterator[tuple[int, list[Batch]]]:
    """(step, this rank's `accumulate` micro batches) for step = start_step ... steps - 1.

    `plan` is of `clips.plan`. Workers are processes that read ahead, two micro batches each; with `clips.cache` each
    keeps its own copy, so 0 workers suit a cached set. Skipped clips are noted in `clips`.
    """
    for size in plan.sizes:
        if size % (world * accumulate) or not size:
            raise UserError(
                f"batch {size} cannot be shared by {world} ranks in {accumulate} micro steps; make it a multiple "
                "(of buckets: data.buckets.layout.multiple, of packs: tokens)."
            )
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} is not one of {world} ranks.")
    return _steps(clips, _Positions(plan, world, rank, accumulate, start_step, steps), workers)


def gather(clips: Clips, positions: Sequence[int]) -> Batch:
    """The clips at some positions as one batch, read here and now: for fitting, previews and held-out losses."""
    return _noted(clips, _made([clips[position] for position in positions]))


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples -> Batch, with the modalities that the clips' recipe reads."""
    first = samples[0]
    batch: Batch = {
        "text": [sample["text"] for sample in samples],
        "fps": torch.tensor([sample["fps"] for sample in samples]),
        "rate": first["rate"],
        "valid": {name: torch.tensor([sample["valid"][name] for sample in samples]) for name in first["valid"]},
        "id": [sample["id"] for sample in samples],
    }
    if "encoded" in first:
        return cast(Batch, {**batch, **collated([sample["encoded"] for sample in samples], batch["valid"])})
    if "video" in first["valid"]:
        batch["video"] = torch.stack([sample["video"] for sample in samples]).float().div_(127.5).sub_(1)  # (b 3 t h w)
        batch["video"] *= batch["valid"]["video"].view(-1, 1, 1, 1, 1)  # absent is zeros, not black
    if "audio" in first["valid"]:
        batch["audio"] = torch.stack([sample["audio"] for sample in samples]).float().div_(FULL_SCALE)  # (b 1 n)
    return batch


def packed(samples: Sequence[Sample], budget: int) -> Batch:
    """Samples of many shapes, which share a budget of tokens, as one Batch of parts, the largest first."""
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((*sample["video"].shape, *sample["audio"].shape), []).append(sample)
    parts = [collate(groups[shape]) for shape in sorted(groups, reverse=True)]
    names = [name for part in parts for name in part["id"]]
    return Batch(parts=parts, id=names, text=[text for part in parts for text in part["text"]], budget=budget)


@dataclass(frozen=True)
class _Positions:
    """The batch sampler: the positions of this rank's micro batches, one list each."""

    plan: Plan
    world: int
    rank: int
    accumulate: int
    start_step: int
    steps: int

    def __iter__(self) -> Iterator[list[Index]]:
        for step in range(self.start_step, self.steps):
            units = self.plan.step(step)
            micro = len(units) // (self.world * self.accumulate)
            for part in range(self.accumulate):
                first = (self.rank * self.accumulate + part) * micro
                yield [position for unit in units[first : first + micro] for position in unit]

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate

    @property
    def budget(self) -> int | None:
        """Tokens of a micro batch if its clips are packed."""
        return None if self.plan.budget is None else self.plan.budget // (self.world * self.accumulate)


Heard = tuple[list[tuple[str, str]], list[tuple[str, float]]]  # what was skipped, and how long each clip took
Made = tuple[Batch, Heard] | UserError  # a batch and what is to be told of it, or why there is none


def _steps(clips: Clips, positions: _Positions, workers: int) -> Iterator[tuple[int, list[Batch]]]:
    batches = iter(
        DataLoader[Sample | UserError](
            _Reported(clips),
            batch_sampler=positions,
            collate_fn=partial(_made, budget=positions.budget),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin_worker,
            generator=noise.generator(0),  # it would draw from the global one otherwise
        )
    )
    try:
        for step in range(positions.start_step, positions.steps):
            yield step, [_noted(clips, next(batches)) for _ in range(positions.accumulate)]
    finally:
        del batches  # ends the workers now; an error's traceback would keep them alive with this frame


@dataclass(frozen=True)
class _Reported(Dataset[Sample | UserError]):
    """The clips, with an error of the user's as a value: raised in a worker it would arrive as a traceback."""

    clips: Clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: Index) -> Sample | UserError:
        try:
            return self.clips[position]
        except UserError as error:
            return error


def _made(samples: Sequence[Sample | UserError], budget: int | None = None) -> Made:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    batch = collate(good) if budget is None else packed(good, budget)
    took = [(sample["id"], sample["took"]) for sample in good if sample["took"]]
    return batch, ([skip for sample in good for skip in sample["skipped"]], took)


def _noted(clips: Clips, made: Made) -> Batch:
    if isinstance(made, UserError):
        try:
            raise made
        finally:
            del made  # the error knows this frame: a circle that would keep the workers alive
    batch, heard = made
    clips.note(*heard)
    return batch


def _begin_worker(_: int) -> None:
    """A worker ends at its parent's word or with its parent: signals to the whole group are the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=_obey_parent, args=(os.getppid(),), daemon=True, name="obey").start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
