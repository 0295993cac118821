"""Mechanisms by which branches meet: strangers while gates are closed, and afterwards what their graphs say."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from test_joint_dit import AUDIO, SHAPES, VIDEO, WIDE, B, changed, close, inputs, joint, randomised, same, stand
from torch import Tensor

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.models.meeting import CLOCKS, Apart, CrossAttention, JointAttention, Meet, within
from mmdiff.train.engine import compile_blocks

AUDIO_LIKE = BranchSpec(channels=4, width=AUDIO.width, patch=(2, 2, 2))
MEETS: dict[str, Meet] = {
    "cross": CrossAttention(),
    "cross every 2": CrossAttention(every=2),
    "video to audio": CrossAttention(direction="video_to_audio"),
    "audio to video": CrossAttention(direction="audio_to_video"),
    "joint": JointAttention(),
    "windowed cross": CrossAttention(window=0.1),
    "windowed joint": JointAttention(window=0.1),
    "gate of the other": CrossAttention(gate="other"),
    "gate of both": JointAttention(gate="both"),
    "scaled index": CrossAttention(clock="scaled_index"),
    "rounded index": JointAttention(clock="rounded_index"),
    "no clock": CrossAttention(clock="none"),
}
each_meet = pytest.mark.parametrize("meet", MEETS.values(), ids=MEETS)


def gates(net: JointDiT, value: float) -> JointDiT:
    """All gates of meetings at one value."""
    for name, p in net.named_parameters():
        if name.startswith("bridges") and "modulation" in name:
            p.data.fill_(value if name.endswith("bias") else 0.0)
    return net


def moved(net: JointDiT, touched: str, t: dict[str, Tensor], cond: Cond) -> dict[str, bool]:
    """Whose answer changes when one modality does."""
    x, _, _ = inputs()
    before, after = net(x, t, cond), net({**x, touched: x[touched] + 1}, t, cond)
    return {name: not torch.equal(before[name], after[name]) for name in x}


@each_meet
def test_closed_gates_are_two_networks(meet: Meet) -> None:
    """Exactly what branches are that never meet."""
    net, (x, t, cond) = gates(randomised(joint(meet=meet)), 0.0), inputs()
    apart = joint(meet=Apart())
    apart.load_state_dict({name: w for name, w in net.state_dict().items() if not name.startswith("bridges")})
    assert same(net(x, t, cond), apart(x, t, cond)) and not list(apart.bridges.parameters())


@each_meet
def test_it_is_the_identity_at_birth_and_its_gates_learn_first(meet: Meet) -> None:
    net, (x, t, cond) = randomised(joint(meet=meet)), inputs()
    gates(net, 0.0)
    sum(y.square().sum() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    opened = [p.grad for name, p in net.named_parameters() if name.startswith("bridges") and "modulation" in name]
    assert opened and all(g is not None and g.abs().sum() > 0 for g in opened)


@each_meet
def test_every_weight_learns(meet: Meet) -> None:
    net, (x, t, cond) = randomised(joint(meet=meet, share=[])), inputs()
    sum(y.square().mean() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("meet", "hears"),
    [
        (CrossAttention(), {"video": True, "audio": True}),
        (CrossAttention(direction="video_to_audio"), {"video": False, "audio": True}),
        (CrossAttention(direction="audio_to_video"), {"video": True, "audio": False}),
        (JointAttention(), {"video": True, "audio": True}),
    ],
)
def test_only_the_readers_of_the_graph_hear(meet: Meet, hears: dict[str, bool]) -> None:
    net, (_, t, cond) = randomised(joint(meet=meet, share=[])), inputs()
    for reader, source in itertools.permutations(SHAPES):
        assert moved(net, source, t, cond) == {source: True, reader: hears[reader]}


@pytest.mark.parametrize("kind", [CrossAttention, JointAttention])
def test_a_window_as_long_as_the_clip_is_none(kind: Any) -> None:
    x, t, cond = inputs()
    net, wide = randomised(joint(meet=kind())), randomised(joint(meet=kind(window=0.5)))
    narrow = randomised(joint(meet=kind(window=0.1)))
    y = net(x, t, cond)
    close(wide(x, t, cond), y, 1e-5)
    assert all((narrow(x, t, cond)[name] - y[name]).abs().max() > 1e-3 for name in y)


@pytest.mark.parametrize("kind", [CrossAttention, JointAttention])
def test_outside_the_window_nothing_is_heard(kind: Any) -> None:
    """Token for token, in one layer: video tokens stand at 0.125 and 0.375 s, sound every 12th of a second."""
    net, (x, t, cond) = randomised(joint(meet=kind(window=0.13))), inputs()
    h = {name: net.branches[name].open(x[name], cond["seconds"][name])[0] for name in x}
    c = {name: net.time[name](t[name])[:, None, None, None] for name in x}
    other = {**h, "audio": h["audio"].clone()}
    other["audio"][:, 5] += 1  # at 0.458 s: within reach of the second video token alone
    before, after = (net.bridges[0](z, c, stand(net, z, cond), cond)["video"] for z in (h, other))
    change = (after - before).abs().amax((0, 2, 3, 4))
    assert change[0] == 0 and change[1] > 1e-4


def test_a_window_is_never_empty() -> None:
    near = within(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.0, 0.2, 0.6]]), 0.05)
    assert near.tolist() == [[[True, True, False], [False, False, True]]]


def test_joint_attention_is_one_softmax_over_both() -> None:
    """Against a formula: the layer's own projections, all tokens in one line."""
    meet, (x, t, cond) = JointAttention(), inputs()
    net = randomised(joint(meet=meet))
    layer: Any = net.bridges[0]
    h = {name: net.branches[name].open(x[name], cond["seconds"][name])[0] for name in x}
    c = {name: net.time[name](t[name])[:, None, None, None] for name in x}
    times = {name: net.branches[name].times(cond["seconds"][name]) for name in x}
    places = meet.places(times, h, heads={12})
    found = layer(h, c, places, cond)
    told = [layer.read[name].tell(h[name], places.angles[12][name]) for name in x]
    k, v = (torch.cat(z, 2) for z in zip(*told, strict=True))
    for name in x:
        part = layer.read[name]
        y = part(h[name], places.angles[12][name], k, v, None)
        gate = part.modulation(torch.nn.functional.silu(c[name]))
        torch.testing.assert_close(found[name], h[name] + gate * y, atol=1e-4, rtol=1e-4)
    sizes = [sum(p.numel() for p in joint(meet=m).bridges.parameters()) for m in (meet, CrossAttention())]
    assert sizes[0] == sizes[1]
    with pytest.raises(UserError, match="one width"):
        joint(audio=WIDE, share=[], meet=meet)


@pytest.mark.parametrize("kind", [CrossAttention, JointAttention])
def test_only_differences_of_seconds_count(kind: Any) -> None:
    x, t, cond = inputs()
    later = changed(cond, seconds={name: s + 1.5 for name, s in cond["seconds"].items()})
    apart = changed(cond, seconds={**cond["seconds"], "audio": cond["seconds"]["audio"] + 0.5})
    for clock in CLOCKS:
        net = randomised(joint(meet=kind(clock=clock)))
        y = net(x, t, cond)
        close(net(x, t, apart if clock in ("none", "scaled_index") else later), y)
        if clock == "seconds":
            assert all((net(x, t, apart)[name] - y[name]).abs().max() > 1e-2 for name in y)


def test_clocks_are_what_they_say() -> None:
    times = {"video": torch.tensor([[0.25, 0.75]]), "audio": (torch.arange(8) + 0.5)[None] / 8}
    clock = lambda name: {k: v.tolist()[0] for k, v in CLOCKS[name](times).items()}
    assert CLOCKS["seconds"](times) is times
    assert clock("scaled_index") == {"video": [0.0, 0.5], "audio": [i / 8 for i in range(8)]}
    assert clock("rounded_index") == {"video": [0.25, 0.75], "audio": [0.25] * 4 + [0.75] * 4}
    assert set(itertools.chain(*clock("none").values())) == {0.0}
    image = {"video": torch.tensor([[0.5]]), "audio": torch.tensor([[0.25, 0.75]])}
    assert CLOCKS["rounded_index"](image)["audio"].tolist() == [[0.5, 0.5]]


def test_the_gate_hears_the_noise_level_it_is_told_to() -> None:
    """With every other path of the noise level closed, only the gate's own source moves the reader."""
    x, t, cond = inputs()
    for gate, opens in (("own", {"video"}), ("other", {"audio"}), ("both", {"video", "audio"})):
        net = randomised(joint(meet=CrossAttention(gate=gate), depth=1, share=[]))  # type: ignore[arg-type]
        for name, p in net.named_parameters():
            if "modulation" in name and not name.startswith("bridges"):
                p.data.masked_fill_(torch.tensor(name.endswith("weight")), 0.0)
        y = net(x, t, cond)["video"]
        felt = {name for name in t if not torch.equal(net(x, {**t, name: t[name] / 2}, cond)["video"], y)}
        assert felt == opens, gate


@each_meet
@pytest.mark.parametrize("missing", list(SHAPES))
def test_what_is_not_there_is_not_heard_and_gets_exactly_no_gradient(meet: Meet, missing: str) -> None:
    net, (x, t, cond) = randomised(joint(meet=meet, share=[])), inputs()
    (other,) = set(SHAPES) - {missing}
    absent = changed(cond, valid={**cond["valid"], missing: torch.zeros(B, dtype=torch.bool)})
    y = net(x, t, absent)[other]
    assert torch.equal(net({**x, missing: x[missing] + 7}, {**t, missing: t[missing] / 2}, absent)[other], y)
    y.square().mean().backward()
    own = (f"branches.{missing}", f"time.{missing}", f"vector.{missing}")
    for name, p in net.named_parameters():
        if name.startswith(own) or f"read.{missing}" in name:
            assert p.grad is None or p.grad.abs().sum() == 0, name


def test_blocks_and_feed_forward_are_shared_when_they_say_so() -> None:
    count = lambda share: sum(p.numel() for p in joint(video=AUDIO_LIKE, share=share).parameters())
    net = joint(video=AUDIO_LIKE, share=["feed_forward"])
    video, audio = (net.branches[name].blocks for name in ("video", "audio"))
    assert all(a.mlp is b.mlp and a.attention is not b.attention for a, b in zip(video, audio, strict=True))
    mlps = sum(p.numel() for block in video for p in block.mlp.parameters())
    blocks = sum(p.numel() for p in joint(video=AUDIO_LIKE, share=[]).branches["video"].blocks.parameters())
    assert count([]) - count(["feed_forward"]) == mlps and count([]) - count(["blocks"]) == blocks
    everything = joint(video=AUDIO_LIKE, share=["time", "text", "feed_forward", "blocks"])
    assert everything.branches["video"].blocks is everything.branches["audio"].blocks
    with pytest.raises(UserError, match="one attention, not factorised and full"):
        joint(video=VIDEO, share=["blocks"])
    with pytest.raises(UserError, match="one ratio"):
        joint(audio=BranchSpec(channels=5, width=24, ratio=4 / 3), share=["feed_forward"])


@pytest.mark.parametrize("share", [["feed_forward"], ["time", "text", "blocks"]], ids=str)
def test_shared_weights_learn_from_both(share: list[str]) -> None:
    net, (x, t, cond) = randomised(joint(video=AUDIO_LIKE, share=share)), inputs()
    sum(y.square().mean() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    gradient = {}
    for name in x:
        net.zero_grad()
        net(x, t, cond)[name].square().mean().backward()
        gradient[name] = net.branches["audio"].blocks[1].mlp.down.weight.grad.clone()
    assert all(g.abs().sum() > 0 for g in gradient.values()) and not torch.equal(*gradient.values())


@pytest.mark.parametrize("name", ["video to audio", "windowed joint", "gate of the other"])
def test_hot_methods_compile_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break of the graph, and with the same numbers."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    net, (x, t, cond) = randomised(joint(meet=MEETS[name], depth=1)), inputs()
    y = net(x, t, cond)
    compile_blocks(net)
    close(net(x, t, cond), y, 1e-4)
