"""Picture and sound by two U-Nets: to the system as good as two transformers, and no draw is hidden in a pass."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from mmdiff import noise
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape
from mmdiff.conditioners import Text
from mmdiff.denoiser import Denoiser
from mmdiff.models.joint_unet import JointUNet
from mmdiff.models.unet import UNet
from mmdiff.process import Linear, Uniform
from mmdiff.systems.joint import Joint

SHAPE = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
BRANCH: dict[str, Any] = {"widths": [8, 8], "heads": [0, 2], "middle": 2, "blocks": 1, "groups": 4, "text_width": 8}


def system(**changes: Any) -> Joint:
    video = UNet(channels=3, strides=[[1, 2, 2]], temporal="mixed", vector_width=8, **BRANCH)
    wave: dict[str, Any] = {"kernel": [3, 1, 1], "pattern": "full", "modality": "audio"}
    audio = UNet(channels=1, strides=[[2, 1, 1]], vector_width=8, **wave, **BRANCH)
    net = JointUNet(video=video, audio=audio, spans=[1, 2, 4], heads=2)
    denoiser = Denoiser(net, process=Linear(), target="flow", draw=Uniform())
    text = Text(width=8, depth=1, heads=2, length=64)
    codecs = {"video": Pixels(), "audio": Pixels(channels=1)}
    parts = Joint(conditioner=text, denoiser=denoiser, shape=SHAPE, **{**codecs, **changes})
    for i, (name, p) in enumerate(parts.named_parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return parts


def batch(ids: list[int]) -> Batch:
    b = len(ids)
    return Batch(
        video=noise.normal((3, 4, 4, 4), keys=ids).clamp(-1, 1),
        audio=noise.normal((1, 16), keys=[100 + i for i in ids]).clamp(-1, 1),
        text=["a red ball falls"] * b,
        fps=torch.full((b,), 8.0),
        rate=32,
        valid={name: torch.ones(b, dtype=torch.bool) for name in ("video", "audio")},
        id=[f"clip-{i}" for i in ids],
    )


def dream(parts: Joint, ids: list[int], **changes: Any) -> Batch:
    asked = Batch(text=["a red ball falls"] * len(ids), id=[f"clip-{i}" for i in ids])
    keys: dict[str, Any] = {"seed": 0, "steps": 4, "guidance": 2.0}
    return parts.generate(cast(Batch, {**asked, **changes}), **keys)


def test_a_clip_is_a_function_of_its_id_and_the_step() -> None:
    """The windows' shifts too: a batch, its parts, and the same step again have one loss; another step has another."""
    parts = system()
    loss = parts.loss(batch([0, 1, 2]), seed=3, step=2)[0]
    assert torch.equal(parts.loss(batch([0, 1, 2]), seed=3, step=2)[0], loss)
    singles = torch.stack([parts.loss(batch([i]), seed=3, step=2)[0] for i in (2, 0, 1)])
    torch.testing.assert_close(singles.mean(), loss, rtol=1e-5, atol=1e-6)


def test_the_shift_belongs_to_seed_step_and_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    whole = Joint.condition
    monkeypatch.setattr(Joint, "condition", lambda s, b: (seen.append(whole(s, b)["chance"]), whole(s, b))[1])
    parts = system()
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        parts.loss(batch([0, 1]), seed=seed, step=step)
    assert torch.equal(seen[0], seen[3]) and len(torch.cat(seen[:3]).unique()) == 6
    seen.clear()
    dream(parts, [0, 1])
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])  # both passes of guidance read the same windows


def test_samples_are_seeded_and_do_not_know_their_batch() -> None:
    parts = system()
    together = dream(parts, [0, 1])
    assert torch.equal(dream(parts, [0, 1])["video"], together["video"]) and together["audio"].shape == (2, 1, 16)
    for name in ("video", "audio"):
        torch.testing.assert_close(dream(parts, [1])[name][0], together[name][1], atol=1e-5, rtol=1e-5)  # type: ignore


@pytest.mark.parametrize("given", ["video", "audio"])
def test_what_is_given_comes_back_and_is_heard(given: str) -> None:
    (other,) = {"video", "audio"} - {given}
    parts, clips = system(tasks={"video_to_audio": 1, "audio_to_video": 1, "extend": 1}), batch([0, 1])
    assert parts.loss(clips, seed=0, step=0)[0].isfinite()
    held = {given: torch.ones(2, 1, *parts.latent_shapes()[given][1:], dtype=torch.bool)}
    made = dream(parts, [0, 1], held=held, **{given: clips[given]})  # type: ignore[literal-required]
    assert torch.equal(made[given], clips[given])  # type: ignore[literal-required]
    changed = dream(parts, [0, 1], held=held, **{given: -clips[given]})  # type: ignore[literal-required]
    assert (made[other] - changed[other]).abs().max() > 1e-4  # type: ignore[literal-required]


@pytest.mark.parametrize("missing", ["video", "audio"])
def test_an_absent_modality_gives_exactly_no_gradient(missing: str) -> None:
    parts, clips = system(), batch([0, 1])
    clips["valid"][missing] = torch.zeros(2, dtype=torch.bool)
    parts.loss(clips, seed=0, step=0)[0].backward()
    for name, p in parts.learner.named_parameters():
        own = f"branches.{missing}." in name or "bridges" in name
        gradient = 0.0 if p.grad is None else float(p.grad.abs().sum())
        assert gradient == 0 if own else gradient > 0, name
