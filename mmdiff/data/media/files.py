"""Opening a media file safely and learning what is in it.

Only the listed containers are opened, only through the `file` protocol, within limits on pixels, streams and seconds.
A file that claims more than it holds is truncated and refused: a cut faststart mp4 opens and promises all its frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mmdiff.data import tars
from mmdiff.errors import UserError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

VIDEO = (".mp4", ".mov", ".mkv", ".webm", ".avi")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,wav,flac,mp3,ogg"
HONEST = ("matroska,webm", "flac")  # formats whose header states a length in seconds
SIGNATURES = {b"\x89PNG": "png_pipe", b"\xff\xd8\xff": "jpeg_pipe", b"BM": "bmp_pipe", b"RIFF": "webp_pipe"}
MAX_PIXELS, MAX_STREAMS, MAX_SECONDS = 1 << 26, 32, 24 * 3600.0


class BadMedia(UserError):
    """A file, or the asked window of it, cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Facts:
    """What a file holds; `picture` and `sound` are spans in seconds on the window's clock, None if there is none."""

    image: bool
    size: tuple[int, int] | None  # (h, w) as displayed
    fps: float
    picture: tuple[float, float] | None
    sound: tuple[float, float] | None
    rate: int
    channels: int


def probe(path: str | Path) -> Facts:
    """Read the headers, the first frame and where the streams end. Raises BadMedia: not media, empty, truncated."""
    image = Path(path).suffix.lower() in IMAGES
    with opened(path) as container:
        origin, picture, sound = second_zero(container), picture_of(container), sound_of(container)
        ends = {} if image else _ends(container, path)
        size = _first_size(container, picture, path) if picture else None
        return Facts(
            image=image,
            size=size,
            fps=float(picture.average_rate or 0) if picture and not image else 0.0,
            picture=((0.0, 0.0) if image else _span(picture, ends, origin)) if picture else None,
            sound=_span(sound, ends, origin) if sound else None,
            rate=sound.rate if sound else 0,
            channels=sound.channels if sound else 0,
        )


def load() -> None:
    """Import what decodes, so that processes forked later need not."""
    import av  # noqa: F401
    import torchaudio.functional  # noqa: F401


def name_of(container: InputContainer) -> str:
    """The path that the container was opened with."""
    return container.name.removeprefix("file:")


@contextmanager
def opened(path: str | Path) -> Iterator[InputContainer]:
    """The container of a whitelisted file; whatever FFmpeg or the disk objects to becomes a BadMedia."""
    import av

    path, options = Path(path), {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        if tars.size(path) == 0:
            raise BadMedia(f"{path}: the file is empty.")
        demuxer = _image_demuxer(path)
        if demuxer is None:
            options["format_whitelist"] = CONTAINERS
        with (
            tars.source(path) as source,
            av.open(source, format=demuxer, options=options, metadata_errors="replace") as container,
        ):
            if len(container.streams) > MAX_STREAMS or (container.duration or 0) > MAX_SECONDS * 1e6:
                raise BadMedia(f"{path}: more than {MAX_STREAMS} streams or {MAX_SECONDS:.0f} s.")
            yield container
    except (av.FFmpegError, OSError, MemoryError, ValueError, RuntimeError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadMedia(f"{path}: cannot be read ({reason}).") from error


def _image_demuxer(path: Path) -> str | None:
    """The demuxer of an image by its first bytes; forced, so that no name is ever expanded as a pattern."""
    if path.suffix.lower() not in IMAGES:
        return None
    head = tars.read(path, 4)
    found = next((demuxer for magic, demuxer in SIGNATURES.items() if head.startswith(magic)), None)
    if found is None:
        raise BadMedia(f"{path}: not a png, jpeg, webp or bmp image inside.")
    return found


def picture_of(container: InputContainer) -> VideoStream | None:
    """The first video stream that is not a song's cover, set to decode on one thread."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None or not 0 < stream.width * stream.height <= MAX_PIXELS:
                raise BadMedia(
                    f"{name_of(container)}: no decoder for its picture, or no size below {MAX_PIXELS} pixels."
                )
            if not stream.codec_context.is_open:
                stream.codec_context.thread_count = 1
            return stream
    return None


def sound_of(container: InputContainer) -> AudioStream | None:
    """The first audio stream."""
    stream = next(iter(container.streams.audio), None)
    if stream is not None and (stream.codec_context is None or stream.rate <= 0 or stream.channels <= 0):
        raise BadMedia(f"{name_of(container)}: no decoder for its sound.")
    return stream


def second_zero(container: InputContainer) -> float:
    """The time stamp, in seconds, of second 0."""
    stream = picture_of(container) or sound_of(container)
    if stream is None:
        raise BadMedia(f"{name_of(container)}: neither a picture nor a sound inside.")
    return _start(stream)


def base(stream: Stream) -> Fraction:
    """Seconds a tick of the stream's clock."""
    return stream.time_base or Fraction(1)


def _start(stream: Stream) -> float:
    return float((stream.start_time or 0) * base(stream))


def _span(stream: Stream, ends: dict[int, float], origin: float) -> tuple[float, float]:
    return _start(stream) - origin, ends.get(stream.index, _start(stream)) - origin


def _first_size(container: InputContainer, stream: VideoStream, path: str | Path) -> tuple[int, int]:
    """(h, w) of the first frame after its rotation."""
    if not container.format.name.endswith("_pipe"):  # the scan for the ends has moved the file's position
        container.seek(container.start_time or 0)
    frame = next(container.decode(stream), None)
    if frame is None:
        raise BadMedia(f"{path}: has a picture stream without a frame.")
    size = (frame.height, frame.width)
    return size[::-1] if round(frame.rotation / 90) % 2 else size


def _ends(container: InputContainer, path: str | Path) -> dict[int, float]:
    """Stream index -> time stamp in seconds of its end."""
    streams = [s for s in container.streams if s.type in ("video", "audio")]
    if container.format.name.startswith("mov") and all(s.duration and len(s.index_entries) for s in streams):
        size = tars.size(Path(path))
        last = [s.index_entries[len(s.index_entries) - 1] for s in streams]
        if any(entry.pos + entry.size > size for entry in last):
            raise BadMedia(f"{path}: truncated; its index points beyond the end of the file.")
        return {s.index: _start(s) + float((s.duration or 0) * base(s)) for s in streams}
    if container.format.name in ("avi", "wav") and _riff_bytes(path) > tars.size(Path(path)):
        raise BadMedia(f"{path}: truncated; its header states more bytes than the file has.")
    ends = _scanned(container, streams)
    claimed, found = (
        (container.duration or 0) / 1e6,
        max(ends.values(), default=0.0) - (container.start_time or 0) / 1e6,
    )
    if container.format.name in HONEST and found < claimed - 0.5:
        raise BadMedia(f"{path}: truncated; it claims {claimed:.2f} s and holds {found:.2f} s.")
    return ends


def _riff_bytes(path: str | Path) -> int:
    """How long the first RIFF chunk says that it is; 0 where it leaves that open, as a stream's does."""
    head = tars.read(Path(path), 8)
    size = int.from_bytes(head[4:], "little")
    return 8 + size if head[:4] == b"RIFF" and size < 0xFFFFFF00 else 0


def _scanned(container: InputContainer, streams: list[Stream]) -> dict[int, float]:
    """Ends by reading the last second of packets, or all of them where that misses a stream. Decodes nothing."""
    import av

    for target in (max(0, (container.duration or 0) - 1_000_000), 0):
        try:
            container.seek(target + (container.start_time or 0))
        except av.FFmpegError:  # no index: packets come from where the file stands
            pass
        ends: dict[int, float] = {}
        for packet in container.demux(streams):
            if packet.pts is not None:
                length = packet.duration or 1 / ((getattr(packet.stream, "average_rate", 0) or 1e9) * packet.time_base)
                end = float((packet.pts + length) * packet.time_base)
                ends[packet.stream_index] = max(ends.get(packet.stream_index, end), end)
        if len(ends) == len(streams):
            break
    return ends


def resample(audio: Tensor, *, rate: int, to: int) -> Tensor:
    """(c n) at `rate` -> (c ceil(n to / rate)) at `to` samples a second: band-limited and without delay."""
    if rate == to or audio.shape[-1] == 0:
        return audio
    from torchaudio.functional import resample as windowed_sinc

    return windowed_sinc(audio, rate, to)
