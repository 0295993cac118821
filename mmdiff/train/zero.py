"""The DeepSpeed engine: the user's official JSON goes through unchanged, and we fill in what the run already says.

DeepSpeed gets float32 weights and our optimizer; batch sizes, clipping and precision come from the run, so a JSON that
says something else about them is an error and not a second truth. ZeRO: Rajbhandari et al. 2020.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.train import optimizer
from mmdiff.train.engine import Engine, Objective, Player
from mmdiff.train.ranks import Ranks, bound_waiting
from mmdiff.train.settings import Run
from mmdiff.train.shares import Flat, Pieces, Shares, Whole

OURS = {
    "optimizer": "the run's `optimizer` section sets it",
    "scheduler": "the run's `optimizer` section sets it",
    "fp16": "training uses bf16 autocast over float32 weights: engine.precision=bf16",
    "bf16": "weights stay float32 under bf16 autocast: engine.precision=bf16",
    "torch_autocast": "engine.precision sets it",
    "activation_checkpointing": "engine.checkpoint_activations=true does it, block by block, without DeepSpeed",
    "data_types": "gradients are accumulated in float32",
}
Tree = dict[str, Any]


class DeepSpeed(Engine):
    """Any number of processes that the deepspeed launcher started, with ZeRO stage 0 to 3."""

    def __init__(self, run: Run, system: Any, ranks: Ranks) -> None:
        super().__init__(run, system, ranks)
        import deepspeed

        tree = configure(run, ranks.world)
        self.stage = int(tree["zero_optimization"]["stage"])
        refuse(run, self.stage, self.system.players())
        self.micro = 0
        self.engines: dict[str, Any] = {}
        for name, module in self.system.players().items():
            held = optimizer.make(module, run.optimizer, clip=run.optimizer.clip if self.stage == 0 else None)
            objective = Objective(self.system, module, dtype=self.dtype, cache=self.stage < 3)
            engine, *_ = deepspeed.initialize(model=objective, optimizer=held, config=tree, dist_init_required=False)
            self.engines[name] = engine
            self._enlist(engine, held, lambda named, held=held, engine=engine: self._shares(named, held, engine), name)
        bound_waiting(timedelta(seconds=run.engine.timeout))

    def _shares(self, named: dict[str, nn.Parameter], held: optimizer.Together, engine: Any) -> Shares:
        if self.stage == 0:
            return Whole(named, held.param_groups)
        kind = Flat if self.stage < 3 else Pieces
        return kind(named, engine.optimizer, self.ranks.rank, self.ranks.world)

    def _objective(self, player: str) -> nn.Module:
        return self.engines[player].module  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, player: str) -> None:
        self.engines[player].backward(loss)  # divides by the accumulation itself
        self.micro = (self.micro + 1) % self.accumulate
        if self.micro:
            self.engines[player].step()  # counts a micro-batch; only the last one of a step updates

    def _step(self, player: Player) -> tuple[float, bool]:
        player.objective.step()  # type: ignore[operator]
        done: Any = player.objective.optimizer
        return float(done._global_grad_norm), not done.overflow


def configure(run: Run, world: int) -> Tree:
    """The DeepSpeed config: the user's file, completed by what the run says; UserError where they disagree."""
    tree = _read(run.engine.config) if run.engine.config else {}
    for key, reason in OURS.items():
        if key in tree and tree[key] not in ({}, {"enabled": False}, "auto"):
            raise UserError(f"{run.engine.config}: remove the key {key!r}; {reason}.")
    zero = tree.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    batch = world * run.accumulate if run.tokens else run.batch  # DeepSpeed wants a number, and never sees a batch
    filled: Tree = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // world // run.accumulate,
        "gradient_accumulation_steps": run.accumulate,
        "gradient_clipping": run.optimizer.clip if zero["stage"] else 0.0,
    }
    _on_disk(zero, str(run.engine.config))
    for key, value in filled.items():
        _consistent(tree, key, run.optimizer.clip if key == "gradient_clipping" else value, str(run.engine.config))
    tree |= filled
    tree.setdefault("zero_allow_untested_optimizer", True)
    tree.setdefault("zero_force_ds_cpu_optimizer", False)
    tree.setdefault("steps_per_print", None)
    return tree


def _on_disk(zero: Tree, path: str) -> None:
    """UserError for state that no checkpoint could read."""
    for key in ("offload_optimizer", "offload_param"):
        if (zero.get(key) or {}).get("device") == "nvme":
            raise UserError(
                f"{path}: {key} to nvme leaves the numbers where checkpoints, which this house writes itself, do not "
                'find them. Say "device": "cpu", or use more GPUs.'
            )


def _consistent(tree: Tree, key: str, value: Any, path: str) -> None:
    if tree.get(key, "auto") not in ("auto", value):
        raise UserError(
            f'{path}: {key} is {tree[key]}, but the run says {value}. Remove the key, or write "auto" there.'
        )


def _read(path: str) -> Tree:
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"engine.config={path} cannot be read as JSON ({error}). See configs/deepspeed/.") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("zero_optimization", {}), dict):
        raise UserError(
            f"engine.config={path} is not a DeepSpeed config: it must be a JSON object. See configs/deepspeed/."
        )
    return tree


def refuse(run: Run, stage: int, players: dict[str, nn.Module]) -> None:
    """UserError for what cannot work."""
    if stage and run.optimizer.kind == "muon":
        raise UserError(
            f"optimizer.kind=muon orthogonalises whole matrices, which ZeRO stage {stage} cuts up. Use stage 0 "
            "(configs/deepspeed/zero0.json, or no engine.config), or optimizer.kind=adamw."
        )
    if stage == 3 and len(players) > 1:
        raise UserError(f"A system of {len(players)} players cannot be trained under ZeRO stage 3. Use a lower stage.")
    frozen = [n for module in players.values() for n, p in module.named_parameters() if not p.requires_grad]
    if stage == 3 and frozen:
        raise UserError(
            f"ZeRO stage 3 would cut up the frozen parameter {frozen[0]}, which it cannot save. Use stage 2."
        )
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{run.engine.config}: zero_optimization.stage is {stage}, but must be 0, 1, 2 or 3.")
