"""How fast each reader decodes these files here: training's own windows, on one core and on all of them.

The one idea: only the user's files on the user's cores say which reader and how many workers to take. The first window
is read once before the clock starts, so that no import is timed; files may lie in the system's cache.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import get_args

from mmdiff.data.manifest import Entry
from mmdiff.data.media.read import Reader
from mmdiff.data.window import Policy, read_window
from mmdiff.errors import UserError
from mmdiff.inspection.verdicts import MIDDLE, remembered
from mmdiff.progress import bar, cores

SECONDS = 3.0  # a measurement lasts at least this long, or COUNT windows
COUNT = 64


@dataclass(frozen=True)
class Speed:
    """One reader on so many threads."""

    reader: str
    threads: int
    clips_a_second: float
    frames_a_second: float
    clips: int  # that were read


def speeds(entries: Sequence[Entry], policy: Policy, *, progress: bool = True) -> list[Speed]:
    """Measure PyAV, and decord where it is installed, on clips that can be read."""
    readers = [name for name in get_args(Reader) if importlib.util.find_spec({"pyav": "av"}.get(name, name))]
    jobs = [(reader, threads) for reader in readers for threads in sorted({1, cores()})]
    found = []
    with bar("timing readers", total=len(jobs), show=progress) as advance:
        for reader, threads in jobs:
            found += _measured(entries, replace(policy, reader=reader), threads)
            advance(1)
    return found


def _measured(entries: Sequence[Entry], policy: Policy, threads: int) -> list[Speed]:
    facts = remembered()

    def read(entry: Entry) -> None:
        read_window(entry, policy, MIDDLE, facts)

    able = [entry for entry in entries if _works(read, entry)]
    if not able:
        return []
    began, done = time.monotonic(), 0
    with ThreadPoolExecutor(threads) as pool:
        turns = cycle(able)
        while time.monotonic() < began + SECONDS and done < COUNT:
            batch = list(islice(turns, 4 * threads))
            list(pool.map(read, batch))
            done += len(batch)
    rate = done / (time.monotonic() - began)
    return [Speed(policy.reader, threads, rate, rate * policy.frames, done)]


def _works(read: Callable[[Entry], None], entry: Entry) -> bool:
    try:
        read(entry)
    except UserError:
        return False
    return True
