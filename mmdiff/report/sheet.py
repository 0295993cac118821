"""Many models beside each other in one picture: a row for each, and in it a few frames of the same captions.

The one idea: a sheet is laid out from the files that a user gets, so that it shows nothing that a run did not make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.data import apart
from mmdiff.data.manifest import read_entries
from mmdiff.errors import UserError
from mmdiff.report import gallery

PAPER = 255  # what lies between clips, and where a model made nothing
Row = Mapping[str, Tensor]  # caption -> video (t h w 3) uint8


def sheet(rows: Sequence[Row], *, frames: int = 3, scale: int = 2, gap: int = 6) -> Tensor:
    """Rows of clips -> a picture uint8 (h w 3); columns are the captions of the first row, in its order.

    Every clip is shown by `frames` frames, evenly in time, and enlarged by repeating pixels.
    """
    captions = list(rows[0])
    missing = [caption for row in rows for caption in captions if caption not in row]
    if missing:
        raise UserError(f"One of the rows lacks a clip of {missing[0]!r}: make all of them from the same prompts.")
    size = max(max(row[caption].shape[1:3]) for row in rows for caption in captions)
    lines = [torch.cat([_cell(row[c], frames, size, scale, gap) for c in captions], 1)[:, gap:] for row in rows]
    return torch.cat([F.pad(line, (0, 0, 0, 0, gap, 0), value=PAPER) for line in lines], 0)[gap:]


def _cell(video: Tensor, frames: int, size: int, scale: int, gap: int) -> Tensor:
    """(t h w 3) -> its frames side by side with a wide gap before them (scale*size gap+... 3)."""
    n = min(frames, len(video))
    places = ((torch.arange(n) + 0.5) / n * len(video)).long()
    shown = [F.pad(video[k], (0, 0, 0, size - video.shape[2], 0, size - video.shape[1]), value=PAPER) for k in places]
    shown += [torch.full_like(shown[0], PAPER)] * (frames - n)
    large = [frame.repeat_interleave(scale, 0).repeat_interleave(scale, 1) for frame in shown]  # (scale*size .. 3)
    narrow = [F.pad(frame, (0, 0, gap if k == 0 else 1, 0), value=PAPER) for k, frame in enumerate(large)]
    return torch.cat(narrow, 1)


def made(folder: str | Path) -> Row:
    """The clips of a folder of tools/sample_video.py, each by its caption."""
    clips = gallery.read(Path(folder)).clips
    return {caption: gallery.load(path, side)[0] for caption, (path, side) in clips.items()}


def real(data: str | Path, captions: Sequence[str], *, frames: int, fps: float) -> Row:
    """The clips of a data set that the captions describe, each read from its start."""
    entries = {caption: entry for entry in reversed(read_entries(data)) for caption in entry.captions}
    unknown = [caption for caption in captions if caption not in entries or entries[caption].video is None]
    if unknown:
        raise UserError(f"{data} holds no clip with the caption {unknown[0]!r}; leave --data out.")
    found = {caption: entries[caption] for caption in captions}
    return {c: apart.read_video(str(e.video), start=e.start, fps=fps, frames=frames) for c, e in found.items()}
