"""Signs of life: what a rank does at this moment, in a file of its own, so that whoever waits in vain can say for whom.

A rank that hangs cannot say so. The others notice when a collective call times out, and then read in RUN/ranks/ who
fell silent, in which phase of which step, and over which clips.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmdiff import records
from mmdiff.files import write_text
from mmdiff.train.memory import advice
from mmdiff.train.ranks import OwnError, Ranks

NAMED = 16  # clips
SAID = {"rank": int, "phase": str, "step": int, "ids": [str]}


class Pulse(threading.Thread):
    """Writes RUN/ranks/rank-N.json every few seconds; a thread, which goes on while the rank computes or waits."""

    def __init__(self, folder: Path, ranks: Ranks, every: float) -> None:
        super().__init__(daemon=True, name="pulse")
        self.folder, self.ranks, self.every, self.ended = folder / "ranks", ranks, every, threading.Event()
        self.at("start", 0)

    def at(self, phase: str, step: int, ids: Sequence[str] = ()) -> None:
        """Note what begins now."""
        self.now = {"phase": phase, "step": step, "ids": list(ids[:NAMED]), "since": time.time()}

    def run(self) -> None:
        """Beat until told to end."""
        self.beat()
        while not self.ended.wait(self.every):
            self.beat()

    def beat(self) -> None:
        """Write the file; a disk that refuses it ends no run."""
        who = {"rank": self.ranks.rank, "host": socket.gethostname(), "pid": os.getpid()}
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            write_text(self.path(self.ranks.rank), json.dumps(who | self.now))

    def path(self, rank: int) -> Path:
        """The file of a rank."""
        return self.folder / f"rank-{rank:05d}.json"

    def story(self) -> str:
        """Where this rank is, and the last word of those that have been silent for longest."""
        lines = [f"rank {self.ranks.rank} failed in {place(self.now)}"]
        if self.every and self.ranks.world > 1:
            self.beat()
            heard = sorted(self._heard(), key=lambda pair: -pair[0])
            lines += [f"rank {its['rank']} was last heard {ago:.0f} s ago in {place(its)}" for ago, its in heard[:4]]
        return "\n".join(lines)

    def _heard(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """(seconds since the last beat, what it said) of every other rank, by the clock of the disk they share."""
        for rank in range(self.ranks.world):
            with suppress(OSError, ValueError):
                if rank != self.ranks.rank:
                    ago = self.path(self.ranks.rank).stat().st_mtime - self.path(rank).stat().st_mtime
                    yield max(0.0, ago), records.parsed(self.path(rank).read_text(encoding="utf-8"), SAID)

    def stop(self, *, remove: bool) -> None:
        """End the thread; the file of a rank that ended well goes."""
        self.ended.set()
        if self.is_alive():
            self.join()
        with suppress(OSError):
            if remove:
                self.path(self.ranks.rank).unlink()
            self.folder.rmdir()  # by whoever is last


def place(now: dict[str, Any]) -> str:
    """A phase in words."""
    clips = f", clips {', '.join(now['ids'])}" if now["ids"] else ""
    return f"{now['phase']} of step {now['step']}{clips}"


@contextmanager
def pulse(folder: Path, ranks: Ranks, *, every: float) -> Iterator[Pulse]:
    """A beating pulse; an error, which may be another rank's silence, is told with its place.

    Raises OwnError, with what to turn, where memory was not enough.
    """
    mine, well = Pulse(folder, ranks, every), False
    if every:
        mine.start()
    try:
        yield mine
        well = True
    except RuntimeError as error:
        print(mine.story(), file=sys.stderr, flush=True)
        if what := advice(error):
            raise OwnError(f"Rank {ranks.rank}, {place(mine.now)}: {what}") from error
        raise
    finally:
        mine.stop(remove=well)
