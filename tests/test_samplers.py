"""Samplers of higher order and of fresh noise: measured orders, the papers' steps, other libraries' schedulers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from gaussians import MEAN, STD, each_process, fresh, gaussian, normal, transported

from mmdiff.coupling import Coupled, ShiftedCoupling
from mmdiff.errors import UserError
from mmdiff.process import EDM, Cosine, Linear, Process, ScaledLinear, mix, to_noise, widen
from mmdiff.sampling import (
    SAMPLERS,
    calls,
    churn,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    draws,
    euler,
    heun,
    invert,
    karras,
    restart,
    shifted,
    start,
    uniform,
    unipc,
)

# ---- orders --------------------------------------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize(
    ("sampler", "order", "more"),
    [
        (dpmpp_3m, 3, {}),
        (dpmpp_3m, 2, {"bend": 0.5}),
        (unipc, 3, {}),
        (unipc, 2, {"order": 1}),
        (unipc, 4, {"order": 3}),
    ],
)
def test_the_order_of_convergence(
    process: Process, sampler: Callable[..., Tensor], order: int, more: dict[str, Any]
) -> None:
    """Measured where lambda grows evenly. Low orders of the first steps would hide it, so that those are tiny."""
    first, last = ((row[0] / row[1]).log() for row in (process(torch.tensor([t]).double()) for t in (0.8, 0.3)))
    errors, z = [], normal(64, 3)
    for n in (16, 32, 64):
        lambdas = torch.cat(
            [first + 1e-4 * torch.arange(3).double(), torch.linspace(float(first) + 3e-4, float(last), n)]
        )
        times = time_at(process, lambdas)
        x = start(z, process=process, times=times) + process(times[:1])[0] * MEAN
        y = sampler(gaussian(process), x, process=process, times=times, **more)
        errors.append((y - transported(x, process, times)).abs().max().item())
    measured = math.log2(errors[1] / errors[2])
    assert measured > order - 0.5 or errors[2] < 1e-8, (measured, errors)


def time_at(process: Process, lambdas: Tensor) -> Tensor:
    from mmdiff.process import time_of

    return time_of(process, (-lambdas).exp())


@each_process
def test_third_order_needs_fewer_calls_than_second(process: Process) -> None:
    times = time_at(process, torch.linspace(-1, 2.5, 17).double())
    x = start(normal(64, 3), process=process, times=times)
    exact = transported(x, process, times)
    errors = [
        (s(gaussian(process), x, process=process, times=times) - exact).abs().max() for s in (euler, dpmpp_2m, unipc)
    ]
    assert errors[0] > 5 * errors[1] > 5 * errors[2]


@pytest.mark.parametrize("process", [Linear(), Cosine()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", [dpmpp_3m, unipc])
def test_a_mixture_is_reached_quantile_by_quantile(process: Process, sampler: Callable[..., Tensor]) -> None:
    weights, means, std = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 0.8]).double(), 0.25

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = (row[:, None] for row in process(t))
        var = a**2 * std**2 + s**2
        post = (weights.log() - (x[:, None] - a * means) ** 2 / (2 * var)).softmax(1)  # b 2
        return (post * (means + a * std**2 / var * (x[:, None] - a * means))).sum(1)

    z = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    x = sampler(denoise, z, process=process, times=uniform(100))
    reached = (weights * torch.special.ndtr((x[:, None] - means) / std)).sum(1)
    torch.testing.assert_close(reached, torch.special.ndtr(z), rtol=0, atol=6e-3)


STOCHASTIC: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "dpmpp_2m_sde": (dpmpp_2m_sde, {}),
    "half": (dpmpp_2m_sde, {"eta": 0.5}),
    "churn": (churn, {"amount": 10.0, "high": 20.0}),
    "restart": (restart, {"low": 0.2, "high": 0.6}),
}


@each_process
@pytest.mark.parametrize("name", STOCHASTIC)
def test_fresh_noise_keeps_the_distribution(process: Process, name: str) -> None:
    """With a linear denoiser y is a sum of independent draws: sample k + 1 has draw k at 1, and the others at 0."""
    sampler, more = STOCHASTIC[name]
    errors = []
    for n in (50, 200):
        times, unit = karras(n, process=process) if isinstance(process, EDM) else uniform(n), torch.eye(400).double()
        y = sampler(
            gaussian(process),
            start(unit[:, 1], process=process, times=times),
            process=process,
            times=times,
            noise=lambda i, unit=unit: unit[:, i + 2],
            **more,
        )
        errors.append(abs(STD - (y - y[0]).square().sum().sqrt().item()))
    assert errors[1] < 0.006 and errors[1] < errors[0] / 2


# ---- formulas ------------------------------------------------------------------------------------------------------


@each_process
def test_without_fresh_noise_each_is_its_ode(process: Process) -> None:
    times = karras(9, process=process) if isinstance(process, EDM) else uniform(9)
    x = start(normal(64, 3), process=process, times=times)

    def refuse(i: int) -> Tensor:
        raise AssertionError(i)

    run = lambda s, **more: s(gaussian(process), x, process=process, times=times, **more)
    torch.testing.assert_close(run(dpmpp_2m_sde, eta=0.0, noise=refuse), run(dpmpp_2m), rtol=1e-9, atol=1e-9)
    assert torch.equal(run(churn, amount=0.0, noise=refuse), run(heun))
    assert torch.equal(run(restart, again=0, noise=refuse), run(heun))


def test_churn_is_algorithm_2_of_karras() -> None:
    """With their choice of gamma, and sigma between S_tmin and S_tmax alone."""
    process, n = EDM(), 9
    times, denoise = karras(n, process=process), gaussian(process)
    sigmas = process(times)[1]
    x = theirs = start(normal(64, 3), process=process, times=times)
    gamma = min(3.0 / n, math.sqrt(2) - 1)
    for i in range(n):
        high = sigmas[i] * (1 + gamma) if 0.05 <= sigmas[i] <= 50 else sigmas[i]
        raised = theirs + (high**2 - sigmas[i] ** 2).clamp(min=0).sqrt() * 1.003 * fresh(i)
        at = process.time(high)[None]
        d = (raised - denoise(raised, at)) / high
        theirs = raised + (sigmas[i + 1] - high) * d
        if sigmas[i + 1] != 0:
            d_ahead = (theirs - denoise(theirs, times[i + 1 : i + 2])) / sigmas[i + 1]
            theirs = raised + (sigmas[i + 1] - high) * (d + d_ahead) / 2
    ours = churn(denoise, x, process=process, times=times, noise=fresh, amount=3.0, inflate=1.003)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_the_sde_step_is_k_diffusions() -> None:
    """Its state is x / a; sigma = s / a. Its formula, with h the step in -log(sigma) and eta_h = eta h."""
    process, times, eta = EDM(), karras(6, process=EDM()), 0.7
    sigmas, denoise = process(times)[1], gaussian(process)
    x = theirs = start(normal(64, 3), process=process, times=times)
    old, h_last = None, None
    for i in range(6):
        d = denoise(theirs, times[i : i + 1])
        if sigmas[i + 1] == 0:
            theirs = d
            break
        h = sigmas[i].log() - sigmas[i + 1].log()
        growth = -torch.expm1(-h * (1 + eta))
        theirs = sigmas[i + 1] / sigmas[i] * (-eta * h).exp() * theirs + growth * d
        if old is not None and h_last is not None:
            theirs = theirs + 0.5 * growth * (h / h_last) * (d - old)
        theirs = theirs + sigmas[i + 1] * (-torch.expm1(-2 * eta * h)).sqrt() * fresh(i)
        old, h_last = d, h
    ours = dpmpp_2m_sde(denoise, x, process=process, times=times, noise=fresh, eta=eta)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_restart_walks_its_stretch_again() -> None:
    seen: list[float] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(round(t[0].item(), 6))
        return torch.zeros_like(x)

    asked: list[int] = []

    def draw(i: int) -> Tensor:
        asked.append(i)
        return torch.ones(2, 1).double()

    x = torch.ones(2, 1).double()
    y = restart(denoise, x, process=Linear(), times=uniform(4), noise=draw, low=0.25, high=0.75, again=2)
    assert seen[::2] == [1.0, 0.75, 0.5, 0.75, 0.5, 0.75, 0.5, 0.25] and asked == [3, 5]
    assert torch.equal(y, torch.zeros(2, 1).double())
    for wrong in ({"low": 0.5, "high": 0.4}, {"again": -1}, {"low": 0.0}):
        with pytest.raises(UserError, match="restart"):
            restart(denoise, x, process=Linear(), times=uniform(4), noise=draw, **wrong)  # type: ignore[arg-type]


@each_process
def test_a_jump_back_is_the_forward_process(process: Process) -> None:
    """From x at t = 0.2 to t = 0.6: signal and noise as if the clip had been diffused there at once."""
    from mmdiff.sampling.moments import moments, noisier

    now, then = moments(process, torch.tensor([0.2, 0.6]))
    parts = torch.eye(3).double()  # x0, the noise that it holds, fresh noise
    x = now[1] * parts[0] + now[2] * parts[1]
    y = noisier(x, parts[2], now, then)
    torch.testing.assert_close(y[0], then[1])
    torch.testing.assert_close(y[1:].square().sum().sqrt(), then[2])


@each_process
def test_inversion_finds_the_noise_that_a_sample_came_from(process: Process) -> None:
    """`euler` there and back is the identity to first order: half the error for twice the steps."""
    x, errors = MEAN + STD * normal(64, 3), []
    for n in (100, 200, 400):
        times = 0.95 * (karras(n, process=process) if isinstance(process, EDM) else uniform(n))
        z = invert(gaussian(process), x, process=process, times=times)
        errors.append((euler(gaussian(process), z, process=process, times=times) - x).abs().max().item())
        exact = transported(x, process, times.flip(0))
        assert (z - exact).abs().max() < 0.15 * (1 + exact.abs().max())
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0]


# ---- contracts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_tells_how_often_it_asks(name: str) -> None:
    sampler, asked = SAMPLERS[name], 0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return gaussian(Cosine())(x, t)

    more = {"noise": fresh} if draws(sampler) else {}
    times = shifted(12, shift=2.0)
    sampler(denoise, normal(64, 3), process=Cosine(), times=times, **more)
    assert calls(sampler, process=Cosine(), times=times) == asked
    assert asked == {"heun": 23, "churn": 23}.get(name, 12) if name != "restart" else asked > 23


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_walks_a_process_of_many_paces(name: str) -> None:
    """Parts of a sample with a process of their own come out as if each had been walked alone."""
    sampler, times, x = SAMPLERS[name], uniform(8), normal(64, 3)
    shapes = {"video": (2,), "audio": (1,)}
    whole = Coupled(Linear(), ShiftedCoupling({"audio": 3.0}), shapes)
    single = lambda t: Linear()(shift_of(t))
    more: Callable[[slice], dict[str, Any]] = lambda part: (
        {"noise": lambda i: fresh(i)[:, part]} if draws(sampler) else {}
    )

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        parts = [(Linear(), slice(0, 2)), (single, slice(2, 3))]
        return torch.cat([gaussian(p)(x[:, part], t) for p, part in parts], 1)

    y = sampler(denoise, x, process=whole, times=times, **more(slice(0, 3)))
    first = sampler(gaussian(Linear()), x[:, :2], process=Linear(), times=times, **more(slice(0, 2)))
    torch.testing.assert_close(y[:, :2], first, rtol=1e-9, atol=1e-9)
    if name != "churn":  # which goes back as far as the first part says
        other = sampler(gaussian(single), x[:, 2:], process=single, times=times, **more(slice(2, 3)))
        torch.testing.assert_close(y[:, 2:], other, rtol=1e-9, atol=1e-9)


def shift_of(t: Tensor) -> Tensor:
    from mmdiff.process import shift

    return shift(t, 3.0)


def test_unipc_needs_an_order() -> None:
    with pytest.raises(UserError, match="order is 0"):
        unipc(gaussian(Linear()), normal(64, 3), process=Linear(), times=uniform(3), order=0)


# ---- diffusers -----------------------------------------------------------------------------------------------------

DISCRETE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def step_through(scheduler: Any, x: Tensor, model: Callable[[Tensor, Tensor], Tensor], **more: Any) -> Tensor:
    for i, t in enumerate(scheduler.timesteps):
        extra = {name: value(i) if callable(value) else value for name, value in more.items()}
        x = scheduler.step(model(x, t), t, x, **extra).prev_sample
    return x


def eps_model(process: Process) -> Callable[[Tensor, Tensor], Tensor]:
    def model(x: Tensor, step: Tensor) -> Tensor:
        t = ((step.double() + 1) / 1000).expand(len(x))
        return to_noise(x, gaussian(process)(x, t), process(widen(t, x)))

    return model


def after_steps(steps: Tensor) -> Tensor:
    return torch.cat([(steps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize(("order", "sampler"), [(2, dpmpp_2m), (3, partial(dpmpp_3m, bend=0.5))])
def test_equals_diffusers_dpm_solver(order: int, sampler: Callable[..., Tensor]) -> None:
    diffusers = pytest.importorskip("diffusers")
    options = {"algorithm_type": "dpmsolver++", "solver_order": order, "solver_type": "midpoint"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**DISCRETE, **options, final_sigmas_type="zero")
    scheduler.set_timesteps(20)
    process, x = ScaledLinear(), normal(64, 3)
    theirs = step_through(scheduler, x, eps_model(process))
    ours = sampler(gaussian(process), x, process=process, times=after_steps(scheduler.timesteps))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_equals_diffusers_sde() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **DISCRETE, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(20)
    process, x = ScaledLinear(), normal(64, 3)
    theirs = step_through(scheduler, x, eps_model(process), variance_noise=fresh)
    ours = dpmpp_2m_sde(gaussian(process), x, process=process, times=after_steps(scheduler.timesteps), noise=fresh)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_diffusers_unipc(order: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        **DISCRETE, solver_order=order, lower_order_final=False, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(20)
    process, x = ScaledLinear(), normal(64, 3)
    times = after_steps(scheduler.timesteps)
    times[-1] = 1 / 1000  # where its last step ends
    theirs = step_through(scheduler, x, eps_model(process))
    ours = unipc(gaussian(process), x, process=process, times=times, order=order)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_equals_diffusers_inversion() -> None:
    """It asks the network at the end of every step, we at the beginning (but for the first, which has no noise)."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMInverseScheduler(**DISCRETE, clip_sample=False)
    scheduler.set_timesteps(20)
    process, x = ScaledLinear(), MEAN + STD * normal(64, 3)
    steps = scheduler.timesteps
    times = torch.cat([(steps.double() + 1) / 1000]).flip(0)
    begin = torch.cat([steps[:1], steps[:-1]])
    theirs = x
    for t, at in zip(steps, begin, strict=True):
        theirs = scheduler.step(eps_model(process)(theirs, at), t, theirs).prev_sample
    ours = invert(gaussian(process), x, process=process, times=torch.cat([times, torch.zeros(1).double()]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_the_mixture_of_targets_is_not_their_concern() -> None:
    """A state of signal alone walks to itself whatever the sampler."""
    x0 = normal(64, 3)
    for name, sampler in SAMPLERS.items():
        more = {"noise": lambda i: torch.zeros(64, 3).double()} if draws(sampler) else {}
        times = 0.9 * uniform(6)
        row = Linear()(times[:1])
        y = sampler(lambda x, t: x0, mix(x0, torch.zeros_like(x0), row), process=Linear(), times=times, **more)
        torch.testing.assert_close(y, x0, msg=name)
