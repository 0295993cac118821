"""What a wrong answer of the network costs at every entry.

Mean squared error alone is already DDPM's simple loss with eps (Ho et al. 2020, eq. 14), flow matching's with flow
(Lipman et al. 2022), and EDM's with v; the others bend it, turn it, or teach the variance beside the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.losses.likelihood import BITS, kl, step_back, variance
from mmdiff.losses.weights import Weight, even
from mmdiff.process import Process, Row, to_x0


@dataclass(frozen=True)
class Answer:
    """What a network said about x (b c ...), and what would have been right. Rows and t broadcast against x."""

    y: Tensor  # said
    goal: Tensor  # right
    extra: Tensor | None  # said beside y, by networks of two outputs
    x: Tensor
    x0: Tensor
    t: Tensor
    row: Row
    aim: Row  # of the target
    process: Process


class Loss(Protocol):
    """An answer -> its cost at every entry, of x's shape."""

    @property
    def outputs(self) -> int:
        """How many tensors of x's shape the network has to give, one behind the other along the channels."""

    def __call__(self, answer: Answer) -> Tensor: ...


@dataclass(frozen=True)
class Squared:
    """Squared error of y."""

    weight: Weight = even
    outputs = 1

    def __call__(self, answer: Answer) -> Tensor:
        return self.weight(answer.row, answer.aim) * (answer.y - answer.goal).square()


@dataclass(frozen=True)
class Huber:
    """The squared error of y as far as `width`, linear beyond it (Huber 1964, twice his): outliers pull less."""

    width: float = 1.0
    weight: Weight = even
    outputs = 1

    def __call__(self, answer: Answer) -> Tensor:
        error = (answer.y - answer.goal).abs()
        cost = torch.where(error < self.width, error.square(), self.width * (2 * error - self.width))
        return self.weight(answer.row, answer.aim) * cost


@dataclass(frozen=True)
class PseudoHuber:
    """2 w (sqrt(error^2 + w^2) - w), at every entry: Huber's loss without a seam (Song and Dhariwal 2023, eq. 7)."""

    width: float = 1.0
    weight: Weight = even
    outputs = 1

    def __call__(self, answer: Answer) -> Tensor:
        error = answer.y - answer.goal
        cost = 2 * self.width * (torch.hypot(error, torch.full_like(error, self.width)) - self.width)
        return self.weight(answer.row, answer.aim) * cost


@dataclass(frozen=True)
class Directed:
    """Another loss plus `share` (1 - cos(y, goal)) over the channels (Yao et al. 2024, FasterDiT, eq. 8).

    With target flow y is the velocity. In the packed vector of a joint model it is the direction of the whole clip.
    """

    loss: Loss
    share: float = 1.0

    @property
    def outputs(self) -> int:
        return self.loss.outputs

    def __call__(self, answer: Answer) -> Tensor:
        turned = 1 - F.cosine_similarity(answer.y, answer.goal, dim=1).unsqueeze(1)  # (b 1 ...)
        return self.loss(answer) + self.share * turned


@dataclass(frozen=True)
class Hybrid:
    """Squared error of y, plus `steps` / 1000 of the bound's term in bits, from which only the variance learns.

    iDDPM (Nichol and Dhariwal 2021, eq. 15 and 16). The network's second half of channels says where between its bounds
    the log variance of the step back, of length 1 / `steps`, lies.
    """

    steps: int = 1000
    outputs = 2

    def __call__(self, answer: Answer) -> Tensor:
        assert answer.extra is not None
        x0_hat = to_x0(answer.x, answer.y, answer.row, answer.aim).detach()
        clean = answer.t == 0  # no step leads back from there
        back = step_back(answer.process, torch.where(clean, 1.0, answer.t), self.steps)
        bits = torch.where(clean, 0.0, kl(answer.x0, x0_hat, back, variance(back, answer.extra)) / BITS)
        return (answer.y - answer.goal).square() + self.steps / 1000 * bits
