"""Intervals cover what they should, repeat with the seed, and count prompts and not clips."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdiff.metrics.statistics import caution, difference, interval, per_prompt, resample
from mmdiff.noise import rng


def test_the_same_seed_gives_the_same_interval() -> None:
    values = rng(0).uniform(size=50).tolist()
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)


def test_the_interval_is_as_wide_as_theory_says() -> None:
    values = rng(0).standard_normal(400)
    got = interval(values.tolist(), seed=0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert got.value == pytest.approx(values.mean())
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.12)


def test_nineteen_of_twenty_intervals_cover_the_truth() -> None:
    hits = 0
    for i in range(200):
        got = interval(rng(i).uniform(size=60).tolist(), seed=i, draws=300)
        hits += got.low <= 0.5 <= got.high
    assert 0.89 <= hits / 200 <= 0.99


def test_samples_of_one_prompt_are_one_piece_of_evidence() -> None:
    values, prompts = [0.0, 1.0] * 10, ["a", "b"] * 10
    one, many = interval(values, seed=0, prompts=prompts), interval(values, seed=0)
    assert one.n == 2 and many.n == 20 and one.high - one.low > many.high - many.low


def test_nan_is_left_out() -> None:
    assert interval([1.0, math.nan, 0.0], seed=0).n == 2
    empty = interval([math.nan], seed=0)
    assert empty.n == 0 and math.isnan(empty.value)
    assert per_prompt([1.0, math.nan, math.nan], ["a", "a", "b"])[0] == 1


def test_paired_differences_see_what_separate_intervals_hide() -> None:
    base = rng(1).uniform(size=80)
    better = base + 0.05 + 0.01 * rng(2).standard_normal(80)
    gap = difference(better.tolist(), base.tolist(), seed=0)
    assert gap.low > 0 and interval(better.tolist(), seed=0).low < interval(base.tolist(), seed=0).high


def test_resampling_is_uniform() -> None:
    counts = np.bincount(resample(10, draws=2000, seed=0).ravel(), minlength=10) / 20000
    assert np.allclose(counts, 0.1, atol=0.01)


def test_few_prompts_are_a_caution() -> None:
    assert "12 prompts" in caution(12) and caution(0) and not caution(500)
