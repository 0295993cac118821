"""Tiles with a halo are the whole, up to rounding, where only convolutions look across the frame."""

from __future__ import annotations

import pytest
import torch

from mmdiff import noise
from mmdiff.autoencoders.coder import Plan
from mmdiff.autoencoders.tiles import decode_tiled, encode_tiled, reach
from mmdiff.autoencoders.vae import VAE

BOUND = 1e-5  # of latents of unit variance, and of pixels in [-1, 1]


def autoencoder(heads: int = 0, groups: int = 0) -> VAE:
    torch.manual_seed(0)
    plan = Plan(
        widths=[8, 8], strides=[[2, 2, 2]], kernel=[3, 3, 3], patch=[1, 2, 2], blocks=1, heads=heads, groups=groups,
        first=1,
    )  # fmt: skip
    codec = VAE(channels=3, latent=4, plan=plan)
    codec.fit(clip())
    return codec.requires_grad_(False)


def clip() -> torch.Tensor:
    return noise.normal((3, 3, 160, 128), keys=[0]).clamp(-1, 1)


def test_tiles_are_the_whole() -> None:
    codec, x = autoencoder(), clip()
    halo = reach(codec.plan)
    assert halo[0] + 8 < 40  # or the test would show nothing
    z = codec.encode(x)
    assert torch.allclose(encode_tiled(codec, x, tile=(16, 12), halo=halo), z, atol=BOUND)
    assert torch.allclose(decode_tiled(codec, z, tile=(16, 12), halo=halo), codec.decode(z), atol=BOUND)


@pytest.mark.parametrize(("heads", "groups"), [(0, 0), (1, 4)])
def test_seams_shrink_with_the_halo(heads: int, groups: int) -> None:
    codec, x = autoencoder(heads, groups), clip()
    z = codec.encode(x)
    halos = [(0, 0), (4, 4), reach(codec.plan)]
    gaps = [float((encode_tiled(codec, x, tile=(20, 16), halo=halo) - z).square().mean()) for halo in halos]
    assert gaps[0] > gaps[1] > gaps[2] and (gaps[2] > BOUND**2) == bool(groups)
