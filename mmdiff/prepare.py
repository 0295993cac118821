"""Make an embedded data set when a config asks for one that is not there, so that a first try needs no other step."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from mmdiff.build import Prepare, Run
from mmdiff.errors import UserError

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
EMBEDDED = ("sounding_objects",)  # those that are made here; the others are adapters to copies that people have
MANIFEST = "manifest.jsonl"  # written last, so its presence means that the data set is whole


def prepare(run: Run, *, rank: int = 0, patience: float = 3600.0) -> None:
    """Rank 0 runs datasets/<dataset>/prepare.py --tier --clips --out <data.path>; the others wait for its manifest."""
    path = Path(str(run.data.get("path")))
    if run.prepare is None or path.is_file() or (path / MANIFEST).is_file():
        return
    if rank == 0:
        _make(run.prepare, path)
    deadline = time.monotonic() + patience
    while not (path / MANIFEST).is_file():
        if time.monotonic() > deadline:
            raise UserError(f"Rank {rank} waited {patience:.0f} s for {path / MANIFEST}, which rank 0 was to make.")
        time.sleep(0.2)


def _make(wanted: Prepare, path: Path) -> None:
    if wanted.dataset not in EMBEDDED:
        raise UserError(f"prepare.dataset: there is no {wanted.dataset!r} to be made; there is {', '.join(EMBEDDED)}.")
    script = DATASETS / wanted.dataset / "prepare.py"
    command = [sys.executable, str(script), "--tier", wanted.tier, "--clips", str(wanted.clips), "--out", str(path)]
    if subprocess.run(command, check=False).returncode:
        said = " ".join(command)
        raise UserError(f"Could not make the data set {path}; the message above says why. The command: {said}")
