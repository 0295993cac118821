"""A tool with a fault in it: `python tests/faults.py FAULT TOOL ARGUMENTS`, alone or under the deepspeed launcher.

FAULT is KIND:KEY=VALUE,...; it strikes at the `after`-th call (0 is the first) of a function on one rank:

    die     SIGKILL to itself               slow    sleeps `seconds` before the call
    stop    SIGSTOP to itself               term    SIGTERM to itself, once for each of `times`
    full    OSError, no space left          none    nothing

`at` is a name of POINTS below, or `save`, which counts every point of the commit protocol in turn. Calls are counted
from the first save on, but for `evaluate` and `step`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROTOCOL = ("save_file", "flush", "replace", "rmtree")  # whatever touches the disk in a save, in train/checkpoint.py
POINTS = (*PROTOCOL, "write_tensors", "commit", "evaluate", "step")


def parse(text: str) -> dict[str, str]:
    """ "die:at=flush,rank=1" -> {"kind": "die", "at": "flush", "rank": "1"}"""
    kind, _, rest = text.partition(":")
    return {"kind": kind} | dict(item.split("=") for item in rest.split(",") if item)


def strike(fault: dict[str, str]) -> None:
    """Do the harm."""
    if fault["kind"] == "slow":
        time.sleep(float(fault["seconds"]))
    if fault["kind"] == "full":
        raise OSError(28, "No space left on device")
    numbers = {"die": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
    if fault["kind"] in numbers:
        for _ in range(int(fault.get("times", 1))):
            os.kill(os.getpid(), numbers[fault["kind"]])


def install(fault: dict[str, str]) -> None:
    """Wrap the functions that the fault is about."""
    from mmdiff.train import checkpoint, loop

    count, saving = [0], [False]

    def watched(act: Callable[..., Any], *, always: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if always or saving[0]:
                count[0] += 1
                if count[0] == int(fault.get("after", 0)) + 1:
                    strike(fault)
            return act(*args, **named)

        return call

    places = {"save_file": checkpoint, "flush": checkpoint, "replace": os, "rmtree": checkpoint.shutil}
    places |= {"write_tensors": checkpoint, "commit": checkpoint, "evaluate": loop, "step": loop}
    attributes = {"step": "train_step"}
    for name in PROTOCOL if fault["at"] == "save" else [fault["at"]]:
        place, attribute = places[name], attributes.get(name, name)
        setattr(place, attribute, watched(getattr(place, attribute), always=name in ("evaluate", "step")))
    save = checkpoint.Checkpoints.save

    def announced(*args: Any, **named: Any) -> Any:
        saving[0] = True
        try:
            return save(*args, **named)
        finally:
            saving[0] = False

    checkpoint.Checkpoints.save = announced  # type: ignore[method-assign]


def main() -> None:
    local = [word for word in sys.argv[1:] if word.startswith("--local_rank")]
    text, tool, *arguments = [word for word in sys.argv[1:] if word not in local]
    fault = parse(text)
    if fault["kind"] != "none" and fault.get("rank", "0") == os.environ.get("RANK", "0"):
        install(fault)
    sys.argv = [tool, *local, *arguments]
    runpy.run_path(tool, run_name="__main__")


if __name__ == "__main__":
    main()
