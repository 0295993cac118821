"""Samples: a pure function of seed and position, every policy as documented, every bad file named once."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.data import media, window
from mmdiff.data.clips import Clips, Sample
from mmdiff.data.loader import collate, gather
from mmdiff.errors import UserError

SHAPE: dict[str, Any] = {"frames": 8, "fps": 8, "size": [32, 32], "rate": 8000, "split": None}


@pytest.fixture(scope="session")
def folder(studio: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people have: long and short clips, silent ones, an image, a wav, and six kinds of broken files."""
    path = tmp_path_factory.mktemp("folder")
    for k in range(6):
        clip = studio.encode(path / f"good{k}.mp4", studio.grey(48, 64, 96), studio.click(2, 48000, [1.0], 2))
        (path / f"good{k}.txt").write_text(f"first {k}\nsecond {k}\nthird {k}\n")
    studio.encode(path / "silent.mp4", studio.grey(48, 64, 64))
    studio.encode(path / "song.wav", None, studio.click(3, 44100, [1.0], 2), audio="pcm_s16le", rate=44100)
    media.write_png(path / "still.png", torch.full((49, 65, 3), 200, dtype=torch.uint8))
    data = clip.read_bytes()
    (path / "bad_zero.mp4").write_bytes(b"")
    (path / "bad_text.mp4").write_bytes(b"dear diary\n" * 99)
    (path / "bad_moov.mp4").write_bytes(data[: len(data) // 2])
    (path / "bad_name.wav").write_bytes(b"no sound in here")
    studio.garbled(studio.encode(path / "bad_bytes.mp4", studio.moving(25, 96, 96), fps=24), at=0.3)
    studio.encode(path / "bad_short.mp4", studio.grey(12, 64, 64))
    return path


@pytest.fixture(scope="session")
def clips(folder: Path) -> Clips:
    return Clips(folder, **SHAPE)


def named(clips: Clips, epoch: int = 0) -> dict[str, Sample]:
    """The samples of one epoch by id, with the loader's bookkeeping."""
    samples = {}
    for position in range(epoch * len(clips), (epoch + 1) * len(clips)):
        sample = clips[position]
        clips.note(sample["skipped"])
        samples.setdefault(sample["id"], sample)
    return samples


def same(a: Sample, b: Sample) -> bool:
    tensors = torch.equal(a["video"], b["video"]) and torch.equal(a["audio"], b["audio"])
    return tensors and all(a[key] == b[key] for key in ("id", "text", "valid"))  # type: ignore[literal-required]


def test_every_bad_file_is_named_once_and_no_good_one_is_skipped(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    clips = Clips(folder, **SHAPE)
    for epoch in range(3):
        assert {"silent.mp4", "song.wav", "still.png", *(f"good{k}.mp4" for k in range(6))} == set(named(clips, epoch))
    assert sorted(bad["id"] for bad in clips.bad) == sorted(entry.id for entry in clips.entries if "bad" in entry.id)
    assert clips.replaced >= 3 * 6 and len(caplog.records) > 3
    reasons = {bad["id"]: bad["reason"] for bad in clips.bad}
    assert "lasts 0.50 s, the window 1.00 s" in reasons["bad_short.mp4"] and "empty" in reasons["bad_zero.mp4"]
    assert before == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_absent_modalities_are_masked_zeros(clips: Clips) -> None:
    samples = named(clips)
    batch = collate([samples[name] for name in ("good0.mp4", "silent.mp4", "song.wav", "still.png")])
    assert batch["video"].shape == (4, 3, 8, 32, 32) and batch["audio"].shape == (4, 1, 8000)
    assert batch["valid"]["video"].tolist() == [True, True, False, True]
    assert batch["valid"]["audio"].tolist() == [True, False, True, False]
    assert not batch["video"][2].any() and not batch["audio"][1].any() and not batch["audio"][3].any()
    assert batch["fps"].tolist() == [8.0] * 4 and batch["rate"] == 8000 and batch["text"][3] == ""
    still = batch["video"][3]
    assert torch.equal(still, still[:, :1].expand_as(still)) and abs(float(still.mean()) - (200 / 127.5 - 1)) < 0.02
    assert batch["video"].abs().max() <= 1 and batch["audio"].abs().max() <= 1


def test_a_sample_is_a_function_of_seed_and_position(clips: Clips, folder: Path) -> None:
    other = pickle.loads(pickle.dumps(clips))  # as a worker receives it
    for position in (20, 3, 20, 7):
        assert same(clips[position], other[position])
    reseeded = Clips(folder, seed=1, **SHAPE)
    n = len(clips)
    assert [clips[p]["id"] for p in range(n)] != [reseeded[p]["id"] for p in range(n)]
    epochs = [named(clips, epoch)["good0.mp4"] for epoch in range(6)]
    assert len({sample["text"] for sample in epochs}) > 1
    assert (
        len({hashlib.sha256(sample["video"].numpy().tobytes()).hexdigest() for sample in epochs}) > 3
    )  # other windows


def test_window_and_crop_policies(folder: Path, studio: SimpleNamespace) -> None:
    for where, first in (("start", 0.0), ("center", 0.5)):
        clips = Clips(folder, window=where, crop="center", caption="first", **SHAPE)
        for epoch in (0, 1):
            sample = named(clips, epoch)["good1.mp4"]
            assert studio.index_of(sample["video"].transpose(0, 1)) == [
                int((first + (k + 0.5) / 8) * 24) for k in range(8)
            ]
            assert sample["text"] == "first 1"
            click = int(sample["audio"].abs().float().argmax()) / 8000
            assert abs(click - (1.0 - first)) < 0.004 or where == "start"


def test_short_clips_loop_or_hold(folder: Path, studio: SimpleNamespace, tmp_path: Path) -> None:
    studio.encode(tmp_path / "s.mp4", studio.grey(12, 32, 32), studio.click(0.5, 48000, [0.25]))
    for short, order in (("loop", [1, 4, 7, 10] * 2), ("hold", [1, 4, 7, 10, 10, 10, 10, 10])):
        sample = Clips(tmp_path, short=short, **SHAPE)[0]
        assert studio.index_of(sample["video"].transpose(0, 1)) == order and sample["valid"]["audio"]
        heard = (sample["audio"][0].abs() > 3000).nonzero()[:, 0] / 8000
        assert abs(float(heard[0]) - 0.25) < 0.002 and (abs(float(heard[-1]) - 0.75) < 0.005) == (short == "loop")


def test_sound_that_covers_only_a_part_is_absent(studio: SimpleNamespace, tmp_path: Path) -> None:
    studio.encode(tmp_path / "half.mp4", studio.grey(24, 32, 32), studio.click(0.5, 48000, [0.25]))
    assert Clips(tmp_path, **SHAPE)[0]["valid"] == {"video": True, "audio": False}
    with pytest.raises(UserError, match="its sound lacks 0.5. s"):
        Clips(tmp_path, on_missing_audio="drop", **SHAPE)
    with pytest.raises(UserError, match="on_missing_audio is error"):
        Clips(tmp_path, on_missing_audio="error", **SHAPE)


def test_one_modality_alone(folder: Path) -> None:
    for name, absent in (("video", "song.wav"), ("audio", "still.png")):
        clips = Clips(folder, modalities=[name], **SHAPE)
        assert absent not in named(clips)
        assert set(gather(clips, [0, 1])) == {name, "text", "fps", "rate", "valid", "id"}
    assert set(named(clips)) == {"song.wav", *(f"good{k}.mp4" for k in range(6))}


def test_manifest_windows(studio: SimpleNamespace, tmp_path: Path) -> None:
    """`start` and `duration` cut a clip out of a long file, in picture and in sound."""
    studio.encode(tmp_path / "long.mp4", studio.grey(60, 32, 32), studio.click(2.5, 48000, [1.25]))
    row = {"id": "cut", "video": "long.mp4", "start": 1.0, "duration": 1.0, "captions": ["x"]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    sample = Clips(tmp_path, **SHAPE)[0]
    assert studio.index_of(sample["video"].transpose(0, 1)) == [24 + int((k + 0.5) * 3) for k in range(8)]
    assert abs(int(sample["audio"].abs().float().argmax()) / 8000 - 0.2505) < 0.002


def test_cache_and_readers_give_equal_samples(folder: Path) -> None:
    plain = Clips(folder, window="start", **SHAPE)
    cached, decord = (
        Clips(folder, window="start", **SHAPE, **extra) for extra in ({"cache": True}, {"reader": "decord"})
    )
    for position in [*range(len(plain)), *range(len(plain))]:
        assert same(plain[position], cached[position])
    for position in range(len(plain)):
        other = decord[position]
        if not other["skipped"]:  # decord conceals what PyAV calls damaged
            assert same(plain[position], other) or plain[position]["skipped"]
    assert set(cached._kept) >= {"silent.mp4", "song.wav"}  # square, and without a picture: no crop to draw
    assert "good0.mp4" not in cached._kept  # its crop is drawn in each epoch


def test_nothing_usable_is_an_error_with_reasons(tmp_path: Path) -> None:
    for k in range(8):
        (tmp_path / f"{k}.mp4").write_bytes(b"nothing" * k)
    with pytest.raises(UserError, match="none of 8 clips that were tried is usable. First reasons: .*cannot be read"):
        Clips(tmp_path, **SHAPE)


def test_a_decoder_that_never_returns_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = media.read_video

    def hangs(path: Path, **arguments: Any) -> torch.Tensor:
        if path.name == "good2.mp4":
            time.sleep(120)
        return read(path, **arguments)

    monkeypatch.setattr(window.media, "read_video", hangs)
    clips = Clips(folder, patience=2.0, **SHAPE)
    began = time.monotonic()
    assert "good2.mp4" not in named(clips) and "good2.mp4" not in named(clips, 1)
    assert time.monotonic() - began < 100, "nobody waits for it to end"
    assert any(bad["id"] == "good2.mp4" and "no answer within 2 s" in bad["reason"] for bad in clips.bad)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"short": "stretch"}, "data.short is one of drop, loop, hold"),
        ({"modalities": []}, "data.modalities"),
        ({"caption": "last"}, "data.caption"),
        ({"size": [32]}, "data.size"),
        ({"frames": 0}, "above zero"),
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        Clips(folder, **{**SHAPE, **wrong})


def test_fractional_rates(folder: Path) -> None:
    clips = Clips(folder, **{**SHAPE, "fps": 12.5, "frames": 10, "rate": 11025})
    assert clips[0]["audio"].shape == (1, round(0.8 * 11025)) and np.isclose(clips.policy.seconds, 0.8)
