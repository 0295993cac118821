"""Features of clips without downloads: random convolutions whose weights are drawn from a fixed key.

The one idea: a stack of random orthogonal filters is blind to nothing in particular, so distances between sets of its
features need no trained network, no download and no licence. One stack alone has a blind spot (a shuffle of frames
leaves every frame as it was), so each modality has two: what a frame looks like and how frames change, which pitches
sound and how they change. Random features for distances between sets follow Naeem et al., "Reliable fidelity and
diversity metrics for generative models" (2020), section 4; these are proxies and never called FID, FVD or FAD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmdiff import noise
from mmdiff.metrics.score import Clip

SEED = 2026  # of the filters; another seed is another metric
SIDE, FRAMES = 32, 4  # pixels to which frames are averaged down; frames of a clip that appearance looks at
HOP, BANDS, FLOOR_DB = 0.01, 32, -80.0  # s, log-spaced from 60 Hz to Nyquist, of full scale
WIDTHS = (32, 64, 64)
SPACES = {"appearance": "video", "motion": "video", "spectrum": "audio", "time": "audio"}  # space -> modality


def features(clips: Sequence[Clip], space: str) -> NDArray[np.float32]:
    """Features of clips in one of SPACES -> (clips, samples a clip, 128)."""
    return np.stack([_OF[space](clip) for clip in clips])


def appearance(clip: Clip) -> NDArray[np.float32]:
    """Each of FRAMES frames by itself -> (FRAMES, 128)."""
    x = frames(clip)  # c t h w
    at = ((np.arange(FRAMES) + 0.5) / FRAMES * x.shape[1]).astype(int)
    return _stack(x[:, at].transpose(0, 1), "appearance").numpy()  # t c h w


def motion(clip: Clip) -> NDArray[np.float32]:
    """Differences of neighbouring frames through 3-D filters -> (1, 128)."""
    x = frames(clip)  # c t h w
    return _stack(x.diff(dim=1)[None], "motion").numpy()


def spectrum(clip: Clip) -> NDArray[np.float32]:
    """The mean over time of each moment's spectrum through filters along frequency -> (1, 128)."""
    bands = loudness(clip)  # bands t
    across = _stack(bands.T[:, None], "spectrum", pool=False)  # t d
    return across.mean(0, keepdim=True).numpy()


def time(clip: Clip) -> NDArray[np.float32]:
    """How the loudness of all bands changes, through filters along time -> (1, 128)."""
    return _stack(loudness(clip).diff(dim=1)[None], "time").numpy()


_OF = {"appearance": appearance, "motion": motion, "spectrum": spectrum, "time": time}


def frames(clip: Clip) -> Tensor:
    """A clip's frames as (3 t SIDE SIDE) in [-1, 1], averaged down or enlarged."""
    x = torch.from_numpy(np.ascontiguousarray(clip[0])).permute(0, 3, 1, 2).float() / 127.5 - 1  # t c h w
    if tuple(x.shape[-2:]) != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x.transpose(0, 1)  # c t h w


def loudness(clip: Clip) -> Tensor:
    """Level in log-spaced bands, 0 at FLOOR_DB and 1 at full scale -> (BANDS, t)."""
    audio, rate = torch.from_numpy(np.array(clip[1], np.float32)), clip[3]
    hop = max(1, round(HOP * rate))
    size = 1 << max(5, (4 * hop - 1).bit_length())
    window = torch.hann_window(size)
    power = torch.stft(audio, size, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    power = (power.abs() * 2 / window.sum()) ** 2  # bins t
    level = 10 * torch.log10(_bands(rate, size) @ power + 1e-12)
    return ((level - FLOOR_DB) / -FLOOR_DB).clamp(0, 1)


@lru_cache(maxsize=8)
def _bands(rate: int, size: int) -> Tensor:
    """Triangular filters of equal area, at least one bin wide -> (BANDS, bins)."""
    edges = torch.logspace(math.log10(60.0), math.log10(rate / 2), BANDS + 2)
    bins = torch.arange(size // 2 + 1) * rate / size
    wide = (edges[2:] - edges[:-2]).clamp(min=2 * rate / size)[:, None]
    weight = (1 - (bins - edges[1:-1, None]).abs() / (wide / 2)).clamp(min=0)
    return weight / weight.sum(1, keepdim=True).clamp(min=1e-6)


@lru_cache(maxsize=8)
def _weights(name: str, dims: int, channels: int) -> tuple[Tensor, ...]:
    """Orthogonal filters of 3 taps a side for each layer -> (out in 3 ...)."""
    made, before = [], channels
    for layer, width in enumerate(WIDTHS):
        size = before * 3**dims
        flat = noise.normal((max(size, width),) * 2, keys=[noise.key(SEED, "features", name, layer)])[0].double()
        q, r = torch.linalg.qr(flat)
        rows = (q * r.diagonal().sign())[:width, :size]
        made.append((rows * math.sqrt(2)).float().reshape(width, before, *[3] * dims))
        before = width
    return tuple(made)


@torch.no_grad()
def _stack(x: Tensor, name: str, *, pool: bool = True) -> Tensor:
    """(b c ...) -> (b 128): three convolutions and ReLUs, the places pooled to mean and spread, or kept in part."""
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
    for layer, weight in enumerate(_weights(name, x.ndim - 2, x.shape[1])):
        x = F.relu(convolve(x, weight, stride=2 if layer else 1, padding=1))
    flat = x.flatten(2)  # b d places
    if pool:
        return torch.cat([flat.mean(-1), flat.std(-1, correction=0)], 1)  # b 2d
    half = flat.shape[-1] // 2  # low and high places apart: pitch is a place
    return torch.cat([flat[..., :half].mean(-1), flat[..., half:].mean(-1)], 1)  # b 2d
