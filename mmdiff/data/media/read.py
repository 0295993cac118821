"""Windows of files to tensors: frames by time stamp, samples by time stamp, damage as an error and never as grey.

A seek is an economy, not a semantics: where a seek lands too late or among frames that lean on absent ones, the file is
read again from its start, so that a window's values do not depend on the way to it.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil, gcd
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.data import tars
from mmdiff.data.media.files import BadMedia, base, name_of, opened, picture_of, resample, second_zero, sound_of

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

Reader = Literal["pyav", "decord"]
TIE = 1e-3  # s by which a frame's stamp may be late: Matroska rounds stamps to milliseconds
TOLERANCE = 0.15  # s of sound that may be missing in a window: encoders drop up to one block (128 ms at 8 kHz)
LEAD = 0.05  # s of sound read on both sides of a window, so that the resampler sees no edge inside it
FULL = {torch.uint8: 128.0, torch.int16: 2.0**15, torch.int32: 2.0**31, torch.int64: 2.0**63}


def read_video(
    path: str | Path,
    *,
    start: float,
    fps: float,
    frames: int,
    size: tuple[int, int] | None = None,
    crop: tuple[float, float] = (0.5, 0.5),
    reader: Reader = "pyav",
) -> Tensor:
    """The window of `frames / fps` seconds from `start` -> uint8 (t h w 3) RGB.

    Frame k is the source frame on screen at start + (k + 0.5) / fps. Rotation is applied, deep colour cut to 8 bits,
    transparency laid on black, pixels taken as square. `size` and `crop`: see `fit`. decord cannot rotate: rotated
    files are read by PyAV whichever reader is named. Raises BadMedia: unreadable, damaged or ended in the window.
    """
    times = [start + (k + 0.5) / fps for k in range(frames)]
    with opened(path) as container:
        stream = picture_of(container)
        if stream is None:
            raise BadMedia(f"{path}: no picture inside.")
        if reader == "decord" and not next(container.decode(stream)).rotation:
            return _decord(Path(path), times, partial(fit, size=size, crop=crop))
        if reader == "decord":
            container.seek(container.start_time or 0)
        return _pyav(container, stream, times, lambda frame: fit(_rgb(frame), size=size, crop=crop))


def read_image(
    path: str | Path, *, size: tuple[int, int] | None = None, crop: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """An image file -> uint8 (1 h w 3) RGB: a video of one frame."""
    with opened(path) as container:
        frame = next(container.decode(container.streams.video[0]), None)
        if frame is None or frame.is_corrupt:
            raise BadMedia(f"{path}: the image is damaged.")
        return fit(_rgb(frame), size=size, crop=crop)[None]  # (1 h w 3)


def fit(image: Tensor, *, size: tuple[int, int] | None, crop: tuple[float, float]) -> Tensor:
    """uint8 (h w 3) -> (*size 3): scaled, antialiased, until it just covers `size`, then cut.

    `crop` in [0, 1]^2 is where the cut lies between the first and the last possible row and column.
    """
    if size is None or tuple(image.shape[:2]) == tuple(size):
        return image
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    covering = tuple(max(want, round(have * scale)) for want, have in zip(size, image.shape[:2], strict=True))
    planes = image.permute(2, 0, 1)[None]  # (1 3 h w)
    planes = F.interpolate(planes, covering, mode="bilinear", antialias=True)
    top, left = (round((c - s) * at) for c, s, at in zip(covering, size, crop, strict=True))
    return planes[0, :, top : top + size[0], left : left + size[1]].permute(1, 2, 0).contiguous()  # (h w 3)


def _rgb(frame: VideoFrame) -> Tensor:
    """A decoded frame -> uint8 (h w 3), turned upright."""
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        rgba = torch.from_numpy(frame.to_ndarray(format="rgba"))
        image = (rgba[..., :3].int() * rgba[..., 3:].int() + 127).div(255, rounding_mode="floor").to(torch.uint8)
    else:
        image = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    return torch.rot90(image, round(frame.rotation / 90) % 4).contiguous()


def _pyav(
    container: InputContainer, stream: VideoStream, times: list[float], convert: Callable[[VideoFrame], Tensor]
) -> Tensor:
    """Decode forward once and keep what is on screen at each of `times` -> (t h w 3)."""
    origin = second_zero(container)
    if times[0] > 1:
        container.seek(int((origin + times[0]) / base(stream)), stream=stream)
        try:
            return torch.stack(_on_screen(_timeline(container, stream, origin), times, convert, name_of(container)))
        except BadMedia:  # the seek may be to blame: once more, from the start
            container.seek(container.start_time or 0)
    return torch.stack(_on_screen(_timeline(container, stream, origin), times, convert, name_of(container)))


def _timeline(
    container: InputContainer, stream: VideoStream, origin: float
) -> Iterator[tuple[float, float, VideoFrame]]:
    """(begin, end, frame) in the order of the screen, in seconds."""
    step = 1 / float(stream.average_rate or 25)
    for frame in container.decode(stream):
        begin = (frame.time if frame.time is not None else origin) - origin
        if frame.is_corrupt or frame.time is None:
            raise BadMedia(f"{name_of(container)}: its picture is damaged near {begin:.2f} s.")
        yield begin, begin + (float(frame.duration * base(stream)) or step), frame


def _on_screen(
    timeline: Iterator[tuple[float, float, VideoFrame]],
    times: list[float],
    convert: Callable[[VideoFrame], Tensor],
    name: str,
) -> list[Tensor]:
    """The image that is on screen at each of the ascending `times`; each frame is converted at most once."""
    images: list[Tensor] = []
    shown: VideoFrame | None = None
    image, end = torch.empty(0), 0.0

    def emit(until: float) -> None:
        nonlocal image
        while shown is not None and len(images) < len(times) and times[len(images)] < until:
            image = image if image.numel() else convert(shown)
            images.append(image)

    for begin, following, frame in timeline:
        emit(begin - TIE)
        if len(images) == len(times):
            return images
        if shown is None and times[0] < begin - TIE:
            raise BadMedia(
                f"{name}: the picture begins at {begin:.2f} s, after the window's frame at {times[0]:.2f} s."
            )
        shown, image, end = frame, torch.empty(0), following
    emit(end + TIE)
    if len(images) < len(times):
        raise BadMedia(f"{name}: the picture ends at {end:.2f} s, before the frame at {times[len(images)]:.2f} s.")
    return images


def _decord(path: Path, times: list[float], convert: Callable[[Tensor], Tensor]) -> Tensor:
    """The same choice of frames from decord's table of time stamps -> (t h w 3)."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        file = io.BytesIO(tars.read(path)) if tars.inside(path) else str(path)
        video = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1)
        spans = video.get_frame_timestamp(list(range(len(video))))  # (frames 2)
        begins, end = (spans[:, 0] - spans[0, 0]).tolist(), float(spans[-1, 1] - spans[0, 0])
        if times[-1] > end + TIE:
            raise BadMedia(f"{path}: the picture ends at {end:.2f} s, before the window's frame at {times[-1]:.2f} s.")
        index = [max(0, bisect_right(begins, time + TIE) - 1) for time in times]
        images = torch.from_numpy(video.get_batch(index).asnumpy())  # (t h w 3)
    except (decord.DECORDError, IndexError, ValueError) as error:
        raise BadMedia(f"{path}: decord cannot read it ({str(error).splitlines()[0]}).") from error
    return torch.stack([convert(image) for image in images])


def read_audio(path: str | Path, *, start: float, seconds: float, rate: int) -> Tensor:
    """The window of `seconds` from `start` -> float32 (1 n) in [-1, 1], n = round(seconds * rate).

    Channels are mixed to one (see `_mono`), then resampled by torchaudio. Up to TOLERANCE of missing sound at the
    window's ends is zeros; more raises BadMedia, as do damage and a file without sound.
    """
    with opened(path) as container:
        stream = sound_of(container)
        if stream is None:
            raise BadMedia(f"{path}: no sound inside.")
        source, origin = stream.rate, second_zero(container)
        period = source // gcd(source, rate)
        lead = ceil(LEAD * source / period) * period  # a whole number of samples at both rates
        first, inside = round(start * source) - lead, ceil(seconds * source)
        far = start > 5 and container.format.name != "mp3"  # mp3 has no index: its time stamps after a seek are guesses
        if far:
            container.seek(int((origin + start - 1) / base(stream)), stream=stream)
        samples, begin, end = _placed(_blocks(container, stream, origin), first, inside + 2 * lead)
        if far and begin > 0:
            container.seek(container.start_time or 0)
            samples, begin, end = _placed(_blocks(container, stream, origin), first, inside + 2 * lead)
    missing = max(0, begin - lead) + max(0, lead + inside - end)
    if missing > TOLERANCE * source:
        raise BadMedia(f"{path}: {missing / source:.2f} s of sound are missing in the window of {seconds:.2f} s.")
    cut, n = lead * rate // source, round(seconds * rate)
    return resample(samples[None], rate=source, to=rate)[:, cut : cut + n].clamp(-1, 1)  # (1 n)


def _placed(blocks: Iterator[tuple[int, Tensor]], first: int, length: int) -> tuple[Tensor, int, int]:
    """Lay (position, (m,)) blocks on a grid that begins at `first` -> (length,), begin and end of what was covered."""
    grid, begin, end = torch.zeros(length), length, 0
    for position, block in blocks:
        at = position - first
        if at >= length:
            break
        piece = block[max(0, -at) : length - at]
        if at + len(block) > 0:
            begin, end = min(begin, max(0, at)), max(end, max(0, at) + len(piece))
            grid[max(0, at) : max(0, at) + len(piece)] = piece
    return grid, begin, end


def _blocks(container: InputContainer, stream: AudioStream, origin: float) -> Iterator[tuple[int, Tensor]]:
    """(index of the first sample counted from second 0, (m,) mono) of every decoded block.

    Stamps that disagree with the running count by less than 30 ms are rounding (Matroska, AVI) and are ignored.
    """
    expected: int | None = None
    for frame in container.decode(stream):
        if frame.is_corrupt or frame.sample_rate != stream.rate:
            raise BadMedia(f"{name_of(container)}: its sound is damaged or changes its rate.")
        stamped = round((frame.time - origin) * stream.rate) if frame.time is not None else expected
        if expected is None or (stamped is not None and abs(stamped - expected) > 0.03 * stream.rate):
            expected = stamped or 0
        yield expected, _mono(frame)
        expected += frame.samples


def _mono(frame: AudioFrame) -> Tensor:
    """One decoded block -> (m,) float32: left and right weigh 1, centre and surround 0.707, the bass channel 0."""
    samples = torch.from_numpy(frame.to_ndarray())
    if not frame.format.is_planar:
        samples = samples.reshape(frame.samples, -1).T  # (c m)
    full = FULL.get(samples.dtype)
    audio = samples.float() if full is None else (samples.float() - (128 if full == 128 else 0)) / full
    names = [channel.name for channel in frame.layout.channels]
    weights = torch.tensor(
        [1.0 if name in ("FL", "FR", "DL", "DR") else 0.0 if "LF" in name else 0.707 for name in names]
    )
    weights = weights if weights.sum() > 0 else torch.ones(len(names))
    return (weights / weights.sum()) @ audio  # (m,)
