"""An autoencoder with a critic through the real loop, and a diffusion run that takes it over and needs it no more."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch

from mmdiff import build, noise
from mmdiff.ablate import budget
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.export import export
from mmdiff.train import loop
from mmdiff.train.checkpoint import load_weights
from mmdiff.train.ranks import join
from mmdiff.train.stop import Stop

PLAN = {"kind": "plan", "widths": [8, 8], "strides": [[2, 2, 2]], "kernel": [3, 3, 3], "blocks": 1, "groups": 4}
CODEC = {"kind": "vae", "channels": 3, "latent": 4, "plan": PLAN | {"first": 1}}
BASE: dict[str, Any] = {
    "steps": 4,
    "batch": 4,
    "data": {"kind": "clips", "path": "data/x", "frames": 3, "fps": 8, "size": [8, 8], "rate": 8000},
    "engine": {"precision": "fp32"},
    "every": {"log": 1, "save": 2, "sample": 4, "evaluate": 4},
    "sample": {"number": 2, "steps": 2},
}
SHAPE = {"kind": "clip_shape", "frames": 3, "fps": 8, "size": [8, 8], "rate": 8000}
CRITIC = {"kind": "patch_discriminator", "channels": 3, "widths": [4, 8]}
TEXT = {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 16}
NET = {"kind": "dit", "channels": 4, "width": 16, "depth": 1, "heads": 2, "text_width": 8}
PAINTER = {"kind": "denoiser", "process": {"kind": "linear"}, "target": "flow", "draw": {"kind": "uniform"}, "net": NET}


class Pictures(fakes.Clips):
    """Clips of three frames of 8 x 8."""

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = super().__getitem__(position)
        pixels = noise.normal([3, 3, 8, 8], keys=[noise.key(sample["id"])])[0] * 60 + 127
        return {**sample, "video": pixels.clamp(0, 255).to(torch.uint8)}


def trained(folder: Path, system: dict[str, Any], **changes: Any) -> Any:
    """Run a config through the loop -> the system."""
    tree = copy.deepcopy({**BASE, "run": str(folder), "system": {**system, "shape": SHAPE}, **changes})
    run, stop = build.parse(tree), Stop()
    made = build.make_system(run)
    try:
        data = {"train": Pictures(), "held_out": Pictures(4)}
        assert loop.fit(run, config=tree, system=made, **data, ranks=join(run.engine), stop=stop) == 0
    finally:
        stop.restore()
    return made


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "codec"
    trained(folder, {"kind": "autoencoding", "autoencoder": CODEC, "discriminator": CRITIC, "start": 2})
    return folder


def test_two_players_resume_bit_for_bit(codec_run: Path, tmp_path: Path) -> None:
    parts = {"kind": "autoencoding", "autoencoder": CODEC, "discriminator": CRITIC, "start": 2}
    trained(tmp_path / "cut", parts, steps=2, optimizer={"schedule": "constant"})
    trained(tmp_path / "cut", parts, optimizer={"schedule": "constant"})
    trained(tmp_path / "whole", parts, optimizer={"schedule": "constant"})
    last = "checkpoints/step-00000004"
    assert fakes.hashes(tmp_path / "cut" / last) == fakes.hashes(tmp_path / "whole" / last)
    assert len(list((codec_run / "samples" / "step-00000004").glob("*.mp4"))) == 2


def test_a_diffusion_run_takes_the_codec_over(codec_run: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(codec_run, source)
    latent = {"kind": "pretrained", "run": str(source), "part": CODEC}
    parts = {"kind": "diffusion", "autoencoder": latent, "conditioner": TEXT, "denoiser": PAINTER}
    trained(tmp_path / "latent", parts)
    wanted, _, _ = load_weights(source)
    shutil.rmtree(source)
    system, *_ = build.load(tmp_path / "latent")
    codec = system.codecs["video"]
    for name, tensor in codec.part.state_dict().items():
        if name not in ("mean", "scale", "ready"):
            assert torch.equal(tensor, wanted[f"autoencoder.{name}"])
    data = Pictures()
    z = codec.encode(gather(data, range(len(data)))["video"])  # type: ignore[arg-type]
    rows = z.transpose(0, 1).flatten(1)
    assert torch.allclose(rows.std(1, correction=0), torch.ones(4), atol=0.02)
    request = {"text": ["a"], "id": ["0"]}
    made = system.generate(request, seed=0, steps=2)["video"]
    assert made.shape == (1, 3, 3, 8, 8)
    export(tmp_path / "latent", tmp_path / "given")
    again, *_ = build.load(tmp_path / "given")
    assert torch.equal(again.generate(request, seed=0, steps=2)["video"], made)


def test_what_cannot_be_taken_over_is_named(codec_run: Path, tmp_path: Path) -> None:
    def latent(**change: Any) -> dict[str, Any]:
        node = {"kind": "pretrained", "run": str(codec_run), "part": CODEC} | change
        return {"kind": "diffusion", "autoencoder": node, "conditioner": TEXT, "denoiser": PAINTER}

    with pytest.raises(UserError, match="no weights yet"):
        trained(tmp_path / "a", latent(run=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="built otherwise"):
        trained(tmp_path / "b", latent(part=CODEC | {"plan": PLAN | {"first": 1, "widths": [8, 16]}}))
    trained(tmp_path / "d", latent())
    with pytest.raises(UserError, match="trained no autoencoder"):
        trained(tmp_path / "c", latent(run=str(tmp_path / "d")))


def test_a_run_on_a_codec_of_another_has_a_price(codec_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"kind": "pretrained", "run": str(codec_run), "part": CODEC}
    parts = {"kind": "diffusion", "autoencoder": node, "conditioner": TEXT, "denoiser": PAINTER, "shape": SHAPE}
    real = build.make
    tree = {**copy.deepcopy(BASE), "run": "runs/x", "system": parts}
    data = build.parse(tree).data
    monkeypatch.setattr(build, "make", lambda node: Pictures() if node == data else real(node))
    assert budget.measure(tree).flops > 0
