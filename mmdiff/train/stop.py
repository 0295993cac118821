"""How a run is told to stop, and how it notices that whoever started it is gone.

A signal only raises a flag; the loop reads it between steps, saves and leaves. A second signal changes nothing. Ranks
ask the kernel for SIGTERM when their launcher dies, and watch the launcher's own parent, because SIGTERM to the
`deepspeed` command kills that command alone and would leave its children training.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1


class Stop:
    """The flag that SIGTERM and SIGINT raise; `restore` puts the former handlers back."""

    def __init__(self) -> None:
        self.asked = False
        self.former = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def restore(self) -> None:
        """Handle signals as before."""
        for number, handler in self.former.items():
            signal.signal(number, handler)


def follow_launcher() -> None:
    """Be sent SIGTERM when the launcher dies or is orphaned (Linux; elsewhere, and under srun, a no-op)."""
    if not sys.platform.startswith("linux") or tasks_of_slurm():
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    grandparent = _parent_of(os.getppid())
    threading.Thread(target=_watch, args=(os.getppid(), grandparent), daemon=True).start()


def tasks_of_slurm() -> bool:
    """Whether srun started the ranks: SLURM ends its tasks itself, and which of its threads is a parent is unknown."""
    pairs = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"))
    return all(theirs in os.environ and os.environ[theirs] == os.environ.get(ours) for ours, theirs in pairs)


def _watch(parent: int, grandparent: int) -> None:
    while os.getppid() == parent and _parent_of(parent) == grandparent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _parent_of(pid: int) -> int:
    """The parent of a process, 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
