"""One window of one entry, under the policies of the recipe: the same seconds of picture and of sound.

Every way in which a clip can fall short has a policy with a name; what it refuses is a BadMedia with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import floor, inf
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmdiff.batch import ClipShape
from mmdiff.data import media
from mmdiff.data.buckets import Extent
from mmdiff.data.manifest import Entry
from mmdiff.data.media import BadMedia, Facts
from mmdiff.data.media.read import TOLERANCE, Reader
from mmdiff.errors import UserError

Modality = Literal["video", "audio"]
FULL_SCALE = 32767
CHOICES = {
    "window": ("random", "start", "center"),
    "crop": ("random", "center"),
    "short": ("drop", "loop", "hold"),
    "on_missing_audio": ("mask", "drop", "error"),
    "reader": ("pyav", "decord"),
}


@dataclass(frozen=True)
class Policy:
    """The shape of every sample and what happens to clips that do not fit it; names and defaults are those of `Clips`."""

    frames: int
    fps: float
    size: tuple[int, int]
    rate: int
    modalities: tuple[Modality, ...] = ("video", "audio")
    window: Literal["random", "start", "center"] = "random"
    crop: Literal["random", "center"] = "random"
    short: Literal["drop", "loop", "hold"] = "drop"
    on_missing_audio: Literal["mask", "drop", "error"] = "mask"
    reader: Reader = "pyav"

    @property
    def shape(self) -> ClipShape:
        """The window as a shape."""
        return ClipShape(self.frames, self.fps, self.size, self.rate)

    def of(self, shape: ClipShape) -> Policy:
        """The same policy for another shape."""
        return replace(self, frames=shape.frames, fps=shape.fps, size=shape.size)

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def check(self) -> None:
        """Raise UserError for a value that a recipe may not have."""
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise UserError(f"data.{name} is one of {', '.join(values)}, not {getattr(self, name)!r}.")
        if not self.modalities or set(self.modalities) - {"video", "audio"}:
            raise UserError(f"data.modalities is a list of video and / or audio, not {list(self.modalities)}.")
        if min(*self.size, self.frames, self.fps, self.rate) <= 0:
            raise UserError(
                "data.frames, fps and rate are above zero, and data.size is two numbers above zero: [h, w]."
            )


@dataclass(frozen=True)
class Draws:
    """Three numbers in (0, 1): where the window lies, and where the crop lies in (h, w)."""

    window: float
    crop: tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """uint8 (3 t h w) and int16 (1 n); `settled` if no draw has a say in it; `took` s, where somebody had a watch."""

    video: Tensor
    audio: Tensor
    valid: dict[str, bool]
    settled: bool
    took: float = 0.0


@dataclass(frozen=True)
class _Place:
    start: float  # s into the files
    frames: int  # frames that exist there: fewer than asked where a short clip is looped or held
    settled: bool


def read_window(entry: Entry, policy: Policy, draws: Draws, facts: Callable[[Path], Facts]) -> Reading:
    """Read what the policy wants of an entry. Raises BadMedia, or UserError for `on_missing_audio: error`."""
    picture, sound, file = _streams(entry, policy, facts)
    if picture is None and sound is None:
        raise BadMedia(f"{entry.video or entry.audio}: holds none of {', '.join(policy.modalities)}.")
    place = _place(entry, picture, sound, policy, draws.window)
    crop = draws.crop if policy.crop == "random" else (0.5, 0.5)
    video, settled = _video(entry, picture, policy, place, crop)
    audio = _audio(file, sound, policy, place)
    if picture is None and audio is None:
        raise BadMedia(f"{file}: has neither picture nor sound in the window.")
    n = round(policy.seconds * policy.rate)
    valid = {"video": picture is not None, "audio": audio is not None}
    samples = torch.zeros(1, n, dtype=torch.int16) if audio is None else (audio * FULL_SCALE).round().to(torch.int16)
    return Reading(video, samples, {name: valid[name] for name in policy.modalities}, settled and place.settled)


def extent(entry: Entry, policy: Policy, facts: Callable[[Path], Facts]) -> Extent:
    """What an entry offers to a window: as its manifest declares, or else as its file says. Raises BadMedia."""
    size = entry.facts.get("size")
    if isinstance(size, list) and len(size) == 2 and entry.duration and entry.video and "video" in policy.modalities:
        return Extent(entry.duration, (int(size[0]), int(size[1])))
    picture, sound, _ = _streams(entry, policy, facts)
    low, high = _span(entry, picture, sound)
    return Extent(high - low, picture.size if picture else None)


def _streams(entry: Entry, policy: Policy, facts: Callable[[Path], Facts]) -> tuple[Facts | None, Facts | None, Path]:
    """Facts of the picture and of the sound, None where absent or not wanted, and the file that holds the sound."""
    file = entry.audio or entry.video
    if file is None:
        raise BadMedia(f"{entry.id}: no file.")
    picture = facts(entry.video) if entry.video and "video" in policy.modalities else None
    sound = facts(file) if "audio" in policy.modalities else None
    return picture if picture and picture.picture else None, sound if sound and sound.sound else None, file


def _place(entry: Entry, picture: Facts | None, sound: Facts | None, policy: Policy, at: float) -> _Place:
    """The window's place in the clip's span."""
    low, high = _span(entry, picture, sound)
    if high == inf:  # a still image without sound
        return _Place(0.0, policy.frames, True)
    slack = high - low - policy.seconds
    if slack >= -0.5 / policy.fps - 1e-6:  # the middle of the last frame is still in the clip
        share = {"start": 0.0, "center": 0.5, "random": at}[policy.window]
        return _Place(low + max(0.0, slack) * share, policy.frames, slack <= 1e-6 or policy.window != "random")
    file = entry.video or entry.audio
    if policy.short == "drop" or high <= low:
        length = max(0.0, high - low)
        raise BadMedia(
            f"{file}: lasts {length:.2f} s, the window {policy.seconds:.2f} s (data.short is {policy.short})."
        )
    return _Place(low, max(1, floor((high - low) * policy.fps + 0.5)), True)


def _span(entry: Entry, picture: Facts | None, sound: Facts | None) -> tuple[float, float]:
    """Seconds of the picture, or of the sound where there is no moving picture; a still never ends."""
    span = (0.0, inf)
    if picture and picture.picture and not picture.image:
        span = picture.picture
    elif sound and sound.sound:
        span = sound.sound
    return max(span[0], entry.start), min(span[1], entry.start + (entry.duration or inf))


def _video(
    entry: Entry, picture: Facts | None, policy: Policy, place: _Place, crop: tuple[float, float]
) -> tuple[Tensor, bool]:
    """(3 t h w), and whether the crop is settled."""
    if picture is None or entry.video is None or picture.size is None:
        return torch.zeros(3, policy.frames, *policy.size, dtype=torch.uint8), True
    if picture.image:
        video = media.read_image(entry.video, size=policy.size, crop=crop)  # (1 h w 3)
    else:
        video = media.read_video(
            entry.video,
            start=place.start,
            fps=policy.fps,
            frames=place.frames,
            size=policy.size,
            crop=crop,
            reader=policy.reader,
        )  # (t h w 3)
    steps = torch.arange(policy.frames)
    steps = steps % len(video) if policy.short == "loop" else steps.clamp(max=len(video) - 1)
    same = picture.size[0] * policy.size[1] == picture.size[1] * policy.size[0]
    return video[steps].permute(3, 0, 1, 2).contiguous(), same or policy.crop != "random"  # (3 t h w)


def _audio(file: Path, sound: Facts | None, policy: Policy, place: _Place) -> Tensor | None:
    """(1 n), or None where the window has no sound and the policy is to mask it."""
    if "audio" not in policy.modalities:
        return None
    seconds = place.frames / policy.fps
    if sound is None or sound.sound is None:
        _unless_masked(f"{file}: has no sound", policy)
        return None
    late, early = sound.sound[0] - place.start, place.start + seconds - sound.sound[1]
    if max(late, early) > TOLERANCE:
        _unless_masked(f"{file}: its sound lacks {max(late, early):.2f} s of the window", policy)
        return None
    audio = media.read_audio(file, start=place.start, seconds=seconds, rate=policy.rate)  # (1 m)
    n = round(policy.seconds * policy.rate)
    if place.frames == policy.frames:
        return audio
    if policy.short == "hold":
        return torch.nn.functional.pad(audio, (0, n - audio.shape[1]))  # (1 n)
    steps = ((torch.arange(n, dtype=torch.float64) / policy.rate) % seconds * policy.rate).floor().long()
    return audio[:, steps.clamp(max=audio.shape[1] - 1)]  # (1 n)


def _unless_masked(reason: str, policy: Policy) -> None:
    if policy.on_missing_audio == "drop":
        raise BadMedia(f"{reason} (data.on_missing_audio is drop).")
    if policy.on_missing_audio == "error":
        raise UserError(f"{reason}. data.on_missing_audio is error; mask trains such clips on their picture alone.")
