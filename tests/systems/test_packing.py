"""Packs: the loss and the gradient of every clip are those that it has alone, whatever lies beside it."""

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
from mmdiff.errors import UserError
from mmdiff.models.dit import DiT
from mmdiff.process import Linear, LogitNormal, Shifted
from mmdiff.systems.diffusion import Diffusion

SIZES = [(3, 4, 4, 4), (3, 2, 4, 8), (3, 1, 8, 8)]
BUDGET = 400


def system(**changes: Any) -> Diffusion:
    net = DiT(channels=3, width=16, depth=2, heads=2, patch=(1, 2, 2), text_width=8)
    denoiser = Denoiser(net, process=Linear(), target="flow", draw=Shifted(LogitNormal(), base=16))
    text = Text(width=8, depth=1, heads=2, length=64)
    shape = ClipShape(frames=4, fps=8.0, size=(4, 4), rate=32)
    made = Diffusion(autoencoder=Pixels(), conditioner=text, denoiser=denoiser, shape=shape, drop=0.5, **changes)
    for i, (name, p) in enumerate(made.named_parameters()):
        p.data.copy_(0.2 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0] + ("norm" in name))
    return made


def part(size: tuple[int, ...], ids: list[int]) -> Batch:
    return Batch(
        video=noise.normal(size, keys=ids).clamp(-1, 1),
        text=["a red ball falls", "two blue cubes"][: len(ids)],
        fps=torch.full((len(ids),), 8.0),
        rate=32,
        valid={"video": torch.ones(len(ids), dtype=torch.bool)},
        id=[f"clip-{i}" for i in ids],
    )


def pack(parts: list[Batch]) -> Batch:
    names = [name for one in parts for name in one["id"]]
    return Batch(parts=parts, id=names, text=[text for one in parts for text in one["text"]], budget=BUDGET)


PARTS = [part(size, [2 * i, 2 * i + 1]) for i, size in enumerate(SIZES)]


def learn(parts: Diffusion, batches: list[tuple[Batch, float]]) -> tuple[Tensor, list[Tensor]]:
    """Sum of losses times shares, and its gradient."""
    parts.zero_grad()
    loss = sum(share * parts.loss(batch, seed=1, step=3)[0] for batch, share in batches)
    cast(Tensor, loss).backward()
    return cast(Tensor, loss).detach(), [cast(Tensor, p.grad).clone() for p in parts.learner.parameters()]


@pytest.mark.parametrize("tasks", [None, {"first_frame": 0.5, "generate": 0.5}])
def test_a_pack_learns_what_its_clips_learn_alone(tasks: dict[str, float] | None) -> None:
    """Every token counts the same: a clip's share is its tokens of the budget."""
    net = system(tasks=tasks)
    alone = [(cast(Batch, one), 2 * one["video"][0, 0].numel() / BUDGET) for one in PARTS]
    want, gradients = learn(net, alone)
    loss, found = learn(net, [(pack(PARTS), 1.0)])
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=float(1e-5 * b.abs().max() + 1e-7))


def test_two_ranks_with_half_the_room_are_one() -> None:
    net = system()
    whole, _ = net.loss(pack(PARTS), seed=1, step=3)
    halves = [pack(PARTS[:1]), pack(PARTS[1:])]
    for half in halves:
        half["budget"] = BUDGET // 2
    both = [net.loss(half, seed=1, step=3)[0] for half in halves]
    torch.testing.assert_close(sum(both) / 2, whole, rtol=1e-5, atol=1e-6)


def test_logs_are_means_over_clips() -> None:
    net = system()
    _, logs = net.loss(pack(PARTS), seed=1, step=3)
    singles = [net.loss(one, seed=1, step=3)[1]["loss/video"] for one in PARTS]
    torch.testing.assert_close(logs["loss/video"], torch.stack(singles).mean(), rtol=1e-5, atol=1e-6)


def test_a_clip_without_the_modality_weighs_nothing() -> None:
    net, parts = system(), [part(size, [2 * i, 2 * i + 1]) for i, size in enumerate(SIZES)]
    parts[0]["valid"]["video"] = torch.tensor([False, True])
    before = net.loss(pack(parts), seed=1, step=3)[0]
    parts[0]["video"][0] = torch.nan
    assert torch.equal(net.loss(pack(parts), seed=1, step=3)[0], before)


def test_a_network_of_one_size_is_named() -> None:
    net = system()
    net.denoiser.net = nn.Identity()
    with pytest.raises(UserError, match="Identity takes clips of one size at a time"):
        net.loss(pack(PARTS), seed=0, step=0)
    net.autoencoders["audio"] = Pixels(channels=1)
    with pytest.raises(UserError, match="Packs are of one modality"):
        net.loss(pack(PARTS), seed=0, step=0)
