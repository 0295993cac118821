"""Clip by clip: kept or dropped, and why.

The one idea: nothing is guessed from headers. The middle window of every clip is read by the code and the policies by
which training reads it, so that what is dropped here is what training would drop, with the same words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

from torch import Tensor

from mmdiff.data.decoder import Decoder
from mmdiff.data.manifest import Entry
from mmdiff.data.media import BadMedia, Facts, probe
from mmdiff.data.window import FULL_SCALE, Draws
from mmdiff.errors import UserError
from mmdiff.inspection.recipe import Recipe
from mmdiff.progress import bar, cores

MIDDLE = Draws(0.5, (0.5, 0.5))
PATIENCE = 60.0  # s after which a decoder that does not answer is given up
SILENT = -60.0  # dB of full scale that the loudest sample of a silent window does not reach


@dataclass(frozen=True)
class Verdict:
    """One clip. `reason` None: it is kept; what a file does not tell is None."""

    id: str
    file: str
    reason: str | None
    bucket: int | None = None  # of the recipe's shapes; None: it cannot be read at all
    split: str | None = None
    captions: int = 0
    seconds: float | None = None  # of the picture, or of the sound where there is none
    size: tuple[int, int] | None = None
    fps: float | None = None
    rate: int | None = None
    channels: int | None = None
    picture: bool = False  # in the window
    sound: bool = False
    peak: float | None = None  # dB of full scale of the window's sound
    sound_from: float | None = None  # s at which the sound begins, from the first frame on
    sound_to: float | None = None  # s at which it ends, from the last frame on
    took: float = 0.0  # s to find and read the window


def judge(entries: Sequence[Entry], recipe: Recipe, *, progress: bool = True) -> list[Verdict]:
    """A verdict on every entry, in their order, on all cores."""
    threads = min(cores(), max(1, len(entries)))
    verdicts: list[Verdict | None] = [None] * len(entries)
    with ThreadPoolExecutor(threads) as pool, bar("reading clips", total=len(entries), show=progress) as advance:

        def walk(first: int) -> None:
            decoder = Decoder(PATIENCE)
            for i in range(first, len(entries), threads):
                verdicts[i] = verdict(entries[i], recipe, decoder)
                advance(1)
            decoder.close()

        list(pool.map(walk, range(threads)))
    return [verdict for verdict in verdicts if verdict is not None]


def verdict(entry: Entry, recipe: Recipe, decoder: Decoder) -> Verdict:
    """Read the middle window of an entry and say what came of it."""
    began, bucket, reason = time.monotonic(), None, None
    said: dict[str, Any] = {"split": entry.split, "captions": len(entry.captions)}
    try:
        bucket = bucket_of(entry, recipe, decoder)
        reading = decoder.window(entry, recipe.policy.of(recipe.shapes[bucket]), MIDDLE)
        said |= {"picture": reading.valid.get("video", False), "sound": reading.valid.get("audio", False)}
        said["peak"] = loudest(reading.audio) if said["sound"] else None
    except UserError as error:
        reason = str(error)
    took = time.monotonic() - began
    if entry.id not in decoder.refused:  # a file that hung or crashed its decoder is not opened here
        said |= described(entry, remembered())
    return Verdict(entry.id, str(entry.video or entry.audio), reason, bucket, took=took, **said)


def bucket_of(entry: Entry, recipe: Recipe, decoder: Decoder) -> int:
    """The place in the recipe's shapes in which training reads an entry. Raises BadMedia."""
    if recipe.buckets is None:
        return 0
    return recipe.buckets.bucket(recipe.shapes, decoder.extent(entry, recipe.policy), entry.id)


def remembered() -> Callable[[Path], Facts]:
    """`probe` that opens a file once."""
    known: dict[Path, Facts] = {}

    def facts(path: Path) -> Facts:
        if path not in known:
            known[path] = probe(path)
        return known[path]

    return facts


def described(entry: Entry, facts: Callable[[Path], Facts]) -> dict[str, Any]:
    """What the headers say, as far as they can be read."""
    picture, sound = (_facts(file, facts) for file in (entry.video, entry.audio or entry.video))
    seen = picture.picture if picture else None
    heard = sound.sound if sound else None
    moving = seen is not None and picture is not None and not picture.image
    span = seen if moving else heard
    return {
        "seconds": None if span is None else span[1] - span[0],
        "size": picture.size if picture else None,
        "fps": picture.fps if picture and moving else None,
        "rate": sound.rate if sound and heard else None,
        "channels": sound.channels if sound and heard else None,
        "sound_from": heard[0] - seen[0] if moving and heard and seen else None,
        "sound_to": heard[1] - seen[1] if moving and heard and seen else None,
    }


def _facts(path: Path | None, facts: Callable[[Path], Facts]) -> Facts | None:
    try:
        return None if path is None else facts(path)
    except BadMedia:
        return None


def loudest(audio: Tensor) -> float:
    """int16 (1 n) -> dB of full scale; at least -120."""
    return 20 * log10(max(1e-6, int(audio.abs().max()) / FULL_SCALE))
