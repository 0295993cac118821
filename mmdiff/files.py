"""Files that are there whole or not at all.

The one idea: write beside, flush, rename. A rename is one step for everybody who looks, and the flush before it keeps a
power cut from leaving an empty file under a good name. Checkpoints do so with whole folders (train/checkpoint.py).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A neighbour `NAME.tmp-...` that becomes `path` when the block ends well, and is gone when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        yield staged
        flush(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    flush(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text."""
    with replacing(path) as staged:
        staged.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Make a file, or a folder's list of names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
