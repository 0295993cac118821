"""The 2x2 system, the processes and the draws of t against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from mmdiff import noise
from mmdiff.process import (
    DDPM,
    EDM,
    TARGETS,
    Cosine,
    Linear,
    LogitNormal,
    Process,
    ScaledLinear,
    Shifted,
    Uniform,
    mix,
    shift,
    to_noise,
    to_x0,
    widen,
)

PROCESSES = [Linear(), Cosine(), DDPM(), ScaledLinear(), EDM()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
each_target = pytest.mark.parametrize("target", TARGETS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return noise.normal(shape, keys=[noise.key(seed)])[0].double()


@each_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_zero_is_data_exactly(process: Process, dtype: torch.dtype) -> None:
    a, s = process(torch.zeros(2, 1, 3, dtype=dtype))
    assert torch.equal(a, torch.ones(2, 1, 3, dtype=dtype)) and torch.equal(s, torch.zeros(2, 1, 3, dtype=dtype))


@each_process
def test_noise_grows_with_time_and_precision_is_kept(process: Process) -> None:
    t = torch.linspace(0, 1, 301, dtype=torch.float64)
    a, s = process(t)
    assert ((s / torch.hypot(a, s)).diff() > 0).all()
    a32, s32 = process(t.float())
    assert a32.dtype == s32.dtype == torch.float32
    torch.testing.assert_close((a32.double(), s32.double()), (a, s), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("process", [Cosine(), DDPM(), ScaledLinear()], ids=lambda p: type(p).__name__)
def test_variance_is_preserved(process: Process) -> None:
    a, s = process(torch.linspace(0, 1, 777, dtype=torch.float64))
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-14)


@pytest.mark.parametrize("process", [Linear(), Cosine()], ids=lambda p: type(p).__name__)
def test_some_processes_end_in_pure_noise(process: Process) -> None:
    a, s = process(torch.ones(1))
    assert a.item() == 0 and s.item() == 1


@pytest.mark.parametrize(
    ("process", "betas"),
    [
        (DDPM(), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        (ScaledLinear(), torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2),
    ],
    ids=["DDPM", "ScaledLinear"],
)
def test_discrete_processes_pass_through_the_published_steps(process: Process, betas: torch.Tensor) -> None:
    a, s = process(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(a**2, (1 - betas).cumprod(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(s[0] ** 2, betas[0], rtol=1e-10, atol=0)


def test_ddpm_ends_where_the_paper_ends() -> None:
    assert DDPM()(torch.ones(1, dtype=torch.float64))[0].item() ** 2 == pytest.approx(4.04e-5, abs=5e-8)


def test_edm_time_inverts_sigma() -> None:
    process, sigma = EDM(), torch.tensor([0.0, 0.002, 1.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(process(process.time(sigma))[1], sigma, rtol=1e-12, atol=0)


@each_process
@each_target
def test_inversion_is_exact(process: Process, target: str) -> None:
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)[:, None]
    x0, eps = normal(97, 50, seed=1), normal(97, 50, seed=2)
    row = process(t)
    aim = TARGETS[target](*row)
    x, y = mix(x0, eps, row), mix(x0, eps, aim)
    torch.testing.assert_close(to_x0(x, y, row, aim), x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(row[1] * to_noise(x, x0, row), row[1] * eps, rtol=0, atol=1e-14 * max(1, row[1].max()))


@each_process
@each_target
def test_without_noise_x_is_its_own_estimate(process: Process, target: str) -> None:
    x, row = normal(3, 4), process(torch.zeros(3, 1, dtype=torch.float64))
    y = normal(3, 4, seed=5).requires_grad_()
    estimate = to_x0(x, y, row, TARGETS[target](*row))
    assert torch.equal(estimate, x)
    estimate.sum().backward()
    assert torch.equal(y.grad, torch.zeros_like(x))
    assert torch.equal(to_noise(x, x, row), torch.zeros_like(x))


@each_target
def test_from_pure_noise_every_target_but_eps_names_x0(target: str) -> None:
    x0, eps, row = normal(4), normal(4, seed=1), Linear()(torch.ones(4, dtype=torch.float64))
    aim = TARGETS[target](*row)
    estimate = to_x0(mix(x0, eps, row), mix(x0, eps, aim), row, aim)
    assert torch.allclose(estimate, x0) if target != "eps" else not estimate.isfinite().any()


def test_v_of_edm_is_minus_its_preconditioned_network() -> None:
    """Karras et al. 2022, table 1 and eq. 8, with data of unit variance."""
    sigma = torch.logspace(-2, 2, 41, dtype=torch.float64)[:, None]
    x0, n = normal(41, 30), normal(41, 30, seed=1)
    skip, out = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt()
    theirs = (x0 - skip * (x0 + sigma * n)) / out
    ours = mix(x0, n, TARGETS["v"](torch.ones_like(sigma), sigma))
    torch.testing.assert_close(ours, -theirs, rtol=1e-10, atol=1e-10)


@each_process
def test_v_has_unit_variance_and_is_orthogonal_to_x(process: Process) -> None:
    a, s = process(torch.linspace(0, 1, 50, dtype=torch.float64))
    p, q = TARGETS["v"](a, s)
    torch.testing.assert_close(p**2 + q**2, torch.ones_like(a))
    torch.testing.assert_close((a * p + s * q) / torch.hypot(a, s), torch.zeros_like(a), rtol=0, atol=1e-14)


def test_widen_appends_axes_and_lets_full_times_through() -> None:
    x = torch.zeros(2, 3, 4, 5)
    assert widen(torch.zeros(2), x).shape == (2, 1, 1, 1)
    assert widen(torch.zeros_like(x), x).shape == x.shape
    assert widen(torch.zeros(2, 1, 4, 1), x).shape == (2, 1, 4, 1)


# ---- draws ---------------------------------------------------------------------------------------------------------

QUANTILES = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


def test_logit_normal_is_its_inverse_distribution_function() -> None:
    draw = LogitNormal(mean=0.7, std=1.3)
    t = draw(QUANTILES, tokens=1)
    torch.testing.assert_close(torch.special.ndtr((torch.logit(t) - 0.7) / 1.3), QUANTILES, rtol=0, atol=1e-12)
    assert torch.logit(t).mean().item() == pytest.approx(0.7, abs=1e-6)
    assert torch.logit(t).std().item() == pytest.approx(1.3, abs=2e-3)


def test_shift_matches_the_paper_and_keeps_the_ends() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for factor in (0.3, 1.0, 1.1, 3.0, 7.3):
        moved = shift(t, factor)
        torch.testing.assert_close(moved, factor * t / (1 + (factor - 1) * t), rtol=1e-14, atol=0)
        assert moved[0] == 0 and moved[-1] == 1
        torch.testing.assert_close(shift(moved, 1 / factor), t)  # it is a group


def test_shift_multiplies_the_odds_of_noise() -> None:
    """On the linear process a shift by f adds log f to log(s / a), as averaging over f^2 equal entries would undo."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(torch.logit(shift(t, 3.0)), torch.logit(t) + math.log(3))


def test_shifted_grows_with_the_root_of_the_tokens() -> None:
    draw = Shifted(Uniform(), base=64)
    assert torch.equal(draw(QUANTILES, tokens=64), QUANTILES)
    assert torch.equal(draw(QUANTILES, tokens=256), shift(QUANTILES, 2.0))
    normal_draw = Shifted(LogitNormal(0.5), base=64)
    assert torch.logit(normal_draw(QUANTILES, tokens=256)).mean().item() == pytest.approx(0.5 + math.log(2), abs=1e-6)


@pytest.mark.parametrize("draw", [Uniform(), LogitNormal(), LogitNormal(2.0, 2.0), Shifted(LogitNormal(), 16)])
def test_draws_increase_and_stay_inside(draw: Uniform) -> None:
    ends = torch.tensor([1e-7, 0.25, 0.5, 0.75, 1 - 1e-7])
    t = draw(ends, tokens=1024)
    assert (t.diff() > 0).all() and t.min() > 0 and t.max() <= 1
