"""What a cell costs, before it is paid: parameters, arithmetic, memory, minutes; and whether the cells can be compared.

The one idea: nothing is guessed. A few real training steps of each arm are run and counted on a real batch: its
arithmetic by the operators that ran (the optimizer's included), its memory by the tensors that autograd kept, its time
by the clock. Arms that differ in what the question says must match are refused with the sentence that says by how much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mmdiff import build, prepare
from mmdiff.ablate.question import Budget, Matched
from mmdiff.config import Tree, overlay
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.train import engine as engines
from mmdiff.train.adopt import adopt_weights
from mmdiff.train.engine import Engine
from mmdiff.train.loop import train_step
from mmdiff.train.ranks import join

TIMED = 3  # steps; the first before them pays for what is allocated once
PLAIN = {"engine": {"compile": False, "config": None, "workers": 0}}  # one process, and no minutes of compilation


@dataclass(frozen=True)
class Cost:
    """One cell's price."""

    parameters: int  # that are trained
    flops_a_step: int
    memory: int  # bytes: weights, gradients, moments, averages, and what a forward pass keeps
    seconds_a_step: float  # on this machine, without compilation
    clips_a_step: int
    steps: int

    @property
    def flops(self) -> int:
        """Of the whole training."""
        return self.flops_a_step * self.steps

    @property
    def seconds(self) -> float:
        """Of the training steps alone: no evaluation, no start."""
        return self.seconds_a_step * self.steps

    def matched(self, what: Matched) -> float:
        """The number that `budget.match` compares."""
        values: dict[Matched, float] = {
            "parameters": self.parameters,
            "flops": self.flops,
            "wall_clock": self.seconds,
            "steps": self.steps * self.clips_a_step,
        }
        return values[what]


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(tree: Tree) -> Cost:
    """Run a few steps of a cell's config in this process and count them."""
    run = build.parse(overlay(tree, PLAIN))
    prepare.prepare(run)
    data, system = build.make(run.data), build.make_system(run)
    batch = gather(data, [k % len(data) for k in range(run.batch // run.accumulate)])
    data.lend(system)
    adopt_weights(system)
    system.fit([batch])
    data.check(system)
    engine = engines.make(run, system, join(run.engine))

    def step(n: int) -> None:
        train_step(engine, [batch] * run.accumulate, run, n)

    kept = _kept(engine, step)
    seconds = [_timed(step, n, engine) for n in range(2, 2 + TIMED)]
    return Cost(_parameters(engine), _flops(step), kept + _state(engine), median(seconds), run.batch, run.steps)


def _parameters(engine: Engine) -> int:
    return sum(p.numel() for player in engine.players.values() for p in player.trainable.values())


def _flops(step: Callable[[int], None]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(2 + TIMED)
    return int(counter.get_total_flops())


def _timed(step: Callable[[int], None], n: int, engine: Engine) -> float:
    began = time.monotonic()
    step(n)
    if engine.ranks.device.type == "cuda":
        torch.cuda.synchronize(engine.ranks.device)
    return time.monotonic() - began


def _kept(engine: Engine, step: Callable[[int], None]) -> int:
    """Bytes that the forward pass keeps for the backward pass, in the first step."""
    known = {p.untyped_storage().data_ptr() for p in engine.system.parameters()}
    sizes: dict[int, int] = {}
    with _watched(sizes):
        step(1)
    return sum(size for place, size in sizes.items() if place not in known)


@contextmanager
def _watched(sizes: dict[int, int]) -> Iterator[None]:
    """Note the storage of every tensor that autograd keeps: address -> bytes."""

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _state(engine: Engine) -> int:
    """Bytes of weights, their gradients, the optimizer's moments and the averages."""
    weights = [p for player in engine.players.values() for p in player.trainable.values()]
    held = [state for player in engine.players.values() for state in player.optimizer.state.values()]
    moments = [value for state in held for value in state.values() if isinstance(value, Tensor)]
    averages = [value for player in engine.players.values() for value in player.average or []]
    return sum(t.numel() * t.element_size() for t in [*weights, *weights, *moments, *averages])


# ---- matching ------------------------------------------------------------------------------------------------------


def adjusted(costs: Mapping[str, Cost], budget: Budget) -> dict[str, Cost]:
    """The costs with the steps that `budget.adjust` gives each arm, so that it spends what the first arm spends."""
    first = next(iter(costs.values()))
    targets = [what for what in budget.match if what in ("flops", "wall_clock")]
    if budget.adjust == "nothing":
        return dict(costs)
    if len(targets) != 1:
        raise UserError(
            "budget.adjust: steps needs budget.match to name one of flops and wall_clock, which steps can buy."
        )
    paid, what = first.matched(targets[0]), targets[0]
    return {
        name: replace(cost, steps=max(1, round(paid / replace(cost, steps=1).matched(what))))
        for name, cost in costs.items()
    }


def refuse(costs: Mapping[str, Cost], budget: Budget) -> None:
    """UserError where an arm differs from the first by more than the tolerance in something that must match."""
    (first, base), *others = costs.items()
    faults = [
        f"{name} has {_said(cost.matched(what), what)}, {_gap(cost.matched(what), base.matched(what))} than {first} "
        f"({_said(base.matched(what), what)})"
        for what in budget.match
        for name, cost in others
        if abs(cost.matched(what) - base.matched(what)) > budget.tolerance * base.matched(what)
    ]
    if faults:
        raise UserError(
            f"This comparison is not matched, so its answer would mean nothing: {'; '.join(faults)}; the tolerance is "
            f"{budget.tolerance:.1%}. Change the arms (a width, a depth), let budget.adjust choose the steps, or "
            "say in budget.match what is to be equal instead."
        )


def _gap(value: float, base: float) -> str:
    return f"{abs(value / base - 1):.1%} {'more' if value > base else 'fewer'}"


def _said(value: float, what: Matched) -> str:
    units = {
        "parameters": "parameters",
        "flops": "training FLOPs",
        "wall_clock": "s of training",
        "steps": "clips seen",
    }
    number = f"{value:.3e}" if what == "flops" else f"{value:,.0f}"
    return f"{number} {units[what]}"


def table(costs: Mapping[str, Cost], *, seeds: int) -> str:
    """The cells as a person reads them before anything runs."""
    wide = max(map(len, ["arm", *costs]))
    head = f"{'arm':{wide}}  {'parameters':>12}  {'steps':>7}  {'FLOPs':>10}  {'memory':>9}  {'minutes':>8}"
    lines = [
        f"{name:{wide}}  {c.parameters:>12,}  {c.steps:>7,}  {c.flops:>10.2e}  {c.memory / 2**20:>5,.0f} MiB  "
        f"{c.seconds / 60:>8.1f}"
        for name, c in costs.items()
    ]
    total = sum(cost.seconds for cost in costs.values()) * seeds / 60
    note = (
        f"{len(costs)} arms x {seeds} seeds = {len(costs) * seeds} cells, about {total:.0f} minutes of training steps."
    )
    return "\n".join([head, *lines, note])


def row(cost: Cost) -> dict[str, Any]:
    """What is the same on every machine, for the result."""
    return {"parameters": cost.parameters, "steps": cost.steps, "flops": cost.flops, "memory": cost.memory}
