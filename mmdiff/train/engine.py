"""What turns a batch into an update: the same few verbs in one plain process and under DeepSpeed.

forward, backward and step are what a reader expects; weights and moments are float32 whatever the precision, and bf16
is autocast around the forward pass (weights stored in bf16 lose small updates). A loss that is not finite poisons its
gradient, so that one look at the gradient's norm, which every rank shares, decides for all of them to skip the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdiff.batch import Batch
from mmdiff.errors import UserError
from mmdiff.train import ema, optimizer
from mmdiff.train.precision import precision
from mmdiff.train.ranks import Ranks
from mmdiff.train.settings import Run
from mmdiff.train.shares import Shares, Whole

T = TypeVar("T")
Act = Callable[[Any], T]  # what to do with the system


class Objective(nn.Module):
    """One player of a system, as the module whose forward is whatever the system is asked to do.

    Only the player is a child: ZeRO cuts up and hooks what it finds below, and must not find a frozen codec there.
    """

    def __init__(self, system: nn.Module, player: nn.Module, *, dtype: torch.dtype, cache: bool = True) -> None:
        super().__init__()
        self.player, self.dtype, self.cache = player, dtype, cache
        self.outside = (system,)  # a tuple hides the system from nn.Module

    def forward(self, act: Act[T]) -> T:
        device = next(self.player.parameters()).device.type
        low = self.dtype != torch.float32
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low, cache_enabled=self.cache):
            return act(self.outside[0])


@dataclass
class Player:
    """One trained module with what belongs to its training."""

    objective: nn.Module
    trainable: dict[str, nn.Parameter]  # by the names that the system's state_dict gives them
    optimizer: optimizer.Together
    shares: Shares
    average: list[Tensor] | None
    updates: int = 0  # steps that were not skipped


@dataclass
class Outcome:
    """What a step did."""

    norm: float
    rate: float
    skipped: bool


class Engine(ABC):
    """The verbs that the loop uses, and what both engines share."""

    def __init__(self, run: Run, system: Any, ranks: Ranks) -> None:
        self.settings, self.accumulate, self.steps = run.optimizer, run.accumulate, run.steps
        self.system, self.ranks = system.to(ranks.device).train(), ranks
        self.dtype = precision(run.engine.precision, ranks.device)
        self.players: dict[str, Player] = {}

    @abstractmethod
    def backward(self, loss: Tensor, player: str) -> None:
        """Add the gradient of a micro-batch's mean loss to that of the step."""

    @abstractmethod
    def _step(self, player: Player) -> tuple[float, bool]:
        """Clip, update and clear the gradient -> (its norm, whether it was finite)."""

    def call(self, act: Act[T], player: str) -> T:
        """Let the player's system act, with gradients."""
        return self.players[player].objective(act)  # type: ignore[no-any-return]

    def forward(self, batch: Batch, *, seed: int, step: int, player: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and what to log of it."""
        if len(self.players) > 1:
            self._freeze_all_but(player)

        def act(system: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, logs = system.loss(batch, seed=seed, step=step, player=player)
            return loss * torch.where(loss.detach().isfinite(), 1.0, float("nan")), logs

        return self.call(act, player)

    def step(self, player: str, *, step: int) -> Outcome:
        """Update the player's weights and their average, or neither if the gradient is not finite on any rank."""
        chosen = self.players[player]
        rate = chosen.optimizer.set_rate(optimizer.rate_share(step, self.steps, self.settings))
        norm, finite = self._step(chosen)
        if finite:
            chosen.updates += 1
            if chosen.average is not None:
                decay = ema.decay_at(chosen.updates, self.settings.ema)
                ema.update(chosen.average, chosen.shares.local, decay=decay)
        return Outcome(norm, rate, not finite)

    def evaluate(self, act: Act[T]) -> T:
        """Let the system act with the averaged weights, without gradients; every rank must call it."""
        self.system.eval()
        with self.averaged(), torch.no_grad():
            result = self._objective(next(iter(self.players)))(act)
        self.system.train()
        return result  # type: ignore[no-any-return]

    def _objective(self, player: str) -> nn.Module:
        return self.players[player].objective

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Exchange weights and averages for a while, exactly."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for player in self.players.values():
            if player.average is not None:
                ema.exchange(player.average, player.shares.local)
                player.shares.publish()

    def fixed(self) -> dict[str, Tensor]:
        """What the system holds beside trained weights, whatever names they share: statistics and frozen parts."""
        trained = {id(p) for player in self.players.values() for p in player.trainable.values()}
        names = {name for name, p in self.system.named_parameters(remove_duplicate=False) if id(p) in trained}
        return {name: t for name, t in self.system.state_dict().items() if name not in names}

    def _freeze_all_but(self, player: str) -> None:
        for name, other in self.players.items():
            for p in other.trainable.values():
                p.requires_grad_(name == player)

    def _enlist(self, objective: nn.Module, held: optimizer.Together, shares: Callable[..., Shares], name: str) -> None:
        """Note a player whose objective and optimizer are ready."""
        mine = {id(p) for p in self.system.players()[name].parameters()}
        named = {n: p for n, p in optimizer.trainable(self.system).items() if id(p) in mine}
        local = shares(named)
        average = ema.start(local.local) if self.settings.ema else None
        self.players[name] = Player(objective, named, held, local, average)


class Torch(Engine):
    """One process, no launcher."""

    def __init__(self, run: Run, system: Any, ranks: Ranks) -> None:
        super().__init__(run, system, ranks)
        for name, module in self.system.players().items():
            held = optimizer.make(module, run.optimizer, clip=run.optimizer.clip)
            objective = Objective(self.system, module, dtype=self.dtype)
            self._enlist(objective, held, lambda named, held=held: Whole(named, held.param_groups), name)

    def backward(self, loss: Tensor, player: str) -> None:
        (loss / self.accumulate).backward()

    def _step(self, player: Player) -> tuple[float, bool]:
        player.optimizer.step()
        player.optimizer.zero_grad(set_to_none=True)
        return player.optimizer._global_grad_norm, not player.optimizer.overflow


def make(run: Run, system: Any, ranks: Ranks) -> Engine:
    """The engine for how this process was started."""
    if run.tokens is None and run.batch % (ranks.world * run.accumulate):
        raise UserError(
            f"batch={run.batch} cannot be divided among {ranks.world} processes with accumulate={run.accumulate}. "
            f"Choose a batch that is a multiple of {ranks.world * run.accumulate}."
        )
    if run.engine.compile:
        compile_blocks(system)
    if run.engine.checkpoint_activations:
        recompute_blocks(system)
    if not ranks.launched:
        return Torch(run, system, ranks)
    from mmdiff.train.zero import DeepSpeed

    return DeepSpeed(run, system, ranks)


def compile_blocks(system: nn.Module) -> None:
    """Compile the methods that modules name as `hot`; lengths of text that vary become dynamic by themselves."""
    if not _wrap(system, torch.compile, "hot"):
        raise UserError("engine.compile: this system has no blocks that are worth compiling; set it to false.")


def recompute_blocks(system: nn.Module) -> None:
    """Keep of methods `hot` or `again` what goes in, and compute the rest in the backward pass (Chen et al. 2016).

    They draw nothing (what is random is drawn before and handed in), so the second pass equals the first.
    """
    options = {"use_reentrant": False, "preserve_rng_state": False}
    twice = partial(partial, checkpoint, **options)  # method -> checkpoint(method, ...)
    if not _wrap(system, twice, "hot", "again"):
        raise UserError("engine.checkpoint_activations: this system has no blocks that can be computed twice.")


def _wrap(system: nn.Module, wrapped: Callable[[Any], Any], *kinds: str) -> int:
    """Replace the methods that modules name under any of `kinds` -> how many."""
    found = [(module, name) for module in system.modules() for kind in kinds for name in getattr(module, kind, ())]
    for module, name in found:
        setattr(module, name, wrapped(getattr(module, name)))
    return len(found)
