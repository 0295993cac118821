"""The frame that a clip begins with, said in two ways: as a latent beside every frame, and as tokens to attend to.

The one idea: what is shown is told, not held. A network that reads the latent of a slightly noisy picture in its own
input learns to go on from pictures that are not quite like any clip, and the level of that noise is a number like any
other (Blattmann et al. 2023, section 4.2 and appendix D; the augmentation is that of Ho et al. 2021, section 4). Where
nothing is said of a clip, both are zeros, while rates and motion stay. To hold a frame exactly, see `tasks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.batch import Batch, Cond
from mmdiff.conditioners.numbers import Number
from mmdiff.errors import UserError
from mmdiff.layers.rope import grid_sincos

DIGITS = 1 << 32  # of a clip's chance that its noise depends on


class Frame(Number):
    """The first frame's latent at every latent step: concat (b c t h w), and how noisy it was as a vector (b width).

    The picture is encoded with noise of standard deviation exp(n), n ~ N(mean, std^2), in training, and of `level` in
    sampling, where [-1, 1] is black to white; it is a function of the clip's chance. The codec is that of the system's
    video (`connect`); one that makes a latent step of several frames is shown a picture that stands still for them.
    """

    channels: int  # of the latent, once connected

    def __init__(self, *, width: int, level: float = 0.02, mean: float = -3.0, std: float = 0.5) -> None:
        super().__init__(of="seconds", width=width, top=1.0)
        if level < 0 or std < 0:
            raise UserError(f"frame: level {level} and std {std} must not be negative.")
        self.level, self.mean, self.std = level, mean, std
        self.outside: tuple[Any, ...] = ()  # the codec; a tuple hides it from nn.Module, so that it is not trained here

    def connect(self, codec: Any, channels: int) -> None:
        """Take the system's codec of the video."""
        self.outside, self.channels = (codec,), channels

    def forward(self, batch: Batch) -> Cond:
        picture, levels = first(batch), self.levels(batch).to(self.device)
        if picture is None:
            size = self.codec.grid((3, frames(batch), *batch["shape"].size))
            return Cond(concat=torch.zeros(len(levels), *size, device=self.device), **self.embed(levels))
        z = self.latent(picture.to(self.device), levels, batch)
        return Cond(concat=where(heard(batch).to(self.device), z), **self.embed(levels))

    @torch.no_grad()
    def latent(self, picture: Tensor, levels: Tensor, batch: Batch) -> Tensor:
        """Pictures (b 3 h w), noise levels (b,) -> (b c t h w), the same at every t."""
        keys = [noise.key("frame", int(chance * DIGITS)) for chance in chances(batch)]
        eps = noise.normal(picture.shape[1:], keys=keys, device=picture.device)
        noisy = picture + levels[:, None, None, None] * eps
        steps = self.codec.grid((3, frames(batch), *picture.shape[2:]))[1]
        still = noisy[:, :, None].expand(-1, -1, max(1, frames(batch) // steps), -1, -1)
        return self.codec.encode(still)[:, :, :1].float().expand(-1, -1, steps, -1, -1)

    def levels(self, batch: Batch) -> Tensor:
        """Standard deviations (b,) of the noise on the picture, in halves of the range from black to white."""
        if "shape" in batch:
            return torch.full((len(batch["text"]),), self.level)
        keys = [noise.key("frame level", int(chance * DIGITS)) for chance in chances(batch)]
        return (self.mean + self.std * noise.normal((), keys=keys)).exp()

    @property
    def codec(self) -> Any:
        """The system's codec of the video."""
        if not self.outside:
            raise UserError("frame: this part looks through the codec of a system's video; use it inside one.")
        return self.outside[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


class FrameTokens(nn.Module):
    """The first frame as tokens (b l width) to attend to, one a patch of `patch` x `patch` pixels with its place.

    Published systems take one vector of CLIP here; these are features that are trained with the model.
    """

    def __init__(self, *, width: int, patch: int = 8) -> None:
        super().__init__()
        if width % 4:
            raise UserError(f"frame_tokens: width {width} must be a multiple of 4, for the places of patches.")
        self.patch, self.width = patch, width
        self.mlp = nn.Sequential(nn.Linear(3 * patch**2, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, batch: Batch) -> Cond:
        picture, device = first(batch), next(self.parameters()).device
        if picture is None:
            return Cond(tokens=torch.zeros(len(batch["text"]), 1, self.width, device=device))
        if any(side % self.patch for side in picture.shape[2:]):
            raise UserError(f"frame_tokens: patch {self.patch} does not divide a picture of {list(picture.shape[2:])}.")
        size = (picture.shape[2] // self.patch, picture.shape[3] // self.patch)
        patches = rearrange(picture, "b c (h p) (w q) -> b (h w) (c p q)", h=size[0], w=size[1]).to(device)
        place = grid_sincos(size, self.width, device=device).flatten(0, 1)  # (l d)
        return Cond(tokens=where(heard(batch).to(device), self.mlp(patches) + place))


def connect(conditioner: nn.Module, codecs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], net: Any) -> bool:
    """Give every `Frame` of a conditioner its codec -> whether anything in it looks at the first frame.

    Raises UserError where the network does not take the latent's channels beside its own, or where there is no video.
    """
    parts = list(conditioner.modules())
    for part in parts:
        if not isinstance(part, Frame):
            continue
        if "video" not in codecs:
            raise UserError(f"frame: it is the first frame of a video, but this system makes {', '.join(codecs)}.")
        wanted, takes = shapes["video"][0], getattr(net, "concat", 0)
        if takes != wanted:
            raise UserError(
                f"frame: it puts {wanted} channels beside the latent, but {type(net).__name__} takes {takes} there: "
                f"set the network's concat: {wanted} (kind unet or dit), or hold frames instead, with the key `tasks`."
            )
        part.connect(codecs["video"], wanted)
    return any(isinstance(part, Frame | FrameTokens) for part in parts)


# ---- what a batch shows --------------------------------------------------------------------------------------------


def first(batch: Batch) -> Tensor | None:
    """The picture that clips begin with (b 3 h w): the one that is shown, or the clips' own in training.

    None where clips are to be made and nothing is shown.
    """
    if "frame" in batch:
        if "shape" in batch and tuple(batch["frame"].shape[2:]) != tuple(batch["shape"].size):
            sizes = f"{list(batch['frame'].shape[2:])}, but clips of {list(batch['shape'].size)} are being made"
            raise UserError(f"frame: the picture is {sizes}; give one of their size.")
        return batch["frame"]
    if "shape" in batch:
        return None
    if "video" not in batch:
        raise UserError("frame: these clips hold no picture to look at; train on files, not on encoded clips.")
    return batch["video"][:, :, 0]


def frames(batch: Batch) -> int:
    """Of the clips that are there, or of those to be made."""
    told = batch.get("shape", batch.get("encoded"))
    return batch["video"].shape[2] if told is None else told.frames


def heard(batch: Batch) -> Tensor:
    """(b,) bool: of which clips something is said."""
    return batch["said"] if "said" in batch else torch.ones(len(batch["text"]), dtype=torch.bool)


def chances(batch: Batch) -> list[float]:
    """Of each clip, 0 where nobody drew it."""
    return batch["chance"].tolist() if "chance" in batch else [0.0] * len(batch["text"])


def where(said: Tensor, x: Tensor) -> Tensor:
    """x (b ...), or zeros where nothing is said."""
    return torch.where(said.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
