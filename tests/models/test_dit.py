"""The transformer: the identity when it is born, and afterwards exactly what its loops say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import PATTERNS, math_attention
from mmdiff.layers.norm import rms_norm
from mmdiff.layers.rope import rotate
from mmdiff.models.block import SelfAttention, TextAttention
from mmdiff.models.dit import DiT

B, LATENT, TEXT = 3, (4, 4, 4, 4), 8
each_pattern = pytest.mark.parametrize("attention", list(PATTERNS))


def randomised(net: nn.Module, scale: float = 0.2) -> Any:
    """Every weight drawn, gates and last layers too; the norms of queries and keys make attention sharp."""
    for i, (name, p) in enumerate(net.named_parameters()):
        p.data.copy_(scale * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + 1.5 * ("norm" in name))
    return net


def video(**changes: Any) -> DiT:
    keys = {"channels": 4, "width": 24, "depth": 3, "heads": 2, "patch": (1, 2, 2), "window": (2, 2, 2)}
    return DiT(**{**keys, "text_width": TEXT, **changes})


def inputs(latent: tuple[int, ...] = LATENT, modality: str = "video") -> tuple[Tensor, Tensor, Cond]:
    keys = list(range(B))
    cond = Cond(
        tokens=noise.normal((5, TEXT), keys=[10 + k for k in keys]),
        mask=torch.tensor([[True] * 5, [True, True, False, False, False], [True, False, True, False, True]]),
        vector=noise.normal((TEXT,), keys=[20 + k for k in keys]),
        seconds={modality: (torch.arange(latent[1]) + 0.5).expand(B, -1) / torch.tensor([[8.0], [8.0], [12.0]])},
    )
    return noise.normal(latent, keys=keys), noise.uniform(keys=[30 + k for k in keys]), cond


def pick(cond: Cond, order: Tensor) -> Cond:
    """The same conditions in another order of the batch."""
    rows = {name: value[order] for name, value in cond.items() if isinstance(value, Tensor)}
    return Cond(**rows, seconds={name: s[order] for name, s in cond["seconds"].items()})  # type: ignore[typeddict-item]


@each_pattern
def test_identity_at_birth(attention: str) -> None:
    net, (x, t, cond) = video(attention=attention, conv=3), inputs()
    assert torch.equal(net(x, t, cond), torch.zeros_like(x))
    h, angles = net.branch.open(x, cond["seconds"]["video"])
    c = net.time(t)[:, None, None, None]
    for block in net.branch.blocks:
        assert block.text is not None
        assert torch.equal(block.feed(block.attend(h, c, angles, block.text.memory(cond)), c), h)


@each_pattern
def test_a_permuted_batch_gives_permuted_answers(attention: str) -> None:
    net, (x, t, cond) = randomised(video(attention=attention, conv=3)), inputs()
    order = torch.tensor([2, 0, 1])
    y = net(x, t, cond)
    assert y.shape == x.shape and y.std() > 0.1
    torch.testing.assert_close(net(x[order], t[order], pick(cond, order)), y[order], atol=1e-4, rtol=1e-4)


@each_pattern
def test_a_constant_time_per_token_is_one_time(attention: str) -> None:
    net, (x, t, cond) = randomised(video(attention=attention)), inputs()
    everywhere = t.view(B, 1, 1, 1, 1)
    torch.testing.assert_close(net(x, everywhere, cond), net(x, t, cond), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(net(x, everywhere.expand_as(x), cond), net(x, t, cond), atol=1e-3, rtol=1e-3)


def test_a_time_of_its_own_matters() -> None:
    net, (x, t, cond) = randomised(video()), inputs()
    times = t.view(B, 1, 1, 1, 1).expand_as(x).clone()
    times[:, :, 0] = 0
    assert not torch.allclose(net(x, times, cond), net(x, t, cond), atol=1e-2)


@pytest.mark.parametrize("pattern", ["spatial", "temporal"])
def test_factorised_attention_equals_loops(pattern: str) -> None:
    """With its projections, norms and rotations: frame by frame, or place by place."""
    layer = randomised(SelfAttention(24, 2, pattern, (1, 1, 1)), 0.5)
    x, angles = noise.normal((4, 2, 3, 24), keys=[0, 1]), 3 * noise.normal((4, 2, 3, 6), keys=[2, 3])

    def one(tokens: Tensor, angles: Tensor) -> Tensor:
        """(b n d), (b n e) -> (b n d)"""
        q, k, v = (z.unflatten(-1, (2, 12)) for z in layer.qkv(tokens).chunk(3, -1))
        q, k = rotate(layer.norm_q(q), angles), rotate(layer.norm_k(k), angles)
        y = math_attention(*(z.transpose(1, 2) for z in (q, k, v)), None)
        return layer.out(y.transpose(1, 2).flatten(2))

    want = torch.empty_like(x)
    if pattern == "spatial":
        for t in range(4):
            want[:, t] = one(x[:, t].flatten(1, 2), angles[:, t].flatten(1, 2)).view(2, 2, 3, 24)
    else:
        for h in range(2):
            for w in range(3):
                want[:, :, h, w] = one(x[:, :, h, w], angles[:, :, h, w])
    torch.testing.assert_close(layer(x, angles), want, atol=1e-4, rtol=1e-4)


def test_factorised_layers_reach_everything_in_two_blocks() -> None:
    """One spatial block keeps a change within its frame; a temporal one after it carries it everywhere."""
    x, t, cond = inputs()
    other = x.clone()
    other[:, :, 1, 0, 0] += 1
    reached = []
    for depth in (1, 2):
        net = randomised(video(depth=depth))
        change = (net(other, t, cond) - net(x, t, cond)).abs().amax(dim=(0, 1, 3, 4))  # per frame
        reached.append((change > 1e-5).tolist())
    assert reached == [[False, True, False, False], [True] * 4]


def test_nothing_is_causal() -> None:
    x, t, cond = inputs()
    net = randomised(video(attention="full", depth=1))
    for frame in (0, 3):
        other = x.clone()
        other[:, :, frame] += 1
        assert ((net(other, t, cond) - net(x, t, cond)).abs().amax(dim=(0, 1, 3, 4)) > 1e-4).all()


def test_sound_is_a_grid_of_one_place() -> None:
    """(b c n) gives what (b c n 1 1) gives."""
    x, t, cond = inputs((4, 6), "audio")
    net = randomised(video(modality="audio", patch=(2, 1, 1), attention="full"))
    assert net(x, t, cond).shape == x.shape
    torch.testing.assert_close(net(x[..., None, None], t, cond)[..., 0, 0], net(x, t, cond))
    own = t.view(B, 1, 1).expand_as(x)
    torch.testing.assert_close(net(x, own, cond), net(x, t, cond), atol=1e-4, rtol=1e-4)


def test_an_image_is_a_video_of_one_frame() -> None:
    x, t, cond = inputs((4, 1, 4, 4))
    assert randomised(video())(x, t, cond).shape == x.shape


@each_pattern
def test_only_differences_of_seconds_count(attention: str) -> None:
    net, (x, t, cond) = randomised(video(attention=attention)), inputs()
    later = Cond(**{**cond, "seconds": {"video": cond["seconds"]["video"] + 2.5}})  # type: ignore[typeddict-item]
    slower = Cond(**{**cond, "seconds": {"video": cond["seconds"]["video"] * 2}})  # type: ignore[typeddict-item]
    torch.testing.assert_close(net(x, t, later), net(x, t, cond), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(net(x, t, slower), net(x, t, cond), atol=1e-2)


def test_masked_text_is_not_read() -> None:
    net, (x, t, cond) = randomised(video()), inputs()
    other = Cond(**{**cond, "tokens": torch.where(cond["mask"][..., None], cond["tokens"], 9.0)})  # type: ignore[typeddict-item]
    assert torch.equal(net(x, t, other), net(x, t, cond))


def test_text_is_read_once_a_block() -> None:
    """Keys and values are (b l d), however many tokens ask."""
    net, (x, t, cond) = randomised(video()), inputs()
    asked: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, TextAttention):
            module.kv.register_forward_hook(lambda _, args, __: asked.append(tuple(args[0].shape)))
    net(x, t, cond)
    assert asked == [(B, 5, TEXT)] * 3


def test_text_attention_equals_its_formula() -> None:
    layer, (_, _, cond) = randomised(TextAttention(24, 2, TEXT)), inputs()
    x = noise.normal((7, 24), keys=[0, 1, 2])
    q, (k, v) = layer.q(rms_norm(x)), layer.kv(cond["tokens"]).chunk(2, -1)
    want = []
    for h in range(2):
        part = slice(12 * h, 12 * h + 12)
        scores = layer.norm_q(q[..., part]) @ layer.norm_k(k[..., part]).mT / 12**0.5  # (b n l)
        want.append(scores.masked_fill(~cond["mask"][:, None], -torch.inf).softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(x, layer.memory(cond)), layer.out(torch.cat(want, -1)), atol=1e-4, rtol=1e-4)


def test_the_prior_in_time_is_a_depthwise_convolution() -> None:
    conv = video(conv=3).branch.blocks[0].conv
    assert conv is not None
    x = noise.normal((5, 2, 2, 24), keys=[0, 1])
    assert torch.equal(conv(x), x)
    conv.taps.data.copy_(noise.normal((3, 24), keys=[2])[0])
    kernel = conv.taps.data.T[:, None]  # (d 1 3)
    lines = x.permute(0, 2, 3, 4, 1).flatten(0, 2)  # (b*h*w d t)
    want = lines + F.conv1d(lines, kernel, padding=1, groups=24)
    torch.testing.assert_close(conv(x).permute(0, 2, 3, 4, 1).flatten(0, 2), want, atol=1e-5, rtol=1e-5)


@each_pattern
@pytest.mark.parametrize("text_width", [0, TEXT])
def test_every_weight_learns(attention: str, text_width: int) -> None:
    net, (x, t, cond) = randomised(video(attention=attention, text_width=text_width, conv=3)), inputs()
    if not text_width:
        cond = Cond(seconds=cond["seconds"])
    net(x, t, cond).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_bfloat16_autocast_keeps_the_stream_in_float32() -> None:
    net, (x, t, cond) = randomised(video(), 0.1), inputs()
    h, _ = net.branch.open(x.bfloat16().float(), cond["seconds"]["video"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x, t, cond)
        assert net.branch.open(x, cond["seconds"]["video"])[0].dtype == h.dtype == torch.float32
    torch.testing.assert_close(rough.float(), net(x, t, cond), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": "causal"}, "attention: 'causal' is not one of full, factorised, windowed"),
        ({"width": 25}, "width 25 must divide into 2 heads"),
        ({"width": 26, "heads": 2}, "even size"),
        ({"conv": 4}, "conv: a kernel of 4"),
    ],
)
def test_shapes_that_cannot_be_are_refused_when_built(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        video(**changes)


def test_what_does_not_fit_the_data_is_named() -> None:
    x, t, cond = inputs()
    with pytest.raises(UserError, match=r"patch: \[1, 3, 2\] does not divide a latent of \[4, 4, 4\]"):
        video(patch=(1, 3, 2))(x, t, cond)
    with pytest.raises(UserError, match="channels: the network was built for 4, but the latent has 3"):
        video()(x[:, :3], t, cond)
    with pytest.raises(UserError, match=r"window \[3, 2, 2\]"):
        video(attention="windowed", window=(3, 2, 2))(x, t, cond)
    with pytest.raises(UserError, match="text_width: the network reads text of width 16, .* gives 8"):
        video(text_width=16)(x, t, Cond(tokens=cond["tokens"], mask=cond["mask"], seconds=cond["seconds"]))
    with pytest.raises(UserError, match="set text_width: 0"):
        video()(x, t, Cond(seconds=cond["seconds"]))
    with pytest.raises(UserError, match="does not listen"):
        video(text_width=0)(x, t, cond)


def test_absolute_places_tell_the_floor_from_the_ceiling() -> None:
    """On a constant clip rotary attention says the same everywhere; with places every token has its own answer."""
    _, t, cond = inputs()
    answers = []
    for octaves in (0, 2):
        net = randomised(video(attention="full", octaves=octaves))
        x = torch.ones_like(inputs()[0])
        y = net(x, t, cond)
        answers.append((y[..., 0, :] - y[..., 2, :]).abs().max())
    assert answers[0] < 1e-5 < 1e-2 < answers[1]


# ---- packing -------------------------------------------------------------------------------------------------------

SIZES = [(4, 4, 4, 4), (4, 2, 4, 8), (4, 1, 8, 8)]


def parts(entries: bool = False) -> list[tuple[Tensor, Tensor, Cond]]:
    """Clips of three sizes, with times of each clip, or of each entry in the first part."""
    made = [inputs(size) for size in SIZES]
    if entries:
        x, t, cond = made[0]
        own = t[:, None, None, None, None].expand_as(x).clone()
        own[:, :, :1] = 0
        made[0] = x, own, cond
    return made


@each_pattern
@pytest.mark.parametrize("entries", [False, True])
def test_packed_is_unpacked_in_values_and_in_gradients(attention: str, entries: bool) -> None:
    net = randomised(video(attention=attention, window=(1, 2, 2), conv=3, octaves=1))
    made, grads, answers = parts(entries), [], []
    for packed in (False, True):
        net.zero_grad()
        xs = [x.clone().requires_grad_() for x, _, _ in made]
        ts, conds = [t for _, t, _ in made], [cond for _, _, cond in made]
        ys = net.packed(xs, ts, conds) if packed else [net(*one) for one in zip(xs, ts, conds, strict=True)]
        sum((y * (i + 1)).square().sum() for i, y in enumerate(ys)).backward()  # type: ignore[union-attr]
        answers.append(ys)
        grads.append([x.grad for x in xs] + [p.grad.clone() for p in net.parameters()])
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=float(1e-5 * a.abs().max() + 1e-6))


def test_the_order_of_a_pack_and_its_company_change_nothing() -> None:
    net, made = randomised(video(attention="full")), parts()
    whole = net.packed(*zip(*made, strict=True))
    turned = net.packed(*zip(*made[::-1], strict=True))
    alone = net.packed(*zip(made[1], strict=True))
    for a, b in zip(whole, turned[::-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-5, atol=1e-5)
