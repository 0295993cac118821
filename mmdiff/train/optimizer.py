"""One optimizer object over one or two torch optimizers, the parameters each gets, and the learning rate at a step.

Muon (muon.py) orthogonalises the update of a whole matrix, so it takes the 2-D weights inside the blocks; embeddings,
modulations, first and last layers, gains and biases take AdamW (Loshchilov and Hutter 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.train.muon import Muon
from mmdiff.train.precision import precision
from mmdiff.train.settings import Optimizer

Groups = list[dict[str, Any]]


def matrix_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable 2-D weights of the blocks and of the bridges between them, except modulations, by name."""
    return {name: p for name, p in trainable(module).items() if p.ndim == 2 and _in_blocks(name)}


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take gradients, by name, in the module's order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _in_blocks(name: str) -> bool:
    return any(part.startswith(("blocks", "bridges")) for part in name.split(".")) and "modulation" not in name


def make(module: nn.Module, settings: Optimizer, *, clip: float | None) -> Together:
    """The optimizer of one player; `clip` None leaves the norm of the gradient to the caller."""
    named = trainable(module)
    if not named:
        raise UserError("The system has no trainable parameters: everything in it is frozen.")
    muon = matrix_parameters(module) if settings.kind == "muon" else {}
    rest = [p for name, p in named.items() if name not in muon]
    parts: list[torch.optim.Optimizer] = []
    if muon:
        decay = settings.weight_decay
        dtype = precision("auto", next(iter(muon.values())).device)
        parts.append(Muon(muon.values(), lr=settings.muon_lr, weight_decay=decay, dtype=dtype))
    if rest:
        groups = _by_dimension(rest, settings.weight_decay)
        parts.append(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True))
    return Together(parts, clip=clip)


def _by_dimension(parameters: Iterable[nn.Parameter], decay: float) -> Groups:
    """Weights decay; gains and biases do not."""
    groups: Groups = [{"params": [], "weight_decay": decay}, {"params": [], "weight_decay": 0.0}]
    for p in parameters:
        groups[p.ndim < 2]["params"].append(p)
    return [group for group in groups if group["params"]]


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one, and none of them if the gradient is not finite.

    `overflow` and `_global_grad_norm` say what the last step did, under the names by which DeepSpeed reads them.
    """

    def __init__(self, parts: list[torch.optim.Optimizer], *, clip: float | None) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts, self.clip = parts, clip
        self.rates = [float(group["lr"]) for group in self.param_groups]
        self.overflow, self._global_grad_norm = False, 0.0
        for part in parts:
            part.state = self.state  # one dictionary, so that whoever replaces parameters sees one optimizer

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip and step; a gradient that is not finite leaves weights and moments as they were.

        Only groups in `param_groups` take part: with moments on the CPU, DeepSpeed steps one group at a time.
        """
        if self.clip is not None and not self._clip_gradients(self.clip):
            return
        chosen = {id(group) for group in self.param_groups}
        for part in self.parts:
            every = part.param_groups
            part.param_groups = [group for group in every if id(group) in chosen]
            part.step()
            part.param_groups = every

    def _clip_gradients(self, limit: float) -> bool:
        """Scale the gradients to a global norm of at most `limit` (0 does not) -> whether they are finite."""
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if limit and not self.overflow:
            nn.utils.clip_grads_with_norm_(held, limit, norm)
        return not self.overflow

    def set_rate(self, share: float) -> float:
        """Set every group to a share of its full learning rate -> the rate of the last group (AdamW's)."""
        for group, rate in zip(self.param_groups, self.rates):
            group["lr"] = rate * share
        return float(self.param_groups[-1]["lr"])

    def moments(self, local: list[Tensor]) -> dict[str, list[Tensor | None]]:
        """What it remembers: kind -> one tensor for each of `local`, None where there is none of that kind yet."""
        held = [{k: v for k, v in self.state.get(p, {}).items() if v.shape == p.shape} for p in local]
        kinds = sorted({kind for moments in held for kind in moments} - {"step"})
        return {kind: [moments.get(kind) for moments in held] for kind in kinds}

    def restore(self, local: list[Tensor], moments: dict[str, list[Tensor | None]], *, updates: int) -> None:
        """Put back what `moments` gave after `updates` steps."""
        for i, p in enumerate(local):
            held = {kind: values[i] for kind, values in moments.items() if values[i] is not None}
            if "exp_avg" in held:
                held["step"] = torch.tensor(float(updates), device=p.device)
            if held:
                self.state[p] = held


def rate_share(step: int, steps: int, settings: Optimizer) -> float:
    """The share of the full learning rate at `step` (1 is the first) of `steps`: warm-up, then the schedule."""
    warm = min(1.0, step / settings.warmup) if settings.warmup else 1.0
    through = min(1.0, max(0.0, (step - settings.warmup) / max(1, steps - settings.warmup)))
    left = {"constant": 1.0, "linear": 1 - through, "cosine": (1 + math.cos(math.pi * through)) / 2}[settings.schedule]
    return warm * (settings.final + (1 - settings.final) * left if settings.schedule != "constant" else 1.0)
