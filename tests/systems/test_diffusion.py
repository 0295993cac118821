"""One modality: the loss and the clip are functions of (seed, step, id), and of nothing else."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape
from mmdiff.conditioners import Conditioners, Text
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.models.dit import DiT
from mmdiff.process import EDM, Linear, LogitNormal, Process, Shifted, Uniform
from mmdiff.sampling import SAMPLERS, karras
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.levels import LEVELS

SHAPE = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
TEXTS = ["a red ball falls", "", "two blue cubes bounce twice"]


def randomised(module: nn.Module, scale: float = 0.2) -> Any:
    """Every weight drawn: a network that says something."""
    for i, (name, p) in enumerate(module.named_parameters()):
        p.data.copy_(scale * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return module


def system(process: Process | None = None, target: str = "flow", draw: Any = None, **changes: Any) -> Diffusion:
    net = DiT(channels=3, width=16, depth=2, heads=2, patch=(1, 2, 2), text_width=8)
    denoiser = Denoiser(net, process=process or Linear(), target=target, draw=draw or Uniform())
    keys = {"autoencoder": Pixels(), "conditioner": Text(width=8, depth=1, heads=2, length=64), "shape": SHAPE}
    return cast(Diffusion, randomised(Diffusion(denoiser=denoiser, **{**keys, **changes})))


def batch(ids: list[int]) -> Batch:
    b = len(ids)
    return Batch(
        video=noise.normal((3, 4, 4, 4), keys=ids).clamp(-1, 1),
        audio=torch.zeros(b, 1, 16),
        text=[TEXTS[i % 3] for i in ids],
        fps=torch.full((b,), 8.0),
        rate=32,
        valid={"video": torch.ones(b, dtype=torch.bool), "audio": torch.zeros(b, dtype=torch.bool)},
        id=[f"clip-{i}" for i in ids],
    )


def value(system: Diffusion, batch: Batch, *, seed: int = 0, step: int = 0) -> float:
    return float(system.loss(batch, seed=seed, step=step, player="learner")[0].detach())


# ---- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_a_function_of_seed_step_and_id() -> None:
    parts, clips = system(), batch([0, 1, 2])
    first = value(parts, clips)
    noise.normal((100,), keys=[1])
    torch.rand(7)
    assert value(parts, clips) == first
    renamed = cast(Batch, {**clips, "id": ["x", "y", "z"]})
    others = [value(parts, clips, seed=1), value(parts, clips, step=1), value(parts, renamed)]
    assert len({first, *others}) == 4


def test_the_loss_does_not_know_the_layout_of_the_batch() -> None:
    """The mean over single clips, halves or the whole is one number, so ranks and micro-batches change nothing."""
    parts = system()
    whole = value(parts, batch([0, 1, 2, 3]), step=5)
    singles = sum(value(parts, batch([i]), step=5) for i in (3, 1, 0, 2)) / 4
    halves = (value(parts, batch([2, 0]), step=5) + value(parts, batch([1, 3]), step=5)) / 2
    assert whole == pytest.approx(singles, rel=1e-5) == pytest.approx(halves, rel=1e-5)


def test_the_loss_is_the_denoiser_s() -> None:
    """Encode, condition, add noise, compare, with the keys that the house promises."""
    parts, clips = system(drop=0.0), batch([0, 1, 2])
    keys = lambda purpose: noise.keys(7, purpose, 3, clips["id"])
    t, eps = noise.uniform(keys=keys("time")), noise.normal((3, 4, 4, 4), keys=keys("noise"))
    want = parts.denoiser.loss(clips["video"], parts.condition(clips), t=t, noise=eps).mean()
    loss, logs = parts.loss(clips, seed=7, step=3)
    torch.testing.assert_close(loss, want)
    assert logs.keys() == {"loss/video", *(f"loss/video@{level}" for level in LEVELS)}
    assert not any(value.requires_grad for value in logs.values())
    torch.testing.assert_close(logs["loss/video"], want.detach())


def test_times_follow_the_draw_and_the_size_of_the_latent() -> None:
    u = torch.linspace(0.05, 0.95, 9)
    parts = system(draw=Shifted(LogitNormal(), base=16))
    torch.testing.assert_close(parts.draw_times(u), Shifted(LogitNormal(), base=16)(u, tokens=4 * 4 * 4))


class Recorder(nn.Module):
    """A conditioner that notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.seen += batch["text"]
        return {"tokens": torch.zeros(len(batch["text"]), 1, 8)}


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(drop: float) -> None:
    recorder = Recorder()
    parts = system(conditioner=recorder, drop=drop)
    clips = cast(Batch, {**batch(list(range(64))), "text": ["said"] * 64})
    with torch.no_grad():
        for step in range(16):
            value(parts, clips, step=step)
    n, empty = len(recorder.seen), recorder.seen.count("")
    assert n == 1024 and abs(empty - drop * n) <= 4 * (n * drop * (1 - drop)) ** 0.5


def test_a_clip_without_the_modality_weighs_nothing() -> None:
    parts, clips = system(), batch([0, 1, 2, 3])
    clips["valid"]["video"] = torch.tensor([True, False, True, False])
    whole, logs = parts.loss(clips, seed=0, step=0)
    there = value(parts, batch([0, 2]))
    assert float(whole.detach()) == pytest.approx(there / 2, rel=1e-5)  # two of four clips
    assert float(logs["loss/video"]) == pytest.approx(there, rel=1e-5)  # logs are means over those that have it
    clips["video"][1] = torch.nan
    poisoned, _ = parts.loss(clips, seed=0, step=0)
    assert torch.equal(poisoned, whole)


def test_data_without_the_modality_is_named() -> None:
    clips = batch([0])
    del clips["video"]
    with pytest.raises(UserError, match="holds no video"):
        value(system(), clips)


def test_every_weight_learns() -> None:
    """Also those of the conditioner."""
    parts = system()
    assert list(parts.players()) == ["learner"]
    parts.loss(batch([0, 1, 2]), seed=0, step=0)[0].backward()
    learner = parts.players()["learner"]
    silent = [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_an_unconditional_system_learns() -> None:
    net = DiT(channels=3, width=16, depth=1, heads=2, patch=(1, 2, 2))
    denoiser = Denoiser(net, process=Linear(), target="x0", draw=Uniform())
    parts = Diffusion(autoencoder=Pixels(), conditioner=Conditioners([]), denoiser=denoiser, shape=SHAPE)
    parts.loss(batch([0, 1]), seed=0, step=0)[0].backward()
    assert parts.generate(Batch(text=["", ""]), seed=0, steps=2)["video"].shape == (2, 3, 4, 4, 4)


def test_held_out_errors_are_fixed() -> None:
    parts, clips, times = system(), batch([0, 1, 2]), (0.2, 0.5, 0.9)
    curves = parts.held_out(clips, times=times, seed=0)
    assert curves == parts.held_out(clips, times=times, seed=0) and list(curves) == ["video"]
    assert len(curves["video"]) == 3 and curves != parts.held_out(clips, times=times, seed=1)
    singles = [parts.held_out(batch([i]), times=times, seed=0)["video"] for i in range(3)]
    assert curves["video"] == pytest.approx(torch.tensor(singles).mean(0).tolist(), rel=1e-5)
    eps = noise.normal((3, 4, 4, 4), keys=noise.keys(0, "held-out", 0, clips["id"]))
    want = parts.denoiser.loss(clips["video"], parts.condition(clips), t=torch.full((3,), 0.5), noise=eps)
    assert curves["video"][1] == pytest.approx(float(want.detach().mean()), rel=1e-5)


def test_a_codec_is_fitted_once_to_the_clips_that_are_there() -> None:
    class Codec(Pixels):
        fitted, seen = False, torch.zeros(0)

        def fit(self, x: Tensor) -> None:
            self.fitted, self.seen = True, x

    codec = Codec()
    parts, clips = system(autoencoder=codec), batch([0, 1, 2])
    clips["valid"]["video"][1] = False
    parts.fit([clips, batch([3])])
    assert torch.equal(codec.seen, torch.cat([clips["video"][[0, 2]], batch([3])["video"]]))
    parts.fit([batch([4])])
    assert len(codec.seen) == 3


# ---- how it dreams -------------------------------------------------------------------------------------------------


def dream(parts: Diffusion, ids: list[int], **changes: Any) -> Tensor:
    asked = Batch(text=[TEXTS[i % 3] for i in ids], id=[f"clip-{i}" for i in ids])
    return parts.generate(asked, **{"seed": 0, "steps": 4, "guidance": 2.0, **changes})["video"]


def test_a_clip_has_the_shape_that_was_trained() -> None:
    made = system().generate(Batch(text=TEXTS[:2], id=["a", "b"]), seed=0, steps=2)
    assert made["video"].shape == (2, 3, 4, 4, 4) and made["video"].dtype == torch.float32
    assert made["video"].abs().max() <= 1 and made["text"] == TEXTS[:2] and made["id"] == ["a", "b"]
    assert made["fps"].tolist() == [8.0, 8.0] and made["rate"] == 32 and made["valid"]["video"].all()
    assert not made["video"].requires_grad and "audio" not in made


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_same_seed_gives_the_same_clip_in_any_batch(sampler: str) -> None:
    parts = system()
    together = dream(parts, [0, 1, 2], sampler=sampler)
    assert torch.equal(together, dream(parts, [0, 1, 2], sampler=sampler))
    for i in range(3):
        torch.testing.assert_close(dream(parts, [i], sampler=sampler)[0], together[i], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(dream(parts, [0], sampler=sampler, seed=1)[0], together[0], atol=1e-2)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("process", [EDM(), EDM(sigma_max=20.0)], ids=["edm", "edm20"])
def test_the_grid_of_karras_runs_every_sampler(sampler: str, process: EDM) -> None:
    parts = system(process=process, target="v", grid=lambda n: karras(n, process=process))
    steps: list[tuple[int, int]] = []
    clip = dream(parts, [0, 1], sampler=sampler, report=lambda done, of: steps.append((done, of)))
    assert clip.isfinite().all() and clip.std() > 0.05
    assert steps == [(i, 4) for i in range(1, 5)]


def test_guidance_one_is_the_condition_alone() -> None:
    """And other scales are not: the formula on the last step, where the clip is the guided estimate itself."""
    parts, asked = system(), Batch(text=["a red ball"], id=["a"])
    x = noise.normal((3, 4, 4, 4), keys=noise.keys(0, "start", 0, ["a"]))
    t = torch.ones(1)
    yes = parts.denoise(parts.blank(asked))(x, t)
    no = parts.denoise(parts.blank(Batch(text=[""], id=["a"])))(x, t)
    assert not torch.allclose(yes, no, atol=1e-3)
    for scale in (0.0, 1.0, 3.0):
        clip = parts.generate(asked, seed=0, steps=1, guidance=scale)["video"]
        torch.testing.assert_close(clip, (no + scale * (yes - no)).clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_the_condition_is_computed_once_a_clip() -> None:
    recorder = Recorder()
    dream(system(conditioner=recorder), [0], steps=5)
    assert sorted(recorder.seen) == sorted([TEXTS[0], ""])


def test_ids_may_be_left_out() -> None:
    made = system().generate(Batch(text=["a", "a"]), seed=0, steps=2)
    assert made["id"] == ["0", "1"] and not torch.allclose(made["video"][0], made["video"][1], atol=1e-2)


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(UserError, match="no sampler 'dopri'; choose one of euler"):
        dream(system(), [0], sampler="dopri")


@pytest.mark.parametrize("shape", [ClipShape(1, 8.0, (4, 4), 32), ClipShape(6, 12.0, (8, 2), 32)])
def test_a_clip_may_be_asked_for_in_any_shape(shape: ClipShape) -> None:
    """Its positions are seconds, so a clip at twice the rate has half the distance between its frames."""
    parts, asked = system(), Batch(text=TEXTS[:2], id=["a", "b"])
    made = parts.generate(asked, seed=0, steps=2, guidance=2.0, shape=shape)
    assert made["video"].shape == (2, 3, shape.frames, *shape.size) and made["fps"].tolist() == [shape.fps] * 2
    seconds = parts.condition(parts.blank(asked, shape))["seconds"]["video"]
    torch.testing.assert_close(seconds[0], (torch.arange(shape.frames) + 0.5) / shape.fps)


def test_the_loss_takes_the_shape_of_its_clips() -> None:
    parts, clips = system(draw=Shifted(LogitNormal(), base=16)), batch([0, 1])
    clips["video"] = noise.normal((3, 2, 8, 4), keys=[0, 1])
    assert parts.latent_shapes(clips) == {"video": (3, 2, 8, 4)} and parts.loss(clips, seed=0, step=0)[0].isfinite()
    u = torch.linspace(0.05, 0.95, 9)
    torch.testing.assert_close(parts.draw_times(u, clips), Shifted(LogitNormal(), base=16)(u, tokens=2 * 8 * 4))
