"""Clips that are gone on with: what a task gives comes from the judged clip, and both ends say whether it was held."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import ClipShape
from mmdiff.conditioners import Frame, Text
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.evaluate.clips import Set
from mmdiff.evaluate.given import TASKS, complete, ends, request
from mmdiff.generate import Job, Settings
from mmdiff.models.dit import DiT
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.process import Linear, Uniform
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.joint import Joint

SHAPE = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
SETTINGS = Settings(seed=1, steps=2, guidance=1.0, sampler="euler")


def randomised(module: Any) -> Any:
    for i, (name, p) in enumerate(module.named_parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return module


def joint() -> Any:
    video, audio = BranchSpec(channels=3, width=16), BranchSpec(channels=1, width=16)
    net = JointDiT(video=video, audio=audio, depth=1, heads=2, text_width=8)
    parts: Any = {"video": Pixels(), "audio": Pixels(channels=1)}
    denoiser = Denoiser(net, process=Linear(), target="flow", draw=Uniform())
    text = Text(width=8, depth=1, heads=2, length=64)
    return randomised(Joint(conditioner=text, denoiser=denoiser, shape=SHAPE, **parts))


def told() -> Any:
    net = DiT(channels=3, width=16, depth=1, heads=2, concat=3, vector_width=8)
    denoiser = Denoiser(net, process=Linear(), target="flow", draw=Uniform())
    return randomised(Diffusion(autoencoder=Pixels(), conditioner=Frame(width=8), denoiser=denoiser, shape=SHAPE))


def truth(n: int = 3) -> Set:
    rng = noise.rng(5)
    clips = [
        (rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8), rng.uniform(-1, 1, 16).astype(np.float32), 8.0, 32)
        for _ in range(n)
    ]
    return Set(cast(Any, clips), [f"caption {i}" for i in range(n)], [str(i) for i in range(n)])


def made(system: Any, task: str, folder: Path, batch: int = 2) -> Set:
    return complete(
        system, truth(), task, settings=SETTINGS, checkpoint={"step": 1, "hash": "x"}, design="d", cache=folder,
        batch=batch, device="cpu", progress=False,
    )  # fmt: skip


@pytest.mark.parametrize(("task", "modality"), [("video_to_audio", 0), ("audio_to_video", 1)])
def test_one_modality_is_that_of_the_judged_clip_and_the_other_is_made(
    task: str, modality: int, tmp_path: Path
) -> None:
    found, real = made(joint(), task, tmp_path), truth()
    for mine, theirs in zip(found.clips, real.clips, strict=True):
        np.testing.assert_array_equal(mine[modality], theirs[modality])
        assert not np.array_equal(mine[1 - modality], theirs[1 - modality])
    assert found.prompts == real.prompts


def test_given_frames_come_back_and_told_ones_only_matter(tmp_path: Path) -> None:
    held, shown, real = made(joint(), "interpolate", tmp_path), made(told(), "frame", tmp_path), truth()
    assert all(
        np.array_equal(a[0][at], b[0][at]) for a, b in zip(held.clips, real.clips, strict=True) for at in (0, -1)
    )
    row = ends(held, real, seed=0)
    assert row["first_frame_error"]["value"] == 0 and row["last_frame_error"]["value"] == 0
    assert 0.2 < row["first_frame_error_shuffled"]["value"] < 0.5
    assert ends(shown, real, seed=0)["first_frame_error"]["value"] > 0
    assert not len(shown.clips[0][1])  # a model of pictures makes no sound


def test_what_was_made_is_read_back_and_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    system = joint()
    first = made(system, "extend", tmp_path / "a")
    alone = made(system, "extend", tmp_path / "b", batch=1)
    assert all(np.abs(a[0].astype(int) - b[0]).max() <= 1 for a, b in zip(first.clips, alone.clips, strict=True))
    system.generate = None  # is not asked again
    assert made(system, "extend", tmp_path / "a").digest() == first.digest()


def test_the_ends_of_clips_are_compared_as_shares_of_the_range() -> None:
    black, grey = (Set([(np.full((2, 1, 1, 3), v, np.uint8), np.zeros(0), 8.0, 8)], ["x"], ["0"]) for v in (0, 51))
    assert ends(grey, black, seed=0)["last_frame_error"]["value"] == pytest.approx(0.2)
    silent = Set([(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(4, np.float32), 8.0, 8)], ["x"], ["0"])
    assert ends(silent, black, seed=0) == {}


def test_what_cannot_be_given_is_said() -> None:
    jobs = [Job(i, f"caption {i}", f"{i}-0") for i in range(3)]
    assert "frame" in TASKS and "generate" not in TASKS and "video_only" not in TASKS
    for system, task, said in [
        (joint(), "dance", "no such task"),
        (joint(), "frame", "first_frame"),
        (told(), "video_to_audio", "does not make"),
    ]:
        with pytest.raises(UserError, match=said):
            request(system, truth(), jobs, task, seed=0)
    with pytest.raises(UserError, match="no audio"):
        request(joint(), truth().only(["video"]), jobs, "first_frame", seed=0)
    assert torch.equal(
        request(told(), truth(), jobs, "frame", seed=0)["frame"][0, :, 0, 0] * 127.5 + 127.5,
        torch.from_numpy(truth().clips[0][0][0, 0, 0]).float(),
    )
