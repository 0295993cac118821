"""Files that the tests encode themselves: every case of the reader's policies is made here, through PyAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch


def grey(frames: int, height: int, width: int) -> np.ndarray:
    """(t h w 3): frame k is grey of level 10 + 4 k, so that a decoded frame tells its own index."""
    levels = 10 + 4 * np.arange(frames)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).astype(np.uint8)


def index_of(images: torch.Tensor) -> list[int]:
    """The inverse of `grey` on (t h w 3)."""
    return [round((float(image.float().mean()) - 10) / 4) for image in images]


def click(seconds: float, rate: int, at: Sequence[float], channels: int = 1) -> np.ndarray:
    """(c n) of silence with a 2 ms burst of 1 kHz at each of `at` seconds."""
    sound = np.zeros((channels, round(seconds * rate)), np.float32)
    burst = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(round(0.002 * rate)) / rate + 0.5)
    for time in at:
        first = round(time * rate)
        sound[:, first : first + len(burst)] = burst
    return sound


def _packets_of_video(
    out: av.container.OutputContainer,
    codec: str,
    images: np.ndarray,
    fps: int,
    pixels: str,
    stamps: Sequence[int] | None,
) -> None:
    stream = out.add_stream(codec, rate=fps, options={"threads": "1"})
    stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], pixels
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 if stamps else fps)
    packets: list[av.Packet] = []
    for index, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24" if image.shape[-1] == 3 else "rgba")
        frame.pts, frame.time_base = (stamps[index] if stamps else index), Fraction(1, 1000 if stamps else fps)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _packets_of_audio(out: av.container.OutputContainer, codec: str, sound: np.ndarray, rate: int) -> list[av.Packet]:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    stream = out.add_stream(codec, rate=rate)
    stream.layout = layout
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    form = stream.codec_context.format.name
    size = stream.codec_context.frame_size or 1024
    cutter = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=size)
    blocks = [*cutter.resample(frame), *cutter.resample(None)]
    return [packet for block in [*blocks, None] for packet in stream.encode(block)]


def encode_file(
    path: Path,
    images: np.ndarray | None,
    sound: np.ndarray | None = None,
    *,
    fps: int = 24,
    rate: int = 48000,
    video: str = "libx264",
    audio: str = "aac",
    pixels: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write images (t h w 3) and sound (c n) with any codecs; `stamps` in ms make a variable frame rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as out:
        packets = [] if images is None else _packets_of_video(out, video, images, fps, pixels, stamps)
        packets += [] if sound is None else _packets_of_audio(out, audio, sound, rate)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def rotated(path: Path) -> Path:
    """Turn a finished mp4 a quarter clockwise, as a telephone does, by the matrix of its first track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def garbled(path: Path, *, at: float = 0.5, count: int = 400) -> Path:
    """Overwrite bytes in the middle of the coded picture, and leave the index alone."""
    data = bytearray(path.read_bytes())
    body = data.index(b"mdat") + 8
    first = body + round((len(data) - body) * at)
    data[first : first + count] = bytes((37 * k + 11) % 251 for k in range(min(count, len(data) - first)))
    path.write_bytes(data)
    return path


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """(t h w 3) of a texture that drifts: it costs bits, so that a file has bytes to damage."""
    h, w = np.mgrid[:height, :width]
    images = [
        128 + 60 * np.sin(0.9 * h + 0.31 * k) + 60 * np.sin(0.7 * w * (1 + h / height) - 0.53 * k)
        for k in range(frames)
    ]
    return np.repeat(np.stack(images)[..., None], 3, -1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def studio() -> SimpleNamespace:
    """The functions above, for tests: importlib mode gives them no module to import."""
    return SimpleNamespace(
        click=click, encode=encode_file, garbled=garbled, grey=grey, index_of=index_of, moving=moving, rotated=rotated
    )


@pytest.fixture(scope="session")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip that nobody rendered for us: 640x480 H.264 at 24 fps, stereo AAC at 48 kHz, 3 s."""
    path = tmp_path_factory.mktemp("media") / "ordinary.mp4"
    return encode_file(path, grey(60, 480, 640), click(2.5, 48000, [1.0], channels=2))
