"""Guides, as a config names them: functions of views, which are the same denoiser told more or less.

The one idea: a guide asks for the views it needs by name and nobody makes the others, so that no guidance costs one
evaluation a step. "yes" is told everything, "no" has no text (or the negative prompt), "bare" has neither text nor
given frames, and in "isolated" the modalities do not hear each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from mmdiff.errors import UserError
from mmdiff.guidance.combine import ALWAYS, Interval, Scale, apg, away, cfg, chained, clamped, squeezed
from mmdiff.process import Denoise


class Views(Protocol):
    """What a guide may look at; the system that dreams makes it."""

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Modality -> shape of one latent, in the order in which a sample holds them."""

    @property
    def device(self) -> torch.device:
        """Where samples are."""

    def look(self, name: str = "yes", *, by: Any = None, skip: Sequence[int] = ()) -> Denoise:
        """A view by its name, of another system (`by`), or of a network whose blocks `skip` stand aside."""


Guide = Callable[[Views], Denoise]


@dataclass(frozen=True)
class Ramp:
    """A scale that goes from `first` to `last` along the frames of a clip (Blattmann et al. 2023, SVD: 1 to 2.5)."""

    first: float = 1.0
    last: float = 2.5


Amount = float | Ramp | Mapping[str, float | Ramp]  # for all, along frames, or by modality


def plain(
    views: Views, *, scale: Amount = 1.0, rescale: float = 0.0, interval: tuple[float, float] = ALWAYS
) -> Denoise:
    """Classifier-free guidance: away from the same clip without its text."""
    if _off(scale):
        return views.look()
    amount = laid_out(scale, views)
    return cfg(
        views.look(), views.look("no"), scale=amount, rescale=rescale, interval=_ends(interval), sizes=_sizes(views)
    )


def projected(
    views: Views,
    *,
    scale: Amount,
    parallel: float = 0.0,
    limit: float = math.inf,
    momentum: float = 0.0,
    interval: tuple[float, float] = ALWAYS,
) -> Denoise:
    """Adaptive projected guidance."""
    amount = laid_out(scale, views)
    return apg(
        views.look(),
        views.look("no"),
        scale=amount,
        parallel=parallel,
        limit=limit,
        momentum=momentum,
        interval=_ends(interval),
        sizes=_sizes(views),
    )


def auto(views: Views, *, weak: Guide, scale: Amount, interval: tuple[float, float] = ALWAYS) -> Denoise:
    """Autoguidance: away from a weaker model that is told the same (Karras et al. 2024)."""
    return cfg(views.look(), weak(views), scale=laid_out(scale, views), interval=_ends(interval))


def shallow(views: Views, *, skip: list[int]) -> Denoise:
    """A weaker model for nothing: some blocks of the network stand aside (Hyung et al. 2024, STG)."""
    return views.look(skip=skip)


def isolation(views: Views, *, scale: Amount, apart: Amount) -> Denoise:
    """Away from the text-free clip by `scale`, and from modalities that do not hear each other by `apart` (LTX-2)."""
    others = [(name, amount) for name, amount in (("no", scale), ("isolated", apart)) if not _off(amount)]
    if not others:
        return views.look()
    return away(views.look(), *((views.look(name), laid_out(amount, views)) for name, amount in others))


def image_and_text(views: Views, *, image: Amount, text: Amount) -> Denoise:
    """bare + image (no - bare) + text (yes - no): frames that are given and words, each with a scale of its own."""
    told = [views.look(name) for name in ("bare", "no", "yes")]
    return chained(told, [laid_out(image, views), laid_out(text, views)])


def static_threshold(views: Views, *, guide: float | Guide = 1.0) -> Denoise:
    """Another guide, clamped to [-1, 1]: for pixels."""
    return clamped(as_guide(guide)(views))


def dynamic_threshold(
    views: Views, *, guide: float | Guide = 1.0, quantile: float = 0.995, most: float = math.inf
) -> Denoise:
    """Another guide, squeezed into [-1, 1]: for pixels at high scales."""
    return squeezed(as_guide(guide)(views), quantile=quantile, most=most, sizes=_sizes(views))


GUIDES: dict[str, Callable[..., Denoise]] = {
    "cfg": plain,
    "apg": projected,
    "autoguidance": auto,
    "isolation": isolation,
    "image_and_text": image_and_text,
    "static_threshold": static_threshold,
    "dynamic_threshold": dynamic_threshold,
}


def as_guide(guide: float | Guide) -> Guide:
    """A number is plain guidance of that scale."""
    return partial(plain, scale=float(guide)) if isinstance(guide, float | int) else guide


def laid_out(amount: Amount, views: Views) -> Scale:
    """A scale for every entry of a sample, or the number that all of them have."""
    if isinstance(amount, float | int):
        return float(amount)
    by_name = dict.fromkeys(views.shapes, amount) if isinstance(amount, Ramp) else amount
    if set(by_name) != set(views.shapes):
        raise UserError(
            f"guidance: a scale by modality has to name {', '.join(views.shapes)}; it names {', '.join(by_name)}."
        )
    parts = [_over(by_name[name], shape).expand(tuple(shape)) for name, shape in views.shapes.items()]
    if len(parts) == 1:
        return parts[0].to(views.device)
    return torch.cat([part.flatten() for part in parts]).to(views.device)


def _over(amount: float | Ramp, shape: Sequence[int]) -> Tensor:
    """For a latent (c t ...): a number, or one for each of its frames."""
    if not isinstance(amount, Ramp):
        return torch.tensor(float(amount))
    return torch.linspace(amount.first, amount.last, shape[1]).reshape(-1, *[1] * (len(shape) - 2))


def _off(amount: Amount) -> bool:
    return isinstance(amount, float | int) and amount == 1


def _sizes(views: Views) -> list[int]:
    return [math.prod(shape) for shape in views.shapes.values()]


def _ends(interval: Sequence[float]) -> Interval:
    return float(interval[0]), float(interval[1])
