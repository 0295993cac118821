"""Restarts a training command that failed: it goes on from its newest sound checkpoint by itself, so this only decides.

A run that ended as it should is not restarted, nor one whose config a person must mend (exit codes 2 and 3) or that was
stopped (75, for the scheduler to queue again). Restarts end when their number is used up, or when one of them brought
the run no further than its newest checkpoint. It needs neither torch nor a GPU.
"""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DONE, WRONG, UNSOUND, STOPPED, FAILED = 0, 2, 3, 75, 1  # exit codes of a run (tools/train.py), and that of the rest
FINAL = (WRONG, UNSOUND, STOPPED)
PATIENCE = 120.0  # seconds that ranks without a launcher may take to save and leave
Command = Sequence[str]


def supervise(command: Command, run: Path, *, restarts: int) -> int:
    """Run the command until it needs no other start, at most `restarts` times more -> its last exit code."""
    reached = None  # the newest checkpoint at the failure before
    for left in range(restarts, -1, -1):
        code, stopped = _attempt(command)
        _wait_for_ranks(run)
        if code == DONE and (run / "DONE").is_file():
            return DONE
        if stopped:
            return STOPPED
        if code in FINAL:
            return code
        step = newest(run)
        say(f"the run ended with {code} and holds a checkpoint of step {step}, {left} restarts left")
        if step == reached:
            say(f"it came no further than step {step} twice, so another start would not help")
            break
        reached = step
    return code or FAILED  # a launcher that was killed may say 0, but only DONE is success


def newest(run: Path) -> int:
    """The step of the newest committed checkpoint, 0 if there is none."""
    names = [path.name[5:] for path in (run / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def say(text: str) -> None:
    """Tell whoever watches."""
    print(f"supervise: {text}", file=sys.stderr, flush=True)


def _attempt(command: Command) -> tuple[int, bool]:
    """Start the command and wait -> (its exit code, whether we were told to stop meanwhile)."""
    process = subprocess.Popen(command)
    with _passed_on(process) as told:
        code = process.wait()
    return code if code >= 0 else 128 - code, bool(told)


@contextmanager
def _passed_on(process: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Hand SIGTERM and SIGINT to the process -> those that came."""
    came: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        came.append(number)
        process.send_signal(number)

    former = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _wait_for_ranks(run: Path) -> None:
    """Until no rank holds the run's folder: those whose launcher died save first, and a new start would be refused."""
    end = time.monotonic() + PATIENCE
    while (run / ".lock").is_file() and time.monotonic() < end:
        with open(run / ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.2)
