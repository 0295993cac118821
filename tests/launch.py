"""Start the real deepspeed launcher from a test, on the CPU and on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def environment() -> dict[str, str]:
    """One core a process, no GPU, and the tools of this interpreter first in the path."""
    hidden = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return os.environ | hidden | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def deepspeed(*arguments: str, ranks: int = 2, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """`deepspeed --num_gpus RANKS ...` in a session of its own; its output is one stream."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    return _start([*launcher, "--master_port", free_port(), *arguments], environment(), cwd)


def rank(
    *arguments: str, rank: int = 0, world: int = 1, port: str | None = None, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """One rank as its launcher starts it, without the seconds that the launcher takes and the care that it gives."""
    who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port or free_port()}
    return _start([sys.executable, *arguments], environment() | who | master, cwd)


def _start(command: list[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Wait -> (exit code, output); nothing is left behind if that takes too long."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
    return process.returncode, output


def members(process: subprocess.Popen[str]) -> dict[int, str]:
    """The live processes of a launch, whoever their parent is by now: pid -> command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            line = path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(session) == process.pid and state != "Z":
            found[int(path.parent.name)] = line
    return found


def ranks(process: subprocess.Popen[str]) -> dict[int, int]:
    """The pids of a launch's ranks by rank; loader workers and other children of theirs are not among them."""
    lines = members(process)
    here = {pid: line for pid, line in lines.items() if "--local_rank=" in line and "deepspeed.launcher" not in line}
    own = {pid: line for pid, line in here.items() if _parent(pid) not in here}
    return {int(line.partition("--local_rank=")[2].split()[0]): pid for pid, line in own.items()}


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def end(process: subprocess.Popen[str]) -> None:
    """Leave nothing of a launch behind."""
    while left := members(process):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
    process.communicate()


def wait_for(condition: Callable[[], T], seconds: float) -> T:
    """The condition's value as soon as it is true; AssertionError if it never is."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {seconds:g} s")
