"""Where the branches of a joint U-Net meet: attention across modalities in windows that are shifted at random (RS-MMA).

Both clips are cut into as many segments as the picture has frames. A segment of one modality reads `span` segments of
the other, beginning `shift` segments after its own and going round at the end (Ruan et al. 2023, MM-Diffusion, section
3.3). The shift is an argument: whoever calls makes it from a number that belongs to the clip, so that a pass can be
repeated. What is written is zero at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.layers.attention import attention
from mmdiff.layers.rope import grid_angles, rotate
from mmdiff.models.unet_blocks import grid, silent, tokens

Parts = dict[str, Tensor]  # by modality
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it fall evenly on the circle


def segments(frames: int, span: int, shift: Tensor) -> Tensor:
    """Which segments each segment reads: shift (b,) -> (b frames span), (f + shift + j) mod frames."""
    first = torch.arange(frames, device=shift.device) + shift[:, None]  # (b f)
    return (first[..., None] + torch.arange(span, device=shift.device)) % frames


def shifts(chance: Tensor, t: Tensor, *, place: int, options: int) -> Tensor:
    """A shift in [0, options) for each clip, from its chance (b,), its time t (b,) and the place of the layer.

    Layers and the steps of a sampler get different ones; the two passes of guidance, which share t, the same.
    """
    u = (chance.double() + GOLDEN * place + 1000 * GOLDEN * t.double()).frac()
    return (u * options).long().clamp(max=options - 1)


class Crossing(nn.Module):
    """h -> h + what each modality reads of the other; grids (b c t h w), with seconds (b t) of their time steps.

    span: segments that are read; at least the number of frames reads everything. clock: `seconds` rotates queries and
    keys by the time of their tokens (layers/rope.py); `none` leaves them as MM-Diffusion does.
    """

    again = ("forward",)  # worth computing twice to save memory; the shift is drawn before

    def __init__(self, widths: Mapping[str, int], *, heads: int, groups: int, span: int, clock: str) -> None:
        super().__init__()
        self.heads, self.span, self.clock = heads, span, clock
        inner = min(widths.values())
        if inner % (2 * heads):
            raise UserError(f"heads: a meeting of width {inner} does not divide into {heads} heads of an even size.")
        self.norm = nn.ModuleDict({name: nn.GroupNorm(groups, width, eps=1e-5) for name, width in widths.items()})
        self.qkv = nn.ModuleDict({name: nn.Linear(width, 3 * inner) for name, width in widths.items()})
        self.out = nn.ModuleDict({name: silent(nn.Linear(inner, width)) for name, width in widths.items()})

    def forward(self, h: Parts, seconds: Parts, valid: Parts, shift: Tensor) -> Parts:
        """shift (b,); of what a clip lacks (valid False) exactly nothing is written."""
        frames, other = h["video"].shape[2], {"video": "audio", "audio": "video"}
        made = {name: self._made(name, z, seconds[name], frames) for name, z in h.items()}
        read = {name: windowed(made[name][0], *made[other[name]][1:], span=self.span, shift=shift) for name in h}
        return {name: z + self._written(name, read[name], z, valid.get(other[name])) for name, z in h.items()}

    def options(self, frames: int) -> int:
        """How many shifts there are: those of a window that does not go round."""
        return max(1, frames - self.span + 1)

    def _made(self, name: str, x: Tensor, seconds: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a grid, 3 x (b f p k e) with p tokens a segment."""
        if x.shape[2] % frames:
            raise UserError(
                f"meet: {x.shape[2]} time steps of {name} cannot be cut into {frames} segments, one a frame; choose "
                "strides that leave a multiple."
            )
        q, k, v = self.qkv[name](tokens(self.norm[name](x))).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if self.clock == "seconds":
            angles = grid_angles(seconds, (1, 1), head=q.shape[-1])  # (b t 1 1 e/2)
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = (z.flatten(1, 3).unflatten(1, (frames, -1)) for z in (q, k, v))  # (b f p k e)
        return q, k, v

    def _written(self, name: str, y: Tensor, like: Tensor, here: Tensor | None) -> Tensor:
        """What was read (b n d) -> what is added to the grid (b c t h w)."""
        b, _, *size = like.shape
        y = self.out[name](y).reshape(b, *size, -1)
        return grid(y if here is None else y * here.to(y.dtype)[:, None, None, None, None])


def windowed(q: Tensor, k: Tensor, v: Tensor, *, span: int, shift: Tensor) -> Tensor:
    """q (b f p k e) reads the windows of k and v (b f m k e) -> (b f*p k*e)."""
    b, frames = q.shape[:2]
    if span >= frames:  # one window, which is everything
        q, k, v = (z.flatten(1, 2)[:, None] for z in (q, k, v))  # (b 1 n k e)
    else:
        seen, clip = segments(frames, span, shift), torch.arange(b, device=q.device)[:, None, None]
        k, v = (z[clip, seen].flatten(2, 3) for z in (k, v))  # (b f s*m k e)
    y = attention(*(z.flatten(0, 1).transpose(1, 2) for z in (q, k, v)))  # (b*f k p e)
    return y.transpose(1, 2).reshape(b, q.shape[1] * q.shape[2], -1)
