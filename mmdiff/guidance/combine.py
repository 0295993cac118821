"""The algebra of guidance: functions from denoisers to a denoiser, so that samplers never hear of conditions.

Everything acts on x0-hat. For a fixed x and t, x0, noise, score and v are affine in one another, so that
`no + scale (yes - no)` says the same in each of them. What is a property of one clip's picture or sound (a norm, a
deviation, a quantile) is taken in each of `sizes` consecutive parts of a sample, which are its modalities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmdiff.process import Denoise, widen

Scale = float | Tensor  # one number, or one for every entry: a tensor that broadcasts against a sample
Interval = tuple[float, float]
ALWAYS: Interval = (0.0, 1.0)


def cfg(
    yes: Denoise,
    no: Denoise,
    *,
    scale: Scale,
    rescale: float = 0.0,
    interval: Interval = ALWAYS,
    sizes: Sequence[int] | None = None,
) -> Denoise:
    """no + scale (yes - no): classifier-free guidance (Ho and Salimans 2022); scale 1 is off and never calls `no`.

    With a weaker model as `no` this is autoguidance (Karras et al. 2024). `interval` bounds the t at which it acts,
    both ends included; elsewhere `yes` stands alone (Kynkaanniemi et al. 2024; costs one wait for the device a step).
    `rescale` in [0, 1] brings each part's standard deviation back to that of `yes` (Lin et al. 2023, eq. 15-16).
    """
    if isinstance(scale, float | int) and scale == 1:
        return yes

    def strong(with_condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        without = no(x, t)
        guided = without + scale * (with_condition - without)
        return guided if rescale == 0 else _restored(guided, with_condition, rescale, sizes)

    return during(yes, strong, interval)


def apg(
    yes: Denoise,
    no: Denoise,
    *,
    scale: Scale,
    parallel: float = 0.0,
    limit: float = math.inf,
    momentum: float = 0.0,
    interval: Interval = ALWAYS,
    sizes: Sequence[int] | None = None,
) -> Denoise:
    """Adaptive projected guidance (Sadat et al. 2024, alg. 1): high scales without saturated colours.

    The change yes - no loses all but `parallel` of its share along `yes`, is at most `limit` long, and is added to
    `momentum` times the one before (negative to push away from where it came): a walk has a function of its own.
    """
    if isinstance(scale, float | int) and scale == 1:
        return yes
    before: list[Tensor] = []

    def strong(with_condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        change = with_condition - no(x, t)
        if momentum:
            change = change + momentum * before[0] if before else change
            before[:] = [change]
        change = each_part(lambda c: c * (limit / c.norm(dim=1, keepdim=True)).clamp(max=1.0), sizes, change)
        along = each_part(_along, sizes, change, with_condition)
        return with_condition + (scale - 1) * (change - (1 - parallel) * along)

    return during(yes, strong, interval)


def away(yes: Denoise, *others: tuple[Denoise, Scale]) -> Denoise:
    """yes + the sum of (scale - 1) (yes - other): guidance away from several views at once (HaCohen et al. 2026)."""

    def guided(x: Tensor, t: Tensor) -> Tensor:
        said = yes(x, t)
        return said + sum((scale - 1) * (said - other(x, t)) for other, scale in others)

    return guided


def chained(views: Sequence[Denoise], scales: Sequence[Scale]) -> Denoise:
    """views[0] + the sum of scales[i] (views[i + 1] - views[i]), from the least told view to the one that knows all.

    Image and text each with a scale of its own (Brooks et al. 2023, eq. 3).
    """

    def guided(x: Tensor, t: Tensor) -> Tensor:
        said = [view(x, t) for view in views]
        steps = (scale * (more - less) for scale, less, more in zip(scales, said[:-1], said[1:], strict=True))
        return said[0] + sum(steps)

    return guided


def given(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Hold x0 at `known` where `mask` (bool; both broadcast against x): those entries enter clean, at their own t = 0.

    The denoiser then gets a time for every entry, of x's shape. One wrapper is image-to-video, extension,
    interpolation, inpainting, and sound from picture or picture from sound. Its fills are unbiased only if the training
    drew such mixed times too.
    """

    def held(x: Tensor, t: Tensor) -> Tensor:
        t = torch.where(mask, 0.0, widen(t, x)).expand_as(x)
        return torch.where(mask, known, denoise(torch.where(mask, known, x), t))

    return held


# ---- thresholds ----------------------------------------------------------------------------------------------------


def clamped(denoise: Denoise) -> Denoise:
    """Static threshold: x0-hat in [-1, 1] (Ho et al. 2020), for data that are there, such as pixels."""
    return lambda x, t: denoise(x, t).clamp(-1, 1)


def squeezed(
    denoise: Denoise, *, quantile: float, most: float = math.inf, sizes: Sequence[int] | None = None
) -> Denoise:
    """Dynamic threshold: x0-hat clamped to [-s, s] and divided by s, the `quantile` of |x0-hat| in each part.

    s is at least 1, where this is exactly `clamped`, and at most `most`; 1 makes it `clamped` altogether (Saharia et
    al. 2022, section 2.3).
    """

    def squeeze(x0: Tensor) -> Tensor:
        s = quantile_of(x0.abs(), quantile).clamp(1.0, most)[:, None]  # (b 1)
        return x0.clamp(-s, s) / s

    return lambda x, t: each_part(squeeze, sizes, denoise(x, t))


def quantile_of(x: Tensor, q: float) -> Tensor:
    """The q-quantile of each row of (b n), linear between ranks -> (b,). (torch.quantile takes at most 2^24 values.)"""
    place = q * (x.shape[1] - 1)
    low = math.floor(place)
    ends = [x.kthvalue(min(k, x.shape[1] - 1) + 1, 1).values for k in (low, low + 1)]
    return torch.lerp(ends[0], ends[1], place - low)


# ---- small things --------------------------------------------------------------------------------------------------


def during(yes: Denoise, strong: Callable[[Tensor, Tensor, Tensor], Tensor], interval: Interval) -> Denoise:
    """`strong(yes(x, t), x, t)` for t inside the interval, `yes` elsewhere."""

    def guided(x: Tensor, t: Tensor) -> Tensor:
        said = yes(x, t)
        if tuple(interval) == ALWAYS:
            return strong(said, x, t)
        inside = (t >= interval[0]) & (t <= interval[1])
        if not inside.any():
            return said
        return torch.where(widen(inside, x), strong(said, x, t), said)

    return guided


def each_part(function: Callable[..., Tensor], sizes: Sequence[int] | None, *xs: Tensor) -> Tensor:
    """Apply to the parts (b n') of samples (b ...) and put them together in the shape of the first."""
    sizes = [xs[0][0].numel()] if sizes is None else list(sizes)
    pieces = zip(*(x.flatten(1).split(sizes, 1) for x in xs), strict=True)
    return torch.cat([function(*piece) for piece in pieces], 1).view_as(xs[0])


def _restored(strong: Tensor, yes: Tensor, rescale: float, sizes: Sequence[int] | None) -> Tensor:
    def restore(s: Tensor, y: Tensor) -> Tensor:
        return s * (rescale * y.std(1, keepdim=True) / s.std(1, keepdim=True) + 1 - rescale)

    return each_part(restore, sizes, strong, yes)


def _along(change: Tensor, direction: Tensor) -> Tensor:
    """The part of each row of (b n) that lies along another; in float64, because the two are nearly parallel."""
    unit = torch.nn.functional.normalize(direction.double(), dim=1)
    return ((change.double() * unit).sum(1, keepdim=True) * unit).to(change.dtype)
