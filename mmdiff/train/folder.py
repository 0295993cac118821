"""A run's folder: who may write to it, whether its config still says the same science, and when it is done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mmdiff.config import dump, read
from mmdiff.errors import UserError
from mmdiff.files import write_text
from mmdiff.train.ranks import Ranks
from mmdiff.train.settings import Config

MAY_CHANGE = ("run", "steps", "accumulate", "every", "engine", "sample", "keep", "health")  # the rest is the science
PACKAGES = ("mmdiff", "torch", "torchaudio", "deepspeed", "safetensors", "einops", "numpy", "av")


@contextmanager
def opened(path: str | Path, config: Config, ranks: Ranks) -> Iterator[Path]:
    """The run folder, locked against a second run, with config.yaml and environment.json written.

    Raises UserError on every rank if it cannot be written to, is in use, or holds a run of another config.
    """
    folder, lock, error = Path(path), None, None
    if ranks.first:
        try:
            lock = _claim(folder)
            _same_science(folder, config)
            write_text(folder / "config.yaml", dump(config))
            write_text(folder / "environment.json", json.dumps(environment(ranks), indent=1) + "\n")
        except UserError as raised:
            error = raised
        except OSError as raised:
            error = UserError(f"The run folder {folder} cannot be written ({raised}). Choose another with run=FOLDER.")
    try:
        ranks.agree(error)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)


def _claim(folder: Path) -> int:
    """Make the folder and lock it for as long as this process lives -> the lock's handle."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"Another process is training in {folder}. Wait for it, or choose another run=FOLDER."
        ) from None
    return handle


def _same_science(folder: Path, config: Config) -> None:
    """UserError that names the keys by which the folder's config differs, among those that decide what is learned."""
    stored = folder / "config.yaml"
    if not stored.is_file():
        return
    try:
        before = read(stored)  # bounded: a folder may come from a stranger
    except UserError as error:
        raise UserError(f"{error} Restore it from the newest checkpoint's config.yaml.") from None
    changed = [
        line for line in differences(before, plain(config)) if line.split(".")[0].split(":")[0] not in MAY_CHANGE
    ]
    if changed:
        raise UserError(
            f"{folder} holds a run of another config: {'; '.join(changed[:5])}. Use the same values to continue it, or "
            "another run=FOLDER to start anew."
        )


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """ "path: old -> new" for every leaf in which two configs differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = list(before) + [key for key in after if key not in before]
        pairs = [(before.get(k), after.get(k), f"{path}.{k}".lstrip(".")) for k in keys]
        return [line for pair in pairs for line in differences(*pair)]
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]


def plain(config: Config) -> Config:
    """The config as it comes back from a file."""
    import yaml

    return yaml.safe_load(dump(config))  # type: ignore[no-any-return]


def environment(ranks: Ranks) -> dict[str, Any]:
    """What a number in this run may depend on beside its config."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    installed = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "command": sys.argv,
        "python": sys.version.split()[0],
        "packages": installed,
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "world": ranks.world,
    }


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the source tree, None where there is none."""
    where = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
