"""Do picture and sound belong to the same moments? Spot checks on a few clips, read at their own frame rate.

The one idea: what is heard is compared with what is known to happen (a manifest's `events`, in seconds from the clip's
start), or else with moments at which the picture's motion turns round (metrics/alignment.py). One clip proves nothing,
for most moments make no sound and most sounds are of something else; what is off by the same amount in many clips
shows in the median of all pairs. Whether the moments say anything is seen by giving every sound another clip's picture.
Positive: the sound is late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from statistics import quantiles
from typing import Literal

import numpy as np

from mmdiff.data import apart
from mmdiff.data.manifest import Entry
from mmdiff.data.media import BadMedia, Facts
from mmdiff.metrics.alignment import WINDOW, turns
from mmdiff.metrics.sync import HORIZON, pair
from mmdiff.progress import bar
from mmdiff.world.listen import read_onsets

LONGEST = 10.0  # s of a clip that are read
SIDE = 96  # pixels of the shorter side that are looked at
RATE = 16000


@dataclass(frozen=True)
class Spot:
    """One clip: seconds at which something is seen and heard from its start, and sound minus picture of every pair."""

    id: str
    of: Literal["events", "motion"]
    seen: list[float]
    heard: list[float]
    lags: list[float]


@dataclass(frozen=True)
class Offset:
    """All spots together, in seconds; None where too little was found to say anything."""

    spots: list[Spot]
    pairs: int
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    met: float | None = None  # share of onsets that have a moment of their own within WINDOW
    chance: float | None = None  # the same with the moments of another clip


def offsets(entries: Sequence[Entry], *, progress: bool = True) -> Offset:
    """Check clips that have a moving picture and a sound; what cannot be read is left out."""
    spots = []
    with bar("checking sync", total=len(entries), show=progress) as advance:
        for entry in entries:
            try:
                spots.append(spot(entry))
            except BadMedia:
                pass  # its verdict says so
            advance(1)
    lags = sorted(lag for found in spots for lag in found.lags)
    if len(lags) < 2:
        return Offset(spots, len(lags))
    low, middle, high = quantiles(lags, n=4, method="inclusive")
    met = share([(found.seen, found.heard) for found in spots])
    others = [(spots[i - 1].seen, found.heard) for i, found in enumerate(spots)]
    return Offset(spots, len(lags), middle, (low, high), met, share(others) if len(spots) > 1 else None)


def share(clips: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Of the onsets of (seen, heard) pairs of lists, those that meet something seen within WINDOW, one to one."""
    heard = sum(len(onsets) for _, onsets in clips)
    return sum(len(pair(seen, onsets, window=WINDOW)) for seen, onsets in clips) / heard if heard else None


def spot(entry: Entry) -> Spot:
    """Look and listen. Raises BadMedia."""
    assert entry.video is not None
    facts, sound = apart.probe(entry.video), entry.audio or entry.video
    heard = apart.probe(sound)
    if not facts.picture or not facts.size or not heard.sound:
        raise BadMedia(f"{entry.video}: lacks a picture or a sound.")
    ends = [facts.picture[1], heard.sound[1], entry.start + (entry.duration or LONGEST), entry.start + LONGEST]
    seconds = min(ends) - entry.start
    audio = apart.read_audio(sound, start=entry.start, seconds=seconds, rate=RATE)[0]  # (n,)
    onsets = read_onsets(audio.numpy(), RATE)
    known = events(entry, seconds)
    seen = known if known is not None else _moments(entry, facts, seconds)
    lags = [onsets[j] - seen[i] for i, j in pair(sorted(seen), onsets, window=HORIZON)]
    return Spot(entry.id, "motion" if known is None else "events", sorted(seen), onsets, lags)


def events(entry: Entry, seconds: float) -> list[float] | None:
    """Times that the manifest states as `events`: [{"t": seconds}, ...]."""
    rows = entry.facts.get("events")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "t" in row for row in rows):
        return None
    return sorted(float(row["t"]) for row in rows if float(row["t"]) < seconds)


def _moments(entry: Entry, facts: Facts, seconds: float) -> list[float]:
    """Seconds at which the picture's motion turns round."""
    assert entry.video is not None and facts.size is not None
    fps = min(facts.fps, 30.0) or 25.0
    scale = min(1.0, SIDE / min(facts.size))
    size = (max(2, round(facts.size[0] * scale)), max(2, round(facts.size[1] * scale)))
    frames = floor(seconds * fps)
    if frames < 4:
        return []
    video = apart.read_video(entry.video, start=entry.start, fps=fps, frames=frames, size=size)
    return turns(np.asarray(video), fps)
