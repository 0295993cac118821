"""Clips made elsewhere: any folder of media files, or a manifest, read for judging.

The one idea: nothing is dropped or replaced. A file that cannot be read, or that is shorter than the others, stops the
evaluation with its name, because a score over what was left would be a better one. Captions stand in the manifest, in a
.txt of the clip's name, or in the .json side file that `tools/sample_video.py` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from pathlib import Path

from mmdiff import records
from mmdiff.batch import ClipShape
from mmdiff.data import apart
from mmdiff.data.manifest import Entry, read_entries
from mmdiff.data.media import IMAGES
from mmdiff.errors import UserError
from mmdiff.evaluate.clips import NO_AUDIO, NO_VIDEO, Set
from mmdiff.metrics.score import Clip
from mmdiff.progress import bar

SLACK = 0.02  # s that a stream may be short of whole frames by rounding


def folder(path: str | Path, *, shape: ClipShape | None = None, progress: bool = False) -> Set:
    """All clips of a folder or manifest in the order of their ids, read in one shape (None: see `common`).

    Raises UserError where one cannot be read or has no caption, or where some have sound and others have none.
    """
    entries = sorted(read_entries(path), key=lambda entry: entry.id)
    shape = shape or common(entries)
    found = Set([], [], [])
    with bar(f"reading {Path(path).name}", total=len(entries), show=progress) as advance:
        for entry in entries:
            found.clips.append(read(entry, shape))
            found.prompts.append(caption(entry))
            found.ids.append(entry.id)
            advance(1)
    lengths = {"picture": [len(clip[0]) for clip in found.clips], "sound": [len(clip[1]) for clip in found.clips]}
    for modality, length in lengths.items():
        lacking = [name for name, n in zip(found.ids, length, strict=True) if not n]
        if 0 < len(lacking) < len(entries):
            raise UserError(
                f"{path}: {len(lacking)} of {len(entries)} clips have no {modality} (the first is {lacking[0]}). "
                "Judge those with and those without in two folders."
            )
    return found


def caption(entry: Entry) -> str:
    """The first caption of an entry, or the prompt of its side file; empty where there is neither."""
    if entry.captions:
        return entry.captions[0]
    source = entry.video or entry.audio
    side = source.with_suffix(".json") if source is not None else None
    if side is None or not side.is_file():
        return ""
    again = "A side file of a clip is a JSON object with a `prompt`."
    return str(records.read(side, {"prompt": str}, again=again)["prompt"])


def common(entries: Sequence[Entry]) -> ClipShape:
    """The first clip's size, frame rate and sample rate, for as many seconds as the shortest clip has."""
    facts = [apart.probe(entry.video or entry.audio or "") for entry in entries]
    sounds = [apart.probe(entry.audio) for entry in entries if entry.audio is not None and entry.video is not None]
    first, rates = facts[0], [one.rate for one in (*sounds, *facts) if one.rate]
    rate = rates[0] if rates else 16000
    if first.image:
        return ClipShape(1, 1.0, first.size or (1, 1), rate)
    spans = [span for one in (*facts, *sounds) for span in (one.picture, one.sound) if span is not None]
    fps = first.fps or 25.0
    seconds = min(end - start for start, end in spans)
    return ClipShape(max(1, floor((seconds + SLACK) * fps)), fps, first.size or (1, 1), rate)


def read(entry: Entry, shape: ClipShape) -> Clip:
    """One clip: the window of the shape's seconds from the entry's start; what it lacks has length 0."""
    video, audio = NO_VIDEO, NO_AUDIO
    if entry.video is not None and entry.video.suffix.lower() in IMAGES:
        video = apart.read_image(entry.video, size=shape.size).numpy()
    elif entry.video is not None:
        frames = apart.read_video(entry.video, start=entry.start, fps=shape.fps, frames=shape.frames, size=shape.size)
        video = frames.numpy()
    source = entry.audio or (entry.video if len(video) and shape.frames > 1 else None)
    if source is not None and (entry.audio or apart.probe(source).sound):
        audio = apart.read_audio(source, start=entry.start, seconds=shape.seconds, rate=shape.rate)[0].numpy()
    return video, audio, shape.fps, shape.rate
