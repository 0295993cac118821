"""The readers of media/ for files that someone names on a command line: the same calls, in a process of their own.

The one idea: a tool asks as it would ask `media` and gets the same tensors; a file that hangs or crashes its decoder is
an error that names it (decoder.py), and the tool lives on.
"""

from __future__ import annotations

import threading
from pathlib import Path

from torch import Tensor

from mmdiff.data.decoder import Decoder
from mmdiff.data.media import Facts

PATIENCE = 300.0  # s: whole files are asked for here, not windows


class _Own(threading.local):
    """A decoder a thread; its child is forked where it is first used."""

    def __init__(self) -> None:
        self.decoder = Decoder(PATIENCE)


_own = _Own()


def probe(path: str | Path) -> Facts:
    """`media.probe`. Raises BadMedia."""
    return _own.decoder.probe(path)


def read_video(
    path: str | Path, *, start: float, fps: float, frames: int, size: tuple[int, int] | None = None
) -> Tensor:
    """`media.read_video`: `frames / fps` seconds from `start` -> uint8 (t h w 3). Raises BadMedia."""
    return _own.decoder.read("read_video", path, start=start, fps=fps, frames=frames, size=size)


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """`media.read_image`: uint8 (1 h w 3). Raises BadMedia."""
    return _own.decoder.read("read_image", path, size=size)


def read_audio(path: str | Path, *, start: float, seconds: float, rate: int) -> Tensor:
    """`media.read_audio`: `seconds` from `start` -> float32 (1 n) in [-1, 1]. Raises BadMedia."""
    return _own.decoder.read("read_audio", path, start=start, seconds=seconds, rate=rate)
