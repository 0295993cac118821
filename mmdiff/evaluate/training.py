"""The training set as small pictures and spectrograms, made once and kept, for the search for copies.

The one idea: describing thousands of clips takes minutes and depends on the data alone, so it is done in parts that are
kept under the hash of the files that they came from: an interruption loses one part, and all runs of one data set may
share one cache.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmdiff.data.manifest import Entry, read_entries
from mmdiff.evaluate.clips import real
from mmdiff.files import replacing
from mmdiff.metrics.memorisation import Descriptors, describe
from mmdiff.progress import bar

PART = 512


def descriptors(data: dict[str, Any], *, count: int | None, cache: Path, progress: bool) -> tuple[Descriptors, int]:
    """Descriptors of the first `count` clips of the training split (None: all), and how many clips those are."""
    entries = read_entries(data["path"], "train")
    total = len(entries) if count is None else min(count, len(entries))
    mark = fingerprint(data, entries)
    parts: list[Descriptors] = []
    with bar("training clips", total=total, show=progress) as advance:
        for first in range(0, total, PART):
            last = min(first + PART, total)
            parts.append(_part(data, first, last, cache / "training" / f"{mark}-{first}-{last}.safetensors"))
            advance(last - first)
    names = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {name: torch.cat([part[name] for part in parts]) for name in sorted(names)}, total


def fingerprint(data: dict[str, Any], entries: list[Entry]) -> str:
    """A hash of how clips are read and of which files, by name, size and date."""
    files = [str(path) for entry in entries for path in (entry.video, entry.audio) if path is not None]
    stats = [(Path(name).stat().st_size, Path(name).stat().st_mtime_ns) for name in files]
    return hashlib.sha256(json.dumps([data, files, stats], sort_keys=True, default=str).encode()).hexdigest()[:24]


def _part(data: dict[str, Any], first: int, last: int, path: Path) -> Descriptors:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        found = describe(real(data, "train", first=first, count=last - first).clips)
    with replacing(path) as staged:
        save_file(found, staged)
    return found
