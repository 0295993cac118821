"""The data set on disk: the same bytes from the same seed, whole or continued, read back as it was rendered."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import wave
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mmdiff.data.manifest import read_entries
from mmdiff.data.media import read_video
from mmdiff.errors import UserError
from mmdiff.world.clip import make_clip
from mmdiff.world.scene import TIERS, Scene, events

SCRIPT = Path(__file__).parents[2] / "datasets" / "sounding_objects" / "prepare.py"
CI = ["--tier", "ci", "--clips", "6"]


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = spec_from_file_location("sounding_objects_prepare", SCRIPT)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(prepare: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    prepare.main([*CI, "--out", str(out), "--workers", "1"])
    return out


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *CI, "--out", str(tmp_path / "again"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "train 6" in done.stdout
    assert digest(tmp_path / "again") == digest(data)


def test_another_seed_gives_other_clips(prepare: ModuleType, data: Path, tmp_path: Path) -> None:
    prepare.main([*CI, "--out", str(tmp_path / "b"), "--seed", "1", "--workers", "1"])
    assert not {row["sha256"] for row in rows(data)} & {row["sha256"] for row in rows(tmp_path / "b")}


def test_a_stopped_run_continues_and_a_whole_one_is_left_alone(
    prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, written = tmp_path / "c", prepare.write, []

    def stop_at_five(job: object) -> dict:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(job)
        return real(job)

    monkeypatch.setattr(prepare, "write", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        prepare.main([*CI, "--out", str(out), "--workers", "1"])
    assert not (out / "manifest.jsonl").exists() and len(list(out.rglob("*.mp4"))) == 5
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.mp4")}
    monkeypatch.setattr(prepare, "write", real)
    prepare.main([*CI, "--out", str(out), "--workers", "1"])
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    whole = digest(out)
    prepare.main([*CI, "--out", str(out), "--workers", "1"])
    assert "nothing to do" in capsys.readouterr().out and digest(out) == whole


def test_more_clips_only_add(prepare: ModuleType, data: Path, tmp_path: Path) -> None:
    for number in ("2", "6"):
        prepare.main(["--tier", "ci", "--clips", number, "--out", str(tmp_path / "d"), "--workers", "1"])
    assert digest(tmp_path / "d") == digest(data)


def test_every_row_is_what_the_world_says(data: Path) -> None:
    tier = TIERS["ci"]
    for row in rows(data)[::3]:
        split, index = row["id"].split("-")
        clip = make_clip(seed=0, index=int(index), split=split, tier=tier)
        assert Scene.from_json(row["scene"]) == clip.scene and row["captions"] == [c.text for c in clip.captions]
        assert [(e["t"], e["object"]) for e in row["events"]] == [(e.t, e.object) for e in events(clip.scene, 1.0)]
        assert row["sha256"] == hashlib.sha256((data / row["video"]).read_bytes()).hexdigest()
        with wave.open(str(data / row["audio"])) as file:
            assert (file.getframerate(), file.getnframes(), file.getnchannels()) == (8000, 8000, 1)
            pcm = np.frombuffer(file.readframes(8000), "<i2")
        assert np.array_equal(pcm, np.rint(clip.audio * 32767).astype(np.int16))


def test_files_play_as_they_were_rendered(data: Path) -> None:
    tier = TIERS["ci"]
    for entry in read_entries(data, split="comp"):
        assert entry.video is not None
        clip = make_clip(seed=0, index=int(entry.id.split("-")[1]), split="comp", tier=tier)
        seen = read_video(entry.video, start=0.0, fps=tier.fps, frames=tier.frames).numpy()
        assert seen.shape == clip.video.shape
        assert np.abs(seen.astype(float) - clip.video).mean() < 6  # 4:2:0 shares one colour among four pixels


def test_sizes_of_the_splits(prepare: ModuleType) -> None:
    full = {"train": 4096, "val": 512, "iid": 512, "comp": 512, "count": 256, "para": 512}
    assert prepare.sizes(4096, "by_shape") == full
    assert prepare.sizes(8192, "by_material_text") == {**full, "train": 8192, "bind": 256}
    assert prepare.sizes(128, "by_shape")["val"] == 16


def test_a_folder_that_holds_something_else_is_refused(prepare: ModuleType, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'seed': 7"):
        prepare.main([*CI, "--out", str(data), "--seed", "7"])
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not empty"):
        prepare.main([*CI, "--out", str(tmp_path)])
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"
    with pytest.raises(UserError, match="--clips"):
        prepare.main(["--tier", "ci", "--clips", "0", "--out", str(tmp_path / "e")])
