"""Who works on what, told by files alone: any number of processes, on any machines that share a folder.

The one idea: claims save work and names keep the truth. A result is written aside and appears under a name that its
content decides, so two workers on one piece can only do it twice and never do harm; a claim, made in one step that only
one can win, is there so that they do not. A claim whose owner is gone (dead here, or silent for PATIENCE seconds
elsewhere) is taken over.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from mmdiff import records
from mmdiff.files import replacing

PATIENCE = 120.0  # seconds of silence after which a claim from elsewhere is nobody's


@contextmanager
def claimed(piece: Path, *, begins: str | None = None) -> Iterator[bool]:
    """Whether this process may work on the piece; what others left half done of it is cleared away.

    Its files begin with `begins`, by default with the piece's own name.
    """
    claim = piece.with_name(f"{piece.name}.claim")
    if not _take(claim):
        yield False
        return
    done = Event()
    Thread(target=_beat, args=(claim, done), daemon=True, name="claim").start()
    try:
        for left in piece.parent.glob(f"{piece.name if begins is None else begins}*.tmp-*"):
            left.unlink(missing_ok=True)
        yield True
    finally:
        done.set()
        claim.unlink(missing_ok=True)


@contextmanager
def in_turn(piece: Path, *, begins: str | None = None) -> Iterator[None]:
    """Wait until this process may work on the piece."""
    while True:
        with claimed(piece, begins=begins) as ours:
            if ours:
                yield
                return
        time.sleep(0.2)


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file aside, then give it its name, whole or not at all."""
    with replacing(path) as staged:
        write(staged)
        staged.chmod(0o644)  # safetensors leaves its files to their owner alone


def _take(claim: Path) -> bool:
    for _ in range(2):
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not _abandoned(claim):
                return False
            claim.unlink(missing_ok=True)
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        return True
    return False


def _abandoned(claim: Path) -> bool:
    try:
        silent = time.time() - claim.stat().st_mtime > PATIENCE
        owner = records.parsed(claim.read_text(encoding="utf-8"), {"host": str, "pid": int})
        return silent or (owner["host"] == socket.gethostname() and not _alive(owner["pid"]))
    except FileNotFoundError:
        return True
    except ValueError:
        return silent  # half written, perhaps this very moment


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _beat(claim: Path, done: Event) -> None:
    while not done.wait(PATIENCE / 4):
        try:
            os.utime(claim)
        except OSError:
            return
