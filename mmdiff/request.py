"""What is asked for: prompts and settings, as a command line or a program says them.

The one idea: a request names everything that a clip depends on but the checkpoint, so that it can be written beside the
clip and asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mmdiff.batch import ClipShape
from mmdiff.build import sampling_parts
from mmdiff.config import spoken
from mmdiff.errors import UserError
from mmdiff.material import Material
from mmdiff.train.settings import Sample

CHOICES = ("steps", "guidance", "sampler")  # what a run has a choice of its own for


@dataclass(frozen=True)
class Settings:
    """How clips are made; None leaves a choice to the run's own config (its `sample` section)."""

    seed: int = 0
    steps: int | None = None
    guidance: Any = None  # a number, or the mapping of a part
    sampler: Any = None  # a name, or the mapping of a part
    ema: bool = True
    scale: int = 1  # whole-number enlargement of the written pictures, for players that show 32x32 as a dot
    negative: str | None = None  # what guidance moves away from, instead of from the empty prompt
    fps: float | None = None  # these three are the run's own where they are None
    size: tuple[int, int] | None = None  # (h, w)
    seconds: float | None = None
    overlap: float | None = None  # seconds that the windows of a longer clip share; None is half a window
    material: Material = Material()  # files that the clip is made from

    def resolved(self, sample: Sample) -> Settings:
        """Fill what was not chosen from the run's `sample` section, and refuse what cannot be."""
        choices = {name: getattr(sample, name) for name in CHOICES if getattr(self, name) is None}
        settings = replace(self, **choices)
        sampling_parts(settings.arguments())
        if min(1 if settings.steps is None else settings.steps, self.scale) < 1:
            raise UserError(f"Steps ({settings.steps}) and scale ({self.scale}) have to be 1 or more.")
        return settings

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Settings:
        """From a namespace that holds settings and material by their names, among others."""
        size = named["size"]
        given = Material(**{field.name: named[field.name] for field in fields(Material)})
        own = {field.name: named[field.name] for field in fields(cls) if field.name not in ("size", "material")}
        own |= {name: spoken(named[name]) for name in ("guidance", "sampler") if named[name] is not None}
        return cls(**own, size=None if size is None else read_size(size), material=given)

    @property
    def plain(self) -> bool:
        """Whether the clips have the shape that the system was built for."""
        return self.fps is None and self.size is None and self.seconds is None

    def window(self, own: ClipShape) -> ClipShape:
        """What is made at once: as long as the system's own clips."""
        return replace(self, seconds=None).shape(own)

    def arguments(self) -> dict[str, Any]:
        """What `System.generate` is told."""
        choices = {name: getattr(self, name) for name in CHOICES}
        return {"seed": self.seed} | {name: value for name, value in choices.items() if value is not None}

    def shape(self, own: ClipShape) -> ClipShape:
        """The shape of the clips: the system's own but for what was chosen."""
        fps = own.fps if self.fps is None else self.fps
        frames = own.frames if self.seconds is None and self.fps is None else round((self.seconds or own.seconds) * fps)
        if frames < 1 or fps <= 0 or (self.size and min(self.size) < 1):
            raise UserError(f"A clip of {frames} frames at {fps} fps and size {self.size} cannot be made.")
        return replace(own, fps=fps, frames=frames, size=self.size or own.size)


def read_size(text: str) -> tuple[int, int]:
    """HxW, such as 32x48 -> (h, w)"""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise UserError(f"The size {text!r} must be height x width in pixels, such as 32x48.")
    return int(sides[0]), int(sides[1])


@dataclass(frozen=True)
class Job:
    """One clip to make: its place in the output, its prompt and the id that its noise belongs to."""

    index: int
    prompt: str
    id: str


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line; empty lines and lines that start with # are left out.

    Raises UserError where the file is missing, is not text, or holds no prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The prompt file {path} cannot be read ({error}). It is a UTF-8 text, one prompt a line."
        ) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise UserError(f"The prompt file {path} holds no prompt. Write one prompt a line.")
    return prompts


def plan(prompts: Sequence[str], number: int) -> list[Job]:
    """`number` jobs a prompt; ids depend on the place of the prompt, so that an edited prompt keeps its noise."""
    if number < 1 or not prompts:
        raise UserError(
            f"There is nothing to make: {len(prompts)} prompts, {number} clips each. "
            "Give --prompt TEXT or --prompts FILE, and a --number from 1."
        )
    clean = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]  # lone surrogates cannot be encoded
    pairs = [(place, prompt, n) for place, prompt in enumerate(clean) for n in range(number)]
    return [Job(index, prompt, f"{place}-{n}") for index, (place, prompt, n) in enumerate(pairs)]
