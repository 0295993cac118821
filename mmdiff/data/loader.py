"""Positions to batches: every step's clips, cut into the ranks' and the micro steps' contiguous shares.

The one idea: clip i of step s stands at position s * batch + i, whatever the ranks, micro steps and workers are; so to
resume is to begin at another position, and nothing is replayed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Thread

import torch
from torch.utils.data import DataLoader, Dataset

from mmdiff import noise
from mmdiff.batch import Batch
from mmdiff.data.clips import Clips, Sample
from mmdiff.data.window import FULL_SCALE
from mmdiff.errors import UserError


def loader(
    clips: Clips,
    *,
    batch: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start_step: int = 0,
    workers: int = 0,
) -> Iterator[tuple[int, list[Batch]]]:
    """(step, this rank's `accumulate` micro batches) for step = start_step ... steps - 1.

    `batch` counts clips over all ranks and micro steps. Workers are processes that read ahead, two micro batches each;
    with `clips.cache` each keeps its own copy, so 0 workers suit a cached set. Skipped clips are noted in `clips`.
    """
    micro, rest = divmod(batch, world * accumulate)
    if rest or not micro:
        raise UserError(
            f"batch {batch} cannot be shared by {world} ranks in {accumulate} micro steps; make it a multiple."
        )
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} is not one of {world} ranks.")
    return _steps(clips, _Positions(batch, micro, rank, accumulate, start_step, steps), workers)


def gather(clips: Clips, positions: Sequence[int]) -> Batch:
    """The clips at some positions as one batch, read here and now: for fitting, previews and held-out losses."""
    return _noted(clips, _packed([clips[position] for position in positions]))


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
    if "video" in first["valid"]:
        batch["video"] = torch.stack([sample["video"] for sample in samples]).float().div_(127.5).sub_(1)  # (b 3 t h w)
        batch["video"] *= batch["valid"]["video"].view(-1, 1, 1, 1, 1)  # absent is zeros, not black
    if "audio" in first["valid"]:
        batch["audio"] = torch.stack([sample["audio"] for sample in samples]).float().div_(FULL_SCALE)  # (b 1 n)
    return batch


@dataclass(frozen=True)
class _Positions:
    """The batch sampler: the positions of this rank's micro batches, one list each."""

    batch: int
    micro: int
    rank: int
    accumulate: int
    start_step: int
    steps: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            for part in range(self.accumulate):
                first = step * self.batch + (self.rank * self.accumulate + part) * self.micro
                yield list(range(first, first + self.micro))

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate


Packed = tuple[Batch, list[tuple[str, str]]] | UserError  # a batch and what was skipped for it, or why there is none


def _steps(clips: Clips, positions: _Positions, workers: int) -> Iterator[tuple[int, list[Batch]]]:
    batches = iter(
        DataLoader[Sample | UserError](
            _Reported(clips),
            batch_sampler=positions,
            collate_fn=_packed,
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

    def __getitem__(self, position: int) -> Sample | UserError:
        try:
            return self.clips[position]
        except UserError as error:
            return error


def _packed(samples: Sequence[Sample | UserError]) -> Packed:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    return collate(good), [skip for sample in good for skip in sample["skipped"]]


def _noted(clips: Clips, packed: Packed) -> Batch:
    if isinstance(packed, UserError):
        try:
            raise packed
        finally:
            del packed  # the error knows this frame: a circle that would keep the workers alive
    batch, skipped = packed
    clips.note(skipped)
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
