"""Odd clips through the whole reader, each under its documented policy: lengths, channels, rates, shapes and depths."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from mmdiff.data.clips import Clips
from mmdiff.errors import UserError

RECIPE: dict[str, Any] = {"frames": 8, "fps": 8, "size": [32, 32], "rate": 8000, "split": None, "window": "start"}


def zoo(studio: SimpleNamespace, folder: Path) -> dict[str, tuple[bool, bool]]:
    """Clips by name -> whether picture and sound are to be there; all last a second or more."""
    click, grey = studio.click, studio.grey
    clear = np.full((8, 48, 64, 4), 200, np.uint8)
    sounds = {"mono.mp4": (1, 48000), "stereo.mp4": (2, 44100), "surround.mp4": (6, 48000), "low.mp4": (1, 8000)}
    for name, (channels, rate) in sounds.items():
        studio.encode(folder / name, grey(30, 48, 64), click(1.25, rate, [0.5], channels), rate=rate)
    studio.encode(folder / "silent.mp4", grey(30, 48, 64))
    studio.encode(folder / "longer_sound.mp4", grey(30, 48, 64), click(4, 48000, [0.5]))
    studio.encode(folder / "shorter_sound.mp4", grey(48, 48, 64), click(0.5, 48000, [0.25]))
    studio.encode(folder / "odd.mkv", grey(8, 49, 65), fps=8, video="ffv1", pixels="yuv444p")
    studio.encode(folder / "deep.mkv", grey(8, 48, 64), fps=8, video="ffv1", pixels="yuv420p10le")
    studio.encode(folder / "clear.mkv", clear, fps=8, video="ffv1", pixels="bgra")
    studio.encode(folder / "uneven.mkv", grey(5, 48, 64), stamps=[0, 40, 500, 540, 1000])
    studio.rotated(studio.encode(folder / "turned.mp4", grey(8, 48, 64), fps=8))
    heard = {*sounds, "longer_sound.mp4"}
    return {path.name: (True, path.name in heard) for path in folder.iterdir()}


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_each_odd_clip_follows_its_policy(reader: str, studio: SimpleNamespace, tmp_path: Path) -> None:
    expected = zoo(studio, tmp_path)
    clips = Clips(tmp_path, reader=reader, **RECIPE)
    samples = {sample["id"]: sample for sample in (clips[position] for position in range(len(clips)))}
    assert set(samples) == set(expected) and clips.bad == []
    for name, (picture, sound) in expected.items():
        sample = samples[name]
        assert sample["valid"] == {"video": picture, "audio": sound}, name
        assert sample["video"].shape == (3, 8, 32, 32) and sample["audio"].shape == (1, 8000)
        assert bool(sample["video"].any()) and bool(sample["audio"].any()) == sound, name
        if sound:
            assert abs(int(sample["audio"][0].abs().argmax()) / 8000 - 0.501) < 1 / 24, name


def test_one_frame_is_short_and_no_frame_is_bad(studio: SimpleNamespace, tmp_path: Path) -> None:
    studio.encode(tmp_path / "one.mp4", studio.grey(1, 32, 32), fps=8)
    with pytest.raises(UserError, match="one.mp4: lasts 0.12 s, the window 1.00 s"):
        Clips(tmp_path, **RECIPE)
    for short in ("loop", "hold"):
        video = Clips(tmp_path, short=short, **RECIPE)[0]["video"]
        assert torch.equal(video, video[:, :1].expand_as(video))
    (tmp_path / "one.mp4").unlink()
    with av.open(str(tmp_path / "none.mkv"), "w") as out:
        stream = out.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        out.start_encoding()
    with pytest.raises(UserError, match="none.mkv"):
        Clips(tmp_path, **RECIPE)
