"""Two branches: strangers while the gates are closed, sharing what they say they share, meeting in seconds."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import math_attention
from mmdiff.layers.norm import rms_norm
from mmdiff.layers.rope import frequencies, rotate
from mmdiff.models.block import TextAttention
from mmdiff.models.dit import DiT
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.models.meeting import Apart, CrossAttention, JointAttention, Meeting

B, TEXT, HEADS = 3, 8, 2
VIDEO = BranchSpec(channels=4, width=24, patch=(2, 2, 2), attention="factorised", window=(2, 2, 2), conv=3)
AUDIO = BranchSpec(channels=5, width=24)
WIDE = BranchSpec(channels=5, width=32)
SHAPES = {"video": (4, 4, 4, 4), "audio": (5, 6)}
Parts = dict[str, Tensor]


def randomised(net: nn.Module, scale: float = 0.2) -> Any:
    """Every weight drawn, gates and last layers too; the norms of queries and keys make attention sharp."""
    for i, (name, p) in enumerate(net.named_parameters()):
        p.data.copy_(scale * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + 1.5 * ("norm" in name))
    return net


def joint(**changes: Any) -> JointDiT:
    keys = {"video": VIDEO, "audio": AUDIO, "depth": 2, "heads": HEADS, "text_width": TEXT, "share": ["time", "text"]}
    return JointDiT(**{**keys, **changes})


def inputs() -> tuple[Parts, Parts, Cond]:
    keys = list(range(B))
    cond = Cond(
        tokens=noise.normal((5, TEXT), keys=[10 + k for k in keys]),
        mask=torch.tensor([[True] * 5, [True, True, False, False, False], [True, False, True, False, True]]),
        vector=noise.normal((TEXT,), keys=[20 + k for k in keys]),
        seconds={
            "video": ((torch.arange(4) + 0.5) / 8).expand(B, -1),
            "audio": ((torch.arange(6) + 0.5) / 12).expand(B, -1),
        },
        valid={name: torch.ones(B, dtype=torch.bool) for name in SHAPES},
    )
    x = {name: noise.normal(shape, keys=[100 * i + k for k in keys]) for i, (name, shape) in enumerate(SHAPES.items())}
    return x, {name: noise.uniform(keys=[30 + k for k in keys]) for name in SHAPES}, cond


def changed(cond: Cond, **changes: Any) -> Cond:
    return Cond(**{**cond, **changes})  # type: ignore[typeddict-item]


def close(a: Parts, b: Parts, tolerance: float = 1e-3) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=tolerance)


def same(a: Parts, b: Parts) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def close_gates(net: JointDiT) -> JointDiT:
    """The bridges' gates as they are at birth, all else as it is."""
    for name, p in net.named_parameters():
        if name.startswith("bridges") and "modulation" in name:
            p.data.zero_()
    return net


def test_identity_at_birth() -> None:
    net, (x, t, cond) = joint(), inputs()
    assert same(net(x, t, cond), {name: torch.zeros_like(z) for name, z in x.items()})
    h = {name: net.branches[name].open(x[name], cond["seconds"][name])[0] for name in x}
    c = {name: net.time[name](t[name])[:, None, None, None] for name in x}
    for bridge in net.bridges:
        assert same(bridge(h, c, stand(net, h, cond), cond), h)


def stand(net: JointDiT, h: Parts, cond: Cond) -> Any:
    times = {name: branch.times(cond["seconds"][name]) for name, branch in net.branches.items()}
    return net.meet.places(times, h, heads={branch.head for branch in net.branches.values()})


def alone(net: JointDiT, name: str, spec: BranchSpec) -> DiT:
    """A network of one modality with the joint network's weights."""
    keys = asdict(spec)
    single = DiT(**keys, depth=2, heads=HEADS, text_width=TEXT, modality=name)
    state = {
        f"branch.{k.removeprefix(f'branches.{name}.')}": v for k, v in net.state_dict().items() if f"s.{name}." in k
    }
    for part in ("time", "vector"):
        state |= {
            k.replace(f"{part}.{name}", part): v for k, v in net.state_dict().items() if k.startswith(f"{part}.{name}.")
        }
    single.load_state_dict({k: v for k, v in state.items() if not k.startswith("branch.bridges")})
    return single


@pytest.mark.parametrize("share", [["time", "text"], ["time"], ["text"], []], ids=str)
@pytest.mark.parametrize("audio", [AUDIO, WIDE], ids=["equal", "wider"])
def test_closed_gates_are_two_networks(share: list[str], audio: BranchSpec) -> None:
    if share and audio is WIDE:
        with pytest.raises(UserError, match="one width, not 24 and 32"):
            joint(audio=audio, share=share)
        return
    net, (x, t, cond) = close_gates(randomised(joint(audio=audio, share=share))), inputs()
    y = net(x, t, cond)
    for name, spec in (("video", VIDEO), ("audio", audio)):
        torch.testing.assert_close(y[name], alone(net, name, spec)(x[name], t[name], cond), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("audio", [AUDIO, WIDE], ids=["equal", "wider"])
def test_open_gates_couple_both_ways_and_branches_apart_never(audio: BranchSpec) -> None:
    x, t, cond = inputs()
    for meet, couples in ((CrossAttention(), True), (CrossAttention(every=2), True), (Apart(), False)):
        net = randomised(joint(audio=audio, share=[], meet=meet))
        for touched, other in itertools.permutations(SHAPES):
            moved = net({**x, touched: x[touched] + 1}, t, cond)
            assert torch.allclose(moved[other], net(x, t, cond)[other], atol=1e-5) != couples


def test_meetings_stand_where_the_config_says() -> None:
    stands = lambda meet: [isinstance(b, Meeting) for b in joint(depth=4, meet=meet).bridges]
    assert stands(Apart()) == [False] * 4 and stands(CrossAttention()) == [True] * 4
    assert stands(CrossAttention(every=2)) == [False, True, False, True]
    assert stands(JointAttention(every=3)) == [False, False, True, False]
    with pytest.raises(UserError, match="every"):
        CrossAttention(every=0)


@pytest.mark.parametrize("audio", [AUDIO, WIDE], ids=["equal", "wider"])
def test_both_directions_read_the_state_before_either_wrote(audio: BranchSpec) -> None:
    """Against a direct formula, which has its own rotations."""
    net, (x, t, cond) = randomised(joint(audio=audio, share=[])), inputs()
    bridge = net.bridges[0]
    h = {name: net.branches[name].open(x[name], cond["seconds"][name])[0] for name in x}
    c = {name: net.time[name](t[name])[:, None, None, None] for name in x}
    found = bridge(h, c, stand(net, h, cond), cond)
    places = {"video": 4, "audio": 1}  # tokens of one time step, after patching
    steps = {"video": cond["seconds"]["video"].view(B, 2, 2).mean(-1), "audio": cond["seconds"]["audio"]}
    for name, source in itertools.permutations(SHAPES):
        part = bridge.read[name]
        head = h[name].shape[-1] // HEADS

        def turned(z: Tensor, of: str, norm: nn.Module, head: int = head) -> Tensor:
            """(b n d) -> (b k n e), rotated by the seconds of `of`."""
            seconds = steps[of].repeat_interleave(places[of], 1)
            angles = seconds[..., None] * frequencies(head // 2, shortest=0.125, longest=16.0)
            return rotate(norm(z.unflatten(-1, (HEADS, head))), angles).transpose(1, 2)

        k, v = part.kv(rms_norm(h[source])).flatten(1, 3).chunk(2, -1)
        q = turned(part.q(rms_norm(h[name])).flatten(1, 3), name, part.norm_q)
        y = math_attention(q, turned(k, source, part.norm_k), v.unflatten(-1, (HEADS, head)).transpose(1, 2), None)
        gate = part.modulation(nn.functional.silu(c[name]))
        want = h[name] + gate * part.out(y.transpose(1, 2).flatten(2)).view_as(h[name])
        torch.testing.assert_close(found[name], want, atol=1e-4, rtol=1e-4)


def test_only_differences_of_seconds_count() -> None:
    net, (x, t, cond) = randomised(joint()), inputs()
    y = net(x, t, cond)
    close(net(x, t, changed(cond, seconds={name: s + 1.5 for name, s in cond["seconds"].items()})), y)
    late = net(x, t, changed(cond, seconds={**cond["seconds"], "audio": cond["seconds"]["audio"] + 0.5}))
    assert all((late[name] - y[name]).abs().max() > 1e-2 for name in y)  # sound moved against picture
    closed = close_gates(net)
    late = closed(x, t, changed(cond, seconds={**cond["seconds"], "audio": cond["seconds"]["audio"] + 0.5}))
    close(late, closed(x, t, cond))


def test_a_permuted_batch_gives_permuted_answers() -> None:
    net, (x, t, cond) = randomised(joint()), inputs()
    order = torch.tensor([2, 0, 1])
    cond["valid"]["audio"][1] = False
    pick = lambda parts: {name: part[order] for name, part in parts.items()}
    moved = Cond(
        tokens=cond["tokens"][order],
        mask=cond["mask"][order],
        vector=cond["vector"][order],
        seconds=pick(cond["seconds"]),
        valid=pick(cond["valid"]),
    )
    close(net(pick(x), pick(t), moved), pick(net(x, t, cond)))


def test_each_modality_and_each_token_may_have_its_own_time() -> None:
    net, (x, t, cond) = randomised(joint()), inputs()
    y = net(x, t, cond)
    everywhere = {name: t[name].view(B, *[1] * len(SHAPES[name])).expand_as(x[name]) for name in x}
    close(net(x, everywhere, cond), y)
    close(net(x, {**t, "audio": everywhere["audio"]}, cond), y)
    other = net(x, {**t, "audio": t["audio"] / 2}, cond)
    assert all((other[name] - y[name]).abs().max() > 1e-2 for name in y)


def test_shared_parts_are_the_same_objects() -> None:
    def common(share: list[str]) -> set[str]:
        net = joint(share=share)
        video, audio = net.branches["video"].blocks[1], net.branches["audio"].blocks[1]
        pairs = {"time": (net.time["video"], net.time["audio"]), "text": (video.text, audio.text)}
        assert net.vector is not None and (net.vector["video"] is net.vector["audio"]) == ("text" in share)
        assert video.attention is not audio.attention and video.mlp is not audio.mlp
        return {name for name, (a, b) in pairs.items() if a is b}

    for share in ([], ["time"], ["text"], ["time", "text"]):
        assert common(share) == set(share)
    sizes = [sum(p.numel() for p in joint(share=share).parameters()) for share in (["time", "text"], ["time"], [])]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    with pytest.raises(UserError, match="mlp"):
        joint(share=["mlp"])


@pytest.mark.parametrize(("share", "times"), [(["time", "text"], 1), ([], 2)])
def test_shared_text_is_read_once_a_block(share: list[str], times: int) -> None:
    net, (x, t, cond) = randomised(joint(share=share)), inputs()
    asked: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, TextAttention):
            module.kv.register_forward_hook(lambda _, args, __: asked.append(tuple(args[0].shape)))
    net(x, t, cond)
    assert asked == [(B, 5, TEXT)] * 2 * times


@pytest.mark.parametrize("missing", list(SHAPES))
def test_what_is_not_there_is_not_read(missing: str) -> None:
    """A clip without a modality: the other branch is what it would be with closed gates, clip by clip."""
    net, (x, t, cond) = randomised(joint()), inputs()
    (other,) = set(SHAPES) - {missing}
    here = torch.tensor([True, False, True])
    masked = changed(cond, valid={**cond["valid"], missing: here})
    y, coupled = net(x, t, masked)[other], net(x, t, cond)[other]
    moved = net({**x, missing: torch.where(here.view(B, *[1] * (x[missing].ndim - 1)), x[missing], 7.0)}, t, masked)
    assert torch.equal(moved[other], y)
    torch.testing.assert_close(y[here], coupled[here])
    closed = close_gates(net)(x, t, cond)[other]
    torch.testing.assert_close(y[~here], closed[~here])
    assert not torch.allclose(y[here], closed[here], atol=1e-2)


@pytest.mark.parametrize("missing", list(SHAPES))
def test_what_is_not_there_gets_exactly_no_gradient(missing: str) -> None:
    net, (x, t, cond) = randomised(joint(share=[])), inputs()
    (other,) = set(SHAPES) - {missing}
    masked = changed(cond, valid={**cond["valid"], missing: torch.zeros(B, dtype=torch.bool)})
    net(x, t, masked)[other].square().mean().backward()
    own = (f"branches.{missing}", f"time.{missing}", f"vector.{missing}", "bridges")
    for name, p in net.named_parameters():
        gradient = 0.0 if p.grad is None else float(p.grad.abs().sum())
        assert gradient == 0 if name.startswith(own) else gradient > 0, name


@pytest.mark.parametrize("share", [["time", "text"], []], ids=str)
@pytest.mark.parametrize("text_width", [TEXT, 0])
def test_every_weight_learns(share: list[str], text_width: int) -> None:
    """Sharded optimizers wait for a gradient of every weight."""
    net, (x, t, cond) = randomised(joint(share=share, text_width=text_width)), inputs()
    if not text_width:
        cond = Cond(seconds=cond["seconds"], valid=cond["valid"])
    sum(y.square().mean() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_weights_of_every_part_have_a_gradient_at_birth_too() -> None:
    """Zero it may be, but not None."""
    net, (x, t, cond) = joint(), inputs()
    sum(y.sum() for y in net(x, t, cond).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
