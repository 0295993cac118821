"""The critic of an autoencoder: overlapping patches of a clip, each judged real or made (Isola et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.layers.conv import Conv, norm


class PatchDiscriminator(nn.Module):
    """(b c t h w) or (b c n) -> one logit a patch (b 1 t' h' w'), positive for real.

    Each width is a convolution of `stride`, the last and the head of stride 1; kernel 4 along the strided axes. Frames
    are judged one by one where the kernel in time is 1. Normalised point by point: a clip's logits are its own.
    """

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        kernel: Sequence[int] = (1, 4, 4),
        stride: Sequence[int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        sizes = [channels, *widths]
        strides = [*[stride] * (len(widths) - 1), (1, 1, 1)]
        pairs = list(zip(sizes, sizes[1:], strides))
        self.convs = nn.ModuleList(Conv(a, b, kernel=kernel, stride=s) for a, b, s in pairs)
        self.norms = nn.ModuleList([nn.Identity(), *(norm(width, 0) for width in widths[1:])])
        self.head = Conv(sizes[-1], 1, kernel=kernel)

    def forward(self, x: Tensor) -> Tensor:
        h = x[..., None, None] if x.ndim == 3 else x
        for conv, normed in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(normed(conv(h)), 0.2)
        return self.head(h)
