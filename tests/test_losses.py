"""Losses and weights against the formulas of their papers, and the bound on a Gaussian whose entropy is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.losses import AsTarget, Directed, EDMWeight, Huber, Hybrid, MinSNR, PseudoHuber, Squared, bits_per_dim
from mmdiff.losses.likelihood import discretised, kl, step_back, variance
from mmdiff.losses.weights import in_x0
from mmdiff.process import DDPM, EDM, TARGETS, Cosine, Linear, Process, ScaledLinear, Uniform, mix, widen

PROCESSES = [Linear(), Cosine(), DDPM(), ScaledLinear(), EDM()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
each_target = pytest.mark.parametrize("target", TARGETS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise.normal(shape, keys=[noise.key(seed)])[0].double()


class Net(nn.Module):
    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.answer


X0, EPS, T = normal(4, 3, 5), normal(4, 3, 5, seed=1), torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
SAID = normal(4, 3, 5, seed=2)


def errors(loss: Any, process: Process, target: str, said: Tensor = SAID, t: Tensor = T) -> Tensor:
    model = Denoiser(Net(said), process=process, target=target, draw=Uniform(), loss=loss)
    return model.errors(X0, {}, t=t, noise=EPS).detach()


def error_of_x0(process: Process, target: str) -> Tensor:
    model = Denoiser(Net(SAID), process=process, target=target, draw=Uniform())
    return (model(mix(X0, EPS, process(widen(T, X0))), T, {}) - X0).square().detach()


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_the_published_weight_of_each_target(gamma: float) -> None:
    """Hang et al. 2023: on x0 min(SNR, gamma), on eps that by SNR, on v that by SNR + 1."""
    a, s = DDPM()(T)
    snr = (a / s) ** 2
    least = snr.clamp(max=gamma)
    for target, published in {"x0": least, "eps": least / snr, "v": least / (snr + 1)}.items():
        torch.testing.assert_close(MinSNR(gamma)((a, s), TARGETS[target](a, s)), published)


@each_process
@each_target
def test_every_weight_is_one_on_the_error_of_x0(process: Process, target: str) -> None:
    a, s = process(widen(T, X0))
    for weight, on_x0 in (
        (MinSNR(), (a / s).square().clamp(max=5.0)),
        (EDMWeight(0.5), ((s / a) ** 2 + 0.25) / (0.5 * s / a) ** 2),
        (AsTarget("x0", most=math.inf), torch.ones_like(a)),
        (AsTarget("flow", most=math.inf), ((a + s) / s).square()),
    ):
        torch.testing.assert_close(
            errors(Squared(weight), process, target), on_x0 * error_of_x0(process, target), rtol=1e-8, atol=1e-9
        )


@each_process
@each_target
def test_a_target_weighed_as_itself_is_simple(process: Process, target: str) -> None:
    simple = errors(Squared(), process, target)
    torch.testing.assert_close(errors(Squared(AsTarget(target)), process, target), simple)


@each_target
def test_edm_s_weight_for_unit_data_is_that_of_v(target: str) -> None:
    v = errors(Squared(AsTarget("v", most=math.inf)), EDM(), target)
    torch.testing.assert_close(errors(Squared(EDMWeight(1.0)), EDM(), target), v)


@each_process
@each_target
@pytest.mark.parametrize("weight", [MinSNR(), EDMWeight(), AsTarget("flow"), AsTarget("x0"), AsTarget("eps")])
def test_clean_entries_weigh_nothing(process: Process, target: str, weight: Any) -> None:
    row = process(torch.tensor([0.0, 0.5], dtype=torch.float64))
    w = weight(row, TARGETS[target](*row))
    assert w[0] == 0 and w[1] > 0 and w.isfinite().all()
    assert in_x0(row, TARGETS[target](*row))[0] == 0


def test_a_weight_may_be_bounded() -> None:
    row = Linear()(torch.tensor([1e-4, 0.5], dtype=torch.float64))
    w = AsTarget("flow", most=25.0)(row, TARGETS["x0"](*row))
    assert w.tolist() == [25.0, 4.0]


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UserError, match="'velocity'.*x0, eps, flow, v"):
        AsTarget("velocity")


# ---- losses --------------------------------------------------------------------------------------------------------


def test_huber_agrees_with_torch_and_with_squares_when_small() -> None:
    error = SAID - mix(X0, EPS, TARGETS["flow"](*Linear()(widen(T, X0))))
    theirs = 2 * nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=0.7)
    torch.testing.assert_close(errors(Huber(0.7), Linear(), "flow"), theirs)
    for loss in (Huber(1e3), PseudoHuber(1e3)):
        torch.testing.assert_close(errors(loss, Linear(), "flow"), error.square(), rtol=1e-4, atol=1e-6)


def test_pseudo_huber_is_linear_far_away() -> None:
    far = errors(PseudoHuber(0.01), Linear(), "flow", said=SAID + 100)
    error = SAID + 100 - mix(X0, EPS, TARGETS["flow"](*Linear()(widen(T, X0))))
    torch.testing.assert_close(far, 2 * 0.01 * (error.abs() - 0.01), rtol=1e-4, atol=0)


def test_the_direction_counts_beside_the_length() -> None:
    goal = mix(X0, EPS, TARGETS["flow"](*Linear()(widen(T, X0))))
    loss = Directed(Squared(), share=0.5)
    torch.testing.assert_close(errors(loss, Linear(), "flow", said=3 * goal), (2 * goal).square())  # the same direction
    turned = errors(loss, Linear(), "flow", said=-goal) - (2 * goal).square()
    torch.testing.assert_close(turned, torch.ones_like(turned))  # the opposite one


# ---- the bound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 500, 1000])
def test_the_step_back_is_ddpm_s(k: int) -> None:
    """Ho et al. 2020, eq. 7, and iDDPM's bounds: the posterior's variance and beta (Nichol and Dhariwal 2021)."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    ab = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
    back = step_back(DDPM(), torch.tensor([k / 1000], dtype=torch.float64), 1000)
    beta, posterior = betas[k - 1], betas[k - 1] * (1 - ab[k - 1]) / (1 - ab[k])
    torch.testing.assert_close(back.posterior[0], posterior, rtol=1e-9, atol=0)
    torch.testing.assert_close(back.high[0], beta, rtol=1e-9, atol=0)
    torch.testing.assert_close(back.share[0], ab[k - 1].sqrt() * beta / (1 - ab[k]), rtol=1e-9, atol=0)
    for where, expected in ((1.0, beta), (-1.0, posterior), (0.0, (beta * posterior).sqrt())):
        torch.testing.assert_close(variance(back, torch.tensor(where))[0], expected, rtol=1e-6, atol=0)


def test_the_first_step_takes_the_variance_of_the_second() -> None:
    first, second = (step_back(DDPM(), torch.tensor([k / 1000], dtype=torch.float64), 1000) for k in (1, 2))
    assert first.posterior[0] == 0 and first.low[0] == second.low[0] > 0 and first.high[0] == pytest.approx(1e-4)


def test_kl_is_that_of_gaussians() -> None:
    back = step_back(Cosine(), torch.tensor([0.5], dtype=torch.float64), 10)
    var = variance(back, torch.tensor([0.3], dtype=torch.float64))
    x0, guess = torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    q = torch.distributions.Normal(back.share * x0, back.posterior.sqrt())
    p = torch.distributions.Normal(back.share * guess, var.sqrt())
    torch.testing.assert_close(kl(x0, guess, back, var), torch.distributions.kl_divergence(q, p))


@pytest.mark.parametrize("process", [*PROCESSES[:4], EDM(rho=2.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [1, 25, 1000])
def test_the_bound_of_a_gaussian_is_its_entropy_and_the_prior_s_gap(process: Process, steps: int) -> None:
    """With exact steps back only the last state's distance from N(0, s^2) is lost.

    The terms are quadratic in x0 and noise, so that the four sign patterns average to the exact expectation. (EDM's own
    rho puts most of a thousand steps where sigma < 1e-15.)
    """
    std, signs = 0.6, torch.tensor([[[1.0, 1.0]], [[-1.0, -1.0]]], dtype=torch.float64)
    x0, eps = std * signs, torch.tensor([[[1.0, -1.0]]] * 2, dtype=torch.float64)

    def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a, s = process(widen(t, x))
        back = step_back(process, widen(t, x), steps)
        x0_hat = a * std**2 / (a**2 * std**2 + s**2) * x
        var = back.posterior + back.share**2 * std**2 * s**2 / (a**2 * std**2 + s**2)
        where = 2 * (var / back.low).log() / (back.high / back.low).log() - 1
        return x0_hat, where.nan_to_num().expand_as(x)

    bits = bits_per_dim(predict, x0, process=process, steps=steps, noise=lambda k: eps)
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    a, s = (float(row) for row in process(torch.ones((), dtype=torch.float64)))
    ratio = (a**2 * std**2 + s**2) / s**2
    gap = (ratio - 1 - math.log(ratio)) / 2
    if steps > 1:
        assert bits["total"].mean().item() * math.log(2) == pytest.approx(entropy + gap, abs=1e-9)
    assert bits["total"].mean().item() * math.log(2) >= entropy + gap - 1e-9


def test_unit_data_make_the_higher_variance_exact() -> None:
    """SYSTEMS: with x0 ~ N(0, 1) beta is the true variance of the step back, so nothing has to be learned."""
    signs = torch.tensor([[[1.0, 1.0]], [[-1.0, -1.0]]], dtype=torch.float64)
    eps = torch.tensor([[[1.0, -1.0]]] * 2, dtype=torch.float64)
    bits = bits_per_dim(
        lambda x, t: (DDPM()(widen(t, x))[0] * x, None), signs, process=DDPM(), steps=100, noise=lambda k: eps
    )
    assert bits["total"].mean().item() * math.log(2) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=1e-9)


def test_the_bins_of_a_picture_hold_all_the_mass() -> None:
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, var in ((0.3, 0.01), (-1.2, 0.2), (0.0, 1e-4)):
        mass = (-discretised(values, torch.tensor(mean).double(), torch.tensor(var).double(), levels=256)).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-6)


@each_process
def test_only_the_variance_learns_from_the_bound(process: Process) -> None:
    said = torch.cat([SAID, 0.1 * normal(4, 3, 5, seed=4)], 1)
    gradients = []
    for loss in (Hybrid(steps=100), Hybrid(steps=200)):
        model = Denoiser(Net(said), process=process, target="v", draw=Uniform(), loss=loss)
        model.loss(X0, {}, t=T, noise=EPS).mean().backward()
        gradients.append(model.net.answer.grad.chunk(2, 1))
    (mean, var), (mean_again, var_again) = gradients
    assert torch.equal(mean, mean_again) and not torch.equal(var, var_again) and var.abs().min() > 0
    simple = Denoiser(Net(SAID), process=process, target="v", draw=Uniform())
    simple.loss(X0, {}, t=T, noise=EPS).mean().backward()
    torch.testing.assert_close(mean, simple.net.answer.grad)


def test_the_variance_learns_the_truth() -> None:
    """x0-hat = x / a says nothing wrong about N(0, 1), if beta is the variance: the bound is least there."""
    x0, eps, t = normal(20000, 1, 1), normal(20000, 1, 1, seed=1), torch.full((20000,), 0.5).double()
    a, s = DDPM()(t[:1])
    x = a * x0 + s * eps
    costs = []
    for where in (0.8, 0.9, 1.0, 1.1, 1.2):
        said = torch.cat([s * x, torch.full_like(x, where)], 1)  # eps-hat of unit data
        model = Denoiser(Net(said), process=DDPM(), target="eps", draw=Uniform(), loss=Hybrid(steps=20))
        costs.append(model.loss(x0, {}, t=t, noise=eps).mean().item())
    assert costs.index(min(costs)) == 2


def test_held_entries_cost_no_bits() -> None:
    said = torch.cat([SAID, SAID], 1)
    t = torch.where(normal(4, 3, 5, seed=3) > 0, 0.0, widen(T, X0))
    model = Denoiser(Net(said), process=Linear(), target="flow", draw=Uniform(), loss=Hybrid())
    cost = model.errors(X0, {}, t=t, noise=EPS)
    goal = mix(X0, EPS, TARGETS["flow"](*Linear()(t)))
    torch.testing.assert_close(cost[t == 0], (SAID - goal).square()[t == 0])
    model.errors(X0, {}, t=t, noise=EPS).mean().backward()
    assert cost.isfinite().all() and model.net.answer.grad.isfinite().all()


def test_a_network_of_one_output_is_refused() -> None:
    with pytest.raises(UserError, match="Hybrid needs a network of 6 channels"):
        errors(Hybrid(), Linear(), "flow")


def test_eps_is_refused_where_it_says_nothing() -> None:
    model = Denoiser(Net(SAID), process=Cosine(), target="eps", draw=Uniform())
    with pytest.raises(UserError, match="Cosine is there at t = 1.*first: 0.999"):
        model.check_start(torch.tensor([1.0, 0.0]))
    model.check_start(torch.tensor([0.999, 0.0]))
    Denoiser(Net(SAID), process=DDPM(), target="eps", draw=Uniform()).check_start(torch.tensor([1.0, 0.0]))


def test_any_network_of_twice_the_channels_learns_the_variance() -> None:
    """Also with a time of its own for every entry; a packed sample has no channels to put it behind."""
    from mmdiff.models.dit import DiT

    net = DiT(channels=6, width=16, depth=1, heads=2, patch=(1, 2, 2))
    model = Denoiser(net, process=DDPM(), target="eps", draw=Uniform(), loss=Hybrid())
    x0, eps = normal(2, 3, 2, 4, 4).float(), normal(2, 3, 2, 4, 4, seed=1).float()
    cond: Any = {"seconds": {"video": torch.tensor([[0.1, 0.2]] * 2)}}
    t = torch.tensor([0.3, 0.8])
    each = model.errors(x0, cond, t=widen(t, x0).expand_as(x0), noise=eps)
    torch.testing.assert_close(each, model.errors(x0, cond, t=t, noise=eps))
    assert model(x0, t, cond).shape == x0.shape
    x0_hat, where = model.predict(x0, t, cond)
    assert where is not None and where.shape == x0_hat.shape
    bits = bits_per_dim(
        lambda x, t: model.predict(x, t, cond), x0, process=DDPM(), steps=4, noise=lambda k: eps, levels=256
    )
    assert bits["total"].shape == (2,) and bits["total"].isfinite().all()
    with pytest.raises(UserError, match="a packed joint sample lacks"):
        model.errors(x0.flatten(1), cond, t=t, noise=eps.flatten(1))
