"""Start the real deepspeed launcher from a test, on the CPU and on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """One core a process, no GPU, and the tools of this interpreter first in the path."""
    hidden = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return os.environ | hidden | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def deepspeed(*arguments: str, ranks: int = 2, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """`deepspeed --num_gpus RANKS ...` in a session of its own; its output is one stream."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    return subprocess.Popen(
        [*launcher, "--master_port", str(port), *arguments],
        cwd=cwd,
        env=environment(),
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
