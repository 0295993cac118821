"""What the judged clips are compared with: ground truth, other real clips, the training set, and ways to cheat.

The one idea: anchors come from the same data, are read in the same way and have the same modalities as the judged
clips, and no real clip stands on both sides of a distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmdiff.batch import ClipShape
from mmdiff.evaluate import protocol
from mmdiff.evaluate.clips import Set, joined, modalities, real
from mmdiff.evaluate.folder import folder
from mmdiff.evaluate.measure import Anchors
from mmdiff.evaluate.training import descriptors
from mmdiff.metrics.memorisation import Bar, describe
from mmdiff.metrics.nulls import applicable, copier
from mmdiff.metrics.plugins import load

COPIED = 512  # training clips that the copier may choose from
HELD_OUT = 256  # held-out clips, at least, that say how near to the training set an unseen clip lies
FEWEST = 16  # real clips without which distances are not measured


@dataclass(frozen=True)
class Choice:
    """Which real clips: see `evaluate`."""

    split: str
    n: int
    seed: int
    against: str | Path | None
    training: int | None
    plugins: Mapping[str, str | Path]

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return self.split.split(",")


def ground_truth(data: dict[str, Any], choice: Choice) -> Set:
    """The first `n` clips of each split."""
    return joined([real(data, name, count=choice.n) for name in choice.splits])


def anchors(
    judged: Set, truth: Set | None, data: dict[str, Any] | None, choice: Choice, *, cache: Path, progress: bool
) -> tuple[Anchors, dict[str, Any]]:
    """The anchors of a judged set, and what the protocol says about them."""
    have = modalities(judged.clips)
    held = Set([], [], []) if data is None else _held_out(data, choice, progress=progress).only(have)
    reference, source = held.part(0, choice.n * len(choice.splits)), f"{choice.split}, after its first {choice.n} clips"
    if choice.against is not None:
        reference = folder(choice.against, shape=_shape(judged), progress=progress).only(have)
        source = protocol.source(choice.against)
    record: dict[str, Any] = {"reference": {"from": source, "clips": len(reference.clips)}}
    if len(reference.clips) < FEWEST:
        record["reference"] |= {"from": f"none: at least {FEWEST} real clips are needed for distances"}
    copies = None
    if data is not None and held.clips and choice.training != 0:
        found, total = descriptors(data, count=choice.training, cache=cache, progress=progress)
        copies = Bar.of({name: x for name, x in found.items() if name in have}, describe(held.clips))
        record["memorisation"] = {"training_clips": total, "held_out_clips": copies.held_out, "limits": copies.limits}
    near = reference if len(reference.clips) >= FEWEST else None
    plugged = tuple(load(name, path) for name, path in choice.plugins.items())
    if plugged:
        record["plugins"] = {one.name: one.record(len(judged.clips)) for one in plugged}
    return Anchors(near, copies, None if truth is None else truth.only(have), choice.seed, plugged), record


def _held_out(data: dict[str, Any], choice: Choice, *, progress: bool) -> Set:
    """Clips of each split behind those of the oracle row, the first `n` of each split in front."""
    count = max(choice.n, HELD_OUT)
    sets = [real(data, name, first=choice.n, count=count, progress=progress) for name in choice.splits]
    return joined([*(one.part(0, choice.n) for one in sets), *(one.part(choice.n) for one in sets)])


def _shape(judged: Set) -> ClipShape:
    """The shape of clips that are there already."""
    video, audio, fps, rate = judged.clips[0]
    if not len(video):
        return ClipShape(1, rate / len(audio), (1, 1), rate)
    return ClipShape(len(video), fps, (video.shape[1], video.shape[2]), rate)


def cheats(truth: Set, data: dict[str, Any], *, seed: int) -> dict[str, Set]:
    """The null rows: the truth made wrong in one known way each, and training clips handed out by their captions."""
    rows = {
        name: replace(truth, clips=make(truth.clips, truth.prompts, seed=seed))
        for name, make in applicable(truth.clips).items()
    }
    known = real(data, "train", count=COPIED).only(modalities(truth.clips))
    return rows | {"copier": replace(truth, clips=copier(known.clips, truth.prompts, known=known.prompts))}
