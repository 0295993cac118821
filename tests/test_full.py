"""Recipes of the published sizes, built without memory for their weights, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from mmdiff.build import make, parse
from mmdiff.config import read

FULL = Path(__file__).parents[1] / "configs" / "full"


def system(name: str) -> Any:
    """The system of configs/full/NAME.yaml on the meta device."""
    run = parse(read(FULL / f"{name}.yaml"))
    with torch.device("meta"):
        return make(run.system)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", sorted(path.stem for path in FULL.glob("*.yaml")))
def test_it_builds(name: str) -> None:
    assert all(p.is_meta for p in system(name).parameters())


def test_kl_f8_is_the_published_autoencoder() -> None:
    with torch.device("meta"):
        theirs = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
    ours = system("kl_f8").autoencoder
    assert count(ours) == count(theirs) == 83_653_863
    assert ours.plan.factor == (1, 8, 8) and ours.grid((3, 1, 256, 256)) == (4, 1, 32, 32)


def test_kl_video_halves_time_twice() -> None:
    assert system("kl_video").autoencoder.grid((3, 17, 256, 256)) == (16, 5, 32, 32)
