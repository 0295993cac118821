"""All long checks in the order in which they are made, and those that need one process alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harm
import launch
from harm import Soak

GROWTH = 50e6  # bytes by which memory may grow over all decodes


def prepared(folder: Path) -> Path:
    """128 tiny clips with sound."""
    data = folder / "data"
    command = [sys.executable, "datasets/sounding_objects/prepare.py", "--tier", "ci", "--clips", "128", "--out"]
    subprocess.run([*command, str(data)], cwd=launch.ROOT, env=launch.environment(), check=True, capture_output=True)
    return data


def decodes(soak: Soak) -> str:
    """Many windows through one reader; the memory of it and of its decoder after the first tenth and at the end."""
    from mmdiff.data.clips import Clips

    clips = Clips(soak.data, frames=8, fps=8, size=[16, 16], rate=8000, split="train")
    sizes = []
    for position in range(soak.decodes):
        clips[position]
        if position in (soak.decodes // 10, soak.decodes - 1):
            sizes.append(sum(map(resident, family())))
    grown = sizes[1] - sizes[0]
    assert grown < GROWTH, f"memory grew by {grown / 1e6:.0f} MB"
    return f"{soak.decodes} windows with sound in one reader: memory grew by {grown / 1e6:.1f} MB"


def family() -> list[int]:
    """This process and its children."""
    own = Path("/proc/self").resolve().name
    return [int(own), *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]


def resident(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def suites(soak: Soak) -> str:
    """The whole suite as `make test` runs it, again and again."""
    counts, shared = [], ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    for number in range(soak.suites):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shared]
        done = subprocess.run(command, cwd=launch.ROOT, env=launch.environment(), capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1]
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        assert done.returncode == 0, f"suite {number + 1} of {soak.suites}: {', '.join(failed) or last}"
        counts.append(re.sub(r"[ =]+", " ", last).strip())
    return f"{soak.suites} times: {'; '.join(sorted(set(counts)))}"


CHECKS: dict[str, tuple[str, Callable[[Soak], str]]] = {
    "decodes": ("25", decodes),
    **harm.CHECKS,
    "suite": ("33", suites),
}
