"""Recipes of the published sizes, built without memory for their weights, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, UNetSpatioTemporalConditionModel

from mmdiff.batch import ClipShape
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


# ---- transformers --------------------------------------------------------------------------------------------------


def trunk(name: str, *overrides: str) -> int:
    """Parameters of a network without the layer that takes in the condition's vector."""
    run = parse(read(FULL / f"{name}.yaml", overrides))
    with torch.device("meta"):
        net = make(run.system["denoiser"]["net"])
    return count(net) - count(net.vector)


def test_dit_xl_is_the_published_network_to_the_last_weight() -> None:
    """Theirs also counts a table of 1001 labels and one of positions, and gives each number a variance beside it."""
    labels, positions, variance = 1001 * 1152, 256 * 1152, 16 * 1152 + 16
    assert trunk("dit_xl") + labels + positions + variance == 675_129_632


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"), [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458)]
)
def test_smaller_dits_have_the_published_sizes(width: int, depth: int, heads: int, millions: int) -> None:
    """DiT-S, B and L (Peebles and Xie 2023, table 1), from the same file by three keys."""
    keys = {"width": width, "depth": depth, "heads": heads, "vector_width": width}
    ours = trunk("dit_xl", *(f"system.denoiser.net.{key}={value}" for key, value in keys.items()))
    assert round((ours + 1001 * width) / 1e6) == pytest.approx(millions, abs=0.6)


def test_latte_xl_has_the_published_size() -> None:
    """673.68 M with its variances (Ma et al. 2024)."""
    assert round((trunk("latte_xl") + 16 * 1152 + 16) / 1e6, 2) == 673.68


def test_sora_xl_fills_its_budget_with_every_shape() -> None:
    run = parse(read(FULL / "sora_xl.yaml"))
    made = system("sora_xl")
    own = ClipShape(run.data["frames"], run.data["fps"], (256, 256), run.data["rate"])
    shapes = make(run.data["buckets"]).shapes(own)
    assert run.tokens is not None and all(run.tokens // made.tokens(shape) >= 8 for shape in shapes)
    assert all(size % 2 == 0 for shape in shapes for size in made.latent_shapes({"shape": shape})["video"][2:])


# ---- U-Nets --------------------------------------------------------------------------------------------------------


def test_ddpm_is_the_published_network() -> None:
    """The configuration of google/ddpm-cifar10-32; the paper says 35.7 M (Ho et al. 2020, appendix B)."""
    with torch.device("meta"):
        theirs = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
        )
    assert count(system("ddpm").denoiser.net) == count(theirs) == 35_746_307


def test_sd_unet_is_the_published_network() -> None:
    """The one that conditions Stable Diffusion 1 on CLIP ViT-L/14."""
    with torch.device("meta"):
        theirs = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    assert trunk("sd_unet") == count(theirs) == 859_520_964


def test_svd_unet_is_the_published_network() -> None:
    """Theirs takes in a vector of three numbers, and four more channels that hold the latent of a frame."""
    with torch.device("meta"):
        theirs = UNetSpatioTemporalConditionModel()
    frame = 4 * 320 * 3 * 3
    assert trunk("svd_unet") + frame + count(theirs.add_embedding) == count(theirs) == 1_524_623_082
