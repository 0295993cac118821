"""A clip that is dreamed, seen with more or less of what is known about it, and the walk from its noise to its latent.

The one idea: a view is the system's denoiser under a changed request or a changed condition, made when a guide looks at
it and not before, so that what no guide asks for costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mmdiff import noise as draws
from mmdiff.batch import Batch, Cond
from mmdiff.conditioners import emptied
from mmdiff.errors import UserError
from mmdiff.guidance import Guide, given
from mmdiff.process import Denoise
from mmdiff.sampling import Report, Sampler, start
from mmdiff.sampling import draws as takes_noise
from mmdiff.systems.given import known

Given = tuple[Tensor, Tensor]  # latents, and which of their entries are given (bool), both (b ...)
GIVEN = ("held", "latents")  # keys of a request that its bare view lacks, beside the clips that are held


@dataclass(frozen=True)
class ViewsOf:
    """The views (guidance.Views) of a request that the system has completed."""

    system: Any
    batch: Batch
    fixed: Given | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return cast(dict[str, tuple[int, ...]], self.system.latent_shapes(self.batch))

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.system.device)

    def look(self, name: str = "yes", *, by: Any = None, skip: Sequence[int] = ()) -> Denoise:
        """The denoiser of a view; every view but "bare" has the given entries clean."""
        request = {"yes": _same, "isolated": _same, "no": emptied, "bare": _bare}[name](self.batch)
        system = self.system if by is None else _fitting(by, self)
        changed: Callable[[Cond], Cond] = _isolated if name == "isolated" else _same
        if skip:
            _check_skip(system.denoiser.net, skip)
        if name == "isolated" and len(self.shapes) < 2:
            raise UserError("guidance: isolation needs a system of two modalities, and this one has one.")
        denoise = system.denoise(
            request, lambda cond: cast(Cond, {**changed(cond), **({"skip": skip} if skip else {})})
        )
        return denoise if self.fixed is None or name == "bare" else given(denoise, *self.fixed)


def walk(
    system: Any,
    batch: Batch,
    *,
    seed: int,
    steps: int,
    sampler: Sampler,
    guide: Guide,
    report: Report | None,
) -> Tensor:
    """A request that the system has completed -> its latents, packed as the denoiser sees them."""
    ids, shape, device, fixed = batch["id"], system.latent_shape(batch), system.device, fixed_entries(system, batch)
    batch = cast(Batch, {**batch, "chance": draws.uniform(keys=draws.keys(seed, "chance", 0, ids))})
    times, process = system.grid(steps), system.path(batch)
    denoise = kept(guide(ViewsOf(system, batch, fixed)), fixed)

    def fresh(i: int) -> Tensor:
        return draws.normal(shape, keys=draws.keys(seed, "fresh", i, ids), device=device)

    x = draws.normal(shape, keys=draws.keys(seed, "start", 0, ids), device=device)
    more = {"noise": fresh} if takes_noise(sampler) else {}
    x = start(x, process=process, times=times)
    x = sampler(denoise, x, process=process, times=times, report=report, **more)
    return x if fixed is None else torch.where(fixed[1], fixed[0], x)


def fixed_entries(system: Any, batch: Batch) -> Given | None:
    """What a request gives of its latents, or nothing."""
    held = system.held(batch)
    if held is None:
        return None
    return system.joined(known(batch, system.codecs, system.latent_shapes(batch), system.device)), held


def kept(denoise: Denoise, fixed: Given | None) -> Denoise:
    """The same estimate, but for the given entries, which no guide may move."""
    if fixed is None:
        return denoise
    clean, held = fixed
    return lambda x, t: torch.where(held, clean, denoise(x, t))


def _same(what: Any) -> Any:
    return what


def _bare(batch: Batch) -> Batch:
    gone = {*GIVEN, *batch.get("held", {})}
    return cast(Batch, {key: value for key, value in emptied(batch).items() if key not in gone})


def _isolated(cond: Cond) -> Cond:
    nobody = {name: torch.zeros_like(here) for name, here in cond["valid"].items()}
    return cast(Cond, {**cond, "valid": nobody})


def _fitting(other: Any, views: ViewsOf) -> Any:
    theirs, ours = other.to(views.device).latent_shapes(views.batch), views.shapes
    if theirs != ours:
        raise UserError(f"guidance: the weaker model has latents of {theirs}, but {ours} are being made.")
    return other


def _check_skip(net: Any, skip: Sequence[int]) -> None:
    counts = [module.skippable for module in net.modules() if hasattr(module, "skippable")]
    if not counts:
        raise UserError(f"guidance: the blocks of {type(net).__name__} cannot be skipped; choose a dit or a joint_dit.")
    if not all(0 <= i < min(counts) for i in skip):
        raise UserError(f"guidance: skip {list(skip)} has to name blocks from 0 to {min(counts) - 1}.")
