"""The convolutional autoencoder: equal to diffusers' with shared weights, causal, and the same in chunks as whole."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.coder import Plan
from mmdiff.autoencoders.mel import Mel
from mmdiff.autoencoders.pca import PCA
from mmdiff.autoencoders.vae import VAE
from mmdiff.errors import UserError


def draw(*shape: int) -> Tensor:
    return noise.normal(shape, keys=[0])[0]


def clips(frames: int, side: int = 16) -> Tensor:
    return draw(2, 3, frames, side, side).clamp(-1, 1)


def video(first: int) -> VAE:
    torch.manual_seed(0)
    plan = Plan(widths=[8, 16], strides=[[2, 2, 2]], kernel=[3, 3, 3], patch=[1, 2, 2], blocks=1, groups=4, first=first)
    codec = VAE(channels=3, latent=4, plan=plan)
    codec.fit(clips(first + 4))
    return codec.requires_grad_(False)


# ---- against diffusers ---------------------------------------------------------------------------------------------

NAMES = [  # ours -> diffusers', stage by stage; the rest is equal
    (r"^after\.", "quant_conv."),
    (r"^before\.", "post_quant_conv."),
    (r"\.enter\.", ".conv_in."),
    (r"\.leave\.", ".conv_out."),
    (r"coder\.norm\.", "coder.conv_norm_out."),
    (r"\.skip\.", ".conv_shortcut."),
]


def layers(blocks: int, stages: int) -> dict[str, list[str]]:
    """What stands at each place of our chains, in diffusers' words."""
    middle = ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
    down: list[str] = []
    up: list[str] = []
    for i in range(stages):
        down += [f"down_blocks.{i}.resnets.{k}" for k in range(blocks)]
        up += [f"up_blocks.{i}.resnets.{k}" for k in range(blocks + 1)]
        if i < stages - 1:
            down.append(f"down_blocks.{i}.downsamplers.0.conv")
            up.append(f"up_blocks.{i}.upsamplers.0")
    return {"encoder": down + middle, "decoder": middle + up}


def translated(codec: VAE, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' weights under our names; 2-D kernels get a time axis of one."""
    places, state = layers(codec.plan.blocks, len(codec.plan.widths)), {}
    for name, ours in codec.state_dict().items():
        if name in ("mean", "scale", "ready"):
            state[name] = ours
            continue
        found = name
        if chain := re.search(r"(\w+)\.body\.layers\.(\d+)", name):
            found = name.replace(f"body.layers.{chain[2]}", places[chain[1]][int(chain[2])])
        if ".qkv." in found:
            tensor = torch.cat([theirs[found.replace("qkv", f"to_{part}")] for part in "qkv"])
        else:
            found = found.replace("attentions.0.norm", "attentions.0.group_norm").replace(".out.", ".to_out.0.")
            for pattern, there in NAMES:
                found = re.sub(pattern, there, found)
            tensor = theirs[found]
        state[name] = tensor.reshape(ours.shape)
    return state


def test_it_is_the_autoencoder_of_diffusers() -> None:
    torch.manual_seed(0)
    widths = (8, 16, 16)
    theirs = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()
    ours = VAE(channels=3, latent=4, plan=Plan(widths=widths, strides=[[1, 2, 2]] * 2, groups=4))
    ours.load_state_dict(translated(ours, theirs.state_dict()))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = clips(3)
    with torch.no_grad():
        posterior = ours.posterior(x)
        for k in range(3):  # every frame is a picture
            moments = theirs.encode(x[:, :, k]).latent_dist
            assert torch.allclose(posterior.mean[:, :, k], moments.mean, atol=1e-5)
            assert torch.allclose(posterior.logvar[:, :, k], moments.logvar, atol=1e-5)
            painted = theirs.decode(moments.mean).sample
            assert torch.allclose(ours.paint(posterior.mean)[:, :, k], painted, atol=1e-5)


# ---- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 2])
def test_nothing_looks_ahead(first: int) -> None:
    codec, x = video(first), clips(first + 4)
    z = codec.encode(x)
    y = codec.decode(z)
    owner = [0] * first + [1, 1, 2, 2]  # the latent step that covers a frame
    for frame in range(x.shape[2]):
        changed = x.clone()
        changed[:, :, frame:] *= -1
        moved = (codec.encode(changed) - z).abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [step >= owner[frame] for step in range(3)]
    for step in range(3):
        changed = z.clone()
        changed[:, :, step:] *= -1
        moved = (codec.decode(changed) - y).abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [own >= step for own in owner]


def test_the_first_frame_stands_alone() -> None:
    codec, x = video(1), clips(5)
    assert torch.allclose(codec.encode(x[:, :, :1]), codec.encode(x)[:, :, :1], atol=1e-6)
    assert codec.grid((3, 1, 16, 16)) == (4, 1, 4, 4) and codec.grid((3, 5, 16, 16)) == (4, 3, 4, 4)


@pytest.mark.parametrize("first", [1, 2])
def test_in_chunks_as_whole(first: int) -> None:
    """Memory is that of a chunk, and rounding is all the difference."""
    codec, x = video(first), clips(first + 8)
    z = codec.encode(x)
    pieces = [x[:, :, : first + 2], x[:, :, first + 2 : first + 4], x[:, :, first + 4 :]]
    assert torch.allclose(torch.cat(list(codec.encode_stream(pieces)), 2), z, atol=1e-5)
    assert torch.allclose(torch.cat(list(codec.decode_stream(z.split([1, 2, 2], 2))), 2), codec.decode(z), atol=1e-5)
    with pytest.raises(UserError, match="causal"):
        list(VAE(channels=3, latent=4, plan=Plan(widths=[8], strides=[], groups=4)).encode_stream(pieces))


# ---- the contract of a codec ---------------------------------------------------------------------------------------


def test_latents_have_unit_variance_and_a_clock() -> None:
    codec, x = video(2), clips(6)
    z = codec.encode(x)
    assert tuple(z.shape[1:]) == codec.grid(x.shape[1:])
    rows = z.transpose(0, 1).flatten(1)
    assert torch.allclose(rows.mean(1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(rows.std(1, correction=0), torch.ones(4), atol=1e-4)
    assert torch.allclose(codec.restore(z), codec.posterior(x).mean, atol=1e-5)
    assert codec.decode(z).abs().max() <= 1 and codec.decode(z).shape == x.shape
    assert codec.seconds(3, rate=8.0).tolist() == [0.125, 0.375, 0.625]
    assert video(1).seconds(3, rate=8.0).tolist() == [0.0625, 0.25, 0.5]


def test_waves_and_mel_pictures_go_through_the_same_blocks() -> None:
    torch.manual_seed(0)
    plan = Plan(widths=[8, 16], strides=[[4, 1, 1]], kernel=[5, 1, 1], patch=[5, 1, 1], heads=0, groups=0)
    wave, x = VAE(channels=1, latent=6, plan=plan), draw(2, 1, 800).clamp(-1, 1)
    wave.fit(x)
    assert wave.encode(x).shape == (2, 6, 40) and wave.decode(wave.encode(x)).shape == x.shape
    assert torch.allclose(wave.seconds(40, rate=800.0), (torch.arange(40) + 0.5) / 40)
    front = Mel(rate=8000, hop=50, window=150, bands=12)
    plan = Plan(widths=[8, 16], strides=[[4, 1, 1]], kernel=[3, 1, 1], heads=0, groups=0)
    mel = VAE(channels=12, latent=6, plan=plan, front=front)
    mel.fit(x)
    assert mel.front.fitted and mel.grid((1, 800)) == (6, 4) == tuple(mel.encode(x).shape[1:])
    assert mel.invents_phase and mel.decode(mel.encode(x), keys=[1, 2]).shape == x.shape
    assert torch.allclose(mel.seconds(4, rate=8000.0), (torch.arange(4) + 0.5) * 0.025)


@pytest.mark.parametrize("first", [0, 2])
def test_it_begins_as_its_base_and_learns_from_there(first: int) -> None:
    torch.manual_seed(0)
    plan = Plan(widths=[8, 8], strides=[[2, 1, 1]], kernel=[3, 3, 3], patch=[1, 4, 4], blocks=1, groups=4, first=first)
    codec = VAE(channels=3, latent=8, plan=plan, base=PCA(patch=[2, 4, 4], components=8))
    x = clips(4)
    codec.fit(x)
    linear = PCA(patch=[2, 4, 4], components=8)
    linear.fit(x)
    assert torch.allclose(codec.decode(codec.encode(x)), linear.decode(linear.encode(x)), atol=1e-5)
    assert torch.allclose(codec.posterior(x).logvar.exp(), torch.full((1,), 0.05**2), atol=1e-6)
    (codec.paint(codec.posterior(x).mean) - x).square().mean().backward()
    assert codec.after.weight.grad is not None and codec.decoder.leave.weight.grad.any()
    with pytest.raises(UserError, match="must be 0 or 2"):
        VAE(channels=3, latent=8, plan=replace(plan, first=1), base=linear)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="fit"):
        VAE(channels=3, latent=4, plan=Plan(widths=[8], strides=[], groups=4)).encode(clips(1))
    with pytest.raises(UserError, match=r"frames is 1 \+ a multiple of 2, not 4"):
        video(1).grid((3, 4, 16, 16))
    with pytest.raises(UserError, match="rows is a multiple of 4, not 18"):
        video(1).grid((3, 5, 18, 16))
    with pytest.raises(UserError, match="2 widths need 1 strides"):
        Plan(widths=[8, 8], strides=[])
    with pytest.raises(UserError, match="fold frames"):
        Plan(widths=[8], strides=[], patch=[2, 1, 1], first=1)
