"""Checkpoints that are whole or not there: staged, hashed, committed by one rename, verified before they are believed.

`checkpoints/step-N/` holds model.safetensors (all weights and fitted statistics), ema.safetensors (averages of the
trained weights), an optimizer file a rank, the config, and a manifest with the size and SHA-256 of each. Tensors are
whole and named (shares.py), so any number of ranks and any ZeRO stage can read them; nothing is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff import __version__, records
from mmdiff.config import dump
from mmdiff.errors import NoSoundCheckpoint, UserError
from mmdiff.files import flush
from mmdiff.train import snapshot
from mmdiff.train.engine import Engine
from mmdiff.train.ranks import Ranks

PATIENCE = 3  # saves that may fail in a row
MARGIN = 1 << 20  # bytes to leave free beside the checkpoint itself
Manifest = dict[str, Any]
SAID = {"step": int, "files": {str: {"bytes": int, "sha256": str}}, "updates": {str: int}, "kinds": [str]}
REMEMBERED = {"recent": [float], "strikes": int, "spikes": int}  # see health.py


class Checkpoints:
    """The checkpoints of one run folder, as seen by one rank of the run that writes them."""

    def __init__(self, run: str | Path, *, keep: int, ranks: Ranks) -> None:
        self.folder, self.keep, self.ranks = Path(run) / "checkpoints", max(2, keep), ranks
        self.failures = 0
        self.notes: dict[str, Any] = {}  # what the loop remembers beside the engine's state, in plain values

    # ---- saving ----------------------------------------------------------------------------------------------------

    def save(self, engine: Engine, step: int, config: dict[str, Any]) -> dict[str, str]:
        """Commit the state after `step`, or leave no trace -> {} or why it failed, the same on every rank.

        Raises UserError when too many saves in a row failed: a run that cannot be kept should not go on.
        """
        files = snapshot.take(engine)
        kinds = sorted({name.split(":")[0] for tensors in files.values() for name in tensors if ":" in name})
        updates = {name: player.updates for name, player in engine.players.items()}
        manifest: Manifest = {"step": step, "updates": updates, "world": self.ranks.world, "dtype": str(engine.dtype)}
        manifest["notes"] = self.notes
        manifest |= {"engine": type(engine).__name__, "stage": getattr(engine, "stage", 0), "versions": versions()}
        staged = self.folder / f"step-{step:08d}.tmp-{self.ranks.shared(uuid.uuid4().hex[:8])}"
        reason = self._write(staged, files, manifest | {"config": config}, kinds)
        if reason is None:
            self.failures = 0
            self._forget()
            return {}
        if self.ranks.first:
            shutil.rmtree(staged, ignore_errors=True)
        self.failures += 1
        if self.failures >= PATIENCE:
            raise UserError(f"{self.failures} saves in a row failed, the last at step {step}: {reason}")
        return {"save_failed": reason}

    def _write(
        self, staged: Path, files: dict[str, dict[str, Tensor]], manifest: Manifest, kinds: list[str]
    ) -> str | None:
        """Stage, exchange, commit -> what went wrong on any rank."""
        needed = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
        total = int(self.ranks.total(needed)[0])
        _, reason = self._together(lambda: prepare(staged, total) if self.ranks.first else None)
        if reason is None:
            step = manifest["step"]
            written, reason = self._together(lambda: [write_tensors(staged / n, t, step) for n, t in files.items()])
        if reason is None:
            manifest["files"] = {name: facts for rank in written for name, facts in rank}
            manifest["kinds"] = sorted({kind for rank in self.ranks.collect(kinds) for kind in rank})
            _, reason = self._together(lambda: commit(staged, manifest) if self.ranks.first else None)
        return reason

    def _together(self, act: Any) -> tuple[list[Any], str | None]:
        """Let every rank act and hear of all of them -> (results, the failures or None)."""
        mine: tuple[Any, str | None]
        try:
            mine = (act(), None)
        except (OSError, SafetensorError, RuntimeError) as error:
            mine = (None, f"rank {self.ranks.rank}: {error}")
        heard = self.ranks.collect(mine)
        reasons = [reason for _, reason in heard if reason]
        return [result for result, _ in heard], "; ".join(reasons) or None

    def _forget(self) -> None:
        """Delete all but the newest; a rename first, so that no half-deleted folder is ever taken for a checkpoint."""
        if self.ranks.first:
            for old in numbered(self.folder)[self.keep :]:
                doomed = old.with_name(f"{old.name}.tmp-old")
                os.replace(old, doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    # ---- loading ---------------------------------------------------------------------------------------------------

    def load(self, engine: Engine, *, multiple: int = 1) -> int:
        """Restore the newest sound checkpoint -> its step, 0 where there is none; bad ones are set aside, loudly.

        `multiple` passes by those of other steps, which are there only because somebody stopped the run.

        Raises NoSoundCheckpoint if there are checkpoints and none of them can be believed.
        """
        name, error = self.ranks.shared(self._choose(multiple) if self.ranks.first else None)
        if error:
            raise NoSoundCheckpoint(error)
        if name is None:
            return 0
        manifest = read_manifest(self.folder / name)
        snapshot.give_back(engine, self.folder / name, manifest)
        self.notes.update(manifest.get("notes", {}))
        return int(manifest["step"])

    def _choose(self, multiple: int) -> tuple[str | None, str | None]:
        """The name of the newest sound checkpoint, or None and perhaps an error."""
        for leftover in self.folder.glob("step-*.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        bad = [path.name for path in self.folder.glob("step-*.corrupt*")]
        for path in numbered(self.folder):
            if int(path.name[5:]) % multiple:
                continue
            fault = verify(path)
            if fault is None:
                return path.name, None
            aside = quarantine(path)
            print(f"checkpoint {path} is not sound: {fault}; it is now {aside.name}", file=sys.stderr, flush=True)
            bad.append(path.name)
        if bad:
            return None, (
                f"{self.folder} holds {len(bad)} checkpoints and none is sound ({', '.join(sorted(bad))}). Restore one "
                "from a copy, or move the folder away to start again from step 0."
            )
        return None, None


# ---- files ---------------------------------------------------------------------------------------------------------


def prepare(staged: Path, needed: int) -> None:
    """Make the staging folder; OSError if the disk cannot hold `needed` bytes."""
    staged.mkdir(parents=True)
    free = shutil.disk_usage(staged).free
    if free < needed + MARGIN:
        raise OSError(f"{staged.parent} needs {needed + MARGIN} bytes for a checkpoint, but {free} are free")


def write_tensors(path: Path, tensors: dict[str, Tensor], step: int) -> tuple[str, dict[str, Any]]:
    """Write and flush one file -> (name, its size and hash)."""
    try:
        save_file(tensors, path, metadata={"step": str(step)})  # one key: several are written in random order
    except SafetensorError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} cannot be written ({error}); {free} bytes are free there") from error
    flush(path)
    return path.name, facts(path)


def commit(staged: Path, manifest: Manifest) -> None:
    """Write what is known about the staged files, then give the folder its name in one rename."""
    config = staged / "config.yaml"
    config.write_text(dump(manifest.pop("config")), encoding="utf-8")
    flush(config)
    manifest["files"][config.name] = facts(config)
    described = staged / "manifest.json"
    described.write_text(json.dumps(manifest | {"sha256": seal(manifest)}, indent=1), encoding="utf-8")
    flush(described)
    flush(staged)
    os.replace(staged, staged.with_name(staged.name.split(".")[0]))
    flush(staged.parent)


def facts(path: Path) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def numbered(folder: Path) -> list[Path]:
    """The committed checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True)


def read_manifest(path: Path) -> Manifest:
    """The manifest; ValueError if it does not say what a manifest says, or not what it said when it was written."""
    manifest: Manifest = records.parsed((path / "manifest.json").read_text(encoding="utf-8"), SAID)
    if manifest.pop("sha256", None) not in (None, seal(manifest)):  # older checkpoints have no seal
        raise ValueError("it does not have the hash that it was written with")
    if snapshot.MODEL not in manifest["files"] or any(Path(name).name != name for name in manifest["files"]):
        raise ValueError("it names other files than a checkpoint has")
    notes = manifest.get("notes", {})
    for fault in records.faults(notes, {name: kind for name, kind in REMEMBERED.items() if name in notes}, "notes"):
        raise ValueError(fault)
    return manifest


def seal(manifest: Manifest) -> str:
    """The hash of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if every file has the size and the hash that it was written with."""
    try:
        for name, expected in read_manifest(path)["files"].items():
            found = facts(path / name)
            if found["bytes"] != expected["bytes"]:
                return f"{name} has {found['bytes']} bytes, but {expected['bytes']} were written"
            if found["sha256"] != expected["sha256"]:
                return f"{name} does not have the hash that it was written with"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest.json cannot be read ({error})"
    return None


def quarantine(path: Path) -> Path:
    """Rename a bad checkpoint so that nobody takes it for a good one, and nothing of it is lost."""
    aside, number = path.with_name(f"{path.name}.corrupt"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{number}")
    os.replace(path, aside)
    return aside


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {"mmdiff": __version__, "torch": torch.__version__, "python": sys.version.split()[0]}


# ---- weights alone -------------------------------------------------------------------------------------------------


def load_weights(run: str | Path, ema: bool = True) -> tuple[dict[str, Tensor], int, str]:
    """(state_dict of the system, step, hash) of a run's newest sound checkpoint, or of an exported folder.

    An exported folder holds config.yaml and model.safetensors. `ema` lays the averaged weights, where there are any,
    over the trained ones. Raises UserError where there are no weights, NoSoundCheckpoint where none can be believed.
    """
    run = Path(run)
    candidates = numbered(run / "checkpoints")
    for path in candidates:
        if (fault := verify(path)) is None:
            return _read(path, ema)
        print(f"checkpoint {path} is not sound: {fault}; an older one is used", file=sys.stderr, flush=True)
    if candidates or list((run / "checkpoints").glob("step-*.corrupt*")):
        raise NoSoundCheckpoint(f"{run} holds checkpoints, but none of them is sound.")
    if not (run / snapshot.MODEL).is_file():
        raise UserError(f"{run} holds no weights yet: neither checkpoints/step-* nor {snapshot.MODEL}. Train it first.")
    return _read(run, ema)


def _read(path: Path, ema: bool) -> tuple[dict[str, Tensor], int, str]:
    """The weights in one folder; the hash is that of the files that were read."""
    names = [snapshot.MODEL] + [snapshot.AVERAGE] * (ema and (path / snapshot.AVERAGE).is_file())
    weights: dict[str, Tensor] = {}
    try:
        for name in names:
            weights |= load_file(path / name)
        digest = hashlib.sha256("".join(facts(path / name)["sha256"] for name in names).encode()).hexdigest()
        return weights, _step(path / snapshot.MODEL), digest
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights in {path} cannot be read ({error}). Fetch or export them again.") from None


def _step(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return int((file.metadata() or {}).get("step", 0))
