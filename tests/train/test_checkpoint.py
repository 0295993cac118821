"""Checkpoints are whole or not there, whatever happens while they are written, kept or read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch
from safetensors.torch import save_file

from mmdiff import noise
from mmdiff.errors import NoSoundCheckpoint, UserError
from mmdiff.train import checkpoint, engine, snapshot
from mmdiff.train.ranks import Ranks
from mmdiff.train.settings import Every

POINTS = 14  # calls during one save after which a process may be gone


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 8 steps with checkpoints at 6 and 8."""
    folder = tmp_path_factory.mktemp("run")
    fakes.train(run_in(folder))
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def run_in(folder: Path) -> fakes.Run:
    return fakes.Run(str(folder), every=Every(log=1, save=2))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def made(folder: Path, keep: int = 2) -> tuple[checkpoint.Checkpoints, engine.Engine]:
    system = fakes.System()
    system.codec.scale += 1
    return checkpoint.Checkpoints(folder, keep=keep, ranks=Ranks()), engine.make(run_in(folder), system, Ranks())


# ---- keeping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_never_fewer_than_two(tmp_path, keep):
    fakes.train(replace(run_in(tmp_path), keep=keep))
    assert len(names(tmp_path)) == max(2, keep) and names(tmp_path)[-1] == "step-00000008"


def test_a_checkpoint_says_what_it_is(trained):
    newest = trained / "checkpoints" / "step-00000008"
    manifest = json.loads((newest / "manifest.json").read_text())
    assert {"step", "world", "stage", "dtype", "versions", "files", "updates"} <= manifest.keys()
    assert set(manifest["files"]) == {p.name for p in newest.iterdir()} - {"manifest.json"}
    assert (newest / "config.yaml").read_text() == (trained / "config.yaml").read_text()


# ---- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = noise.integer(len(data) * 8, key=noise.key("flip", path.name))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}
FILES = ("model.safetensors", "ema.safetensors", "optimizer-00000.safetensors", "config.yaml", "manifest.json")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_named_set_aside_and_the_older_one_used(folder, capfd, damage, file):
    DAMAGE[damage](folder / "checkpoints" / "step-00000008" / file)
    store, built = made(folder)
    assert store.load(built) == 6
    assert names(folder) == ["step-00000006", "step-00000008.corrupt"]
    assert file in (told := capfd.readouterr().err) and "step-00000008.corrupt" in told


def test_no_bit_of_a_manifest_can_change_unseen(folder):
    path = folder / "checkpoints" / "step-00000008"
    whole, said = (path / "manifest.json").read_bytes(), checkpoint.read_manifest(path)
    for bit in range(0, len(whole) * 8, 11):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (path / "manifest.json").write_bytes(data)
        if checkpoint.verify(path) is None:  # the seal's own name, and all that it seals is as it was
            assert said.items() <= checkpoint.read_manifest(path).items()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": 8', "null"])
def test_a_bad_manifest_is_damage_too(folder, text):
    (folder / "checkpoints" / "step-00000008" / "manifest.json").write_text(text)
    assert made(folder)[0].load(made(folder)[1]) == 6


def test_none_sound_is_an_error_of_its_own_and_stays_one(folder):
    for path in (folder / "checkpoints").iterdir():
        flip(path / "model.safetensors")
    for _ in range(2):
        with pytest.raises(NoSoundCheckpoint, match="none is sound"):
            fakes.train(run_in(folder))
    with pytest.raises(NoSoundCheckpoint):
        checkpoint.load_weights(folder)


def test_a_run_goes_on_from_the_older_one_to_the_same_end(folder):
    before = fakes.hashes(folder / "checkpoints" / "step-00000008")
    flip(folder / "checkpoints" / "step-00000008" / "model.safetensors")
    assert fakes.train(run_in(folder)) == 0
    assert fakes.hashes(folder / "checkpoints" / "step-00000008") == before


# ---- death and full disks ------------------------------------------------------------------------------------------


def dying(monkeypatch, after: int) -> None:
    """End this process without a word at the `after`-th call of anything that touches the disk."""
    left = [after]

    def mortal(act):
        def call(*args, **named):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return act(*args, **named)

        return call

    monkeypatch.setattr(checkpoint, "save_file", mortal(checkpoint.save_file))
    monkeypatch.setattr(checkpoint, "flush", mortal(checkpoint.flush))
    monkeypatch.setattr(checkpoint.os, "replace", mortal(os.replace))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", mortal(shutil.rmtree))


@pytest.mark.parametrize("after", range(POINTS))
def test_death_at_any_point_of_a_save_leaves_a_sound_checkpoint(folder, monkeypatch, after):
    child = os.fork()
    if child == 0:
        store, built = made(folder)
        store.load(built)
        dying(monkeypatch, after)
        store.save(built, 10, {})
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert died == (9 if after < POINTS - 1 else 0), "POINTS should be one more than the calls of a save"
    store, built = made(folder)
    assert store.load(built) in (8, 10)
    assert all(checkpoint.verify(path) is None for path in checkpoint.numbered(folder / "checkpoints"))
    assert not [name for name in names(folder) if "tmp" in name]


def test_a_failed_save_leaves_no_trace_and_three_end_the_run(folder, monkeypatch):
    store, built = made(folder)
    before = names(folder)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 7))
    for _ in range(2):
        assert "7 are free" in store.save(built, 10, {})["save_failed"]
        assert names(folder) == before
    with pytest.raises(UserError, match="3 saves in a row"):
        store.save(built, 10, {})


def test_training_goes_on_after_a_failed_save(tmp_path, monkeypatch):
    real, calls = checkpoint.write_tensors, []

    def sometimes(path, tensors, step):
        calls.append(step)
        if step == 2:
            raise OSError(28, "No space left on device")
        return real(path, tensors, step)

    monkeypatch.setattr(checkpoint, "write_tensors", sometimes)
    assert fakes.train(run_in(tmp_path)) == 0
    assert names(tmp_path) == ["step-00000006", "step-00000008"]
    assert "No space left" in (tmp_path / "log.jsonl").read_text()


# ---- weights alone -------------------------------------------------------------------------------------------------


def test_weights_load_without_an_engine(trained):
    average, step, first = checkpoint.load_weights(trained)
    weights, _, second = checkpoint.load_weights(trained, ema=False)
    assert step == 8 and first != second
    system = fakes.System()
    system.load_state_dict(average)
    assert torch.equal(average["codec.scale"], weights["codec.scale"])
    assert not torch.equal(average["learner.net.enter.weight"], weights["learner.net.enter.weight"])


def test_an_exported_folder_loads_like_a_run(trained, tmp_path):
    average, _, _ = checkpoint.load_weights(trained)
    save_file(average, tmp_path / snapshot.MODEL, metadata={"step": "8"})
    found, step, _ = checkpoint.load_weights(tmp_path)
    assert step == 8 and all(torch.equal(found[name], average[name]) for name in average)


def test_no_weights_and_bad_weights_are_errors_that_say_so(tmp_path):
    with pytest.raises(UserError, match="no weights yet"):
        checkpoint.load_weights(tmp_path)
    (tmp_path / snapshot.MODEL).write_bytes(b"\x80\x04nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_weights(tmp_path)


def test_reading_weights_passes_by_a_damaged_checkpoint_and_moves_nothing(folder, capfd):
    flip(folder / "checkpoints" / "step-00000008" / "ema.safetensors")
    assert checkpoint.load_weights(folder)[1] == 6
    assert names(folder) == ["step-00000006", "step-00000008"]
    assert "ema.safetensors" in capfd.readouterr().err
