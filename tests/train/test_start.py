"""A run that begins with the weights of another: they are taken by name, and what does not fit is told."""

from __future__ import annotations

from dataclasses import replace

import fakes
import pytest
import torch

from mmdiff.errors import UserError
from mmdiff.train.adopt import begin_from
from mmdiff.train.checkpoint import load_weights
from mmdiff.train.stop import Stop


class Halting(fakes.System):
    """Asks for a stop in the third step."""

    def __init__(self, stop):
        super().__init__()
        self.stop = stop

    def loss(self, batch, *, seed, step, player):
        self.stop.asked = step >= 3
        return super().loss(batch, seed=seed, step=step, player=player)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("start") / "source")
    fakes.train(fakes.Run(folder))
    return folder


def test_all_weights_and_statistics_come_along(source, capsys):
    system = fakes.System()
    begin_from(system, source)
    weights, step, _ = load_weights(source)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in system.state_dict().items())
    assert capsys.readouterr().err == f"started from {source} at step {step}\n" and system.codec.fitted


def test_what_is_new_and_what_is_unused_is_told(source, capsys):
    system = fakes.System()
    system.learner["more"] = torch.nn.Linear(2, 2)
    system.learner["net"].modulation = torch.nn.Identity()
    before = system.learner["more"].weight.clone()
    begin_from(system, source)
    said = capsys.readouterr().err
    assert "new: learner.more.weight, learner.more.bias" in said
    assert "unused: learner.net.modulation.bias, learner.net.modulation.weight" in said
    assert torch.equal(system.learner["more"].weight, before)


def test_what_cannot_fit_is_an_error(source, tmp_path):
    system = fakes.System()
    system.learner["net"] = fakes.Net(width=8)
    with pytest.raises(UserError, match=r"learner.net.blocks.0.1.bias is \(16,\) there and \(8,\) here"):
        begin_from(system, source)
    with pytest.raises(UserError, match="no weight"):
        begin_from(torch.nn.ModuleDict({"other": torch.nn.Linear(2, 2)}), source)
    with pytest.raises(UserError, match="absent"):
        fakes.train(fakes.Run(str(tmp_path / "run"), start=str(tmp_path / "absent")))


def test_a_started_run_begins_there_and_resumes_exactly(source, tmp_path):
    run = fakes.Run(str(tmp_path / "whole"), start=source)
    fakes.train(run)
    cut = replace(run, run=str(tmp_path / "cut"))
    stop = Stop()
    assert fakes.train(cut, system=Halting(stop), stop=stop) == 75
    fakes.train(cut)
    fresh = fakes.Run(str(tmp_path / "fresh"))
    fakes.train(fresh)
    whole, resumed, other = (load_weights(r.run, ema=False)[0] for r in (run, cut, fresh))
    name = "learner.net.enter.weight"
    assert torch.equal(whole["codec.scale"], load_weights(source)[0]["codec.scale"])
    assert not torch.equal(whole[name], other[name]) and torch.equal(whole[name], resumed[name])
