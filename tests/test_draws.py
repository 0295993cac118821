"""The new processes and draws: published schedules, densities, and a steered draw that keeps the loss unbiased."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.errors import UserError
from mmdiff.process import (
    DDPM,
    EDM,
    SVD,
    Cosine,
    Linear,
    LogNormal,
    LossAware,
    Process,
    ScaledLinear,
    Shifted,
    ShiftedSNR,
    Stratified,
    Uniform,
    ZeroTerminal,
    time_of,
)

T = torch.linspace(0, 1, 1001, dtype=torch.float64)
QUANTILES = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


# ---- processes -----------------------------------------------------------------------------------------------------

WRAPPED = [
    SVD(),
    ZeroTerminal(DDPM()),
    ZeroTerminal(ScaledLinear()),
    ShiftedSNR(Cosine(), 4.0),
    ShiftedSNR(Linear(), 0.5),
]
each_wrapped = pytest.mark.parametrize("process", WRAPPED, ids=lambda p: type(p).__name__)


@each_wrapped
def test_they_begin_at_the_data_and_lose_them_steadily(process: Process) -> None:
    a, s = process(T)
    assert a[0] == 1 and s[0] == 0 and ((s / torch.hypot(a, s)).diff() > 0).all()
    a32, s32 = process(T.float())
    torch.testing.assert_close((a32.double(), s32.double()), (a, s), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("process", WRAPPED[1:], ids=lambda p: type(p).__name__)
def test_they_keep_the_variance(process: Process) -> None:
    a, s = process(T)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [DDPM(), ScaledLinear()], ids=lambda p: type(p).__name__)
def test_no_signal_is_left_and_the_schedule_is_the_published_one(process: Process) -> None:
    """diffusers moves sqrt(alpha-bar) with its first step fixed, we with t = 0 fixed."""
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    a, s = ZeroTerminal(process)(T)
    assert a[-1] == 0 and s[-1] == 1
    betas = torch.cat([1 - (process(T[1:])[0] / process(T[:-1])[0]) ** 2])
    theirs = (1 - ddim.rescale_zero_terminal_snr(betas)).cumprod(0).sqrt()
    torch.testing.assert_close(a[1:], theirs, rtol=0, atol=1e-4)


def test_a_process_that_does_not_keep_the_variance_is_refused() -> None:
    with pytest.raises(UserError, match="Linear does not keep the variance"):
        ZeroTerminal(Linear())


def test_the_shifted_cosine_is_that_of_simple_diffusion() -> None:
    """Hoogeboom et al. 2023: log SNR = -2 log tan(pi t / 2) + 2 log(64 / d)."""
    a, s = ShiftedSNR(Cosine(), 256 / 64)(T[1:-1])
    theirs = -2 * (math.pi / 2 * T[1:-1]).tan().log() + 2 * math.log(64 / 256)
    torch.testing.assert_close(2 * (a / s).log(), theirs)


@pytest.mark.parametrize("process", [Linear(), Cosine(), DDPM(), EDM(), *WRAPPED], ids=lambda p: type(p).__name__)
def test_the_time_of_a_ratio_is_found(process: Process) -> None:
    ratio = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=torch.float64)
    a, s = process(time_of(process, ratio))
    torch.testing.assert_close(s / a, ratio, rtol=1e-9, atol=0)
    assert time_of(process, torch.tensor(math.inf)).item() == pytest.approx(1)


# ---- draws ---------------------------------------------------------------------------------------------------------


def test_log_normal_draws_sigma() -> None:
    process = EDM()
    sigma = process(LogNormal(process, mean=-1.2, std=1.2)(QUANTILES, tokens=1))[1]
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=1e-2)
    assert LogNormal(SVD(), mean=9.0)(QUANTILES, tokens=1).max() == 1  # no more noise than there is


def test_a_stratum_for_each_clip_of_the_batch() -> None:
    u = noise.uniform(keys=[noise.key("u", i) for i in range(64)])
    t = Stratified(Uniform())(u, tokens=1)
    assert sorted((t * 64).long().tolist()) == list(range(64))
    assert torch.equal(t.argsort(), u.argsort())  # the order is the uniforms' own
    shuffled = torch.randperm(64, generator=noise.generator(1))
    assert torch.equal(Stratified(Uniform())(u[shuffled], tokens=1), t[shuffled])


def test_each_time_is_distributed_as_before() -> None:
    draws = torch.stack(
        [Stratified(Uniform())(noise.uniform(keys=noise.keys(0, "t", s, "abcd")), tokens=1) for s in range(2000)]
    )
    assert draws.min() > 0 and draws.max() < 1
    for column in draws.T:
        assert abs(column.mean().item() - 0.5) < 4 / (12 * 2000) ** 0.5
        deciles = (column * 10).long().bincount(minlength=10) / 2000
        assert (deciles - 0.1).abs().max() < 4 * (0.09 / 2000) ** 0.5
    spread = draws.mean(1).std().item()
    assert spread < 0.5 * (1 / 12 / 4) ** 0.5  # the mean of a batch varies much less than that of independent times


def steered(levels: Tensor) -> LossAware:
    draw = LossAware(bins=len(levels), floor=0.1, speed=1.0)
    draw.level.data = levels
    return draw


def test_a_steered_draw_begins_uniform() -> None:
    draw = LossAware(bins=7)
    torch.testing.assert_close(draw(QUANTILES, tokens=1), QUANTILES)
    errors = torch.rand(5, generator=noise.generator(0))
    torch.testing.assert_close(draw.balance(QUANTILES[:5], errors), errors)


def test_it_draws_in_proportion_to_the_root_of_the_second_moment() -> None:
    draw = steered(torch.tensor([0.0, 2.0, 4.0, -2.0]).double())
    t = draw(QUANTILES, tokens=1)
    found = (t * 4).long().bincount(minlength=4) / len(t)
    root = torch.tensor([1.0, math.e, math.e**2, 1 / math.e]).double()
    torch.testing.assert_close(found.double(), 0.1 / 4 + 0.9 * root / root.sum(), rtol=0, atol=1e-4)


def test_what_it_favours_it_pays_back() -> None:
    draw = steered(torch.tensor([0.0, 2.0, 4.0, -2.0]).double())
    t = draw(QUANTILES, tokens=1)
    errors = 3 * t**2 + 1
    assert draw.balance(t, errors).mean().item() == pytest.approx(2.0, rel=1e-3)  # the mean over uniform t


def test_it_learns_the_losses_without_touching_the_loss() -> None:
    """Losses 1, 4 and 2 in three ranges of t: times go there in proportion 1 : 4 : 2, and the variance falls."""
    draw = LossAware(bins=3, floor=0.01)
    adam = torch.optim.Adam(draw.parameters(), lr=1e-2)
    losses = torch.tensor([1.0, 4.0, 2.0])
    for step in range(300):
        u = noise.uniform(keys=noise.keys(0, "t", step, [str(i) for i in range(32)]))
        t = draw(u, tokens=1)
        errors = losses[(t * 3).long()]
        cost = draw.balance(t, errors)
        torch.testing.assert_close(cost.detach(), errors / draw.density()[(t * 3).long()])
        adam.zero_grad()
        cost.mean().backward()
        assert draw.level.grad is not None and draw.level.grad.norm() < 0.1
        adam.step()
    torch.testing.assert_close(draw.density() / 3, 0.01 / 3 + 0.99 * losses / 7, rtol=0, atol=0.05)
    assert cost.detach().std() < 0.3 * errors.std() or errors.std() == 0
    assert set(draw.state_dict()) == {"level"}


def test_it_survives_a_loss_that_is_not_finite() -> None:
    draw = LossAware(bins=4)
    cost = draw.balance(torch.tensor([0.1, 0.9]), torch.tensor([math.nan, 1.0]))
    torch.where(torch.tensor([False, True]), cost, 0.0).sum().backward()
    assert draw.level.grad is not None and draw.level.grad.isfinite().all()


def test_other_draws_cannot_move_what_it_draws() -> None:
    for wrap in (Shifted, Stratified):
        with pytest.raises(UserError, match="make it the draw itself"):
            wrap(LossAware())
    with pytest.raises(UserError, match="floor 0"):
        LossAware(floor=0.0)
