"""Weights on the squared error of y, by which any target can be learned as any paper weighs it.

The one idea: for a fixed x an error of y is (a q - s p) / s times the error of x0, so a weight on the error of x0 is
one on the error of y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.errors import UserError
from mmdiff.process import TARGETS, Row

Weight = Callable[[Row, Row], Tensor]  # (row of the process, row of the target) -> factor on the squared error of y


def even(row: Row, aim: Row) -> Tensor:
    """1: the target's own weighting."""
    return torch.ones_like(row[0])


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023, eq. 9): nearly clean steps no longer rule over the rest."""

    gamma: float = 5.0

    def __call__(self, row: Row, aim: Row) -> Tensor:
        return in_x0(row, aim) * (row[0] / row[1]).square().clamp(max=self.gamma)


@dataclass(frozen=True)
class EDMWeight:
    """(sigma^2 + data^2) / (sigma data)^2 on the error of x0, with sigma = s / a (Karras et al. 2022, table 1)."""

    data: float = 0.5

    def __call__(self, row: Row, aim: Row) -> Tensor:
        a, s = row
        clean = s == 0
        return in_x0(row, aim) * (a**2 / torch.where(clean, 1.0, s) ** 2 + 1 / self.data**2)


class AsTarget:
    """The weighting that another target would have had, at most `most`: such as x0 learned with the loss of flow."""

    def __init__(self, target: str, most: float = 100.0) -> None:
        if target not in TARGETS:
            raise UserError(f"as_target: the target is {target!r}; choose one of {', '.join(TARGETS)}")
        self.target, self.most = target, most

    def __call__(self, row: Row, aim: Row) -> Tensor:
        other = in_x0(row, TARGETS[self.target](*row))
        return (in_x0(row, aim) / other).nan_to_num(0.0).clamp(max=self.most)


def in_x0(row: Row, aim: Row) -> Tensor:
    """The squared error of x0 for a squared error of 1 in y: (s / (a q - s p))^2, and 0 where nothing is noisy."""
    (a, s), (p, q) = row, aim
    clean = s == 0
    return (s / torch.where(clean, 1.0, a * q - s * p)).square()
