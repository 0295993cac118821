"""The space-time U-Net: equal to diffusers' with shared weights, and a picture model while its time is closed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.embed import sinusoid
from mmdiff.models.unet import UNet
from mmdiff.models.unet_blocks import UNIT, ResBlock, Row, Style
from mmdiff.train.optimizer import matrix_parameters

B, TEXT = 2, 8
SMALL: dict[str, Any] = {
    "channels": 3,
    "widths": [8, 16],
    "strides": [[1, 2, 2]],
    "heads": [0, 2],
    "middle": 2,
    "blocks": 1,
    "groups": 4,
}
WAVE: dict[str, Any] = {**SMALL, "strides": [[4, 1, 1]], "kernel": [3, 1, 1], "pattern": "full", "modality": "audio"}


def randomised(net: nn.Module, scale: float = 0.2) -> Any:
    """Every weight drawn, last layers and shares of time too."""
    for i, (name, p) in enumerate(net.named_parameters()):
        p.data.copy_(scale * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return net


def draw(*shape: int, k: int = 0) -> Tensor:
    return noise.normal(shape, keys=[k])[0]


def told(frames: int = 4, modality: str = "video", **routes: Tensor) -> Cond:
    return Cond(seconds={modality: ((torch.arange(frames) + 0.5) / 8).expand(B, -1)}, **routes)  # type: ignore


TIMES = torch.tensor([0.113, 0.871])

# ---- against diffusers ---------------------------------------------------------------------------------------------

LAYERS = [  # ours -> diffusers'
    (r"^enter\.", "conv_in."),
    (r"^leave\.", "conv_out."),
    (r"^norm\.", "conv_norm_out."),
    (r"^time\.mlp\.0\.", "time_embedding.linear_1."),
    (r"^time\.mlp\.2\.", "time_embedding.linear_2."),
    (r"^vector\.0\.", "add_embedding.linear_1."),
    (r"^vector\.2\.", "add_embedding.linear_2."),
    (r"\.modulation\.", ".time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"@attention\.look\.attention\.out", "@attention.to_out.0"),
    (r"@attention\.look\.attention\.qkv", "@attention.to_qkv"),
    (r"@attention\.look\.norm", "@attention.group_norm"),
    (r"@attention\.enter", "@attention.proj_in"),
    (r"@attention\.leave", "@attention.proj_out"),
    (r"\.moving\.layer\.place\.0", ".time_pos_embed.linear_1"),
    (r"\.moving\.layer\.place\.2", ".time_pos_embed.linear_2"),
    (r"@attention\.moving\.mix", "@attention.time_mixer.mix_factor"),
    (r"\.moving\.layer\.norm", ".temporal_transformer_blocks.0.norm_in"),
    (r"\.moving\.layer\.feed", ".temporal_transformer_blocks.0.ff_in"),
    (r"\.moving\.layer\.block", ".temporal_transformer_blocks.0"),
    (r"attention\.block\.", "attention.transformer_blocks.0."),
    (r"\.norm2(?=.*#)", ".norm3"),
    (r"\.attention\.qkv", ".attn1.to_qkv"),
    (r"\.attention\.out", ".attn1.to_out.0"),
    (r"\.text\.norm", ".norm2"),
    (r"\.text\.q\.", ".attn2.to_q."),
    (r"\.text\.kv\.", ".attn2.to_kv."),
    (r"\.text\.out", ".attn2.to_out.0"),
    (r"\.(feed|ff_in)\.up", lambda m: f".{m[1].replace('feed', 'ff')}.net.0.proj"),
    (r"\.(feed|ff_in)\.down", lambda m: f".{m[1].replace('feed', 'ff')}.net.2"),
]


def places(net: UNet, blocks: int) -> list[tuple[str, int]]:
    """What stands at each place of our list, in diffusers' words: its stage, and its number there (-1: a stride)."""
    stages, found = len(net.widths), []
    for i in range(stages):
        found += [(f"down_blocks.{i}", k) for k in range(blocks)] + [(f"down_blocks.{i}", -1)] * (i < stages - 1)
    found += [("mid_block", 0), ("mid_block", 1)]
    for i in range(stages):
        found += [(f"up_blocks.{i}", k) for k in range(blocks + 1)] + [(f"up_blocks.{i}", -1)] * (i < stages - 1)
    return found


def name_there(ours: str, net: UNet, blocks: int) -> str:
    """One of our names -> diffusers'."""
    found = ours
    if place := re.match(r"blocks\.(\d+)\.(.*)", ours):
        stage, k = places(net, blocks)[int(place[1])]
        rest = place[2]
        if k < 0:
            return (
                f"{stage}.{'downsamplers' if stage.startswith('down') else 'upsamplers'}.0.conv.{rest.split('.')[-1]}"
            )
        clip = net.style.temporal == "mixed"
        rest = re.sub(r"^still", f"resnets.{k}.spatial_res_block" if clip else f"resnets.{k}", rest)
        rest = re.sub(r"^moving\.layer", f"resnets.{k}.temporal_res_block", rest)
        rest = re.sub(r"^moving\.mix", f"resnets.{k}.time_mixer.mix_factor", rest)
        inside = "block." in rest and rest.startswith("attention")
        rest = re.sub(r"^attention\.", "@attention.", rest)
        found = f"{stage}.{rest}" + "#" * inside
    for pattern, there in LAYERS:
        found = re.sub(pattern, there, found)
    if place and "@" in found:
        found = found.replace("@attention", f"attentions.{k}")
    return found.replace("#", "")


def translated(net: UNet, blocks: int, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' weights under our names."""
    state = {}
    for ours, tensor in net.state_dict().items():
        there = name_there(ours, net, blocks)
        if "to_qkv" in there:
            found = torch.cat([theirs[there.replace("to_qkv", f"to_{z}")] for z in "qkv"])
        elif "to_kv" in there:
            found = torch.cat([theirs[there.replace("to_kv", f"to_{z}")] for z in "kv"])
        elif there.endswith("mix_factor"):
            found = 1 - theirs[there].sigmoid()
        else:
            found = theirs[there] if there in theirs else theirs[there + ".weight"]
        state[ours] = found.reshape(tensor.shape)
    return state


def equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max().clamp(min=1)), rtol=0)


def of_diffusers(net: nn.Module) -> Any:
    """Weights that make every part matter."""
    return randomised(net, 0.15).eval().requires_grad_(False)


@pytest.mark.parametrize("time", ["sinusoid", "fourier"])
@pytest.mark.parametrize("inject", ["add", "scale_shift"])
def test_it_is_the_unet_of_ddpm(time: str, inject: str) -> None:
    theirs = of_diffusers(
        UNet2DModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attn_norm_num_groups=4,  # or else scale_shift loses the one in the middle
            attention_head_dim=8,
            time_embedding_type={"sinusoid": "positional"}.get(time, time),
            resnet_time_scale_shift={"add": "default"}.get(inject, inject),
        )
    )
    keys = {"widths": [8, 16, 16], "strides": [[1, 2, 2]] * 2, "heads": [0, 2, 0], "blocks": 2, "attention": "plain"}
    net = UNet(**{**SMALL, **keys}, time=time, inject=inject)
    there = dict(theirs.state_dict())
    if time == "fourier":  # they have sines first
        there["time.rates"] = there["time_proj.weight"]
        weight = there["time_embedding.linear_1.weight"]
        there["time_embedding.linear_1.weight"] = weight.roll(8, 1)
    net.load_state_dict(translated(net, 2, there))
    assert sum(p.numel() for p in net.parameters()) + 8 * (time == "fourier") == sum(
        p.numel() for p in theirs.parameters()
    )
    x = draw(B, 3, 3, 8, 8)
    y = net(x, TIMES, told(3))
    times, scale = (TIMES * 1000, torch.ones(B)) if time == "sinusoid" else (TIMES, TIMES)
    for k in range(3):  # every frame is a picture; with fourier theirs divides the result by its sigma
        equal(y[:, :, k], theirs(x[:, :, k], times).sample * scale.view(-1, 1, 1, 1))


@pytest.mark.parametrize("inject", ["add", "scale_shift"])
def test_it_is_the_unet_of_latent_diffusion(inject: str) -> None:
    theirs = of_diffusers(
        UNet2DConditionModel(
            in_channels=5,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=2,  # a number of heads, in spite of its name
            cross_attention_dim=TEXT,
            resnet_time_scale_shift={"add": "default"}.get(inject, inject),
        )
    )
    net = UNet(**{**SMALL, "heads": [2, 0]}, inject=inject, concat=2, text_width=TEXT)
    net.load_state_dict(translated(net, 1, theirs.state_dict()))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, beside, tokens = draw(B, 3, 2, 8, 8), draw(B, 2, 2, 8, 8, k=1), draw(B, 5, TEXT, k=2)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    y = net(x, TIMES, told(2, tokens=tokens, mask=mask, concat=beside))
    for k in range(2):
        both = torch.cat([x[:, :, k], beside[:, :, k]], 1)
        want = theirs(both, TIMES * 1000, encoder_hidden_states=tokens, encoder_attention_mask=mask)
        equal(y[:, :, k], want.sample)


def test_it_is_the_unet_of_stable_video_diffusion() -> None:
    theirs = of_diffusers(
        UNetSpatioTemporalConditionModel(
            in_channels=5,
            out_channels=3,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(2, 4),
            cross_attention_dim=TEXT,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12,
        )
    )
    for name, module in theirs.named_modules():
        if "res_block.norm" in name:  # theirs mixes 1e-5 and 1e-6; the original has 1e-5 (sgm's GroupNorm32)
            module.eps = 1e-5
    shape = {"widths": [32, 64], "heads": [2, 0], "middle": 4, "groups": 32, "temporal": "mixed"}
    net = UNet(**{**SMALL, **shape}, concat=2, text_width=TEXT, vector_width=12)
    net.load_state_dict(translated(net, 1, theirs.state_dict()))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, beside, tokens = draw(B, 3, 3, 8, 8), draw(B, 2, 3, 8, 8, k=1), draw(B, 1, TEXT, k=2)
    numbers = torch.tensor([[6.0, 127.0, 0.02], [11.0, 30.0, 0.1]])
    cond = told(tokens=tokens, concat=beside, vector=sinusoid(numbers, 4, scale=1.0).flatten(1))
    cond["seconds"] = {"video": (torch.arange(3) / UNIT).expand(B, -1)}  # they count frames
    both = torch.cat([x, beside], 1).transpose(1, 2)
    want = theirs(both, TIMES * 1000, tokens, numbers).sample.transpose(1, 2)
    equal(net(x, TIMES, cond), want)


# ---- time, and how it comes in -------------------------------------------------------------------------------------

CLIP: dict[str, Any] = {**SMALL, "temporal": "mixed", "text_width": TEXT}


def opened(net: nn.Module, mix: float) -> Any:
    """The share of every layer that looks along time."""
    for name, p in net.named_parameters():
        if name.endswith(".mix"):
            p.data.fill_(mix)
    return net


@pytest.mark.parametrize("attention", ["plain", "transformer"])
def test_a_picture_model_begins_as_itself(attention: str) -> None:
    """Its checkpoint fits the clip model, which then gives bit for bit the picture model's answer frame by frame."""
    keys = {**SMALL, "attention": attention, "text_width": TEXT if attention == "transformer" else 0}
    still, clip = randomised(UNet(**keys)), UNet(**{**keys, "temporal": "mixed"})
    missing, unknown = clip.load_state_dict(still.state_dict(), strict=False)
    assert missing and all("moving" in name for name in missing) and not unknown
    for name, p in clip.named_parameters():  # whatever stands behind a closed share
        if "moving" in name and not name.endswith("mix"):
            p.data.add_(0.3)
    x, tokens = draw(B, 3, 4, 8, 8), draw(B, 5, TEXT, k=2)
    cond = told(tokens=tokens)
    y = clip(x, TIMES, cond)
    assert torch.equal(y, still(x, TIMES, cond)) and y.std() > 0.1
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(clip(x[:, :, order], TIMES, cond), y[:, :, order])
    for k in range(4):
        one = still(x[:, :, k : k + 1], TIMES, told(1, tokens=tokens))
        torch.testing.assert_close(one, y[:, :, k : k + 1], atol=1e-5, rtol=1e-5)
    moved = opened(clip, 0.5)(x[:, :, order], TIMES, cond)
    assert (moved - clip(x, TIMES, cond)[:, :, order]).abs().max() > 0.1


def test_a_closed_share_learns_first_and_all_else_follows() -> None:
    net = randomised(UNet(**CLIP))
    cond = told(tokens=draw(B, 5, TEXT, k=2))
    for mix, learns in ((0.0, False), (0.5, True)):
        net.zero_grad()
        opened(net, mix)(draw(B, 3, 4, 8, 8), TIMES, cond).square().mean().backward()
        for name, p in net.named_parameters():
            assert p.grad is not None
            closed = ".moving.layer." in name and not learns
            assert (float(p.grad.abs().sum()) > 0) != closed, name


def test_a_share_that_is_asked_for_is_there_at_birth() -> None:
    mixes = [p for name, p in UNet(**{**CLIP, "mix": 0.5}).named_parameters() if name.endswith(".mix")]
    assert len(mixes) == 8 + 4 and all(p.item() == 0.5 for p in mixes)


# ---- at birth ------------------------------------------------------------------------------------------------------


def test_it_says_nothing_at_birth_and_every_block_passes_on() -> None:
    net, x = UNet(**CLIP), draw(B, 3, 4, 8, 8)
    cond = told(tokens=draw(B, 5, TEXT, k=2))
    assert torch.equal(net(x, TIMES, cond), torch.zeros_like(x))
    track = net.open(x, TIMES, cond)
    for i in range(len(net.blocks)):
        before = torch.cat([track.h, track.kept[-1]], 1) if net.takes[i] else track.h
        net.step(i, track)
        net.keep(i, track)
        if isinstance(net.blocks[i], Row):
            assert torch.equal(track.h, net.blocks[i].still.skip(before))
    assert track.kept == []  # the way up takes all that the way down kept


@pytest.mark.parametrize("inject", ["add", "scale_shift"])
def test_without_the_noise_level_both_ways_in_are_one_block(inject: str) -> None:
    style = Style(16, (1, 3, 3), 4, inject, "plain", "spatial", "none", 0.0, 0)
    block, x = randomised(ResBlock(8, 8, kernel=(1, 3, 3), style=style)), draw(B, 8, 2, 4, 4)
    block.modulation.weight.data.zero_()
    block.modulation.bias.data.zero_()
    net = UNet(**SMALL)
    here = net.tell(draw(B, 3, 2, 4, 4), TIMES, told(2))._replace(c=draw(B, 1, 16))
    h = block.conv1(nn.functional.silu(block.norm1(x)))
    want = x + block.conv2(nn.functional.silu(block.norm2(h)))
    torch.testing.assert_close(block(x, here), want)


# ---- what it is told -----------------------------------------------------------------------------------------------


def test_each_frame_may_have_its_own_time() -> None:
    """Told frame by frame: with closed time, a frame knows its own time alone, which is the mean over its entries."""
    net = randomised(UNet(**SMALL))
    x, one = draw(B, 3, 4, 8, 8), torch.full((B,), 0.3)
    alike = net(x, one, told())
    torch.testing.assert_close(net(x, torch.full_like(x, 0.3), told()), alike, atol=1e-5, rtol=1e-5)
    times = torch.full((B, 1, 4, 1, 1), 0.3)
    times[:, :, 0] = 0.0  # the first frame is given
    y = net(x, times, told())
    torch.testing.assert_close(y[:, :, 1:], alike[:, :, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[:, :, :1], net(x, one * 0, told())[:, :, :1], atol=1e-5, rtol=1e-5)
    halves = torch.full((B, 1, 4, 8, 8), 0.6)
    halves[..., :4] = 0.0
    torch.testing.assert_close(net(x, halves, told()), alike, atol=1e-5, rtol=1e-5)


def test_shortened_time_is_told_the_mean() -> None:
    keys = {**WAVE, "strides": [[2, 1, 1]]}
    net, x = randomised(UNet(**keys)), draw(B, 3, 8)
    times = torch.rand(B, 1, 8, generator=torch.Generator().manual_seed(0))
    track = net.open(x, times, told(8, "audio"))
    fine, coarse = track.told[1], track.told[2]
    torch.testing.assert_close(fine.c, net.time(times[:, 0]))
    torch.testing.assert_close(coarse.c, fine.c.view(B, 4, 2, -1).mean(2))
    torch.testing.assert_close(coarse.seconds, (torch.arange(4) * 2 + 1).expand(B, -1) / 8)


def test_every_block_hears_the_noise_level_and_the_text() -> None:
    net, cond = randomised(UNet(**CLIP)), told(tokens=draw(B, 5, TEXT, k=2))
    net(draw(B, 3, 4, 8, 8), TIMES, cond).square().mean().backward()
    heard = [name for name, p in net.named_parameters() if "modulation.weight" in name or "text.kv" in name]
    assert len(heard) == 2 * 8 + 2 * 4  # two residual blocks in each of 8 rows, two texts in each of 4 attentions
    assert all(dict(net.named_parameters())[name].grad.abs().sum() > 0 for name in heard)


def test_a_masked_word_and_a_text_of_one_word() -> None:
    net, x = randomised(UNet(**CLIP)), draw(B, 3, 2, 8, 8)
    tokens, mask = draw(B, 3, TEXT, k=2), torch.tensor([[True, True, False]] * B)
    y = net(x, TIMES, told(2, tokens=tokens, mask=mask))
    tokens = tokens.clone()
    tokens[:, 2] = 9.0
    assert torch.equal(net(x, TIMES, told(2, tokens=tokens, mask=mask)), y)
    torch.testing.assert_close(net(x, TIMES, told(2, tokens=tokens[:, :2])), y, atol=1e-5, rtol=1e-5)


def test_fourier_features_know_clean_entries() -> None:
    net = randomised(UNet(**{**SMALL, "time": "fourier"}))
    assert net(draw(B, 3, 2, 8, 8), torch.zeros(B), told(2)).isfinite().all()


# ---- waves ---------------------------------------------------------------------------------------------------------


def test_a_wave_is_a_clip_of_one_point() -> None:
    net, x = randomised(UNet(**{**WAVE, "text_width": TEXT})), draw(B, 3, 16)
    cond = told(16, "audio", tokens=draw(B, 5, TEXT, k=2))
    y = net(x, TIMES, cond)
    assert y.shape == x.shape and y.isfinite().all()
    far = x.clone()
    far[:, :, 0] += 3.0
    assert (net(far, TIMES, cond) - y)[:, :, -1].abs().max() > 1e-3  # it attends along all of the wave


def test_a_wave_without_attention_and_norms_is_a_one_dimensional_network() -> None:
    """Its convolution is the one of `nn.Conv1d`, its normalisation that of `nn.GroupNorm` over the wave."""
    net, x = randomised(UNet(**{**WAVE, "heads": [0, 0], "middle": 0})), draw(B, 3, 16)
    h = net.open(x, TIMES, told(16, "audio")).h
    want = nn.functional.conv1d(x, net.enter.weight[..., 0, 0], net.enter.bias, padding=1)
    torch.testing.assert_close(h[..., 0, 0], want)
    block = net.blocks[0].still
    torch.testing.assert_close(
        block.norm1(h)[..., 0, 0], nn.functional.group_norm(want, 4, block.norm1.weight, block.norm1.bias, 1e-5)
    )


def test_a_longer_wave_moves_with_its_content() -> None:
    """Convolutions alone: inside the clip, a wave that comes 4 samples later gives an answer 4 samples later."""
    net = randomised(UNet(**{**WAVE, "heads": [0, 0], "middle": 0}))
    for module in net.modules():  # statistics over the clip would see its ends
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda h: h  # type: ignore[method-assign]
    x = torch.zeros(1, 3, 192)
    x[..., 88:104] = draw(1, 3, 16)
    one, late = (net(z, TIMES[:1], told(192, "audio")) for z in (x, x.roll(4, -1)))
    torch.testing.assert_close(one[..., 72:120], late[..., 76:124], atol=1e-4, rtol=1e-4)


# ---- errors, and what optimizers see -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"heads": [0]}, "2 widths need 2 heads"),
        ({"strides": []}, "1 strides, not 2 and 0"),
        ({"widths": [8, 18]}, "18 must be a multiple of groups"),
        ({"attention": "plain", "text_width": 4}, "reads no text"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        UNet(**{**SMALL, **keys})


@pytest.mark.parametrize(
    ("size", "routes", "said"),
    [
        ((3, 4, 8, 7), {}, "does not divide"),
        ((2, 4, 8, 8), {}, "built for 3, but the latent has 2"),
        ((3, 4, 8, 8), {"concat": draw(B, 1, 4, 8, 8)}, "takes 0 channels beside its input, but gets 1"),
        ((3, 4, 8, 8), {"vector": draw(B, 5)}, "in 5 numbers, but the network listens to 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_network_is_refused(size: tuple[int, ...], routes: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UserError, match=said):
        UNet(**SMALL)(draw(B, *size), TIMES, told(**routes))
    with pytest.raises(UserError, match="text_width"):
        UNet(**CLIP)(draw(B, 3, 4, 8, 8), TIMES, told(tokens=draw(B, 5, TEXT + 1)))


def test_muon_gets_the_matrices_of_attention_alone() -> None:
    net = UNet(**{**CLIP, "vector_width": 5})
    names = set(matrix_parameters(net))
    assert names and all(re.match(r"blocks\.\d+\.attention\.", name) for name in names)
    assert {name.rsplit(".", 2)[-2] for name in names} == {
        "enter",
        "leave",
        "qkv",
        "out",
        "q",
        "kv",
        "up",
        "down",
        "0",
        "2",
    }
