"""Tensors to files: H.264 + AAC mp4, png and 16-bit wav; the same input always gives the same bytes."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdiff.files import replacing
from mmdiff.data.media.files import resample
from mmdiff.errors import UserError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def write_clip(
    path: str | Path,
    video: Tensor | None,
    *,
    fps: float = 0.0,
    audio: Tensor | None = None,
    rate: int = 0,
    crf: int = 12,
) -> None:
    """Write video uint8 (t h w 3) and / or audio float32 (c n) in [-1, 1] as an H.264 yuv420p + AAC mp4.

    The moov atom comes first, colours are tagged BT.709, and the same input gives the same bytes (one encoder thread,
    no dates, no versions). An odd height or width is padded by repeating its last row or column, because 4:2:0 has no
    odd sizes; sound at a rate that AAC does not know is resampled to the next higher one that it does.
    """
    import av

    if video is None and audio is None:
        raise UserError(f"{path}: a clip needs a picture or a sound; both are missing.")
    with replacing(path) as staged:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(staged), "w", format="mp4", options=options) as out:
            packets = []
            if video is not None:
                packets += _encode_video(out, video, fps=fps, crf=crf)
            if audio is not None:
                packets += _encode_audio(out, audio, rate=rate)
            for packet in sorted(
                packets, key=lambda p: (p.dts or 0) * (p.time_base or 0)
            ):  # interleaved, so that players can stream
                out.mux(packet)


def _encode_video(out: OutputContainer, video: Tensor, *, fps: float, crf: int) -> list[Packet]:
    """(t h w 3) uint8 -> packets of a new H.264 stream."""
    import av

    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != torch.uint8 or video.shape[0] == 0 or fps <= 0:
        raise UserError(
            f"write_clip wants uint8 (t h w 3) and fps > 0, not {video.dtype} {tuple(video.shape)} at {fps} fps."
        )
    video = _even(video)
    per_second = Fraction(fps).limit_denominator(1001)
    options = {"crf": str(crf), "preset": "medium", "threads": "1", "flags": "+bitexact"}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # measured: its kernels change the bytes of 1 clip in 50
        options["x264-params"] = "asm=avx2"
    stream = out.add_stream("libx264", rate=per_second, options=options)
    stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
    context.color_range = 1  # limited
    packets = []
    for index, image in enumerate(video.cpu().numpy()):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = index, 1 / per_second
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _even(video: Tensor) -> Tensor:
    """Repeat the last row and column where the size is odd."""
    if video.shape[1] % 2:
        video = torch.cat([video, video[:, -1:]], 1)
    if video.shape[2] % 2:
        video = torch.cat([video, video[:, :, -1:]], 2)
    return video


def _encode_audio(out: OutputContainer, audio: Tensor, *, rate: int) -> list[Packet]:
    """(c n) float32 -> packets of a new AAC stream; the edit list hides its priming."""
    import av

    audio = audio.detach().float().cpu()
    if audio.ndim != 2 or audio.shape[0] not in (1, 2) or audio.shape[1] == 0 or rate <= 0:
        raise UserError(
            f"write_clip wants audio (c n) with one or two channels and a rate, not {tuple(audio.shape)} at {rate} Hz."
        )
    known = next((r for r in AAC_RATES if r >= rate), AAC_RATES[-1])
    audio = resample(audio, rate=rate, to=known).clamp(-1, 1)
    layout = "mono" if audio.shape[0] == 1 else "stereo"
    stream = out.add_stream("aac", rate=known, options={"flags": "+bitexact", "threads": "1"})
    stream.layout, stream.bit_rate = layout, min(96_000, 5 * known) * audio.shape[0]
    frame = av.AudioFrame.from_ndarray(audio.contiguous().numpy(), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = known, 0, Fraction(1, known)
    return list(stream.encode(frame)) + list(stream.encode(None))


def write_png(path: str | Path, image: Tensor) -> None:
    """Write uint8 (h w 3) as a png."""
    import av

    with replacing(path) as staged, av.open(str(staged), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "rgb24"
        frame = av.VideoFrame.from_ndarray(image.contiguous().cpu().numpy(), format="rgb24")
        for packet in stream.encode(frame) + stream.encode(None):
            out.mux(packet)


def write_wav(path: str | Path, audio: Tensor, *, rate: int) -> None:
    """Write float (c n) in [-1, 1] as 16-bit PCM; +-1 is +-32767."""
    pcm = (audio.detach().float().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)  # (c n)
    with replacing(path) as staged, wave.open(str(staged), "wb") as out:
        out.setnchannels(pcm.shape[0])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm.T.contiguous().numpy().astype("<i2").tobytes())


def pixels(video: Tensor) -> Tensor:
    """(3 t h w) in [-1, 1] -> (t h w 3) uint8."""
    video = ((video.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return video.permute(1, 2, 3, 0).contiguous()  # (t h w 3)


def write_any(stem: Path, video: Tensor | None, audio: Tensor | None, *, fps: float, rate: int) -> Path:
    """One frame without sound -> png, sound alone -> wav, everything else -> mp4; returns `stem` with its suffix."""
    if video is None and audio is not None:
        write_wav(path := stem.with_suffix(".wav"), audio, rate=rate)
    elif video is not None and audio is None and len(video) == 1:
        write_png(path := stem.with_suffix(".png"), video[0])
    else:
        write_clip(path := stem.with_suffix(".mp4"), video, fps=fps, audio=audio, rate=rate)
    return path
