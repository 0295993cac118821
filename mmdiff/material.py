"""Files that a clip is made from: pictures, video and sound, read into a request's clips and its masks `held`.

The one idea: whatever the file is, it is cut to the window of the clip that is being made, and a latent step is held
only if all of it is given. A still picture is a video that stands still for one latent step.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmdiff.batch import Batch, ClipShape
from mmdiff.data import apart
from mmdiff.errors import UserError
from mmdiff.tasks import within


@dataclass(frozen=True)
class Material:
    """Paths of what is given, and how many new seconds follow `video` and `audio` (negative: come before them)."""

    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    audio: str | None = None
    extend: float | None = None

    def __post_init__(self) -> None:
        if self.extend is not None and not (self.video or self.audio):
            raise UserError("--extend says how much follows a clip: give the clip with --video or --audio.")
        if self.video and (self.image or self.last_image):
            raise UserError("--image and --last-image are frames of a picture, and --video is a picture: give one.")

    def __bool__(self) -> bool:
        return any((self.image, self.last_image, self.video, self.audio))

    def tasks(self) -> tuple[str, ...]:
        """The training tasks of which any one prepares a model for this."""
        if self.extend is not None:
            return ("extend",) if self.extend > 0 else ("extend_backward",)
        if self.image or self.last_image:
            return ("interpolate" if self.image and self.last_image else "first_frame" if self.image else "last_frame",)
        return ("video_to_audio",) if self.video else ("audio_to_video",)

    def hashes(self) -> dict[str, str]:
        """Path -> SHA-256 of the file, for the side file of a clip."""
        paths = [getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), str)]
        return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def given(material: Material, system: Any, shape: ClipShape) -> Batch:
    """What the files give of one clip of a shape; warns where the system was not trained for it.

    A system that is told the first frame (`shown`) is told `image`, and holds it too only if it has such a task.
    """
    trained, about = {name for name, odds in system.tasks.items() if odds > 0}, Batch()
    if material.image and system.shown:
        picture = apart.read_image(material.image, size=shape.size)  # (1 h w 3)
        about["frame"] = picture.permute(0, 3, 1, 2).float() / 127.5 - 1
        material = material if set(material.tasks()) & trained else replace(material, image=None)
    if not material:
        return about
    if not set(material.tasks()) & trained:
        warnings.warn(
            f"This model was not trained for the task {material.tasks()[0]}, so it may not go well with what is given; "
            "train with the system's key `tasks`.",
            stacklevel=2,
        )
    seconds = system.seconds(system.blank(Batch(text=[""], id=[""]), shape))
    held = read(material, shape, {name: midpoints[0] for name, midpoints in seconds.items()})
    return cast(Batch, {**about, **held})


def repeated(about: Batch, b: int) -> Batch:
    """What is given of one clip, for b clips."""
    names = [name for name in ("video", "audio", "frame") if name in about]
    clips = {name: about[name].expand(b, *about[name].shape[1:]) for name in names}  # type: ignore[literal-required]
    held = {"held": about["held"]} if "held" in about else {}
    return cast(Batch, {**clips, **held})


def read(material: Material, shape: ClipShape, seconds: Mapping[str, Tensor]) -> Batch:
    """One clip and its masks: "video" (1 3 t h w), "audio" (1 1 n), and "held" of the modalities that are given.

    `seconds` are midpoints of latent steps (t,) by modality. Raises UserError for files that cannot be used, for sound
    or picture that the model does not make, and where nothing would be left to make.
    """
    held: dict[str, Tensor] = {}
    found = Batch(held=held)
    keep = kept(material, shape)
    if material.image or material.last_image or material.video:
        _asked_of("video", seconds)
        found["video"], steps = _picture(material, shape, seconds["video"], keep)
        held["video"] = steps[None, None, :, None, None]
    if sound := material.audio or (material.video if material.extend is not None and "audio" in seconds else None):
        if material.audio or apart.probe(sound).sound:
            _asked_of("audio", seconds)
            found["audio"], steps = _sound(sound, shape, seconds["audio"], keep, backward=(material.extend or 0) < 0)
            held["audio"] = steps[None, None]
    if all(name in held and bool(held[name].all()) for name in seconds):
        raise UserError("Everything that the model makes is given, so nothing is left to make: give less of it.")
    return found


def kept(material: Material, shape: ClipShape) -> float:
    """Seconds of the window that the given clip fills."""
    keep = shape.seconds - abs(material.extend or 0.0)
    if keep <= 0:
        raise UserError(
            f"--extend {material.extend} leaves nothing of the given clip in a window of {shape.seconds:g} s: "
            "extend by less, or make the window longer with --seconds."
        )
    return keep


def _asked_of(name: str, seconds: Mapping[str, Tensor]) -> None:
    if name not in seconds:
        raise UserError(f"A file gives {name}, but this model makes {', '.join(seconds)} only.")


def _picture(material: Material, shape: ClipShape, seconds: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """-> (1 3 t h w), and which latent steps are held (t',)."""
    frames = torch.zeros(shape.frames, *shape.size, 3, dtype=torch.uint8)  # (t h w 3)
    steps = torch.zeros(len(seconds), dtype=torch.bool)
    step = shape.frames // len(seconds)  # frames of one latent step
    if material.image:
        frames[:step], steps[0] = apart.read_image(material.image, size=shape.size), True
    if material.last_image:
        frames[-step:], steps[-1] = apart.read_image(material.last_image, size=shape.size), True
    if material.video:
        n = round(keep * shape.fps)
        at = slice(0, n) if (material.extend or 0) >= 0 else slice(shape.frames - n, None)
        start = _start(material.video, "picture", keep, first=(material.extend or 0) <= 0)
        frames[at] = apart.read_video(material.video, start=start, fps=shape.fps, frames=n, size=shape.size)
        steps = _span(seconds, keep, shape.seconds, backward=(material.extend or 0) < 0)
    video = frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return video, steps


def _sound(path: str, shape: ClipShape, seconds: Tensor, keep: float, *, backward: bool) -> tuple[Tensor, Tensor]:
    """-> (1 1 n), and which latent steps are held; the step at a cut is not, for its windows reach over the cut."""
    whole = keep >= shape.seconds
    start = _start(path, "sound", keep, first=backward or whole)
    heard = apart.read_audio(path, start=start, seconds=keep, rate=shape.rate)  # (1 n')
    audio = torch.zeros(1, 1, shape.samples)
    n = min(heard.shape[1], shape.samples)
    audio[0, :, slice(shape.samples - n, None) if backward else slice(0, n)] = heard[:, :n]
    margin = 0.0 if whole or len(seconds) < 2 else float(seconds[1] - seconds[0])
    return audio, _span(seconds, keep - margin, shape.seconds, backward=backward)


def _span(seconds: Tensor, keep: float, length: float, *, backward: bool) -> Tensor:
    return within(seconds, length - keep, length) if backward else within(seconds, 0.0, keep)


def _start(path: str, what: str, keep: float, *, first: bool) -> float:
    """Where to read `keep` seconds: at the file's beginning, or so that they end where it ends."""
    span = cast("tuple[float, float] | None", getattr(apart.probe(path), what))
    if span is None:
        raise UserError(f"{path} holds no {what}.")
    if span[1] - span[0] < keep - 0.02:
        raise UserError(
            f"{path} has {span[1] - span[0]:.2f} s of {what}, but {keep:.2f} s of it are needed: make the clip shorter "
            "with --seconds, or more of it new with --extend."
        )
    return span[0] if first else max(span[0], span[1] - keep)
