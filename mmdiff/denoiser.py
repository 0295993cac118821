"""The one contract of the house: a denoiser takes noisy x and time t and returns its estimate of the clean x0.

A network predicts some mixture y = p x0 + q noise; the 2x2 system of `process.py` turns that into x0. Mean squared
error on y is each paper's own weighting: eps is DDPM's L_simple (Ho et al. 2020, eq. 14), flow is flow matching's
(Lipman et al. 2022), and v with `EDM` is, on data of unit variance and up to sign, EDM's preconditioned loss (Karras et
al. 2022, eq. 8).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.process import TARGETS, Draw, Process, Row, mix, to_x0, widen


class Denoiser(nn.Module):
    """A network together with what it means: its process, its target and the draw of its training times.

    `net(x, t, cond)` returns y of x's shape. It sees x / hypot(a, s), which has unit variance if the data has;
    with `scale_input=False` it sees x itself, as nets trained elsewhere may want. t reaches it as the caller gave it:
    (b,), or anything of x's rank that broadcasts against x, such as a time for every entry.

    With eps a process must not reach a = 0 where it is sampled (`Linear` and `Cosine` do at t = 1): x0 is nan there.
    """

    def __init__(self, net: nn.Module, *, process: Process, target: str, draw: Draw, scale_input: bool = True) -> None:
        super().__init__()
        if target not in TARGETS:
            raise UserError(f"the denoiser's target is {target!r}; choose one of {', '.join(TARGETS)}")
        self.net, self.process, self.target, self.draw, self.scale_input = net, process, target, draw, scale_input

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x0-hat of x's shape, float32 at least; at entries with t = 0 it is x itself."""
        x, row = self._place(x, t)
        return to_x0(x, self._predict(x, t, cond, row), row, TARGETS[self.target](*row))

    def errors(self, x0: Tensor, cond: Cond, *, t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of y at every entry, of x0's shape.

        Entries that enter clean (t = 0) are not left out; a system that holds some of them weighs the entries itself.
        """
        x0, row = self._place(x0, t)
        y = self._predict(mix(x0, noise, row), t, cond, row)
        return (y - mix(x0, noise, TARGETS[self.target](*row))).square()

    def loss(self, x0: Tensor, cond: Cond, *, t: Tensor, noise: Tensor) -> Tensor:
        """Mean of `errors` over each sample -> (b,)."""
        return self.errors(x0, cond, t=t, noise=noise).flatten(1).mean(1)

    def _place(self, x: Tensor, t: Tensor) -> tuple[Tensor, Row]:
        """x, and (a, s) that broadcast against it, in float32 or better: near s = 0 the solve loses digits."""
        precision = torch.promote_types(x.dtype, torch.float32)
        return x.to(precision), self.process(widen(t, x).to(precision))

    def _predict(self, x: Tensor, t: Tensor, cond: Cond, row: Row) -> Tensor:
        y = self.net(x / torch.hypot(*row) if self.scale_input else x, t, cond)
        return y.to(x.dtype)
