"""Two U-Nets that denoise picture and sound together (Ruan et al. 2023, MM-Diffusion).

Each is a network of its own (unet.py) with as many levels and blocks as the other; after each row of the levels where
they meet, each reads the other (crossing.py). At birth they are two strangers, whatever they were before: a trained
picture network can be one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmdiff.batch import Cond
from mmdiff.errors import UserError
from mmdiff.models.crossing import Crossing, Parts, shifts
from mmdiff.models.unet import Track, UNet
from mmdiff.models.unet_blocks import Row


class JointUNet(nn.Module):
    """({"video": (b c t h w), "audio": (b c n)}, times of the same keys, cond) -> a dict like the first.

    spans: of each level, then of the middle: the frames that a meeting there reads; 0 for no meeting, and a number of
    at least the clip's frames for all of them. heads: of the meetings. shift: `random` moves each window by a number
    of frames that is a function of cond["chance"], of the time and of the layer; `none` leaves it where it is.
    """

    branches: Mapping[str, UNet]

    def __init__(
        self,
        *,
        video: UNet,
        audio: UNet,
        spans: Sequence[int],
        heads: int,
        shift: Literal["random", "none"] = "random",
        clock: Literal["seconds", "none"] = "seconds",
    ) -> None:
        super().__init__()
        check(video, audio, spans)
        self.branches = cast(Any, nn.ModuleDict({"video": video, "audio": audio}))
        self.shift, self.depth = shift, len(video.blocks)
        self.bridges = nn.ModuleDict()
        for i, (block, other) in enumerate(zip(video.blocks, audio.blocks, strict=True)):
            span = spans[video.levels[i]]
            if isinstance(block, Row) and isinstance(other, Row) and span:
                widths = {"video": block.width, "audio": other.width}
                groups = min(video.style.groups, audio.style.groups)
                self.bridges[str(i)] = Crossing(widths, heads=heads, groups=groups, span=span, clock=clock)

    def forward(self, x: Parts, t: Parts, cond: Cond) -> Parts:
        tracks = {name: net.open(x[name], t[name], cond) for name, net in self.branches.items()}
        chance: Tensor = cond["chance"] if "chance" in cond else x["video"].new_zeros(len(x["video"]))
        for i in range(self.depth):
            for name, net in self.branches.items():
                net.step(i, tracks[name])
            if str(i) in self.bridges:
                self._meet(i, tracks, cond, chance, latest(t))
            for name, net in self.branches.items():
                net.keep(i, tracks[name])
        return {name: net.close(tracks[name], x[name]) for name, net in self.branches.items()}

    def _meet(self, i: int, tracks: dict[str, Track], cond: Cond, chance: Tensor, time: Tensor) -> None:
        bridge = cast(Crossing, self.bridges[str(i)])
        h = {name: track.h for name, track in tracks.items()}
        seconds = {name: track.told[self.branches[name].shorter[i]].seconds for name, track in tracks.items()}
        options = bridge.options(h["video"].shape[2]) if self.shift == "random" else 1
        h = bridge(h, seconds, cond.get("valid", {}), shifts(chance, time, place=i, options=options))
        for name, track in tracks.items():
            track.h = h[name]


def latest(t: Parts) -> Tensor:
    """The largest time of each clip (b,), of any entry in any modality: that of what is not given."""
    return torch.stack([times.flatten(1).amax(1) if times.ndim > 1 else times for times in t.values()]).amax(0)


def check(video: UNet, audio: UNet, spans: Sequence[int]) -> None:
    """Refuse branches that do not go side by side."""
    for name, net in {"video": video, "audio": audio}.items():
        if net.modality != name:
            raise UserError(f"{name}.modality is {net.modality!r}; say modality: {name}.")
    if video.levels != audio.levels:
        raise UserError(
            f"The branches must have as many widths and blocks as each other, not {len(video.widths)} levels in "
            f"{len(video.blocks)} blocks and {len(audio.widths)} in {len(audio.blocks)}."
        )
    if len(spans) != len(video.widths) + 1:
        raise UserError(
            f"spans: {len(video.widths)} levels and the middle need {len(video.widths) + 1} numbers, not {len(spans)}."
        )
