"""How noisy the modalities of one clip are together: the same object in training and in sampling.

The one idea: a coupling says when each modality is where it is on a path that all of them walk. In training it turns
uniforms into one time per modality; in sampling it turns the time of the grid into one time per modality (`at`), and
`Coupled` gives samplers the process of the whole sample. A shift that only training knew would be a silent divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.errors import UserError
from mmdiff.process import Process, Row, shift

Uniform = Callable[[str], Tensor]  # a purpose -> one uniform a clip (b,), the same whenever it is asked for
Draw = Callable[[Tensor], Tensor]  # uniforms (b,) -> times (b,)
Times = dict[str, Tensor]
Shapes = Mapping[str, Sequence[int]]  # modality -> shape of one latent, in the order in which they are packed


class Coupling(Protocol):
    """How the times of modalities hang together."""

    def __call__(self, uniform: Uniform, draw: Draw, names: Sequence[str]) -> Times:
        """Training: name -> times (b,), one for each name."""

    def at(self, t: Tensor, name: str) -> Tensor:
        """Sampling: the time of a modality when the grid stands at t (any shape); 0 and 1 stay where they are."""


@dataclass(frozen=True)
class SharedCoupling:
    """One time for all, as in MM-Diffusion (Ruan et al. 2023)."""

    def __call__(self, uniform: Uniform, draw: Draw, names: Sequence[str]) -> Times:
        return dict.fromkeys(names, draw(uniform("time")))

    def at(self, t: Tensor, name: str) -> Tensor:
        return t


@dataclass(frozen=True)
class ShiftedCoupling:
    """One time, shifted by a factor of each modality's own (1 if not named): above 1 it is noisier than the others."""

    factors: dict[str, float] = field(default_factory=dict)

    def __call__(self, uniform: Uniform, draw: Draw, names: Sequence[str]) -> Times:
        t = draw(uniform("time"))
        return {name: self.at(t, name) for name in names}

    def at(self, t: Tensor, name: str) -> Tensor:
        return shift(t, self.factors[name]) if name in self.factors else t


@dataclass(frozen=True)
class IndependentCoupling:
    """A time for each; the first modality's are those of the shared coupling. Sampled on the diagonal."""

    def __call__(self, uniform: Uniform, draw: Draw, names: Sequence[str]) -> Times:
        purposes = ["time", *(f"time/{name}" for name in names[1:])]
        return {name: draw(uniform(purpose)) for name, purpose in zip(names, purposes, strict=True)}

    def at(self, t: Tensor, name: str) -> Tensor:
        return t


class MixedCoupling:
    """One of several couplings for each clip, by odds (any positive numbers). Sampled by the first of them."""

    def __init__(self, parts: Sequence[Coupling], odds: Sequence[float]) -> None:
        if len(parts) != len(odds) or not parts or min(odds) < 0 or sum(odds) <= 0:
            raise UserError(f"coupling: {len(parts)} parts need as many odds, none negative; they are {list(odds)}.")
        self.parts, self.odds = list(parts), [o / sum(odds) for o in odds]

    def __call__(self, uniform: Uniform, draw: Draw, names: Sequence[str]) -> Times:
        chosen = self._choose(uniform("coupling"))[None]  # (1 b)
        drawn = [part(uniform, draw, names) for part in self.parts]
        return {name: torch.stack([times[name] for times in drawn]).gather(0, chosen)[0] for name in names}

    def _choose(self, u: Tensor) -> Tensor:
        """Uniforms (b,) -> the index of a part for each clip."""
        edges = torch.tensor(self.odds, device=u.device).cumsum(0)[:-1]
        return torch.bucketize(u, edges, right=True)

    def at(self, t: Tensor, name: str) -> Tensor:
        return self.parts[0].at(t, name)


# ---- one packed sample ---------------------------------------------------------------------------------------------


def sections(shapes: Shapes) -> dict[str, slice]:
    """Which entries of a packed sample (n,) belong to which modality."""
    ends = torch.tensor([0, *(math.prod(shape) for shape in shapes.values())]).cumsum(0).tolist()
    return {name: slice(begin, end) for name, begin, end in zip(shapes, ends[:-1], ends[1:], strict=True)}


def spread(times: Times, shapes: Shapes) -> Tensor:
    """name -> (b,) or (b n') to (b n) for a packed sample; one and the same time for all stays what it is."""
    first, *others = times.values()
    if all(t is first for t in others):
        return first
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return torch.cat([times[name].reshape(len(first), -1).expand(-1, size) for name, size in sizes.items()], 1)


def local(coupling: Coupling, t: Tensor, shapes: Shapes) -> Tensor:
    """Times of the grid, (b,) or (b n) -> what each modality calls them; t itself where all call it t."""
    parts = {name: t if t.ndim == 1 else t[:, part] for name, part in sections(shapes).items()}
    moved = {name: coupling.at(part, name) for name, part in parts.items()}
    return t if all(moved[name] is parts[name] for name in parts) else spread(moved, shapes)


@dataclass(frozen=True)
class Coupled:
    """The process of a packed sample whose modalities walk at their own pace: t (k,) -> a and s, (k n)."""

    process: Process
    coupling: Coupling
    shapes: Shapes

    def __call__(self, t: Tensor) -> Row:
        a, s = self.process(local(self.coupling, t, self.shapes))
        return a, s
