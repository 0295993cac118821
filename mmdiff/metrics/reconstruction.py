"""How much of a clip a codec keeps: errors of pixels, structure and features, of pitch and of the moments of impacts.

The one idea: a codec is judged on held-out clips against themselves, one value a clip, so that means of two codecs over
the same clips can be compared pair by pair (`statistics.difference`). Pictures are (b 3 t h w) and sounds (b 1 n), both
in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.metrics.sync import HORIZON, pair
from mmdiff.world.listen import read_onsets, spectrogram

Values = dict[str, list[float]]  # metric -> one value a clip
SIGMA, WINDOW = 1.5, 11  # of SSIM's Gaussian, in pixels
FLOOR_DB = -60.0  # of full scale: below it nothing counts as sound


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """-10 log10(mean squared error / 2^2) of each clip -> (b,) dB; 2 is the range of [-1, 1]."""
    return -10 * (((x - y) / 2).square().flatten(1).mean(1).clamp(min=1e-12)).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of frames (Wang et al. 2004, equation 13), mean over a clip -> (b,), 1 for equal clips.

    Of brightness in [0, 1], since its first factor has no meaning where means change sign. Their constants (K 0.01 and
    0.03, a Gaussian window of 11 pixels), each colour by itself, no padding; a shorter side shortens the window.
    """
    b, _, _, h, w = x.shape
    down, across = (_gauss(min(WINDOW, n)).to(x.device) for n in (h, w))
    x, y = ((z.double().flatten(0, 2)[:, None] + 1) / 2 for z in (x, y))  # (b*c*t 1 h w)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, down.reshape(1, 1, -1, 1)), across.reshape(1, 1, 1, -1))

    mx, my, c1, c2 = mean(x), mean(y), 0.01**2, 0.03**2
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    likeness = (2 * mx * my + c1) * (2 * both + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return likeness.reshape(b, -1).mean(1).float()


def _gauss(n: int) -> Tensor:
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    weights = (-0.5 * (at / SIGMA).square()).exp()
    return weights / weights.sum()


def spectral_distance(x: Tensor, y: Tensor, *, rate: int) -> list[float]:
    """Mean |difference| of log spectrograms in dB where either is above -60 dB of full scale, one a clip (b 1 n).

    Windows of 32 ms every 4 ms; 0 for two silences.
    """
    return [_spectral(a.numpy(), b.numpy(), rate) for a, b in zip(x.float().cpu()[:, 0], y.float().cpu()[:, 0])]


def _spectral(x: np.ndarray, y: np.ndarray, rate: int) -> float:
    a, b = (np.maximum(10 * np.log10(spectrogram(z, rate) + 1e-20), FLOOR_DB) for z in (x, y))
    heard = np.maximum(a, b) > FLOOR_DB
    return float(np.abs(a - b)[heard].mean()) if heard.any() else 0.0


def onset_error(x: Tensor, y: Tensor, *, rate: int) -> list[float]:
    """Milliseconds by which the onsets of y miss those of x, one a clip; an onset without a partner misses by 500 / 2.

    (sum |e| + w u / 2) / (n + u / 2) over n pairs and u single onsets, w = 500 ms; nan where neither has an onset.
    """
    return [_onsets(a.numpy(), b.numpy(), rate) for a, b in zip(x.float().cpu()[:, 0], y.float().cpu()[:, 0])]


def _onsets(x: np.ndarray, y: np.ndarray, rate: int) -> float:
    a, b = sorted(read_onsets(x, rate)), sorted(read_onsets(y, rate))
    pairs = pair(a, b, window=HORIZON)
    single = len(a) + len(b) - 2 * len(pairs)
    if not a and not b:
        return math.nan
    missed = sum(abs(a[i] - b[j]) for i, j in pairs) + HORIZON * single / 2
    return 1000 * missed / (len(pairs) + single / 2)


def pictures(x: Tensor, y: Tensor, *, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None) -> Values:
    """Every picture metric of clips x and their reconstructions y; `perceptual` is a trained tower's distance."""
    found = {"psnr_db": psnr(x, y), "ssim": ssim(x, y)}
    if perceptual is not None:
        found["tower_distance"] = perceptual(x, y)
    return {name: values.tolist() for name, values in found.items()}


def sounds(x: Tensor, y: Tensor, *, rate: int) -> Values:
    """Every sound metric of clips x and their reconstructions y."""
    return {
        "spectral_db": spectral_distance(x, y, rate=rate),
        "onset_ms": onset_error(x, y, rate=rate),
    }
