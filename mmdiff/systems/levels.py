"""What is told of errors: means over the clips that have the modality, and where the noise stood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmdiff.systems.base import Logs

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # middles of the bins of t


def positions(shapes: dict[str, tuple[int, ...]]) -> int:
    """The latent positions of one clip."""
    return sum(math.prod(shape[1:]) for shape in shapes.values())


def present(error: Tensor, here: Tensor) -> Tensor:
    """Mean error (b,) over the clips that have the modality, without its gradient."""
    return torch.where(here, error, 0.0).sum().detach() / here.sum().clamp(min=1)


def by_level(errors: dict[str, Tensor], t: dict[str, Tensor], valid: dict[str, Tensor]) -> Logs:
    """loss/video@0.9 is over clips whose video stands within 0.1 of t = 0.9: a sum and its count (2,)."""
    logs = {}
    for name, error in errors.items():
        here, error = valid[name].to(error.device), error.detach()
        for level in LEVELS:
            inside = here & ((t[name] * len(LEVELS)).long().clamp(max=len(LEVELS) - 1) == LEVELS.index(level))
            logs[f"loss/{name}@{level}"] = torch.stack([torch.where(inside, error, 0.0).sum(), inside.sum()])
    return logs
