"""Copies are found, fresh clips are not, and the share found is the share copied."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmdiff.metrics.memorisation import Bar, compare, describe, nearest
from mmdiff.metrics.score import Clip
from mmdiff.noise import rng
from mmdiff.world.clip import make_clip
from mmdiff.world.things import TIERS


def world(split: str, number: int) -> list[Clip]:
    made = [make_clip(seed=8, index=i, split=split, tier=TIERS["cpu"]) for i in range(number)]
    return [(one.video, one.audio, 8.0, 8000) for one in made]


@pytest.fixture(scope="module")
def training() -> list[Clip]:
    return world("train", 200)


@pytest.fixture(scope="module")
def fresh() -> list[Clip]:
    return world("iid", 180)


@pytest.fixture(scope="module")
def bar(training: list[Clip], fresh: list[Clip]) -> Bar:
    return Bar.of(describe(training), describe(fresh[:120]))


def share(values: list[float]) -> float:
    return float(np.nanmean(values))


def test_nearest_is_the_nearest() -> None:
    x, y = (torch.from_numpy(rng(i).integers(0, 256, (n, 50), dtype=np.uint8)) for i, n in enumerate((7, 2000)))
    distance, place = nearest(x, y)
    gaps = np.sqrt(((x.numpy()[:, None].astype(float) - y.numpy()) ** 2).mean(-1)) / 255
    assert np.allclose(distance, gaps.min(1)) and np.array_equal(place, gaps.argmin(1))
    assert nearest(y[5:6], y)[0][0] == 0


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_the_share_found_is_the_share_copied(modality: str, training: list[Clip], fresh: list[Clip], bar: Bar) -> None:
    new = fresh[120:]
    for copied in (0.0, 0.1, 1.0):
        n = round(copied * len(new))
        marks, _ = compare(training[:n] + new[n:], bar)
        assert share(marks[f"memorised_{modality}"]) == pytest.approx(copied, abs=0.07)


def test_a_worn_copy_is_a_copy_and_its_pair_is_named(training: list[Clip], bar: Bar) -> None:
    video, audio, fps, rate = training[11]
    worn = np.clip(video.astype(float) * 0.98 + 3 * rng(0).standard_normal(video.shape), 0, 255).astype(np.uint8)
    marks, pairs = compare([(worn, audio, fps, rate)], bar)
    assert marks["memorised_video"] == [1.0]
    assert [(p.clip, p.training) for p in pairs if p.modality == "video"] == [(0, 11)]
    assert [p.distance for p in pairs] == sorted(p.distance for p in pairs)


def test_silence_is_nobodys_copy(training: list[Clip], bar: Bar) -> None:
    video, audio, fps, rate = training[0]
    marks, pairs = compare([(video, np.zeros_like(audio), fps, rate)], bar)
    assert math.isnan(marks["memorised_audio"][0]) and {p.modality for p in pairs} == {"video"}
    assert bar.limits["audio"] > 0
