"""Clips longer than the window that a system makes at once: windows that overlap, dreamed one after the other.

The one idea: where a window overlaps what is made already, it is held clean, so that every window is an extension of
the one before. Latents are joined as numbers and decoded once, so that no codec ever meets a seam. A window counts its
seconds from its own start, as in training; of what lies before the overlap it knows nothing.
"""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.batch import Batch, ClipShape
from mmdiff.errors import UserError
from mmdiff.guidance import Guide
from mmdiff.sampling import Sampler
from mmdiff.systems.base import Report
from mmdiff.systems.diffusion import Diffusion
from mmdiff.systems.given import known, whole

Places = dict[str, slice]  # modality -> the latent steps of a window


@torch.no_grad()
def generate(
    system: Diffusion,
    batch: Batch,
    *,
    shape: ClipShape,
    window: ClipShape,
    overlap: float | None = None,
    seed: int,
    steps: int = 25,
    sampler: str | Sampler = "euler",
    guidance: float | Guide = 1.0,
    report: Report | None = None,
) -> Batch:
    """Clips of a shape in windows of another that share `overlap` seconds, half a window where it is None.

    A text "a | b" says a of the first half of the windows and b of the second. What the batch holds of the whole clip
    is held in every window. The first window has the noise of a clip that is no longer than it.
    """
    if not system.tasks.get("extend"):
        warnings.warn(
            "This model was not trained for the task extend, so a long clip may break where its windows meet; train "
            "with the system's key `tasks`.",
            stacklevel=2,
        )
    about = system.blank(batch, shape)
    shapes = system.latent_shapes(about)
    made = _own(known(about, system.codecs, shapes, system.device))  # name: (b c t ...)
    held = _own(whole(about.get("held", {}), shapes, len(about["text"])))
    all_places = places(shapes, system.latent_shapes(Batch(shape=window)), share=_share(overlap, window))
    for i, at in enumerate(all_places):
        part = _window(about, made, held, at, i, len(all_places))
        part = system.blank(cast(Batch, {**part, **_frame(system, about, made, at)}), window)
        told = None if report is None else _later(report, i * steps, len(all_places) * steps)
        x = system.dream(part, seed=seed, steps=steps, sampler=sampler, guidance=guidance, report=told)
        for name, z in system.parts(x, part).items():
            made[name][:, :, at[name]], held[name][:, :, at[name]] = z, True
    return system.decode(system.joined(made), about, keys=noise.keys(seed, "decode", 0, about["id"]))


def places(shapes: dict[str, tuple[int, ...]], window: dict[str, tuple[int, ...]], *, share: float) -> list[Places]:
    """Where windows lie whose latents share so much of their length; the last one ends where the clip ends.

    Cuts are those of the modality of the fewest steps, and must be cuts of the others too.
    """
    slow = min(window, key=lambda name: window[name][1])
    length, total = window[slow][1], shapes[slow][1]
    overlap = round(share * length)
    if not 1 <= overlap < length:
        raise UserError(f"Windows of {length} latent steps cannot share {share:g} of themselves; change --overlap.")
    firsts = [min(first, total - length) for first in range(0, total - overlap, length - overlap)]
    found = []
    for first in firsts:
        if any(first * shape[1] % length for shape in window.values()):
            raise UserError("Picture and sound have no common cut where windows of this clip meet; change --seconds.")
        begin = {name: first * shape[1] // length for name, shape in window.items()}
        found.append({name: slice(begin[name], begin[name] + shape[1]) for name, shape in window.items()})
    return found


def said(text: str, i: int, count: int) -> str:
    """What a text says of window i: its parts, which | divides, take turns of equal length."""
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > count:
        raise UserError(f"The prompt {text!r} has {len(parts)} parts, but the clip {count} windows: make it longer.")
    return parts[i * len(parts) // count]


def _window(about: Batch, made: dict[str, Tensor], held: dict[str, Tensor], at: Places, i: int, count: int) -> Batch:
    """The request for window i, with the noise of its own that its id names."""
    masks = {name: mask[:, :, at[name]] for name, mask in held.items()}
    part = Batch(
        text=[said(text, i, count) for text in about["text"]],
        id=[f"{name}/{i}" if i else name for name in about["id"]],
        held={name: mask for name, mask in masks.items() if mask.any()},
        latents={name: z[:, :, at[name]].clone() for name, z in made.items()},
    )
    return cast(Batch, {**part, **({"negative": about["negative"]} if "negative" in about else {})})


def _frame(system: Diffusion, about: Batch, made: dict[str, Tensor], at: Places) -> Batch:
    """The picture that a window is told to begin with, if the clip is told one: that one, or what is made already."""
    if "frame" not in about:
        return Batch()
    start = at["video"].start
    if start == 0:
        return Batch(frame=about["frame"])
    return Batch(frame=system.codecs["video"].decode(made["video"][:, :, start : start + 1])[:, :, 0])


def _own(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, to be written in."""
    return {name: part.clone() for name, part in parts.items()}


def _share(overlap: float | None, window: ClipShape) -> float:
    return 0.5 if overlap is None else overlap / window.seconds


def _later(report: Report, done: int, total: int) -> Report:
    """Steps of one window as steps of all."""
    return lambda step, steps: report(done + step, total)
