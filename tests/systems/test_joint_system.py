"""Picture and sound as one variable: packed, unpacked, weighed, and silent where there is nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape
from mmdiff.conditioners import Text
from mmdiff.denoiser import Denoiser
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.models.meeting import EACH_OTHER
from mmdiff.process import EDM, Linear, Process, Uniform
from mmdiff.sampling import SAMPLERS, karras
from mmdiff.systems.joint import Joint, pack, unpack
from mmdiff.systems.weights import FixedWeights

SHAPE = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
TEXTS = ["a red ball falls", "", "two blue cubes bounce twice"]
SHAPES: dict[str, tuple[int, ...]] = {"video": (3, 4, 4, 4), "audio": (1, 16)}


def randomised(module: nn.Module, scale: float = 0.2) -> Any:
    """Every weight drawn: a network that says something."""
    for i, (name, p) in enumerate(module.named_parameters()):
        p.data.copy_(scale * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return module


def system(
    process: Process | None = None,
    target: str = "flow",
    share: Any = ("time", "text"),
    meet: Any = EACH_OTHER,
    **changes: Any,
) -> Joint:
    video = BranchSpec(channels=3, width=16, patch=(1, 2, 2), attention="factorised")
    audio = BranchSpec(channels=1, width=16, patch=(4, 1, 1))
    net = JointDiT(video=video, audio=audio, depth=2, heads=2, text_width=8, share=share, meet=meet)
    denoiser = Denoiser(net, process=process or Linear(), target=target, draw=Uniform())
    text = Text(width=8, depth=1, heads=2, length=64)
    codecs = {"video": Pixels(), "audio": Pixels(channels=1)}
    return cast(Joint, randomised(Joint(conditioner=text, denoiser=denoiser, shape=SHAPE, **{**codecs, **changes})))


def batch(ids: list[int]) -> Batch:
    b = len(ids)
    return Batch(
        video=noise.normal((3, 4, 4, 4), keys=ids).clamp(-1, 1),
        audio=noise.normal((1, 16), keys=[100 + i for i in ids]).clamp(-1, 1),
        text=[TEXTS[i % 3] for i in ids],
        fps=torch.full((b,), 8.0),
        rate=32,
        valid={name: torch.ones(b, dtype=torch.bool) for name in SHAPES},
        id=[f"clip-{i}" for i in ids],
    )


def without(clips: Batch, name: str, *places: int) -> Batch:
    """The same clips, some of them without a modality: zeros, as the data gives them."""
    gone = torch.zeros(len(clips["id"]), dtype=torch.bool)
    gone[list(places)] = True
    held = cast(Tensor, clips[name])  # type: ignore[literal-required]
    zeros = torch.where(gone.view(-1, *[1] * (held.ndim - 1)), 0.0, held)
    return cast(Batch, {**clips, name: zeros, "valid": {**clips["valid"], name: ~gone}})


def test_packing_comes_back() -> None:
    parts = {name: noise.normal(shape, keys=[i, 5 + i]) for i, (name, shape) in enumerate(SHAPES.items())}
    flat = pack(parts)
    assert flat.shape == (2, 3 * 64 + 16) and torch.equal(flat[:, :192], parts["video"].flatten(1))
    back = unpack(flat, SHAPES)
    assert list(back) == list(SHAPES) and all(torch.equal(back[name], parts[name]) for name in SHAPES)


def test_the_network_gets_each_modality_with_its_own_times() -> None:
    parts, clips = system(), batch([0, 1])
    x, cond = parts.encode(clips), parts.condition(clips)
    t = torch.rand(2, generator=torch.Generator().manual_seed(0))
    times = torch.cat([t[:, None].expand(2, 192), (t / 2)[:, None].expand(2, 16)], 1)
    door = parts.denoiser.net
    want = door.net({name: clips[name] for name in SHAPES}, {"video": t, "audio": t / 2}, cond)  # type: ignore
    torch.testing.assert_close(door(x, times, cond), pack(want), atol=1e-4, rtol=1e-4)
    assert torch.equal(cond["seconds"]["video"][0], (torch.arange(4) + 0.5) / 8)
    assert torch.equal(cond["seconds"]["audio"][1], (torch.arange(16) + 0.5) / 32)


def test_the_loss_does_not_know_the_layout_of_the_batch() -> None:
    parts, clips = system(), batch([0, 1, 2])
    loss, logs = parts.loss(clips, seed=3, step=2)
    assert torch.equal(parts.loss(clips, seed=3, step=2)[0], loss)
    singles = [parts.loss(batch([i]), seed=3, step=2)[0] for i in (2, 0, 1)]
    torch.testing.assert_close(torch.stack(singles).mean(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logs["loss/video"] + logs["loss/audio"], loss.detach())


def test_modalities_are_weighed() -> None:
    _, logs = system().loss(batch([0, 1]), seed=0, step=0)
    loss, same = system(weights=FixedWeights({"audio": 0.25})).loss(batch([0, 1]), seed=0, step=0)
    torch.testing.assert_close(loss.detach(), logs["loss/video"] + 0.25 * logs["loss/audio"])
    torch.testing.assert_close(same, logs)


@pytest.mark.parametrize("missing", list(SHAPES))
def test_an_absent_modality_gives_exactly_no_gradient(missing: str) -> None:
    parts = system(share=[])
    (other,) = set(SHAPES) - {missing}
    loss, logs = parts.loss(without(batch([0, 1, 2]), missing, 0, 1, 2), seed=0, step=0)
    assert logs[f"loss/{missing}"] == 0 and loss > 0
    torch.testing.assert_close(loss.detach(), logs[f"loss/{other}"])
    loss.backward()
    net = parts.denoiser.net.net
    silent = (f"branches.{missing}", f"time.{missing}", f"vector.{missing}", "bridges")
    for name, p in net.named_parameters():  # type: ignore[union-attr]
        gradient = 0.0 if p.grad is None else float(p.grad.abs().sum())
        assert gradient == 0 if name.startswith(silent) else gradient > 0, name


@pytest.mark.parametrize("missing", list(SHAPES))
def test_a_clip_without_a_modality_leaves_the_others_alone(missing: str) -> None:
    """The loss of a mixed batch is the mean of its clips, and junk where nothing is heard is never seen."""
    parts, clips = system(), without(batch([0, 1]), missing, 1)
    loss, logs = parts.loss(clips, seed=0, step=0)
    full, _ = parts.loss(batch([0]), seed=0, step=0)
    half, part = parts.loss(without(batch([1]), missing, 0), seed=0, step=0)
    torch.testing.assert_close(loss, (full + half) / 2, rtol=1e-5, atol=1e-6)
    held = cast(Tensor, clips[missing])  # type: ignore[literal-required]
    held[1] = torch.nan
    assert torch.equal(parts.loss(clips, seed=0, step=0)[0], loss)
    assert part[f"loss/{missing}"] == 0 and logs[f"loss/{missing}"] > 0


def test_every_weight_learns() -> None:
    """Sharded optimizers wait for a gradient of every weight, the conditioner's too."""
    parts = system()
    parts.loss(batch([0, 1, 2]), seed=0, step=0)[0].backward()
    learner = parts.players()["learner"]
    silent = [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_held_out_errors_are_fixed_and_count_what_is_there() -> None:
    parts, clips = system(), without(batch([0, 1, 2]), "audio", 1)
    curves = parts.held_out(clips, times=(0.3, 0.8), seed=0)
    assert curves == parts.held_out(clips, times=(0.3, 0.8), seed=0)
    assert list(curves) == ["video", "audio"]
    singles = [parts.held_out(batch([i]), times=(0.3, 0.8), seed=0)["audio"] for i in (0, 2)]
    assert curves["audio"] == pytest.approx(torch.tensor(singles).mean(0).tolist(), rel=1e-5)


def dream(parts: Joint, ids: list[int], **changes: Any) -> Batch:
    asked = Batch(text=[TEXTS[i % 3] for i in ids], id=[f"clip-{i}" for i in ids])
    return parts.generate(asked, **{"seed": 0, "steps": 4, "guidance": 2.0, **changes})


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_same_seed_gives_the_same_clip_in_any_batch(sampler: str) -> None:
    parts = system()
    together = dream(parts, [0, 1, 2], sampler=sampler)
    for i in range(3):
        single = dream(parts, [i], sampler=sampler)
        for name in ("video", "audio"):
            torch.testing.assert_close(single[name][0], together[name][i], atol=1e-5, rtol=1e-5)  # type: ignore
    assert together["video"].shape == (3, 3, 4, 4, 4) and together["audio"].shape == (3, 1, 16)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_grid_of_karras_runs_every_sampler(sampler: str) -> None:
    parts = system(process=EDM(), target="v", grid=lambda n: karras(n, process=EDM()))
    made = dream(parts, [0, 1], sampler=sampler)
    assert made["video"].isfinite().all() and made["audio"].isfinite().all() and made["audio"].std() > 0.05


def test_a_phase_is_invented_from_the_id() -> None:
    """Codecs that say so get one key a clip, the same in any batch."""

    class Codec(Pixels):
        invents_phase = True

        def decode(self, z: Tensor, *, keys: list[int]) -> Tensor:  # type: ignore[override]
            return noise.normal(z.shape[1:], keys=keys)

    parts = system(audio=Codec(channels=1))
    together = dream(parts, [0, 1])["audio"]
    assert torch.equal(dream(parts, [1])["audio"][0], together[1]) and not torch.equal(together[0], together[1])


def test_the_state_comes_back() -> None:
    parts, other = system(), system()
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(parts.state_dict())
    assert torch.equal(dream(other, [0])["video"], dream(parts, [0])["video"])


def test_both_modalities_follow_the_shape_that_is_asked_for() -> None:
    parts, longer = system(), ClipShape(frames=8, fps=8.0, size=(4, 8), rate=32)
    made = parts.generate(Batch(text=["a"], id=["a"]), seed=0, steps=2, shape=longer)
    assert made["video"].shape == (1, 3, 8, 4, 8) and made["audio"].shape == (1, 1, 32)
    clips = batch([0, 1])
    clips["video"], clips["audio"] = clips["video"].repeat(1, 1, 2, 1, 1), clips["audio"].repeat(1, 1, 2)
    assert parts.loss(clips, seed=0, step=0)[0].isfinite()
