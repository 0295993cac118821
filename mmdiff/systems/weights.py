"""How much each modality counts in the loss: fixed, by its number of tokens, or learned.

`means` are errors summed over the clips that have the modality, divided by the size of the batch; `share` is the part
of the batch that has it, so that an absent modality adds exactly zero to the loss and to every gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

Means = Mapping[str, Tensor]


class Weights(Protocol):
    """name -> mean error and share of the batch (both scalars), tokens of a clip -> the loss."""

    def __call__(self, means: Means, *, share: Means, tokens: Mapping[str, int]) -> Tensor: ...


@dataclass(frozen=True)
class FixedWeights:
    """A factor for each modality, 1 if it is not named: MM-Diffusion's sum of two means (Ruan et al. 2023)."""

    factors: dict[str, float] = field(default_factory=dict)

    def __call__(self, means: Means, *, share: Means, tokens: Mapping[str, int]) -> Tensor:
        return _total({name: mean * self.factors.get(name, 1.0) for name, mean in means.items()})


@dataclass(frozen=True)
class TokenWeights:
    """By the number of latent positions, 1 on average: the error of the packed sequence, where every token counts."""

    def __call__(self, means: Means, *, share: Means, tokens: Mapping[str, int]) -> Tensor:
        average = sum(tokens[name] for name in means) / len(means)
        return _total({name: mean * (tokens[name] / average) for name, mean in means.items()})


class UncertaintyWeights(nn.Module):
    """exp(-s) error + s with a learned log variance s for each modality, 0 at first (Kendall et al. 2018, eq. 7).

    Theirs is half of this. At the optimum each modality's weight is the inverse of its error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in ("video", "audio")})

    def forward(self, means: Means, *, share: Means, tokens: Mapping[str, int]) -> Tensor:
        s = {name: self.log_variance[name][0] for name in means}
        return _total({name: torch.exp(-s[name]) * mean + s[name] * share[name] for name, mean in means.items()})


def _total(losses: Means) -> Tensor:
    total = next(iter(losses.values())).new_zeros(())
    for loss in losses.values():
        total = total + loss
    return total
