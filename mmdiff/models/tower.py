"""A small convolutional tower that looks at clips, and the distance between clips that it sees.

Distances in the features of a network trained to recognise things follow the eye better than squared errors of pixels
(Zhang et al. 2018, LPIPS, equation 1). Ours is trained by this house on the data at hand (`systems/naming.py`), since
no weights are ever fetched; its distances can be compared with each other and with nobody's LPIPS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.layers.conv import Conv, ResBlock


class Tower(nn.Module):
    """(b c t h w) -> features of every stage, each of half the resolution of the one before; frames one by one."""

    def __init__(self, *, channels: int = 3, widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        self.width, kernel, half = widths[-1], (1, 3, 3), (1, 2, 2)
        self.enter = Conv(channels, widths[0], kernel=kernel)
        befores = [widths[0], *widths]
        self.blocks = nn.ModuleList(ResBlock(a, b, kernel=kernel, groups=0) for a, b in zip(befores, widths))
        self.downs = nn.ModuleList(Conv(width, width, kernel=kernel, stride=half) for width in widths[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        h, found = self.enter(x), []
        for i, block in enumerate(self.blocks):
            h = block(h if i == 0 else self.downs[i - 1](h))
            found.append(h)
        return found


class Perceptual(nn.Module):
    """The distance of clips in a frozen, trained tower; `run` is the folder of the run that trained it.

    Where a run uses it, the tower's weights are read from `run` once and kept with the run that uses them.
    """

    source = "learner.tower"  # its name in the system that trained it
    ready: Tensor  # () bool

    def __init__(self, *, run: str, tower: nn.Module) -> None:
        super().__init__()
        self.run, self.tower = run, tower.requires_grad_(False)
        self.register_buffer("ready", torch.tensor(False))

    @property
    def fitted(self) -> bool:
        """Whether the tower's weights are there."""
        return bool(self.ready)

    def adopt(self, state: dict[str, Tensor]) -> None:
        """Take the tower's weights."""
        self.tower.load_state_dict(state)
        self.ready.fill_(True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Clips (b c t h w) -> (b,): mean squared distance of features of unit length, summed over stages."""
        return torch.stack([distance(a, b) for a, b in zip(self.tower(x), self.tower(y), strict=True)]).sum(0)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Features (b c ...) -> (b,), the mean over positions of |a/|a| - b/|b||^2."""
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    return (a - b).square().sum(1).flatten(1).mean(1)
