"""Reconstruction metrics: known answers, and worse for worse clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdiff import noise
from mmdiff.metrics.reconstruction import onset_error, pictures, psnr, sounds, spectral_distance, ssim

RATE = 8000


def clips() -> torch.Tensor:
    x = noise.normal((3, 2, 24, 20), keys=[0, 1])
    return F.avg_pool3d(x, (1, 5, 5), stride=1, padding=(0, 2, 2)).mul(3).tanh()


def strikes(*times: float) -> torch.Tensor:
    """Decaying tones that start at these seconds, (1 1 n) over one second."""
    t = np.arange(RATE) / RATE
    parts = [
        np.where(t >= at, np.exp(-(t - at).clip(0) / 0.05) * np.sin(2 * np.pi * 900 * (t - at)), 0) for at in times
    ]
    return torch.from_numpy(0.5 * np.sum(parts, 0)).float()[None, None]


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 1, 8, 8)
    assert torch.allclose(psnr(x, x + 0.2), torch.full((2,), 20.0))  # error .1 of the range
    assert (psnr(x, x) >= 120).all()


def test_ssim_of_equal_constant_and_opposite_clips() -> None:
    x = clips()
    assert torch.allclose(ssim(x, x), torch.ones(2))
    assert (ssim(x, -x) < 0).all()
    a, b, c = 0.6, 0.8, 0.01**2  # of constants only the comparison of brightness is left
    flat = torch.ones(1, 3, 1, 16, 16)
    assert float(ssim((2 * a - 1) * flat, (2 * b - 1) * flat)) == pytest.approx(
        (2 * a * b + c) / (a * a + b * b + c), rel=1e-5
    )


def test_ssim_is_the_textbook_formula_on_one_window() -> None:
    """A picture of 11 x 11 has one window; weighted moments by hand."""
    x, y = (noise.normal((1, 1, 11, 11), keys=[k])[0].tanh().double() for k in (0, 1))
    got = float(ssim(x[None], y[None]))
    x, y = (x + 1) / 2, (y + 1) / 2
    g = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2).double()
    w = torch.outer(g, g) / g.sum() ** 2
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, both = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
    c1, c2 = 0.01**2, 0.03**2
    want = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert got == pytest.approx(float(want), rel=1e-5)


def test_every_picture_metric_worsens_with_noise() -> None:
    x, e = clips(), noise.normal((3, 2, 24, 20), keys=[5, 6])
    rows = [pictures(x, x + size * e, perceptual=lambda a, b: (a - b).abs().flatten(1).mean(1)) for size in (0.1, 0.3)]
    for clip in range(2):
        assert rows[0]["psnr_db"][clip] > rows[1]["psnr_db"][clip]
        assert rows[0]["ssim"][clip] > rows[1]["ssim"][clip]
        assert rows[0]["tower_distance"][clip] < rows[1]["tower_distance"][clip]


def test_onsets_that_are_late_missing_or_kept() -> None:
    x = strikes(0.2, 0.6)
    assert onset_error(x, x, rate=RATE)[0] == 0
    assert onset_error(x, strikes(0.23, 0.63), rate=RATE)[0] == pytest.approx(30, abs=4)
    assert onset_error(x, strikes(0.2), rate=RATE)[0] == pytest.approx(500 / 2 / 1.5, abs=4)
    assert onset_error(x, 0 * x, rate=RATE)[0] == 500
    assert math.isnan(onset_error(0 * x, 0 * x, rate=RATE)[0])


def test_spectral_distance_in_decibels() -> None:
    x = strikes(0.2)
    assert spectral_distance(x, x, rate=RATE) == [0.0] and spectral_distance(0 * x, 0 * x, rate=RATE) == [0.0]
    hum = noise.normal((1, RATE), keys=[1]) * 0.2
    assert spectral_distance(hum, hum / 2, rate=RATE)[0] == pytest.approx(20 * math.log10(2), abs=0.1)
    assert set(sounds(x, x, rate=RATE)) == {"spectral_db", "onset_ms"}
