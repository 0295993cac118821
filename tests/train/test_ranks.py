"""Who takes part, how wrong starts are told, and the numbers of a record."""

from __future__ import annotations

import pytest
import torch
from fakes import Run

from mmdiff.errors import UserError
from mmdiff.train import engine, log, ranks, update
from mmdiff.train.engine import Outcome
from mmdiff.train.precision import precision
from mmdiff.train.ranks import Ranks


def test_one_process_asks_nobody():
    alone = Ranks()
    assert alone.total(1.5, 2.0) == [1.5, 2.0] and alone.collect("x") == ["x"] and alone.shared(3) == 3
    with pytest.raises(UserError, match="mine"):
        alone.agree(UserError("mine"))


def test_more_processes_than_gpus_is_an_error_on_every_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_SIZE", "4")
    for local in range(4):
        with pytest.raises(UserError, match="4 processes.*2 GPUs.*--num_gpus 2"):
            ranks._device(local)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match="multiple of 6"):
        engine.make(Run("run", batch=8, accumulate=2), torch.nn.Linear(1, 1), Ranks(world=3))


def test_precision_follows_the_request_or_the_hardware():
    cpu = torch.device("cpu")
    assert precision("bf16", cpu) is torch.bfloat16 and precision("fp32", cpu) is torch.float32
    assert precision("auto", cpu) in (torch.bfloat16, torch.float32)


def test_a_record_holds_means_over_micro_batches():
    step = update.Update(ids=["a"])
    for value in (1.0, 3.0):
        step.add(torch.tensor(value), {"loss/video": torch.tensor(value)}, share=0.5)
    step.close(Outcome(norm=2.0, rate=0.1, skipped=False))
    record = update.describe(step, float(step.total), Ranks())
    assert record["loss"] == record["loss/video"] == 2.0 and float.fromhex(record["loss_hex"]) == 2.0
    assert record["grad_norm"] == 2.0 and not record["skipped"]


def test_the_share_of_the_peak_counts_forward_and_backward():
    speed = update.Speed(16, Ranks())
    assert speed.describe(3, 1.0, 1.0)["mfu"] is None
    speed.peak = 1e6
    layer = torch.nn.Linear(100, 100, bias=False)
    with speed.counted():
        layer(torch.ones(10, 100, requires_grad=True)).sum().backward()
    assert speed.describe(3, 1.0, 1.0)["mfu"] == pytest.approx(3 * 2 * 10 * 100 * 100 / 2e6)


def test_numbers_of_a_record_by_path():
    record = {"loss": 1, "skipped": False, "ids": ["a"], "mfu": None, "held_out": {"video": {"0.1": 2.0}}}
    assert log.flat(record) == {"loss": 1.0, "skipped": 0.0, "held_out/video/0.1": 2.0}
