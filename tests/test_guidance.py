"""Guidance is algebra on estimates of x0; conditioning on known entries is exact for an exact denoiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.guidance import cfg, given
from mmdiff.process import TARGETS, Cosine, Denoise, Linear, mix, to_noise, to_x0, widen
from mmdiff.sampling import dpmpp_2m, heun, uniform


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise.normal(shape, keys=[noise.key(seed)])[0].double()


def yes(x: Tensor, t: Tensor) -> Tensor:
    return 2 * x + 1


def no(x: Tensor, t: Tensor) -> Tensor:
    return x - widen(t, x)


def never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("called in vain")


X, T = normal(3, 2, 5, 4, 4), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def test_scale_one_is_the_conditional_denoiser_itself() -> None:
    assert cfg(yes, never, scale=1.0) is yes
    assert cfg(yes, never, scale=1, rescale=0.7, interval=(0.2, 0.4)) is yes


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_from_no_through_yes(scale: float) -> None:
    expected = no(X, T) + scale * (yes(X, T) - no(X, T))
    assert torch.equal(cfg(yes, no, scale=scale)(X, T), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_guidance_says_the_same_in_every_target(target: str) -> None:
    row = Cosine()(widen(T, X))
    aim = TARGETS[target](*row)
    outputs = [mix(x0, to_noise(X, x0, row), aim) for x0 in (yes(X, T), no(X, T))]
    guided = outputs[1] + 2.5 * (outputs[0] - outputs[1])
    torch.testing.assert_close(to_x0(X, guided, row, aim), cfg(yes, no, scale=2.5)(X, T))


def test_outside_the_interval_yes_stands_alone() -> None:
    assert torch.equal(cfg(yes, never, scale=3.0, interval=(0.3, 0.4))(X, T), yes(X, T))
    half = cfg(yes, no, scale=3.0, interval=(0.5, 0.8))(X, T)
    assert torch.equal(half[1], cfg(yes, no, scale=3.0)(X, T)[1])
    assert torch.equal(half[[0, 2]], yes(X, T)[[0, 2]])
    times = widen(T, X) * torch.ones_like(X)
    assert torch.equal(cfg(yes, no, scale=3.0, interval=(0.5, 0.8))(X, times), half)


def test_rescale_restores_each_samples_deviation() -> None:
    """Lin et al. 2023, eq. 15 and 16."""
    strong = cfg(yes, no, scale=7.0)(X, T)
    full = cfg(yes, no, scale=7.0, rescale=1.0)(X, T)
    torch.testing.assert_close(full.flatten(1).std(1), yes(X, T).flatten(1).std(1))
    torch.testing.assert_close(cfg(yes, no, scale=7.0, rescale=0.3)(X, T), 0.3 * full + 0.7 * strong)


def test_autoguidance_is_guidance_by_a_weaker_model() -> None:
    """Both shrink towards the mean of N(1, 1); the weaker one shrinks too much, and scale 2 doubles the way from it."""
    strong: Denoise = lambda x, t: 1 + 0.8 * (x - 1)
    weak: Denoise = lambda x, t: 1 + 0.5 * (x - 1)
    torch.testing.assert_close(cfg(strong, weak, scale=2.0)(X, T), 1 + 1.1 * (X - 1))


# ---- given ---------------------------------------------------------------------------------------------------------


def test_known_entries_enter_clean_and_leave_untouched() -> None:
    known, mask = normal(*X.shape, seed=1), normal(3, 1, 5, 1, 1, seed=2) > 0
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return x + 100

    out, full = given(denoise, known, mask)(X, T), mask.expand_as(X)
    x, t = seen[0]
    assert t.shape == X.shape and t.dtype == T.dtype
    assert torch.equal(t, torch.where(full, 0.0, widen(T, X)))
    assert torch.equal(x, torch.where(full, known, X))
    assert torch.equal(out, torch.where(full, known, X + 100))


def test_nothing_known_and_everything_known() -> None:
    known = normal(*X.shape, seed=1)
    assert torch.equal(given(yes, known, torch.tensor(False))(X, T), yes(X, T))
    assert torch.equal(given(yes, known, torch.tensor(True))(X, T), known)


def test_wrappers_nest_and_guidance_goes_outside_or_inside() -> None:
    known, first, second = normal(*X.shape, seed=1), X > 1, X < -1
    twice = given(given(no, known, first), known, second)(X, T)
    torch.testing.assert_close(twice, given(no, known, first | second)(X, T))
    outside = cfg(given(yes, known, first), given(no, known, first), scale=3.0)(X, T)
    torch.testing.assert_close(outside, given(cfg(yes, no, scale=3.0), known, first)(X, T))


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_a_gaussian_is_completed_as_its_conditional(sampler: object) -> None:
    """Two entries with correlation r: given the first, the ODE takes the second's noise z to r u + sqrt(1 - r^2) z."""
    r, process = 0.8, Linear()
    cov = torch.tensor([[1, r], [r, 1]], dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = process(t)  # b 2
        observed = a[:, :, None] * cov * a[:, None, :] + torch.diag_embed(s**2)  # b 2 2
        return (cov * a[:, None, :] @ torch.linalg.solve(observed, x[:, :, None]))[..., 0]  # b 2

    z, u = normal(50, 2), normal(50, 1, seed=3)
    mask = torch.tensor([True, False])
    y = sampler(given(denoise, u, mask), z, process=process, times=uniform(200))  # type: ignore[operator]
    assert torch.equal(y[:, :1], u)
    torch.testing.assert_close(y[:, 1], r * u[:, 0] + (1 - r**2) ** 0.5 * z[:, 1], rtol=0, atol=2e-3)
