"""What is given comes back bit for bit, is not learned, and leads to what follows from it."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape, Cond
from mmdiff.conditioners import Text
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.models.dit import DiT
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.process import Linear, Uniform
from mmdiff.sampling import SAMPLERS
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.joint import Joint
from mmdiff.tasks import TASKS

SHAPE = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
SHAPES = {"video": (3, 4, 4, 4), "audio": (1, 16)}
PLACES = (0.4, 0.6, 0.3, 0.9)
SINGLE = [name for name, (_, needs) in TASKS.items() if "audio" not in needs]


def randomised(module: Any) -> Any:
    for i, (name, p) in enumerate(module.named_parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return module


def system(joint: bool, **changes: Any) -> Diffusion:
    text = Text(width=8, depth=1, heads=2, length=64)
    if joint:
        video = BranchSpec(channels=3, width=16, patch=(1, 1, 1), attention="factorised")
        net: Any = JointDiT(video=video, audio=BranchSpec(channels=1, width=16), depth=1, heads=2, text_width=8)
        codecs: Any = {"video": Pixels(), "audio": Pixels(channels=1)}
        kind: Any = Joint
    else:
        net, kind = DiT(channels=3, width=16, depth=1, heads=2, text_width=8), Diffusion
        codecs = {"autoencoder": Pixels()}
    denoiser = Denoiser(net, process=Linear(), target="flow", draw=Uniform())
    return cast(Diffusion, randomised(kind(conditioner=text, denoiser=denoiser, shape=SHAPE, **codecs, **changes)))


def batch(ids: list[int]) -> Batch:
    return Batch(
        video=noise.normal((3, 4, 4, 4), keys=ids).clamp(-0.9, 0.9),
        audio=noise.normal((1, 16), keys=[100 + i for i in ids]).clamp(-0.9, 0.9),
        text=["a red ball"] * len(ids),
        fps=torch.full((len(ids),), 8.0),
        rate=32,
        valid={name: torch.ones(len(ids), dtype=torch.bool) for name in SHAPES},
        id=[f"clip-{i}" for i in ids],
    )


def asked(task: str, ids: list[int], names: list[str]) -> Batch:
    """A request that holds of the clips what the task says."""
    masks = TASKS[task][0]({name: SHAPES[name] for name in names}, PLACES)
    held = {name: mask.expand(len(ids), *mask.shape) for name, mask in masks.items()}
    return cast(Batch, {**batch(ids), "held": held})


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize(("joint", "task"), [(True, t) for t in TASKS] + [(False, t) for t in SINGLE])
def test_what_is_given_comes_back_bit_for_bit(sampler: str, joint: bool, task: str) -> None:
    parts, names = system(joint), list(SHAPES)[: 1 + joint]
    request = asked(task, [0, 1], names)
    made = parts.generate(request, seed=0, steps=3, sampler=sampler, guidance=2.0)
    for name in names:
        held = request["held"][name].expand(2, *SHAPES[name])
        clip, new = request[name], made[name]  # type: ignore[literal-required]
        assert torch.equal(new[held], clip[held])
        assert not (new == clip)[~held].any()


@pytest.mark.parametrize("joint", [False, True])
def test_only_what_is_held_is_read(joint: bool) -> None:
    """The unknown part of the clips cannot leak, and a clip does not depend on its batch."""
    parts, names = system(joint), list(SHAPES)[: 1 + joint]
    request = asked("extend", [0, 1], names)
    made = parts.generate(request, seed=0, steps=3)
    junk = cast(Batch, dict(request))
    for name in names:
        held = request["held"][name].expand(2, *SHAPES[name])
        junk[name] = torch.where(held, request[name], 9.0)  # type: ignore[literal-required]
    again = parts.generate(junk, seed=0, steps=3)
    alone = parts.generate(asked("extend", [1], names), seed=0, steps=3)
    for name in names:
        assert torch.equal(again[name], made[name])  # type: ignore[literal-required]
        torch.testing.assert_close(alone[name][0], made[name][1])  # type: ignore[literal-required]


def test_latents_stand_in_for_clips() -> None:
    parts, request = system(True), asked("video_to_audio", [0], list(SHAPES))
    latents = cast(Batch, {**request, "latents": {"video": request["video"]}})
    del latents["video"], latents["held"]["audio"], latents["audio"]
    assert torch.equal(
        parts.generate(latents, seed=0, steps=2)["audio"], parts.generate(request, seed=0, steps=2)["audio"]
    )
    del latents["latents"]
    with pytest.raises(UserError, match="neither clips nor latents"):
        parts.generate(latents, seed=0, steps=2)


def test_what_does_not_fit_is_named() -> None:
    parts, request = system(False), asked("extend", [0], ["video"])
    with pytest.raises(UserError, match="held: the mask of video"):
        parts.generate(cast(Batch, {**request, "held": {"video": torch.ones(1, 1, 3, 4, 4).bool()}}), seed=0)
    with pytest.raises(UserError, match="held: video is given as latents"):
        parts.generate(cast(Batch, {**request, "latents": {"video": torch.zeros(1, 3, 2, 4, 4)}}), seed=0)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [False, True])
def test_generate_alone_is_the_plain_loss(joint: bool) -> None:
    plain = system(joint).loss(batch([0, 1]), seed=0, step=3)[0]
    torch.testing.assert_close(system(joint, tasks={"generate": 1.0}).loss(batch([0, 1]), seed=0, step=3)[0], plain)


def test_the_loss_is_the_mean_over_the_unknown() -> None:
    parts = system(False, tasks={"first_frame": 1.0}, drop=0.0)
    clips, seen = batch([0, 1, 2]), {}

    def net(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    parts.denoiser.net.forward = net  # type: ignore[method-assign]
    loss, logs = parts.loss(clips, seed=0, step=0)
    assert (seen["t"][:, :, 0] == 0).all() and (seen["t"][:, :, 1:] > 0).all()
    assert torch.equal(seen["x"][:, :, 0], clips["video"][:, :, 0])
    eps = noise.normal((3, 4, 4, 4), keys=noise.keys(0, "noise", 0, clips["id"]))
    torch.testing.assert_close(loss, (eps - clips["video"])[:, :, 1:].square().mean())
    torch.testing.assert_close(logs["loss/video"], loss)


def test_a_modality_that_is_given_is_not_learned() -> None:
    parts = system(True, tasks={"video_to_audio": 1.0})
    loss, logs = parts.loss(batch([0, 1]), seed=0, step=0)
    assert logs["loss/video"] == 0
    torch.testing.assert_close(loss.detach(), logs["loss/audio"])


def test_the_mixed_loss_does_not_know_the_layout_of_the_batch() -> None:
    parts = system(True, tasks=dict.fromkeys(TASKS, 1.0))
    whole = parts.loss(batch([0, 1, 2, 3]), seed=0, step=1)[0]
    singles = [parts.loss(batch([i]), seed=0, step=1)[0] for i in (2, 0, 1, 3)]
    torch.testing.assert_close(torch.stack(singles).mean(), whole, rtol=1e-5, atol=1e-6)
