"""The denoiser: what the network sees, what its output means, and which loss on x0 its loss is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.process import DDPM, EDM, TARGETS, Cosine, Linear, Process, ScaledLinear, Uniform, mix, widen

PROCESSES = [Linear(), Cosine(), DDPM(), ScaledLinear(), EDM()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
each_target = pytest.mark.parametrize("target", TARGETS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise.normal(shape, keys=[noise.key(seed)])[0]


class Net(nn.Module):
    """Returns a constant, or its input's multiple, and remembers what it was called with."""

    def __init__(self, answer: Tensor | float = 0.5) -> None:
        super().__init__()
        self.answer, self.seen = answer, []

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.seen.append((x, t, cond))
        return self.answer if isinstance(self.answer, Tensor) else self.answer * x


def denoiser(net: nn.Module, process: Process, target: str = "v", **more: bool) -> Denoiser:
    return Denoiser(net, process=process, target=target, draw=Uniform(), **more)


X0, EPS, T = normal(4, 3, 5), normal(4, 3, 5, seed=1), torch.tensor([0.1, 0.4, 0.7, 0.95])


@each_process
@each_target
def test_an_exact_network_gives_x0_and_no_loss(process: Process, target: str) -> None:
    x0, eps, t = X0.double(), EPS.double(), T.double()
    row = process(widen(t, x0))
    exact = denoiser(Net(mix(x0, eps, TARGETS[target](*row))), process, target)
    torch.testing.assert_close(exact(mix(x0, eps, row), t, {}), x0, rtol=1e-9, atol=1e-9)
    assert torch.equal(exact.errors(x0, {}, t=t, noise=eps), torch.zeros_like(x0))


@each_process
@each_target
def test_the_loss_weighs_the_error_of_x0_as_each_paper_does(process: Process, target: str) -> None:
    """For a fixed x an error of y is (a q - s p) / s times the error of x0: eps gives a^2 / s^2, x0 gives 1."""
    x0, eps, t = X0.double(), EPS.double(), T.double()
    a, s = process(widen(t, x0))
    p, q = TARGETS[target](a, s)
    wrong = denoiser(Net(normal(4, 3, 5, seed=2).double()), process, target)
    weighed = ((a * q - s * p) / s * (wrong(mix(x0, eps, (a, s)), t, {}) - x0)) ** 2
    torch.testing.assert_close(wrong.errors(x0, {}, t=t, noise=eps), weighed, rtol=1e-6, atol=1e-9)


def test_v_with_edm_is_edms_loss() -> None:
    """Karras et al. 2022, table 1, with data of unit variance: weight (sigma^2 + 1) / sigma^2 on the error of x0."""
    x0, eps, t = X0.double(), EPS.double(), T.double()
    sigma, ours = EDM()(widen(t, x0))[1], denoiser(Net(-0.3), EDM())
    x = x0 + sigma * eps
    network = 0.3 * x / (sigma**2 + 1).sqrt()  # theirs is -v
    denoised = x / (sigma**2 + 1) + sigma / (sigma**2 + 1).sqrt() * network
    torch.testing.assert_close(ours(x, t, {}), denoised, rtol=1e-9, atol=1e-9)
    theirs = (sigma**2 + 1) / sigma**2 * (denoised - x0) ** 2
    torch.testing.assert_close(ours.errors(x0, {}, t=t, noise=eps), theirs, rtol=1e-6, atol=1e-9)


@each_target
def test_loss_is_the_mean_of_errors_per_sample(target: str) -> None:
    model = denoiser(Net(), Linear(), target)
    errors = model.errors(X0, {}, t=T, noise=EPS)
    assert errors.shape == X0.shape and errors.dtype == torch.float32
    torch.testing.assert_close(model.loss(X0, {}, t=T, noise=EPS), errors.flatten(1).mean(1))


@each_process
@each_target
def test_clean_entries_are_their_own_estimate(process: Process, target: str) -> None:
    t = torch.where(normal(*X0.shape, seed=3) > 0, 0.0, widen(T, X0))
    out = denoiser(Net(torch.full_like(X0, 7.0)), process, target)(X0, t, {})
    assert torch.equal(out[t == 0], X0[t == 0]) and out.isfinite().all()
    assert torch.equal(denoiser(Net(), process, target)(X0, torch.zeros(4), {}), X0)


@each_process
def test_the_network_sees_unit_variance(process: Process) -> None:
    x0, eps = normal(3, 100000), normal(3, 100000, seed=1)
    net, t = Net(), torch.tensor([0.0, 0.5, 1.0])
    denoiser(net, process).loss(x0, {}, t=t, noise=eps)
    torch.testing.assert_close(net.seen[0][0].var(1), torch.ones(3), rtol=0, atol=0.02)


def test_scaling_of_the_input_can_be_left_out() -> None:
    net = Net()
    denoiser(net, EDM(), scale_input=False)(X0, T, {})
    assert torch.equal(net.seen[0][0], X0)


@pytest.mark.parametrize("t", [T, widen(T, X0), widen(T, X0).expand(4, 1, 5), widen(T, X0).expand(4, 3, 5)])
def test_time_and_condition_reach_the_network_as_they_came(t: Tensor) -> None:
    net, cond = Net(), {"vector": torch.ones(4, 2)}
    out = denoiser(net, Linear())(X0, t, cond)
    assert net.seen[0][1] is t and net.seen[0][2] is cond
    torch.testing.assert_close(out, denoiser(Net(), Linear())(X0, T, cond))


@each_target
def test_the_solve_is_float32_under_autocast(target: str) -> None:
    net = nn.Linear(5, 5)

    class Wrap(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            out = net(x)
            assert out.dtype == torch.bfloat16
            return out

    with torch.autocast("cpu", torch.bfloat16):
        model = denoiser(Wrap(), Linear(), target)
        out, loss = model(X0, T, {}), model.loss(X0, {}, t=T, noise=EPS)
        small = model(X0, T * 0 + 1e-3, {})
    assert out.dtype == loss.dtype == torch.float32
    if target != "x0":
        assert (small - X0).abs().max() < 0.02  # bfloat16 would round x itself by as much
        assert not torch.equal(small, small.bfloat16().float())
    assert denoiser(Net(), Linear(), target)(X0.bfloat16(), T, {}).dtype == torch.float32


@each_process
@each_target
def test_gradients_are_finite_with_clean_entries(process: Process, target: str) -> None:
    net = nn.Linear(5, 5)

    class Wrap(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return net(x)

    t = torch.where(normal(*X0.shape, seed=3) > 0, 0.0, widen(T, X0))
    model = denoiser(Wrap(), process, target)
    (model.loss(X0, {}, t=t, noise=EPS).mean() + model(X0, t, {}).square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_only_the_network_is_learned() -> None:
    model = denoiser(nn.Linear(2, 2), DDPM())
    assert set(model.state_dict()) == {"net.weight", "net.bias"}


def test_an_unknown_target_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'epsilon'.*x0, eps, flow, v"):
        denoiser(Net(), Linear(), "epsilon")
