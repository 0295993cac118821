"""Long clips: windows cover the clip, meet without a seam where the denoiser is exact, and hear their own prompt."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import Batch, ClipShape, Cond
from mmdiff.conditioners import Conditioners
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.process import Linear, Uniform
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.windows import generate, places, said

WINDOW = ClipShape(frames=8, fps=8.0, size=(2, 2), rate=8)
LONG = ClipShape(frames=26, fps=8.0, size=(2, 2), rate=8)
CORRELATION = 0.9


class Unbounded(Pixels):
    """Numbers of any size."""

    def decode(self, z: Tensor) -> Tensor:
        return z


class Markov(nn.Module):
    """The exact answer for a stationary Markov chain over time, at any time for every entry: E[x0 | x]."""

    def __init__(self, process: Any) -> None:
        super().__init__()
        self.process, self.anchor = process, nn.Parameter(torch.zeros(1))
        self.asked: list[tuple[list[str], int]] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        n = x.shape[2]
        frames = torch.arange(n)
        own = CORRELATION ** (frames[:, None] - frames).abs().double()  # (t t)
        t = t if t.ndim > 1 else t[:, None, None, None, None].expand_as(x)
        a, s = self.process(t[0, 0, :, 0, 0].double())
        seen = a[:, None] * own * a + torch.diag(s.square())
        gain = own * a @ torch.linalg.inv(seen)
        return torch.einsum("st,bcthw->bcshw", gain.to(x.dtype), x)


def system() -> Diffusion:
    denoiser = Denoiser(nn.Linear(1, 1), process=Linear(), target="flow", draw=Uniform())
    made = Diffusion(
        autoencoder=Unbounded(), conditioner=Conditioners(), denoiser=denoiser, shape=WINDOW, tasks={"extend": 1.0}
    )
    made.learner["denoiser"] = cast(Any, Exact(made.denoiser))
    return made


class Exact(nn.Module):
    """A denoiser whose network is replaced by the exact answer."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.process, self.net = denoiser.process, Markov(denoiser.process)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x, t, cond)


def made(b: int, **changes: Any) -> Batch:
    batch = Batch(text=["x"] * b, id=[str(i) for i in range(b)])
    return generate(system(), batch, shape=LONG, window=WINDOW, seed=0, steps=30, sampler="heun", **changes)


def test_no_seam_where_the_denoiser_is_exact() -> None:
    """Steps of the chain have the same variance and correlation within windows and across their borders."""
    video = made(96, overlap=0.25)["video"]  # (b 3 t h w)
    change = (video[:, :, 1:] - CORRELATION * video[:, :, :-1]).square().mean((0, 1, 3, 4)) / (1 - CORRELATION**2)
    starts = [0, 6, 12, 18]
    seams = [first + 1 for first in starts[1:]]  # the step from the two shared frames to the first new one
    inside = [i for i in range(len(change)) if i not in seams]
    assert abs(float(change[seams].mean() / change[inside].mean()) - 1) < 0.1
    assert abs(float(change.mean()) - 1) < 0.1
    distant = (video[:, :, 5] * video[:, :, 9]).mean()  # across the first border
    assert abs(float(distant) - CORRELATION**4) < 0.1


def test_the_first_window_is_the_short_clip_and_the_report_counts_all_steps() -> None:
    told: list[tuple[int, int]] = []
    long = made(2, report=lambda step, steps: told.append((step, steps)))["video"]
    short = system().generate(Batch(text=["x"] * 2, id=["0", "1"]), seed=0, steps=30, sampler="heun")["video"]
    torch.testing.assert_close(long[:, :, :8], short)
    assert long.shape == (2, 3, 26, 2, 2)
    assert told[-1] == (180, 180) and [step for step, _ in told] == sorted(step for step, _ in told)


def test_what_is_given_of_the_whole_clip_is_held_in_every_window() -> None:
    clip = torch.linspace(-0.5, 0.5, 26)[None, None, :, None, None].expand(1, 3, 26, 2, 2)
    mask = torch.zeros(1, 1, 26, 1, 1, dtype=torch.bool)
    mask[:, :, [0, 13, 25]] = True
    batch = Batch(text=["x"], id=["0"], video=clip, held={"video": mask})
    found = generate(system(), batch, shape=LONG, window=WINDOW, seed=0, steps=4)["video"]
    assert torch.equal(found[:, :, [0, 13, 25]], clip[:, :, [0, 13, 25]])
    assert (found != clip)[:, :, 1:13].all()


def test_windows_cover_the_clip_and_cut_at_common_times() -> None:
    at = places({"video": (9, 11, 4, 4), "audio": (5, 88)}, {"video": (9, 4, 4, 4), "audio": (5, 32)}, share=0.5)
    assert [(p["video"].start, p["video"].stop) for p in at] == [(0, 4), (2, 6), (4, 8), (6, 10), (7, 11)]
    assert all(p["audio"].start == 8 * p["video"].start and p["audio"].stop == 8 * p["video"].stop for p in at)
    with pytest.raises(UserError, match="overlap"):
        places({"video": (9, 11, 4, 4)}, {"video": (9, 4, 4, 4)}, share=1.0)
    with pytest.raises(UserError, match="common cut"):
        places({"video": (9, 5), "audio": (5, 12)}, {"video": (9, 4), "audio": (5, 10)}, share=0.75)


def test_parts_of_a_prompt_take_turns() -> None:
    assert [said("a | b", i, 5) for i in range(5)] == ["a", "a", "a", "b", "b"]
    assert [said("a", i, 2) for i in range(2)] == ["a", "a"]
    with pytest.raises(UserError, match="3 parts"):
        said("a|b|c", 0, 2)


def test_a_model_without_the_task_is_warned_of() -> None:
    plain = system()
    plain.tasks = {}
    with pytest.warns(UserWarning, match="extend"):
        generate(plain, Batch(text=["x"], id=["0"]), shape=LONG, window=WINDOW, seed=0, steps=2)
