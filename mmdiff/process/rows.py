"""The one 2x2 system: a process is the row (a, s), a target is the row (p, q), and the network predicts p x0 + q noise.

One inversion serves every pair of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmdiff.process.paths import Row

TARGETS: dict[str, Callable[[Tensor, Tensor], Row]] = {
    "x0": lambda a, s: (torch.ones_like(a), torch.zeros_like(a)),
    "eps": lambda a, s: (torch.zeros_like(a), torch.ones_like(a)),
    "flow": lambda a, s: (-torch.ones_like(a), torch.ones_like(a)),
    "v": lambda a, s: (-s / torch.hypot(a, s), a / torch.hypot(a, s)),
}


def mix(x0: Tensor, noise: Tensor, row: Row) -> Tensor:
    """row[0] x0 + row[1] noise: the noisy x for a process row, the regression target for a target row."""
    return row[0] * x0 + row[1] * noise


def to_x0(x: Tensor, y: Tensor, process_row: Row, target_row: Row) -> Tensor:
    """Invert {x = a x0 + s noise, y = p x0 + q noise} for x0; where s = 0 the answer is x itself, whatever y says.

    Ill-conditioned for eps as a -> 0, and infinite or nan at a = 0: pure noise and its own estimate say nothing of x0.
    """
    (a, s), (p, q) = process_row, target_row
    clean = s == 0
    return torch.where(clean, x, (q * x - s * y) / torch.where(clean, 1.0, a * q - s * p))


def to_noise(x: Tensor, x0: Tensor, process_row: Row) -> Tensor:
    """The noise that x holds if its clean part is x0; zero where the process has no noise."""
    a, s = process_row
    return torch.where(s == 0, 0.0, (x - a * x0) / torch.where(s == 0, 1.0, s))


def widen(t: Tensor, x: Tensor) -> Tensor:
    """Append axes to t (b,) until it broadcasts against x (b ...); a t of x's rank passes through."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
