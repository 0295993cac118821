"""The first frame as a condition: what the network is shown of it, how noisily, and that the null view shows none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.autoencoders.pca import PCA
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape
from mmdiff.build import make
from mmdiff.conditioners import Conditioners, Frame, FrameRate, FrameTokens, dropped, emptied
from mmdiff.data import media
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.generate import Settings
from mmdiff.generate import generate as sample
from mmdiff.material import Material
from mmdiff.models.dit import DiT
from mmdiff.models.joint import BranchSpec, JointDiT
from mmdiff.models.unet import UNet
from mmdiff.process import Linear, Uniform
from mmdiff.request import Job
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.joint import Joint
from mmdiff.systems.windows import generate as long
from mmdiff.train.adopt import widened

SHAPE = ClipShape(frames=4, fps=8.0, size=(8, 8), rate=32)
WIDTH = 16


def net(kind: str, concat: int = 3) -> Any:
    keys = {"channels": 3, "concat": concat, "text_width": WIDTH, "vector_width": WIDTH}
    if kind == "dit":
        return DiT(width=16, depth=1, heads=2, patch=(1, 2, 2), **keys)  # type: ignore[arg-type]
    unet: dict[str, Any] = {"widths": [8], "strides": [], "heads": [2], "middle": 0, "blocks": 1, "groups": 4}
    return UNet(**unet, **keys)


def system(kind: str = "dit", frame: Any = None, **changes: Any) -> Diffusion:
    """Told the first frame in both ways, with every weight drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(noise.key("test"))
        parts = Conditioners([frame or Frame(width=WIDTH), FrameTokens(width=WIDTH, patch=4), FrameRate(width=WIDTH)])
        denoiser = Denoiser(net(kind), process=Linear(), target="flow", draw=Uniform())
        made = Diffusion(autoencoder=Pixels(), conditioner=parts, denoiser=denoiser, shape=SHAPE, **changes)
    for i, (name, p) in enumerate(made.named_parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return made


def clips(ids: list[int], frames: int = 4) -> Batch:
    return Batch(
        video=noise.normal((3, frames, 8, 8), keys=ids).clamp(-0.9, 0.9),
        text=["a red ball"] * len(ids),
        fps=torch.full((len(ids),), 8.0),
        rate=32,
        valid={"video": torch.ones(len(ids), dtype=torch.bool)},
        id=[f"clip-{i}" for i in ids],
        chance=noise.uniform(keys=[noise.key("chance", i) for i in ids]),
    )


def shown(ids: list[int]) -> Batch:
    return Batch(text=["x"] * len(ids), id=[str(i) for i in ids], frame=clips(ids)["video"][:, :, 0])


def frame_of(made: Diffusion) -> Frame:
    return cast(Frame, cast(Any, made.learner["conditioner"]).parts[0])


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_without_noise_it_is_the_clean_latent_at_every_step() -> None:
    made, batch = system(frame=Frame(width=WIDTH, mean=-200.0)), clips([1, 2])
    cond = made.condition(batch)
    assert torch.equal(cond["concat"], batch["video"][:, :, :1].expand(-1, -1, 4, -1, -1))
    asked = made.condition(made.blank(shown([1, 2])))
    assert not torch.equal(asked["concat"], cond["concat"])  # the default level is .02
    frame_of(made).level = 0.0
    assert torch.equal(made.condition(made.blank(shown([1, 2])))["concat"], cond["concat"])


def test_noise_is_a_function_of_the_clip_and_as_strong_as_its_level_says() -> None:
    made, batch = system(), clips([1, 2])
    frame = frame_of(made)
    z, levels = frame(batch)["concat"], frame.levels(batch)
    assert torch.equal(z, frame(batch)["concat"]) and torch.equal(z[1:], frame(clips([2]))["concat"])
    assert levels[0] != levels[1]
    eps = (z[:, :, 0] - batch["video"][:, :, 0]) / levels[:, None, None, None]
    assert 0.85 < float(eps.std()) < 1.15 and not torch.allclose(eps[0], eps[1], atol=0.1)
    other = frame(cast(Batch, {**batch, "chance": batch["chance"].flip(0)}))["concat"]
    assert not torch.allclose(other, z)
    many = Batch(text=[""] * 500, chance=noise.uniform(keys=list(range(500))))
    logs = frame.levels(many).log()
    assert abs(float(logs.mean()) + 3) < 0.1 and abs(float(logs.std()) - 0.5) < 0.06


def test_the_level_is_told_as_a_number() -> None:
    frame = frame_of(system())
    weak, strong = Batch(text=["x"], shape=SHAPE), Batch(text=["x"], shape=SHAPE)
    before = frame(weak)["vector"]
    frame.level = 0.3
    assert not torch.allclose(frame(strong)["vector"], before, atol=1e-3)


def test_a_codec_of_several_frames_a_step_sees_a_picture_that_stands_still() -> None:
    codec, frame, batch = PCA(patch=[2, 4, 4], components=8), Frame(width=WIDTH, mean=-200.0), clips([1, 2])
    codec.fit(batch["video"])
    frame.connect(codec, 8)
    still = batch["video"][:, :, :1].expand(-1, -1, 2, -1, -1)
    z = frame(batch)["concat"]
    assert z.shape == (2, 8, 2, 2, 2) and torch.equal(z, codec.encode(still).expand(-1, -1, 2, -1, -1))


def test_nothing_said_is_zeros_but_rates_and_level_stay() -> None:
    made = system()
    yes, no = made.blank(shown([1, 2])), emptied(made.blank(shown([1, 2])))
    full, null = made.condition(yes), made.condition(no)
    for route in ("concat", "tokens"):
        assert full[route].abs().sum() > 0 and not null[route].any()  # type: ignore[literal-required]
    assert torch.equal(full["vector"], null["vector"])
    half = made.condition(dropped(clips([1, 2]), torch.tensor([True, False])))
    assert not half["concat"][0].any() and half["concat"][1].any() and not half["tokens"][0].any()
    unasked = made.condition(made.blank(Batch(text=["x"], id=["0"])))
    assert unasked["concat"].shape == (1, 3, 4, 8, 8) and not unasked["concat"].any() and not unasked["tokens"].any()


def test_channels_of_several_conditioners_stand_side_by_side() -> None:
    batch, parts = clips([1, 2]), [Frame(width=WIDTH), Frame(width=WIDTH, mean=-200.0)]
    for part in parts:
        part.connect(Pixels(), 3)
    cond = Conditioners(parts)(batch)
    assert torch.equal(cond["concat"], torch.cat([part(batch)["concat"] for part in parts], 1))
    torch.testing.assert_close(cond["vector"], parts[0](batch)["vector"] + parts[1](batch)["vector"])


# ---- through the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_it_reaches_the_network_and_the_loss_its_weights(kind: str) -> None:
    made = system(kind)
    x, t = noise.normal(made.latent_shape(), keys=[5, 6]), torch.tensor([0.5, 0.7])
    answers = [made.denoise(made.blank(asked))(x, t) for asked in (shown([1, 2]), shown([1, 3]))]
    assert torch.equal(answers[0][0], answers[1][0]) and not torch.allclose(answers[0][1], answers[1][1], atol=1e-3)
    loss, _ = made.loss(clips([1, 2]), seed=0, step=1)
    loss.backward()
    for name, p in made.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert set(made.state_dict()) == {name for name, _ in made.named_parameters()}  # the codec is in there once


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_without_it_grows_by_zeros_into_one_that_begins_as_itself(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small, large = torch.nn.ModuleDict({"net": net(kind, 0)}), torch.nn.ModuleDict({"net": net(kind)})
    for i, p in enumerate(small.parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[i])[0])
    state = small.state_dict()
    large.load_state_dict(state | widened(large, large.state_dict(), state))
    x, t, cond = (
        noise.normal((3, 4, 8, 8), keys=[1, 2]),
        torch.tensor([0.2, 0.6]),
        system(kind).condition(clips([1, 2])),
    )
    without = cast(Any, {name: value for name, value in cond.items() if name != "concat"})
    torch.testing.assert_close(large["net"](x, t, cond), small["net"](x, t, without))


def test_a_pack_is_told_as_its_clips_are() -> None:
    made, sizes = system(), [4, 2]
    parts = [clips([i], frames) for i, frames in enumerate(sizes)]
    batch = Batch(parts=parts, id=["clip-0", "clip-1"], text=["a red ball"] * 2, budget=96)
    alone = [made.loss(part, seed=1, step=3)[0] * frames * 64 / 96 for part, frames in zip(parts, sizes, strict=True)]
    torch.testing.assert_close(made.loss(batch, seed=1, step=3)[0], alone[0] + alone[1])


def test_networks_that_do_not_take_it_are_refused_when_they_are_built() -> None:
    spec = BranchSpec(channels=3, width=16)
    pair = JointDiT(video=spec, audio=BranchSpec(channels=1, width=16), depth=1, heads=2, text_width=WIDTH)
    joint: dict[str, Any] = {"video": Pixels(), "audio": Pixels(channels=1), "conditioner": Frame(width=WIDTH)}
    with pytest.raises(UserError, match="puts 3 channels beside the latent, but JointDiT takes 0"):
        Joint(denoiser=Denoiser(pair, process=Linear(), target="flow", draw=Uniform()), shape=SHAPE, **joint)
    with pytest.raises(UserError, match="DiT takes 2"):
        Diffusion(
            denoiser=Denoiser(net("dit", 2), process=Linear(), target="flow", draw=Uniform()),
            shape=SHAPE, autoencoder=Pixels(), conditioner=Frame(width=WIDTH),
        )  # fmt: skip
    with pytest.raises(UserError, match="this system makes audio"):
        Diffusion(
            denoiser=Denoiser(net("dit"), process=Linear(), target="flow", draw=Uniform()), modality="audio",
            shape=SHAPE, autoencoder=Pixels(channels=1), conditioner=Frame(width=WIDTH),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda: Frame(width=8, level=-1.0), "must not be negative"),
        (lambda: FrameTokens(width=6), "multiple of 4"),
        (lambda: FrameTokens(width=8, patch=3)(clips([1])), "patch 3 does not divide"),
        (lambda: Frame(width=8)(clips([1])), "inside one"),
        (lambda: FrameTokens(width=8)(Batch(text=["x"])), "no picture to look at"),
        (lambda: system().generate(cast(Batch, {**shown([1]), "frame": torch.zeros(1, 3, 4, 4)}), seed=0), r"\[4, 4\]"),
    ],
)
def test_what_cannot_be_is_said(make_it: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_it()


# ---- from a file to a clip -----------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> str:
    media.write_png(tmp_path / "a.png", (clips([1])["video"][0, :, 0].permute(1, 2, 0) * 127.5 + 127.5).byte())
    return str(tmp_path / "a.png")


def made_from(of: Diffusion, picture: str | None, **about: Any) -> Tensor:
    settings = Settings(steps=3, guidance=2.0, sampler="euler", material=Material(image=picture), **about)
    ((_, found),) = sample(of, [Job(0, "x", "0-0"), Job(1, "x", "1-0")], settings=settings, batch=2)
    return found["video"]


@pytest.mark.filterwarnings("error")
def test_a_picture_is_told_to_a_model_that_is_shown_frames_and_held_by_one_that_has_the_task(picture: str) -> None:
    exact = media.read_image(picture)[0].permute(2, 0, 1).float() / 127.5 - 1
    told = made_from(system(), picture)
    assert not torch.equal(told, made_from(system(), None)) and not torch.equal(told[0, :, 0], exact)
    both = made_from(system(tasks={"first_frame": 1.0}), picture)
    assert torch.equal(both[0, :, 0], exact) and torch.equal(both[1, :, 0], exact)


def test_a_window_is_told_where_the_one_before_it_had_come() -> None:
    made, seen = system(tasks={"extend": 1.0}), []
    tell = frame_of(made).forward
    frame_of(made).forward = lambda batch: seen.append(batch) or tell(batch)  # type: ignore[method-assign, func-returns-value]
    shape = ClipShape(frames=6, fps=8.0, size=(8, 8), rate=32)
    clip = long(made, shown([1]), shape=shape, window=SHAPE, seed=0, steps=2)
    assert torch.equal(seen[0]["frame"], shown([1])["frame"])
    torch.testing.assert_close(seen[-1]["frame"], clip["video"][:, :, 2])


def test_a_yaml_names_the_parts() -> None:
    node = {"kind": "conditioners", "parts": [{"kind": "frame", "width": 8}, {"kind": "frame_tokens", "width": 8}]}
    parts = make(node).parts
    assert isinstance(parts[0], Frame) and isinstance(parts[1], FrameTokens)
