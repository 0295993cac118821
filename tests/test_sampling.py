"""Samplers against exact solutions (Gaussians, mixtures), the papers' formulas and another library's schedulers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from gaussians import MEAN, STD, each_process, fresh, gaussian, normal, transported

from mmdiff import sampling
from mmdiff.denoiser import Denoiser
from mmdiff.guidance import given
from mmdiff.process import (
    DDPM,
    EDM,
    TARGETS,
    Cosine,
    Linear,
    Process,
    ScaledLinear,
    Uniform,
    mix,
    shift,
    to_noise,
    widen,
)
from mmdiff.sampling import SAMPLERS, ancestral, dpmpp_2m, euler, heun, karras, shifted, start, uniform

ODES = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}
each_ode = pytest.mark.parametrize("sampler", ODES)


def options(sampler: str) -> dict[str, Callable[[int], Tensor]]:
    return {"noise": fresh} if sampling.draws(SAMPLERS[sampler]) else {}


def grid(process: Process, n: int) -> Tensor:
    return karras(n, process=process) if isinstance(process, EDM) else uniform(n)


# ---- grids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_grids_run_from_one_to_zero_exactly(n: int) -> None:
    for times in (uniform(n), shifted(n, shift=3.0), shifted(n, shift=0.7), karras(n, process=EDM())):
        assert times.shape == (n + 1,) and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


def test_shifted_grid_shifts() -> None:
    assert torch.equal(shifted(10, shift=1.0), uniform(10))
    assert torch.equal(shifted(10, shift=3.0), shift(uniform(10), 3.0))
    assert shifted(2, shift=3.0)[1].item() == pytest.approx(0.75)


def test_karras_grid_is_the_papers() -> None:
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    i = torch.arange(n, dtype=torch.float64)
    theirs = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    a, s = EDM()(karras(n, process=EDM(), sigma_min=low))
    torch.testing.assert_close(s[:-1], theirs, rtol=1e-12, atol=0)
    assert s[-1] == 0 and (a == 1).all()


# ---- exact solutions -----------------------------------------------------------------------------------------------


@each_process
@each_ode
def test_odes_converge_to_the_transport_of_gaussians(process: Process, sampler: str) -> None:
    """First and second order where the solution is smooth; the last step of a whole grid is always first order."""
    z, errors = normal(64, 3), []
    for n in (24, 48, 96):
        times = 0.9 - 0.7 * torch.linspace(0, 1, n + 1, dtype=torch.float64)
        x = start(z, process=process, times=times)
        y = ODES[sampler](gaussian(process), x, process=process, times=times)
        errors.append((y - transported(x, process, times)).abs().max().item())
    order = math.log2(errors[1] / errors[2])
    assert order == pytest.approx(1 if sampler == "euler" else 2, abs=0.25), errors
    times = grid(process, 200)
    x = start(z, process=process, times=times)
    y = ODES[sampler](gaussian(process), x, process=process, times=times)
    torch.testing.assert_close(y, transported(x, process, times), rtol=0, atol=0.05 if sampler == "euler" else 0.01)


@each_process
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_target_gives_the_same_samples(process: Process, sampler: str) -> None:
    """The target is a matter of learning: with exact networks all four walk the same path."""
    exact, paths = gaussian(process), []
    times = grid(process, 12) * 0.98  # eps says nothing at a = 0
    x = start(normal(64, 3), process=process, times=times)
    for target in TARGETS:

        def net(scaled: Tensor, t: Tensor, cond: object, target: str = target) -> Tensor:
            row = process(widen(t, scaled))
            x = scaled * torch.hypot(*row)
            x0 = exact(x, t)
            return mix(x0, to_noise(x, x0, row), TARGETS[target](*row))

        denoiser = Denoiser(Call(net), process=process, target=target, draw=Uniform())
        denoise = partial(denoiser, cond={})
        paths.append(SAMPLERS[sampler](denoise, x, process=process, times=times, **options(sampler)))
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=1e-8, atol=1e-8)


class Call(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("process", [Linear(), Cosine()], ids=lambda p: type(p).__name__)
def test_a_mixture_is_reached_quantile_by_quantile(process: Process) -> None:
    """In one dimension the ODE keeps order, so it maps the normal's quantiles to the mixture's."""
    weights, means, std = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 0.8]).double(), 0.25

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = (row[:, None] for row in process(t))
        var = a**2 * std**2 + s**2
        post = (weights.log() - (x[:, None] - a * means) ** 2 / (2 * var)).softmax(1)  # b 2
        return (post * (means + a * std**2 / var * (x[:, None] - a * means))).sum(1)

    z = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    for sampler, steps in ((heun, 100), (dpmpp_2m, 200)):
        x = sampler(denoise, z, process=process, times=uniform(steps))
        reached = (weights * torch.special.ndtr((x[:, None] - means) / std)).sum(1)
        torch.testing.assert_close(reached, torch.special.ndtr(z), rtol=0, atol=4e-3)


@each_process
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_converges_to_the_data(process: Process, eta: float) -> None:
    """With a linear denoiser y is a sum of independent draws: sample k + 1 has draw k at 1, and the others at 0."""
    errors = []
    for n in (50, 100, 200):
        times, unit = grid(process, n), torch.eye(n + 2, dtype=torch.float64)
        y = ancestral(
            gaussian(process),
            start(unit[:, 1], process=process, times=times),
            process=process,
            times=times,
            eta=eta,
            noise=lambda i, unit=unit: unit[:, i + 2],
        )
        errors.append(STD - (y - y[0]).square().sum().sqrt().item())
    missed = transported(torch.zeros(1).double(), process, times).item() - MEAN  # what the last a forgets of the mean
    assert y[0].item() == pytest.approx(MEAN + missed, abs=0.02)
    assert 2.5 < errors[0] / errors[2] < 5 and abs(errors[2]) < 0.02  # four times the steps, first order


# ---- the papers' formulas ------------------------------------------------------------------------------------------


def one_step(sampler: Callable[..., Tensor], k: int, j: int, **more: object) -> tuple[Tensor, Tensor, Tensor]:
    """x, x0-hat and the sampler's next x from step k to step j of DDPM's thousand."""
    x, x0 = normal(64, 3), normal(64, 3, seed=1)
    times = torch.tensor([k, j], dtype=torch.float64) / 1000
    return x, x0, sampler(lambda x, t: x0, x, process=DDPM(), times=times, **more)


@pytest.mark.parametrize("k", [1000, 500, 2])
def test_ancestral_is_the_posterior_of_ddpm(k: int) -> None:
    """Ho et al. 2020, eq. 6 and 7."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    ab = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
    beta, now, before = betas[k - 1], ab[k], ab[k - 1]
    x, x0, y = one_step(ancestral, k, k - 1, noise=fresh)
    mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
    std = (beta * (1 - before) / (1 - now)).sqrt()
    torch.testing.assert_close(y, mean + std * fresh(0), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ancestral_is_ddim(eta: float) -> None:
    """Song et al. 2020, eq. 12 and 16."""
    now, before = (DDPM()(torch.tensor(k / 1000, dtype=torch.float64))[0] ** 2 for k in (700, 650))
    x, x0, y = one_step(ancestral, 700, 650, noise=fresh, eta=eta)
    sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
    eps = (x - now.sqrt() * x0) / (1 - now).sqrt()
    theirs = before.sqrt() * x0 + (1 - before - sigma**2).sqrt() * eps + sigma * fresh(0)
    torch.testing.assert_close(y, theirs, rtol=1e-10, atol=1e-10)


@each_process
def test_ancestral_without_eta_is_euler_and_asks_for_no_noise(process: Process) -> None:
    times = grid(process, 9)
    x = start(normal(64, 3), process=process, times=times)

    def refuse(i: int) -> Tensor:
        raise AssertionError(i)

    y = ancestral(gaussian(process), x, process=process, times=times, eta=0.0, noise=refuse)
    torch.testing.assert_close(y, euler(gaussian(process), x, process=process, times=times), rtol=1e-12, atol=1e-12)


def test_ancestral_asks_for_noise_once_a_step_but_the_last() -> None:
    asked: list[int] = []

    def draw(i: int) -> Tensor:
        asked.append(i)
        return fresh(i)

    ancestral(gaussian(Linear()), normal(64, 3), process=Linear(), times=uniform(5), noise=draw)
    assert asked == [0, 1, 2, 3]


def test_heun_is_algorithm_1_of_karras() -> None:
    times = karras(7, process=EDM())
    sigmas, denoise = EDM()(times)[1], gaussian(EDM())
    x = theirs = start(normal(64, 3), process=EDM(), times=times)
    for i in range(7):
        d = (theirs - denoise(theirs, times[i : i + 1])) / sigmas[i]
        ahead = theirs + (sigmas[i + 1] - sigmas[i]) * d
        if sigmas[i + 1] != 0:
            d_ahead = (ahead - denoise(ahead, times[i + 1 : i + 2])) / sigmas[i + 1]
            ahead = theirs + (sigmas[i + 1] - sigmas[i]) * (d + d_ahead) / 2
        theirs = ahead
    torch.testing.assert_close(heun(denoise, x, process=EDM(), times=times), theirs, rtol=1e-10, atol=1e-10)


def test_euler_on_the_linear_process_follows_the_velocity() -> None:
    times, denoise = shifted(11, shift=2.0), gaussian(Linear())
    x = theirs = normal(64, 3)
    for t, then in zip(times[:-1], times[1:], strict=True):
        velocity = (theirs - denoise(theirs, t[None])) / t
        theirs = theirs + (then - t) * velocity
    torch.testing.assert_close(euler(denoise, x, process=Linear(), times=times), theirs, rtol=1e-12, atol=1e-12)


def test_euler_inverts_itself_on_a_fine_grid() -> None:
    """DDIM inversion: the same function, with the times turned round."""
    times = torch.linspace(1, 0.01, 400, dtype=torch.float64)
    x = normal(64, 3)
    there = heun(gaussian(Cosine()), x, process=Cosine(), times=times)
    back = heun(gaussian(Cosine()), there, process=Cosine(), times=times.flip(0))
    torch.testing.assert_close(back, x, rtol=0, atol=2e-3)


# ---- contracts -----------------------------------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_given_entries_come_back_bit_for_bit(process: Process, sampler: str, n: int) -> None:
    times, known = grid(process, n), normal(64, 3, seed=7)
    mask = torch.tensor([True, False, True])
    x = start(normal(64, 3), process=process, times=times)
    y = SAMPLERS[sampler](given(gaussian(process), known, mask), x, process=process, times=times, **options(sampler))
    assert torch.equal(y[:, mask], known[:, mask]) and y.isfinite().all()
    free = SAMPLERS[sampler](gaussian(process), x, process=process, times=times, **options(sampler))
    torch.testing.assert_close(y[:, ~mask], free[:, ~mask])  # here the entries are independent


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_arrive_per_sample_and_progress_is_told(sampler: str) -> None:
    seen, told = [], []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    x = torch.zeros(2, 3, dtype=torch.float32)
    more = {"noise": lambda i: torch.zeros(2, 3)} if sampling.draws(SAMPLERS[sampler]) else {}
    y = SAMPLERS[sampler](
        denoise, x, process=Linear(), times=uniform(4), report=lambda i, n: told.append((i, n)), **more
    )
    assert y.dtype == torch.float32 and y.shape == x.shape
    assert all(t.shape == (2,) and t.dtype == torch.float32 for t in seen)
    back = lambda t: (2**0.5 * t) / (1 - t + 2**0.5 * t)  # where s / a is the root of two times that at t
    twice = [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]  # both ends of a step, but the last
    want = {"heun": twice, "restart": twice, "churn": [1, 0.75, back(0.75), 0.5, back(0.5), 0.25, back(0.25)]}
    assert [t[0].item() for t in seen] == pytest.approx(want.get(sampler, [1, 0.75, 0.5, 0.25]), abs=1e-6)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@each_process
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_returns_the_first_estimate(process: Process, sampler: str) -> None:
    x = start(normal(64, 3), process=process, times=uniform(1))
    y = SAMPLERS[sampler](gaussian(process), x, process=process, times=uniform(1), **options(sampler))
    assert torch.equal(y, gaussian(process)(x, torch.ones(64).double()))


def test_start_is_noise_of_the_process_scale() -> None:
    assert torch.equal(start(torch.ones(2, 3), process=EDM(), times=karras(4, process=EDM())), torch.full((2, 3), 80.0))
    assert torch.equal(start(torch.ones(2, 3), process=Linear(), times=uniform(4)), torch.ones(2, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_waits_for_the_device(sampler: str) -> None:
    x = torch.zeros(64, 3, device="cuda")
    more = {"noise": lambda i: torch.zeros_like(x)} if sampling.draws(SAMPLERS[sampler]) else {}
    torch.cuda.set_sync_debug_mode("error")
    try:
        SAMPLERS[sampler](gaussian(Linear()), x, process=Linear(), times=uniform(4), **more)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- diffusers -----------------------------------------------------------------------------------------------------

DISCRETE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def step_through(scheduler: object, x: Tensor, model: Callable[[Tensor, Tensor], Tensor], **more: object) -> Tensor:
    for i, t in enumerate(scheduler.timesteps):  # type: ignore[attr-defined]
        extra = {name: value(i) if callable(value) else value for name, value in more.items()}
        x = scheduler.step(model(x, t), t, x, **extra).prev_sample  # type: ignore[attr-defined]
    return x


def eps_model(process: Process) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact noise prediction at an integer step."""

    def model(x: Tensor, step: Tensor) -> Tensor:
        t = ((step.double() + 1) / 1000).expand(len(x))
        return to_noise(x, gaussian(process)(x, t), process(widen(t, x)))

    return model


def after_steps(steps: Tensor) -> Tensor:
    return torch.cat([(steps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_equals_diffusers_ddim(eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**DISCRETE, clip_sample=False)
    scheduler.set_timesteps(20)
    process, x = ScaledLinear(), normal(64, 3)
    theirs = step_through(scheduler, x, eps_model(process), eta=eta, variance_noise=fresh if eta else None)
    ours = ancestral(
        gaussian(process), x, process=process, times=after_steps(scheduler.timesteps), noise=fresh, eta=eta
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_equals_diffusers_ddpm() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(1000, variance_type="fixed_small", clip_sample=False)
    scheduler.set_timesteps(50)
    process, x = DDPM(), normal(64, 3)
    seeded: Callable[[int], torch.Generator] = lambda i: torch.Generator().manual_seed(i)
    theirs = step_through(scheduler, x, eps_model(process), generator=seeded)
    draw = lambda i: torch.randn(64, 3, generator=seeded(i), dtype=torch.float64)
    ours = ancestral(gaussian(process), x, process=process, times=after_steps(scheduler.timesteps), noise=draw)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_equals_diffusers_euler_discrete() -> None:
    """Its state is x / a; ours is x."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(**DISCRETE)
    scheduler.set_timesteps(20)
    process, times = ScaledLinear(), after_steps(scheduler.timesteps)
    a, x = process(times[:1])[0], normal(64, 3)
    model = lambda x, t: eps_model(process)(scheduler.scale_model_input(x, t), t)
    theirs = step_through(scheduler, x / a, model)
    torch.testing.assert_close(euler(gaussian(process), x, process=process, times=times), theirs, rtol=0, atol=2e-5)


def test_equals_diffusers_flow_matching() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])
    torch.testing.assert_close(scheduler.sigmas.double(), shifted(20, shift=3.0), rtol=0, atol=1e-6)
    x = normal(64, 3)

    def velocity(x: Tensor, step: Tensor) -> Tensor:
        t = (step.double() / 1000).expand(len(x))
        return (x - gaussian(Linear())(x, t)) / widen(t, x)

    theirs = step_through(scheduler, x, velocity)
    ours = euler(gaussian(Linear()), x, process=Linear(), times=shifted(20, shift=3.0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [8, 20])
def test_equals_diffusers_dpm_solver_multistep(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**DISCRETE, **options, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    process, x = ScaledLinear(), normal(64, 3)
    theirs = step_through(scheduler, x, eps_model(process))
    ours = dpmpp_2m(gaussian(process), x, process=process, times=after_steps(scheduler.timesteps))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "sampler"), [("EDMEulerScheduler", euler), ("EDMDPMSolverMultistepScheduler", dpmpp_2m)]
)
def test_equals_diffusers_edm(name: str, sampler: Callable[..., Tensor]) -> None:
    """Its network output goes through EDM's preconditioning; with sigma_data = 1 that output is our -v."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)
    scheduler.set_timesteps(18)
    process, times = EDM(), karras(18, process=EDM())
    torch.testing.assert_close(scheduler.sigmas.double(), process(times)[1], rtol=1e-5, atol=0)
    x, moments = start(normal(64, 3), process=process, times=times), iter(times)

    def network(x: Tensor, step: Tensor) -> Tensor:
        t = next(moments).expand(len(x))
        row, x0 = process(widen(t, x)), gaussian(process)(x, t)
        return -mix(x0, to_noise(x, x0, row), TARGETS["v"](*row))

    theirs = step_through(scheduler, x, network)
    torch.testing.assert_close(sampler(gaussian(process), x, process=process, times=times), theirs, rtol=0, atol=1e-4)


def test_posterior_std_vanishes_at_the_ends() -> None:
    ends = [
        tuple(torch.tensor(row, dtype=torch.float64)) for row in ((1.0, 0.0, 1.0), (0.5, 0.8, 0.6), (0.0, 1.0, 0.0))
    ]
    noise, middle, data = ends
    assert sampling.posterior_std(middle, data) == 0
    assert sampling.posterior_std(noise, middle) == 0.6
    assert sampling.posterior_std(middle, middle) == 0
