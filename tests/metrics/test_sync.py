"""Matching of times: optimal, one-to-one, and fair to silence and spam."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest

from mmdiff.metrics.sync import HORIZON, auroc, match, pair, skill
from mmdiff.noise import rng


def brute(video: list[float], audio: list[float], window: float, bonus: float) -> float:
    """The greatest sum of gains over all one-to-one pairings."""
    best = 0.0
    for number in range(min(len(video), len(audio)) + 1):
        for some in combinations(video, number):
            for others in permutations(audio, number):
                gains = [window - abs(a - v) for v, a in zip(some, others, strict=True)]
                if all(gain >= 0 for gain in gains):
                    best = max(best, sum(gain + bonus for gain in gains))
    return best


@pytest.mark.parametrize("bonus", [0.0, 3.0])
def test_pairs_are_the_best_of_all(bonus: float) -> None:
    for i in range(60):
        draw = rng(i)
        video, audio = (sorted(draw.uniform(0, 1, int(draw.integers(0, 5))).tolist()) for _ in range(2))
        found = pair(video, audio, window=0.3, bonus=bonus)
        assert len({v for v, _ in found}) == len({a for _, a in found}) == len(found)
        got = sum(0.3 - abs(audio[a] - video[v]) + bonus for v, a in found)
        assert got == pytest.approx(brute(video, audio, 0.3, bonus))


def test_a_perfect_pair() -> None:
    found = match([0.2, 0.9], [0.9, 0.2])
    assert (found.f1, found.lag, found.mae, found.cost) == (1, 0, 0, 0)


def test_lag_is_positive_where_sound_is_late() -> None:
    found = match([0.2, 0.9, 1.5], [0.28, 0.98, 1.58])
    assert found.f1 == 0 and found.lag == pytest.approx(0.08) and found.mae == pytest.approx(0.08)
    assert found.cost == pytest.approx(0.08)


def test_cost_counts_the_unmatched() -> None:
    assert match([0.5], [0.6, 1.9]).cost == pytest.approx((0.1 + HORIZON * 1 / 2) / (1 + 1 / 2))
    assert match([0.1], [1.9]).cost == pytest.approx(HORIZON)


def test_silence_fails_where_something_is_stated_and_says_nothing_elsewhere() -> None:
    assert match([], []).f1 == 0 and match([], []).cost == HORIZON
    nothing = match([], [], expected=False)
    assert all(math.isnan(value) for value in (nothing.f1, nothing.lag, nothing.mae, nothing.cost))
    for expected in (True, False):
        assert match([0.4], [], expected=expected).f1 == 0 and match([], [0.4], expected=expected).cost == HORIZON


def test_spam_costs_precision() -> None:
    spam = np.arange(0, 2, 0.1).tolist()
    found = match([0.51, 1.02], spam)
    assert len(found.pairs) == 2 and found.f1 == pytest.approx(2 * 2 / 22)


def test_skill_is_one_at_the_oracle_and_zero_at_chance() -> None:
    assert skill(0.9, shuffled=0.2, oracle=0.9) == 1 and skill(0.2, shuffled=0.2, oracle=0.9) == 0
    assert math.isnan(skill(0.5, shuffled=0.5, oracle=0.5))


def test_auroc() -> None:
    assert auroc([3, 4], [1, 2]) == 1 and auroc([1, 1], [1]) == 0.5 and auroc([0], [1]) == 0
    assert math.isnan(auroc([], [1.0]))
