"""Numbers that are said of a clip: how fast it runs, how long it is, how much moves in it, and of which class it is.

The one idea: a number is a vector beside the time embedding (micro-conditioning; Podell et al. 2023, section 2.2). What
a clip shows of itself is measured from it in training and is asked for in sampling. Nothing empties a number: guidance
moves away from other texts, not from other speeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmdiff.batch import Batch, Cond
from mmdiff.errors import UserError
from mmdiff.layers.embed import sinusoid

FEATURES = 64


def rate(batch: Batch) -> Tensor:
    """Frames per second (b,)."""
    return batch["fps"].float()


def seconds(batch: Batch) -> Tensor:
    """The length of the clips (b,): of those that are there, or of those to be made."""
    if "encoded" in batch:
        return torch.full((len(batch["text"]),), batch["encoded"].seconds)
    if "video" in batch:
        return batch["video"].shape[2] / batch["fps"].float()
    if "audio" in batch:
        return torch.full((len(batch["text"]),), batch["audio"].shape[2] / batch["rate"])
    return torch.full((len(batch["text"]),), batch["shape"].seconds)


MEASURES: dict[str, Callable[[Batch], Tensor]] = {"fps": rate, "seconds": seconds}


class Number(nn.Module):
    """One of MEASURES as a vector (b width): a sinusoid of its share of `top`, then two layers."""

    def __init__(self, *, of: str, width: int, top: float) -> None:
        super().__init__()
        if of not in MEASURES or top <= 0:
            raise UserError(f"number: of {of!r} must be one of {', '.join(MEASURES)}, and top {top} positive.")
        self.of, self.top = of, top
        self.mlp = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, batch: Batch) -> Cond:
        return self.embed(MEASURES[self.of](batch) / self.top)

    def embed(self, share: Tensor) -> Cond:
        """(b,) near [0, 1] -> the condition."""
        weight = cast(Tensor, self.mlp[0].weight)
        return Cond(vector=self.mlp(sinusoid(share.to(weight.device), FEATURES).to(weight.dtype)))


class FrameRate(Number):
    """The clip's frames per second as a share of 100."""

    def __init__(self, *, width: int) -> None:
        super().__init__(of="fps", width=width, top=100.0)


class MotionBucket(Number):
    """How much moves, in one of `buckets` steps up to `fastest` picture widths a second (SVD's motion bucket;
    Blattmann et al. 2023, appendix C).

    In training it is measured from the clips. In sampling it is batch["motion"], else `usual`, in widths a second.
    """

    def __init__(self, *, width: int, buckets: int = 256, fastest: float = 2.0, usual: float = 0.5) -> None:
        super().__init__(of="seconds", width=width, top=1.0)
        if buckets < 2 or fastest <= 0:
            raise UserError(f"motion_bucket: buckets {buckets} must be 2 or more, and fastest {fastest} positive.")
        self.buckets, self.fastest, self.usual = buckets, fastest, usual

    def forward(self, batch: Batch) -> Cond:
        return self.embed(self.bucket(batch) / (self.buckets - 1))

    def bucket(self, batch: Batch) -> Tensor:
        """(b,) whole numbers in [0, buckets - 1]."""
        if "motion" in batch:
            speed = batch["motion"].float()
        elif "video" in batch and "shape" not in batch:
            speed = motion(batch["video"], batch["fps"])
        else:
            speed = torch.full((len(batch["text"]),), self.usual)
        return ((speed / self.fastest).clamp(0, 1) * (self.buckets - 1)).round()


def motion(video: Tensor, fps: Tensor) -> Tensor:
    """(b 3 t h w), (b,) -> how fast things move in picture widths a second (b,); 0 for an image.

    A normal flow: the change from frame to frame over the gradient of the picture (Horn and Schunck 1981, eq. 1 solved
    for the speed along the gradient), both summed over the clip. It grows with the speed up to about the size of what
    moves, and does not depend on contrast.
    """
    x = video.float().mean(1)  # (b t h w)
    if x.shape[1] < 2:
        return torch.zeros(len(x), device=x.device)
    still = (x[:, 1:] + x[:, :-1]) / 2
    down, right = torch.gradient(still, dim=(2, 3))
    change = (x[:, 1:] - x[:, :-1]).abs().flatten(1).sum(1)
    slope = torch.hypot(down, right).flatten(1).sum(1)
    return change / slope.clamp(min=1e-6) * fps.to(x.device) / x.shape[-1]


class Label(nn.Module):
    """The caption as one of so many classes: a learned vector (b width) for each name, and one for the empty caption.

    Classes are dropped as captions are, which is how DiT learns its null class (Peebles and Xie 2022, section 3.2).
    """

    def __init__(self, *, names: Sequence[str], width: int) -> None:
        super().__init__()
        if not names or len(set(names) | {""}) != len(names) + 1:
            raise UserError("label: names must be different from one another and not empty.")
        self.rows = {name: row for row, name in enumerate(("", *names))}
        self.table = nn.Embedding(len(self.rows), width)

    def forward(self, batch: Batch) -> Cond:
        if unknown := [text for text in batch["text"] if text not in self.rows]:
            raise UserError(
                f"label: there is no class {unknown[0]!r}; the classes are {', '.join(list(self.rows)[1:])}."
            )
        rows = torch.tensor([self.rows[text] for text in batch["text"]], device=self.table.weight.device)
        return Cond(vector=self.table(rows))
