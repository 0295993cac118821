"""Images and clips of different sizes and lengths in one run, through the real loop: bucketed, packed, and joint."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch

from mmdiff import build, noise
from mmdiff.data.media import write_clip, write_png, write_wav
from mmdiff.errors import UserError
from mmdiff.train import loop
from mmdiff.train.ranks import join
from mmdiff.train.stop import Stop

RATE = 200
TEXT = {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 16}
NET = {"kind": "dit", "channels": 3, "width": 16, "depth": 2, "heads": 2, "patch": [1, 4, 4], "text_width": 8}
SHAPES = [{"frames": 8, "size": [16, 16]}, {"frames": 4, "size": [8, 16]}, {"frames": 1, "size": [16, 16]}]
BUCKETED = {"kind": "bucketed", "multiple": 2}
PACKED = {"kind": "packed", "length": 2560}
SHAPE = {"kind": "clip_shape", "frames": 8, "fps": 8, "size": [16, 16], "rate": RATE}
BRANCH = {"kind": "branch", "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six square clips of a second, four wide ones of half a second, six pictures."""
    path = tmp_path_factory.mktemp("mixed")
    for i in range(16):
        size = (8, 16, 16) if i < 6 else (4, 8, 16) if i < 10 else (1, 16, 16)
        frames = noise.normal((*size, 3), keys=[i])[0].mul(40).add(127).clamp(0, 255).to(torch.uint8)  # (t h w 3)
        if i < 10:
            write_clip(path / f"{i}.mp4", frames, fps=8)
            write_wav(path / f"{i}.wav", noise.normal((1, 8000 * len(frames) // 8), keys=[i])[0] / 9, rate=8000)
        else:
            write_png(path / f"{i}.png", frames[0])
    return path


def diffusion() -> dict[str, Any]:
    parts = {"process": {"kind": "linear"}, "target": "flow", "draw": {"kind": "uniform"}, "net": copy.deepcopy(NET)}
    return {
        "kind": "diffusion",
        "autoencoder": {"kind": "pixels"},
        "conditioner": TEXT,
        "denoiser": {"kind": "denoiser", **parts},
        "shape": SHAPE,
    }


def joint() -> dict[str, Any]:
    tree = diffusion() | {"kind": "joint", "video": {"kind": "pixels"}, "audio": {"kind": "pixels", "channels": 1}}
    del tree["autoencoder"]
    branches = {"video": {"channels": 3, "patch": [1, 4, 4]}, "audio": {"channels": 1, "patch": [25, 1, 1]}}
    branches = {name: BRANCH | branch for name, branch in branches.items()}
    tree["denoiser"]["net"] = {"kind": "joint_dit", "depth": 2, "heads": 2, "text_width": 8, **branches}
    return tree


def train(
    run: Path, data: Path, layout: dict[str, Any], system: dict[str, Any], **changes: Any
) -> list[dict[str, Any]]:
    """The lines of the run's log."""
    modalities = ["video", "audio"] if system["kind"] == "joint" else ["video"]
    buckets = {"kind": "buckets", "shapes": SHAPES, "layout": layout}
    clips = {"kind": "clips", "path": str(data), "split": None, "frames": 8, "fps": 8, "size": [16, 16], "rate": RATE}
    tree = {
        "run": str(run),
        "steps": 4,
        "tokens": 5120,
        "system": system,
        "data": {**clips, "short": "hold", "modalities": modalities, "buckets": buckets},
        "optimizer": {"schedule": "constant"},
        "engine": {"precision": "fp32"},
        "every": {"log": 1, "save": 2, "evaluate": 4},
        **changes,
    }
    parsed, stop = build.parse(tree), Stop()
    try:
        train, held_out = build.make(parsed.data), build.make(parsed.data)
        parts = {"system": build.make_system(parsed), "train": train, "held_out": held_out}
        assert loop.fit(parsed, config=tree, ranks=join(parsed.engine), stop=stop, **parts) == 0
        assert train.bad == []
    finally:
        stop.restore()
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", [BUCKETED, PACKED], ids=["bucketed", "packed"])
def test_many_shapes_train_and_resume_bit_for_bit(layout: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    train(tmp_path / "cut", folder, layout, diffusion(), steps=2)
    train(tmp_path / "cut", folder, layout, diffusion())
    lines = [line for line in train(tmp_path / "whole", folder, layout, diffusion()) if "loss" in line]
    last = "checkpoints/step-00000004"
    assert fakes.hashes(tmp_path / "cut" / last) == fakes.hashes(tmp_path / "whole" / last)
    assert len(lines) == 4 and all(0 < line["loss"] < 10 for line in lines)
    assert lines[-1]["held_out"]["video"] and lines[-1]["samples"] > 4


def test_picture_and_sound_train_in_buckets(folder: Path, tmp_path: Path) -> None:
    lines = [line for line in train(tmp_path, folder, BUCKETED, joint(), tokens=6000) if "loss" in line]
    assert all(0 < line["loss"] < 20 for line in lines) and "loss/audio" in lines[0]


def test_packs_of_two_modalities_are_refused_in_words(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Packs are of one modality"):
        train(tmp_path, folder, {"kind": "packed", "length": 3000}, joint(), tokens=6000)
