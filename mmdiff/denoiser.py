"""The one contract of the house: a denoiser takes noisy x and time t and returns its estimate of the clean x0.

A network predicts some mixture y = p x0 + q noise; the 2x2 system of `process` turns that into x0. Mean squared error
on y is each paper's own weighting: eps is DDPM's L_simple (Ho et al. 2020, eq. 14), flow is flow matching's (Lipman et
al. 2022), and v with `EDM` is, on data of unit variance and up to sign, EDM's preconditioned loss (Karras et al. 2022,
eq. 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, cast

import torch
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.losses import Answer, Loss, Squared
from mmdiff.process import TARGETS, Draw, Process, Row, mix, to_x0, widen

SQUARED = Squared()


class Network(Protocol):
    """What a denoiser asks of its network."""

    def __call__(self, x: Any, t: Any, cond: Cond) -> Any:
        """x, its times and what is known of the clips -> y of x's shape; by modality, for a joint network."""


class Denoiser(nn.Module):
    """A network together with what it means: its process, its target, the draw of its training times and its loss.

    `net(x, t, cond)` returns y of x's shape. It sees x / hypot(a, s), which has unit variance if the data has; with
    `scale_input=False` it sees x itself, as nets trained elsewhere may want. t reaches it as the caller gave it: (b,),
    or anything of x's rank that broadcasts against x, such as a time for every entry. A loss of two outputs (`Hybrid`)
    wants a network of twice the channels: it sees zeros behind x, and its second half is not y.

    With eps a process must not reach a = 0 where it is sampled (`check_start`): x0 is nan there.
    """

    def __init__(
        self,
        net: Annotated[nn.Module, Network],
        *,
        process: Process,
        target: str,
        draw: Draw,
        scale_input: bool = True,
        loss: Loss = SQUARED,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise UserError(f"the denoiser's target is {target!r}; choose one of {', '.join(TARGETS)}")
        self.net, self.process, self.target, self.draw, self.scale_input = net, process, target, draw, scale_input
        self.cost = loss

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x0-hat of x's shape, float32 at least; at entries with t = 0 it is x itself."""
        return self.predict(x, t, cond)[0]

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """x0-hat, and what a network of two outputs says of the variance (losses.Hybrid)."""
        x, row = self._place(x, t)
        y, extra = self._answer(x, t, cond, row)
        return to_x0(x, y, row, TARGETS[self.target](*row)), extra

    def errors(self, x0: Tensor, cond: Cond, *, t: Tensor, noise: Tensor) -> Tensor:
        """What y costs at every entry, of x0's shape.

        Entries that enter clean (t = 0) are not left out; a system that holds some of them weighs the entries itself.
        """
        x0, row = self._place(x0, t)
        x = mix(x0, noise, row)
        return self._cost(x0, row, x, self._answer(x, t, cond, row), t, noise)

    def packed_errors(
        self, x0s: Sequence[Tensor], conds: Sequence[Cond], *, ts: Sequence[Tensor], noises: Sequence[Tensor]
    ) -> list[Tensor]:
        """`errors` of each part, the clips of one size, by one call of the network on the tokens of all."""
        placed = [self._place(x0, t) for x0, t in zip(x0s, ts, strict=True)]
        xs = [mix(x0, noise, row) for (x0, row), noise in zip(placed, noises, strict=True)]
        shown = [self._shown(x, t, row) for x, t, (_, row) in zip(xs, ts, placed, strict=True)]
        if not hasattr(self.net, "packed"):
            raise UserError(
                f"The network {type(self.net).__name__} takes clips of one size at a time: use kind dit, or train on "
                "buckets instead of packs (data.buckets.layout: {kind: bucketed})."
            )
        seen, times = zip(*shown, strict=True)
        ys = cast(Any, self.net).packed(seen, times, conds)
        parts = zip(placed, xs, ys, ts, noises, strict=True)
        return [self._cost(x0, row, x, self._split(y, x), t, noise) for (x0, row), x, y, t, noise in parts]

    def loss(self, x0: Tensor, cond: Cond, *, t: Tensor, noise: Tensor) -> Tensor:
        """Mean of `errors` over each sample -> (b,)."""
        return self.errors(x0, cond, t=t, noise=noise).flatten(1).mean(1)

    def check_start(self, times: Tensor) -> None:
        """Refuse a grid of sampling times that asks the network for x0 where its target says nothing of it."""
        a, _ = self.process(times[:1])
        if self.target == "eps" and bool((a == 0).any()):
            raise UserError(
                f"The target eps says nothing of the data where a = 0, and {type(self.process).__name__} is there at "
                f"t = {float(times[0]):g}, where sampling starts. Choose target v, flow or x0, a process that keeps "
                "some signal (ddpm, scaled_linear, edm), or a grid that starts lower: grid: {kind: uniform_grid, "
                "first: 0.999}."
            )

    def _place(self, x: Tensor, t: Tensor) -> tuple[Tensor, Row]:
        """x, and (a, s) that broadcast against it, in float32 or better: near s = 0 the solve loses digits."""
        precision = torch.promote_types(x.dtype, torch.float32)
        return x.to(precision), self.process(widen(t, x).to(precision))

    def _cost(
        self, x0: Tensor, row: Row, x: Tensor, answer: tuple[Tensor, Tensor | None], t: Tensor, noise: Tensor
    ) -> Tensor:
        """What an answer to x = a x0 + s noise costs at every entry."""
        aim = TARGETS[self.target](*row)
        return self.cost(Answer(answer[0], mix(x0, noise, aim), answer[1], x, x0, widen(t, x), row, aim, self.process))

    def _answer(self, x: Tensor, t: Tensor, cond: Cond, row: Row) -> tuple[Tensor, Tensor | None]:
        """y, and what comes behind it in the channels if the loss wants two outputs."""
        seen, times = self._shown(x, t, row)
        return self._split(self.net(seen, times, cond), x)

    def _shown(self, x: Tensor, t: Tensor, row: Row) -> tuple[Tensor, Tensor]:
        """What the network sees of x and of t; a loss of two outputs makes room for the second, b 2c ..."""
        seen = x / torch.hypot(*row) if self.scale_input else x
        if self.cost.outputs == 1:
            return seen, t
        if x.ndim < 3:
            raise UserError(f"The loss {type(self.cost).__name__} needs channels, which a packed joint sample lacks.")
        wide = t if t.ndim == 1 or t.shape[1] == 1 else torch.cat([t, t], 1)
        return torch.cat([seen, torch.zeros_like(seen)], 1), wide

    def _split(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a network said of x -> y, and what comes behind it."""
        y = y.to(x.dtype)
        if self.cost.outputs == 1:
            return y, None
        if y.shape[1] != 2 * x.shape[1]:
            raise UserError(f"The loss {type(self.cost).__name__} needs a network of {2 * x.shape[1]} channels.")
        first, second = y.chunk(2, 1)
        return first, second
