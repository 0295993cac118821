"""Which parameters Muon takes, the schedule, and that several optimizers step as one or not at all."""

from __future__ import annotations

import pytest
import torch
from fakes import System
from torch import nn

from mmdiff.train import optimizer
from mmdiff.train.muon import Muon
from mmdiff.train.precision import precision
from mmdiff.train.settings import Optimizer


def players() -> nn.Module:
    return System().players()["learner"]


def test_muon_takes_the_matrices_of_blocks_and_nothing_else():
    taken = set(optimizer.matrix_parameters(players()))
    assert taken == {f"net.blocks.{i}.1.weight" for i in range(3)}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_trainable_parameter_belongs_to_exactly_one_group(kind):
    module = players()
    made = optimizer.make(module, Optimizer(kind=kind), clip=1.0)
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_gains_and_biases_do_not_decay():
    made = optimizer.make(players(), Optimizer(weight_decay=0.1), clip=1.0)
    assert {(p.ndim > 1, group["weight_decay"]) for group in made.param_groups for p in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


def test_one_step_equals_the_separate_optimizers():
    ours, theirs = players(), players()
    made = optimizer.make(ours, Optimizer(kind="muon", lr=1e-2), clip=0.0)
    matrices = list(optimizer.matrix_parameters(theirs).values())
    rest = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    muon = Muon(matrices, lr=0.02, dtype=precision("auto", torch.device("cpu")))
    adamw = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        a.grad = torch.linspace(-1, 1, a.numel()).view(a.shape)
        b.grad = a.grad.clone()
    made.step()
    muon.step()
    adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b)


def test_the_gradient_is_clipped_to_the_norm():
    module = players()
    made = optimizer.make(module, Optimizer(), clip=0.5)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    before = nn.utils.get_total_norm([p.grad for p in module.parameters()])
    made.step()
    after = nn.utils.get_total_norm([p.grad for p in module.parameters()])
    assert made._global_grad_norm == pytest.approx(float(before))
    assert float(after) == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing():
    module = players()
    made = optimizer.make(module, Optimizer(kind="muon"), clip=1.0)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    made.step()
    before = [p.detach().clone() for p in module.parameters()]
    moments = {id(p): s["exp_avg"].clone() for p, s in made.state.items() if "exp_avg" in s}
    next(module.parameters()).grad.view(-1)[0] = float("inf")
    made.step()
    assert made.overflow
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    assert all(torch.equal(moments[id(p)], s["exp_avg"]) for p, s in made.state.items() if "exp_avg" in s)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_warms_up_and_falls_to_its_final_share(schedule):
    settings = Optimizer(warmup=10, schedule=schedule, final=0.1)
    rates = [optimizer.rate_share(step, 100, settings) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert all(a >= b for a, b in zip(rates[9:], rates[10:]))


def test_a_rate_is_set_for_each_part():
    made = optimizer.make(players(), Optimizer(kind="muon", lr=1e-3, muon_lr=0.02), clip=1.0)
    assert made.set_rate(0.5) == pytest.approx(5e-4)
    assert {round(group["lr"], 8) for group in made.param_groups} == {0.01, 5e-4}


def test_stepping_one_group_at_a_time_equals_stepping_all():
    nets, settings = [players(), players()], Optimizer(weight_decay=0.1)
    nets[1].load_state_dict(nets[0].state_dict())
    whole, parts = (optimizer.make(net, settings, clip=None) for net in nets)
    for p in (*nets[0].parameters(), *nets[1].parameters()):
        p.grad = torch.full_like(p, 0.1)
    whole.step()
    groups = parts.param_groups
    for group in groups:
        parts.param_groups = [group]
        parts.step()
    assert len(groups) == 2
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))
