"""Clips inspected before training: the verdicts, steps and moments that training would find, and a page of them."""

from __future__ import annotations

import inspect as signatures
import json
import runpy
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmdiff import build
from mmdiff.data import media
from mmdiff.data.clips import Clips
from mmdiff.data.manifest import read_entries
from mmdiff.data.plans import Budget
from mmdiff.data.window import Policy
from mmdiff.errors import UserError
from mmdiff.inspection import Inspection, inspect, speed, summary, write
from mmdiff.inspection.offsets import offsets
from mmdiff.inspection.plan import planned
from mmdiff.world.clip import make_clip
from mmdiff.world.scene import TIERS

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {"frames": 8, "fps": 8, "size": [32, 32], "rate": 8000}


@pytest.fixture(scope="module")
def folder(studio: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long and short clips, silent ones, a still, a song, and broken files."""
    path = tmp_path_factory.mktemp("inspected")
    for k in range(4):
        studio.encode(path / f"good{k}.mp4", studio.grey(48, 64, 96), studio.click(2, 16000, [1.0], 2), rate=16000)
    (path / "good0.txt").write_text("<script>alert(1)</script> & a ball\n")
    studio.encode(path / "quiet.mp4", studio.grey(48, 64, 64), studio.click(2, 16000, []), rate=16000)
    studio.encode(path / "mute.mp4", studio.grey(48, 64, 64))
    studio.encode(path / "song.wav", None, studio.click(3, 16000, [1.5]), audio="pcm_s16le", rate=16000)
    media.write_png(path / "still.png", torch.full((49, 65, 3), 200, dtype=torch.uint8))
    (path / "bad_moov.mp4").write_bytes((path / "good0.mp4").read_bytes()[:1500])
    (path / "bad_zero.mp4").write_bytes(b"")
    studio.encode(path / "short.mp4", studio.grey(12, 64, 64))
    return path


@pytest.fixture(autouse=True, scope="module")
def hurried() -> Iterator[None]:
    """Decoding is timed briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def found(folder: Path, hurried: None) -> Inspection:
    return inspect(folder, shape=SHAPE, progress=False)


def test_verdicts_are_those_of_training(folder: Path, found: Inspection) -> None:
    clips = Clips(folder, split=None, **SHAPE)
    for position in range(len(clips)):
        clips.note(clips[position]["skipped"])
    said = {v.id: v.reason for v in found.verdicts if v.reason is not None}
    assert said == {bad["id"]: bad["reason"] for bad in clips.bad}
    assert set(said) == {"bad_moov.mp4", "bad_zero.mp4", "short.mp4"} and len(found.kept) == 8
    assert found.reasons["lasts N s, the window N s (data.short is drop)"] == 1 and sum(found.reasons.values()) == 3


def test_what_is_said_of_a_clip(found: Inspection) -> None:
    clips = {v.id: v for v in found.verdicts}
    good = clips["good0.mp4"]
    assert (good.size, good.fps, good.rate, good.channels, good.captions) == ((64, 96), 24, 16000, 2, 1)
    assert good.seconds == pytest.approx(2.0) and good.peak is not None and good.peak > -20
    assert good.sound_from == pytest.approx(0, abs=0.05) and good.picture and good.sound
    assert clips["quiet.mp4"].peak is not None and clips["quiet.mp4"].peak < -60
    assert found.sound == {"with sound": 6, "without sound": 2, "silent": 1, "without picture": 1}
    assert clips["song.wav"].size is None and clips["still.png"].fps is None
    assert {s.reader for s in found.speeds} == {"pyav", "decord"} and all(s.clips_a_second > 0 for s in found.speeds)


def test_without_a_config_there_are_no_steps(found: Inspection) -> None:
    assert found.outlook.epochs is None and [room.kept for room in found.outlook.rooms] == [8]
    with pytest.raises(UserError, match="Give a config, or frames"):
        inspect("x")


def test_steps_of_a_config(folder: Path) -> None:
    options = [*(f"data.{key}={value}" for key, value in SHAPE.items()), "data.split=null", "batch=4", "steps=30"]
    options.append("system.denoiser.net.depth=1")
    result = inspect(folder, config=str(ROOT / "configs/folder.yaml"), overrides=options, progress=False)
    plan, run = result.outlook, build.parse(build.read(ROOT / "configs/folder.yaml", [f"data.path={folder}", *options]))
    cost = build.make_system(run).tokens(result.recipe.policy.shape)
    assert plan.epochs == 30 * 4 / 8 and plan.tokens_a_step == (4 * cost, 4 * cost, 4 * cost)
    assert plan.rooms[0].tokens == cost and plan.rooms[0].share == 1


def test_buckets_are_those_of_training(folder: Path) -> None:
    shapes = "[{frames: 8, size: [32, 48]}, {frames: 1, size: [32, 32]}, {frames: 16, size: [16, 16]}]"
    options = [
        "data.frames=8", "data.fps=8", "data.size=[32, 32]", "data.split=null", "data.modalities=[video]", "tokens=600",
        f"data.buckets={{kind: buckets, shapes: {shapes}, layout: {{kind: bucketed, multiple: 1}}}}", "steps=40",
    ]  # fmt: skip
    config = str(ROOT / "configs/lineage/sora.yaml")
    result = inspect(folder, config=config, overrides=options, progress=False)
    recipe, plan = result.recipe, result.outlook
    assert recipe.cost is not None and recipe.buckets is not None
    clips = Clips(folder, **{**SHAPE, "modalities": ["video"], "split": None}, buckets=recipe.buckets)
    theirs = clips.plan(Budget(600, recipe.cost))
    mine = planned(recipe, [room.clips for room in plan.rooms], [room.tokens or 0 for room in plan.rooms])
    assert [mine.step(step) for step in range(40)] == [theirs.step(step) for step in range(40)]
    assert plan.epochs == pytest.approx(40 * theirs.mean / len(result.kept))
    assert plan.tokens_a_step is not None and 0 < plan.tokens_a_step[0] <= plan.tokens_a_step[2] <= 600
    assert sum(room.share or 0 for room in plan.rooms) == pytest.approx(1)
    small = inspect(folder, config=config, overrides=[*options, "tokens=3"], progress=False)
    assert small.outlook.problem is not None and "does not hold" in summary(small)


def test_a_training_on_latents_reads_no_clips(folder: Path) -> None:
    with pytest.raises(UserError, match="data.latents is encoded: .* add data.latents=null"):
        inspect(folder, config=str(ROOT / "configs/folder.yaml"), overrides=["data.latents=encoded"], progress=False)


def test_a_part_of_the_clips(folder: Path) -> None:
    options = [*(f"data.{key}={value}" for key, value in SHAPE.items()), "data.split=null", "batch=4", "steps=30"]
    few = inspect(folder, config=str(ROOT / "configs/folder.yaml"), overrides=options, count=4, progress=False)
    assert len(few.verdicts) == 4 and few.listed == 11
    assert few.outlook.epochs == pytest.approx(120 / round(len(few.kept) * 11 / 4))


# ---- sync ----------------------------------------------------------------------------------------------------------


def world(path: Path, late: float) -> Path:
    """Clips of the sounding world, their sound late by so many seconds."""
    tier = TIERS["cpu"]
    for index in range(10):
        clip = make_clip(seed=0, index=index, split="train", tier=tier, binding="by_shape")
        sound = torch.from_numpy(clip.audio)[None]
        shifted = torch.nn.functional.pad(sound, (round(late * tier.rate), 0))[:, : sound.shape[1]]
        media.write_clip(path / f"{index}.mp4", torch.from_numpy(clip.video), fps=tier.fps)
        media.write_wav(path / f"{index}.wav", shifted, rate=tier.rate)
    return path


def test_motion_tells_that_sound_is_late(tmp_path: Path) -> None:
    there, late = (
        offsets(read_entries(world(tmp_path / name, s)), progress=False) for name, s in (("a", 0), ("b", 0.08))
    )
    assert there.median is not None and late.median is not None and late.pairs > 8
    assert abs(there.median) < 0.05 and late.median - there.median == pytest.approx(0.08, abs=0.02)
    assert {spot.of for spot in late.spots} == {"motion"}
    assert there.met is not None and there.chance is not None and there.met > there.chance + 0.2


def test_stated_events_tell_it_exactly(studio: SimpleNamespace, tmp_path: Path) -> None:
    studio.encode(tmp_path / "a.mp4", studio.grey(48, 32, 32), studio.click(2, 16000, [0.5, 1.2]), rate=16000)
    row = {"video": "a.mp4", "events": [{"t": 0.42}, {"t": 1.12}, {"t": 9.0}]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    checked = offsets(read_entries(tmp_path), progress=False)
    assert checked.spots[0].of == "events" and checked.spots[0].seen == [0.42, 1.12]
    assert checked.median == pytest.approx(0.08, abs=0.012) and checked.pairs == 2


# ---- what is written -----------------------------------------------------------------------------------------------


def test_the_page_and_the_json(folder: Path, found: Inspection, tmp_path: Path) -> None:
    record, page = write(found, tmp_path / "out", previews=4)
    rows = json.loads(record.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert rows["kept"] == 8 and {clip["id"] for clip in rows["clips"]} == {e.id for e in read_entries(folder)}
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text and "<script" not in text
    assert "http:" not in text and "https:" not in text and text.count("data:video/mp4;base64,") >= 2
    assert all(v.id in text for v in found.verdicts) and "the file is empty" in text
    assert "8 of 11 clips kept" in summary(found)


def test_the_tool(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "tools/inspect_data.py"))["main"]
    main([str(folder), "--frames", "8", "--size", "32x48", "--clips", "5", "--previews", "2", "--out", str(tmp_path)])
    assert "of 5 clips kept (11 listed)" in capsys.readouterr().out and (tmp_path / "inspection.html").is_file()
    with pytest.raises(UserError, match="--size is height x width"):
        main([str(folder), "--size", "big"])


def test_a_policy_has_the_defaults_of_clips() -> None:
    theirs = signatures.signature(Clips).parameters
    for f in fields(Policy):
        assert (f.default is MISSING) == (theirs[f.name].default is signatures.Parameter.empty)
        assert f.default is MISSING or f.default == theirs[f.name].default
