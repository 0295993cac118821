"""Between an engine and the named whole tensors of a checkpoint: what goes into its files, and back into a run.

Three lists of shares are saved (weights, their average, each moment of the optimizer) and one number (the updates so
far). Randomness is a function of the step, so there is no other state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmdiff.train.engine import Engine, Player

Tensors = dict[str, Tensor]
MODEL, AVERAGE = "model.safetensors", "ema.safetensors"


def take(engine: Engine) -> dict[str, Tensors]:
    """This rank's files in host memory: the first rank's hold the weights, every rank's a part of the moments.

    All ranks must call it, since they gather from one another.
    """
    ranks = engine.ranks
    model, average, moments = Tensors(), Tensors(), Tensors()
    for player in engine.players.values():
        shares = player.shares
        _keep(model, shares.gather(list(shares.local)), every=1, at=0 if ranks.first else 1)
        if player.average is not None:
            _keep(average, shares.gather(list(player.average)), every=1, at=0 if ranks.first else 1)
        for kind, values in player.optimizer.moments(shares.local).items():
            named = ((f"{kind}:{name}", tensor) for name, tensor in shares.gather(values))
            _keep(moments, named, every=ranks.world, at=ranks.rank)
    if ranks.first:
        model |= {name: _host(tensor) for name, tensor in engine.fixed().items()}
    files = {MODEL: model, AVERAGE: average, f"optimizer-{ranks.rank:05d}.safetensors": moments}
    return {name: tensors for name, tensors in files.items() if tensors}


def _keep(into: Tensors, named: Iterator[tuple[str, Tensor]], *, every: int, at: int) -> None:
    """Keep the tensors whose place in the list, modulo `every`, is `at`; the others are only passed by."""
    for i, (name, tensor) in enumerate(named):
        if i % every == at:
            into[name] = _host(tensor)


def _host(tensor: Tensor) -> Tensor:
    """A copy of its own in host memory: files hold no views and no shared storage."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def give_back(engine: Engine, folder: Path, manifest: dict[str, Any]) -> None:
    """Put a checkpoint's state into the engine; all ranks must call it."""
    names = list(manifest["files"])
    moments = [name for name in names if name.startswith("optimizer-")]
    with _reader(folder, [MODEL]) as model, _reader(folder, [n for n in names if n == AVERAGE]) as average:
        engine.system.load_state_dict({n: model(n) for n in engine.fixed()}, strict=False)
        for player in engine.players.values():
            player.shares.scatter(model, player.shares.local)
            player.shares.publish()
            if player.average is not None:
                player.shares.scatter(lambda name: average(name, model(name)), player.average)
    with _reader(folder, moments) as moment:
        for name, player in engine.players.items():
            _give_moments(player, moment, kinds=manifest["kinds"], updates=manifest["updates"][name])


def _give_moments(player: Player, moment: Any, *, kinds: list[str], updates: int) -> None:
    local, moments = player.shares.local, {}
    for kind in kinds:
        values = [torch.zeros_like(t, requires_grad=False) for t in local]
        written = player.shares.scatter(partial(_named, moment, kind), values)
        moments[kind] = [value if done else None for value, done in zip(values, written)]
    player.optimizer.restore(local, moments, updates=updates)
    player.updates = updates


def _named(moment: Any, kind: str, name: str) -> Tensor | None:
    return moment(f"{kind}:{name}")  # type: ignore[no-any-return]


@contextmanager
def _reader(folder: Path, names: list[str]) -> Iterator[Any]:
    """A function that reads one named tensor from several files, or gives a default if none has it."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in names]
        place = {key: file for file in files for key in file.keys()}
        yield lambda name, default=None: place[name].get_tensor(name) if name in place else default
