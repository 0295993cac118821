"""Disks that are full or may not be written, as the kernel says it: on a tiny tmpfs where the tests may mount one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch

from mmdiff.errors import UserError
from mmdiff.train import checkpoint, log
from mmdiff.train.settings import Every

STEPS = Every(log=1, save=10)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte free."""
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


class Crowded(fakes.System):
    """Fills its disk before one step and empties it before another."""

    def __init__(self, disk: Path, full: int, free: int) -> None:
        super().__init__()
        self.disk, self.full, self.free = disk, full, free

    def loss(self, batch, *, seed, step, player):
        if step == self.full:
            fill(self.disk)
        if step == self.free:
            (self.disk / "filler").unlink()
        return super().loss(batch, seed=seed, step=step, player=player)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_training_outlives_a_full_disk_and_loses_no_line(small, capfd):
    run = fakes.Run(str(small / "run"), steps=40, every=STEPS)
    assert fakes.train(run, system=Crowded(small, 3, 26)) == 0
    rows = [json.loads(line) for line in (small / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    failed = {row["step"]: row["save_failed"] for row in rows if "save_failed" in row}
    assert list(failed) == [10, 20]
    assert all(f"{small}/run/checkpoints needs 1" in why and "but 0 are free" in why for why in failed.values())
    assert checkpoint.load_weights(small / "run")[1] == 40
    assert sorted(p.name for p in (small / "run" / "checkpoints").iterdir()) == ["step-00000030", "step-00000040"]
    assert "which waits, could not be written" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_last_state_that_cannot_be_saved_is_an_error_and_the_older_one_stays(small):
    run = fakes.Run(str(small / "run"), steps=15, every=STEPS)
    with pytest.raises(UserError, match="3 saves in a row failed, the last at step 15: .* 0 are free"):
        fakes.train(run, system=Crowded(small, 12, -1))
    assert not (small / "run" / "DONE").exists()
    assert [p.name for p in (small / "run" / "checkpoints").iterdir()] == ["step-00000010"]
    (small / "filler").unlink()
    assert fakes.train(run) == 0 and checkpoint.load_weights(small / "run")[1] == 15


def test_a_disk_that_fills_up_while_a_file_is_written_is_named(small):
    with pytest.raises(OSError, match=r"model.safetensors cannot be written .*bytes are free"):
        checkpoint.write_tensors(small / "model.safetensors", {"w": torch.zeros(1 << 20)}, 1)
    assert not list(small.iterdir())


def test_a_read_only_disk_is_refused_before_the_first_step(small):
    for folder in (small / "new", small / "old"):
        if folder.name == "old":
            fakes.train(fakes.Run(str(folder), steps=1))
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(UserError, match="cannot be written.*Read-only.*run=FOLDER"):
            fakes.train(fakes.Run(str(folder), steps=3))
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)


def test_lines_are_whole_or_wait(tmp_path, monkeypatch):
    lines = log.Lines(tmp_path / "log")
    lines.add("one")

    class Full:
        """Half of it fits."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[: len(data) // 2])

    real, lines.file = lines.file, Full(lines.file)
    for text in ("two", "three"):
        with pytest.raises(OSError, match="No space"):
            lines.add(text)
    assert (tmp_path / "log").read_text() == "one\n"
    lines.file = real
    lines.close()
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"


def test_previews_that_do_not_fit_are_told_and_end_no_run(tmp_path, monkeypatch, capfd):
    def full(*args, **named):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(log.media, "write_any", full)
    run = fakes.Run(str(tmp_path), steps=4, every=replace(STEPS, sample=2))
    assert fakes.train(run) == 0
    assert "previews of step 2 could not be written" in capfd.readouterr().err
