"""The exponential moving average of the weights, on whatever share of them a rank owns.

The average is elementwise, so that a rank needs to average only the float32 share that it updates: no communication,
and the gathered average equals that of one process bit for bit. Early on the decay is smaller (a ramp in the step), or
a short run would sample from its random initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decay_at(step: int, limit: float) -> float:
    """min(limit, (1 + step) / (10 + step)): 0.18 at the first step, `limit` after about 9 / (1 - limit) of them."""
    return min(limit, (1 + step) / (10 + step))


@torch.no_grad()
def start(weights: list[Tensor]) -> list[Tensor]:
    """A copy to average into."""
    return [w.detach().clone() for w in weights]


@torch.no_grad()
def update(average: list[Tensor], weights: list[Tensor], *, decay: float) -> None:
    """average <- decay average + (1 - decay) weights, in place."""
    torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - decay)


@torch.no_grad()
def exchange(average: list[Tensor], weights: list[Tensor]) -> None:
    """Swap the two in place; a second call restores both exactly."""
    for a, w in zip(average, weights):
        held = a.clone()
        a.copy_(w.detach())
        w.detach().copy_(held)
