"""Two U-Nets: strangers at birth, reading each other in windows whose shift is told and never drawn."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import math_attention
from mmdiff.models.crossing import Crossing, segments, shifts, windowed
from mmdiff.models.joint_unet import JointUNet, latest
from mmdiff.models.unet import UNet

B, TEXT, FRAMES, SAMPLES = 3, 8, 4, 32
VIDEO: dict[str, Any] = {
    "channels": 3,
    "widths": [8, 16],
    "strides": [[1, 2, 2]],
    "heads": [0, 2],
    "middle": 2,
    "blocks": 1,
    "groups": 4,
    "temporal": "mixed",
    "mix": 0.5,
    "text_width": TEXT,
}
AUDIO: dict[str, Any] = {
    **VIDEO,
    "channels": 1,
    "strides": [[4, 1, 1]],
    "kernel": [3, 1, 1],
    "pattern": "full",
    "temporal": "none",
    "modality": "audio",
}
SHAPES = {"video": (3, FRAMES, 8, 8), "audio": (1, SAMPLES)}
Parts = dict[str, Tensor]


def randomised(net: nn.Module, scale: float = 0.2) -> Any:
    for i, (name, p) in enumerate(net.named_parameters()):
        p.data.copy_(scale * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return net


def joint(spans: Any = (2, 4, 4), **changes: Any) -> JointUNet:
    keys = {"video": UNet(**VIDEO), "audio": UNet(**AUDIO), "heads": 2}
    return JointUNet(**{**keys, "spans": list(spans), **changes})


def inputs() -> tuple[Parts, Parts, Cond]:
    ids = list(range(B))
    cond = Cond(
        tokens=noise.normal((5, TEXT), keys=[10 + k for k in ids]),
        seconds={
            "video": ((torch.arange(FRAMES) + 0.5) / 8).expand(B, -1),
            "audio": ((torch.arange(SAMPLES) + 0.5) / 64).expand(B, -1),
        },
        valid={name: torch.ones(B, dtype=torch.bool) for name in SHAPES},
        chance=noise.uniform(keys=[50 + k for k in ids]),
    )
    x = {name: noise.normal(shape, keys=[100 * i + k for k in ids]) for i, (name, shape) in enumerate(SHAPES.items())}
    return x, {name: noise.uniform(keys=[30 + k for k in ids]) for name in SHAPES}, cond


def same(a: Parts, b: Parts) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- windows -------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_paper() -> None:
    """Token by token: frame f reads samples [(f + r) L/F, (f + r + S) L/F), going round."""
    frames, span, per = 5, 2, 3
    for r in range(frames - span + 1):
        seen = segments(frames, span, torch.tensor([r]))[0]
        for f in range(frames):
            want = [(f * per + j + per * r) % (frames * per) for j in range(span * per)]
            assert [int(s) * per + j for s in seen[f] for j in range(per)] == want


def made(tokens: int, frames: int = 4) -> Tensor:
    """(b f p k e)"""
    return noise.normal((frames, tokens, 2, 4), keys=[7 * tokens + i for i in range(B)])


@pytest.mark.parametrize(("p", "m"), [(3, 2), (2, 3)])
def test_a_window_is_attention_under_a_mask(p: int, m: int) -> None:
    q, k, v, shift = made(p), made(m), made(m) + 1, torch.tensor([0, 1, 2])
    y = windowed(q, k, v, span=2, shift=shift)
    near = torch.zeros(B, 4 * p, 4 * m, dtype=torch.bool)
    for b, f, j in itertools.product(range(B), range(4), range(2)):
        s = (f + int(shift[b]) + j) % 4
        near[b, f * p : (f + 1) * p, s * m : (s + 1) * m] = True
    flat = [z.flatten(1, 2).transpose(1, 2) for z in (q, k, v)]
    want = math_attention(*flat, near[:, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)


def test_a_window_of_all_frames_is_full_attention() -> None:
    q, k, v = made(3), made(2), made(2) + 1
    flat = [z.flatten(1, 2).transpose(1, 2) for z in (q, k, v)]
    want = math_attention(*flat, None).transpose(1, 2).flatten(2)
    for shift in (0, 3):
        y = windowed(q, k, v, span=4, shift=torch.full((B,), shift))
        torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)
    clip, seen = torch.arange(B)[:, None, None], segments(4, 4, torch.zeros(B, dtype=torch.long))
    k, v = (z[clip, seen].flatten(2, 3) for z in (k, v))  # and so is the window that the formula makes of it
    y = math_attention(*(z.flatten(0, 1).transpose(1, 2) for z in (q, k, v)), None)
    torch.testing.assert_close(y.transpose(1, 2).reshape(B, 12, -1), want, atol=1e-5, rtol=1e-5)


def test_shifts_are_even_and_repeat() -> None:
    t = noise.uniform(keys=list(range(4000)))
    chance = noise.uniform(keys=list(range(4000, 8000)))
    r = shifts(chance, t, place=3, options=5)
    assert torch.equal(r, shifts(chance, t, place=3, options=5)) and r.min() == 0 and r.max() == 4
    assert (r.bincount() / 4000 - 0.2).abs().max() < 0.03
    one = torch.full((1,), 0.123)
    steps = torch.cat([shifts(one, torch.full((1,), k / 25), place=3, options=5) for k in range(25)])
    places = torch.cat([shifts(one, one, place=i, options=5) for i in range(25)])
    assert len(steps.unique()) == len(places.unique()) == 5
    assert not shifts(one, one, place=1, options=1).any()


# ---- one layer -----------------------------------------------------------------------------------------------------


def layer(span: int, clock: str = "none") -> Any:
    return randomised(Crossing({"video": 8, "audio": 16}, heads=2, groups=4, span=span, clock=clock))


def grids() -> tuple[Parts, Parts]:
    h = {
        "video": noise.normal((8, 4, 2, 2), keys=[0, 1, 2]),
        "audio": noise.normal((16, 8, 1, 1), keys=[3, 4, 5]),
    }
    seconds = {name: ((torch.arange(z.shape[2]) + 0.5) / (2 * z.shape[2])).expand(B, -1) for name, z in h.items()}
    return h, seconds


@pytest.mark.parametrize("clock", ["none", "seconds"])
def test_what_is_outside_every_window_is_not_heard(clock: str) -> None:
    net, (h, seconds), shift = layer(1, clock), grids(), torch.tensor([0, 1, 3])
    for module in net.norm.values():  # statistics over the clip would carry a change everywhere
        module.forward = lambda x: x  # type: ignore[method-assign]
    y = net(h, seconds, {}, shift)
    for segment in range(4):
        louder = {**h, "audio": h["audio"].clone()}
        louder["audio"][:, :, 2 * segment : 2 * segment + 2] += 1.0
        moved = (net(louder, seconds, {}, shift)["video"] != y["video"]).flatten(3).any(3).any(1)  # (b f)
        assert torch.equal(moved, (torch.arange(4) + shift[:, None]) % 4 == segment)
        brighter = {**h, "video": h["video"].clone()}
        brighter["video"][:, :, segment] += 1.0
        moved = (net(brighter, seconds, {}, shift)["audio"] != y["audio"]).flatten(2).any(1)  # (b n)... of 2 a frame
        assert torch.equal(moved[:, ::2], (torch.arange(4) + shift[:, None]) % 4 == segment)
        assert torch.equal(moved[:, ::2], moved[:, 1::2])


def test_only_differences_of_seconds_count() -> None:
    net, (h, seconds), shift = layer(4, "seconds"), grids(), torch.zeros(B, dtype=torch.long)
    y = net(h, seconds, {}, shift)
    later = net(h, {name: s + 1.5 for name, s in seconds.items()}, {}, shift)
    apart = net(h, {**seconds, "audio": seconds["audio"] + 0.25}, {}, shift)
    for name in h:
        torch.testing.assert_close(later[name], y[name], atol=1e-4, rtol=1e-4)
        assert (apart[name] - y[name]).abs().max() > 1e-3


@pytest.mark.parametrize("missing", list(SHAPES))
def test_what_is_not_there_is_not_read(missing: str) -> None:
    net, (h, seconds), shift = layer(2), grids(), torch.tensor([0, 1, 2])
    (other,) = set(SHAPES) - {missing}
    y = net(h, seconds, {missing: torch.tensor([True, False, True])}, shift)
    assert torch.equal(y[other][1], h[other][1])
    whole = net(h, seconds, {}, shift)
    assert torch.equal(y[other][::2], whole[other][::2]) and torch.equal(y[missing], whole[missing])


def test_segments_must_come_out_even() -> None:
    h, seconds = grids()
    with pytest.raises(UserError, match="7 time steps of audio cannot be cut into 4 segments"):
        layer(2)(
            {**h, "audio": h["audio"][:, :, :7]}, {**seconds, "audio": seconds["audio"][:, :7]}, {}, torch.zeros(B)
        )


# ---- the network ---------------------------------------------------------------------------------------------------


def test_at_birth_they_are_two_networks() -> None:
    video, audio = randomised(UNet(**VIDEO)), randomised(UNet(**AUDIO), 0.3)
    net, (x, t, cond) = joint(video=video, audio=audio), inputs()
    assert len(net.bridges) == 8
    assert same(
        net(x, t, cond), {"video": video(x["video"], t["video"], cond), "audio": audio(x["audio"], t["audio"], cond)}
    )


@pytest.mark.parametrize("spans", [(0, 0, 4), (1, 2, 0), (9, 9, 9)])
def test_open_meetings_couple_both_ways(spans: tuple[int, ...]) -> None:
    net, (x, t, cond) = randomised(joint(spans)), inputs()
    y = net(x, t, cond)
    for touched, other in itertools.permutations(SHAPES):
        assert (net({**x, touched: x[touched] + 1}, t, cond)[other] - y[other]).abs().max() > 1e-4
    apart = randomised(joint((0, 0, 0)))
    assert len(apart.bridges) == 0
    assert torch.equal(apart({**x, "audio": x["audio"] + 1}, t, cond)["video"], apart(x, t, cond)["video"])


def test_a_pass_is_a_function_of_its_arguments() -> None:
    """Repeated it is the same bit for bit, in training mode and with gradients; another chance is another pass."""
    net, (x, t, cond) = randomised(joint()), inputs()
    y = net(x, t, cond)
    torch.manual_seed(5)
    assert same(net.train()(x, t, cond), y)
    again = torch.utils.checkpoint.checkpoint(
        lambda z: net({**x, "video": z}, t, cond)["video"], x["video"], use_reentrant=False
    )
    assert torch.equal(again, y["video"])
    other = Cond(**{**cond, "chance": (cond["chance"] + 0.5).frac()})  # type: ignore[typeddict-item]
    assert (net(x, t, other)["video"] - y["video"]).abs().max() > 1e-5
    fixed = randomised(joint(shift="none"))
    assert same(fixed(x, t, other), fixed(x, t, cond))


def test_a_clip_does_not_depend_on_its_batch() -> None:
    net, (x, t, cond) = randomised(joint()), inputs()
    y = net(x, t, cond)
    pick = lambda parts: {name: part[1:2] for name, part in parts.items()}
    one = Cond(
        tokens=cond["tokens"][1:2], seconds=pick(cond["seconds"]), valid=pick(cond["valid"]), chance=cond["chance"][1:2]
    )
    for name, z in net(pick(x), pick(t), one).items():
        torch.testing.assert_close(z, y[name][1:2], atol=1e-5, rtol=1e-5)


def test_each_modality_and_each_frame_may_have_its_own_time() -> None:
    net, (x, t, cond) = randomised(joint()), inputs()
    everywhere = {name: t[name].view(B, *[1] * len(SHAPES[name])).expand_as(x[name]) for name in x}
    y, spread = net(x, t, cond), net(x, everywhere, cond)
    for name in x:
        torch.testing.assert_close(spread[name], y[name], atol=1e-5, rtol=1e-5)
    given = {**everywhere, "audio": torch.zeros_like(x["audio"])}
    assert torch.equal(latest(given), t["video"])  # what is given does not move the windows


def test_every_weight_learns() -> None:
    net, (x, t, cond) = randomised(joint()), inputs()
    sum(y.square().mean() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    net, (x, t, cond) = joint(), inputs()
    sum(y.sum() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_branches_that_do_not_go_side_by_side_are_refused() -> None:
    with pytest.raises(UserError, match="as many widths and blocks"):
        joint(audio=UNet(**{**AUDIO, "blocks": 2}))
    with pytest.raises(UserError, match="need 3 numbers, not 2"):
        joint((1, 2))
    with pytest.raises(UserError, match="say modality: audio"):
        joint(audio=UNet(**{**AUDIO, "modality": "video"}))
    with pytest.raises(UserError, match="3 heads"):
        joint(heads=3)
