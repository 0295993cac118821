"""Statistics of the comparison: closed forms, equality with scipy, coverage where seeds and prompts both vary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mmdiff.ablate.compare import compare, difference, estimate, flip_test, holm, quantile, spread, two_sided
from mmdiff.noise import rng


def gauss(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape)


@pytest.mark.parametrize("degrees", [1.0, 2.0, 3.7, 30.0, 200.0])
def test_student_equals_scipy(degrees: float) -> None:
    for share in (0.6, 0.9, 0.975):
        assert quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-3)
    for t in (0.0, 0.3, -2.0, 5.0):
        assert two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1)])
def test_one_source_of_variance_is_the_paired_t_test(shape: tuple[int, int]) -> None:
    a, b = gauss(*shape) + 0.4, gauss(*shape, seed=1)
    known = stats.ttest_rel(a.ravel(), b.ravel())
    found = difference(a, b, seed=0)
    low, high = known.confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx(((a - b).mean(), low, high), rel=1e-4)
    assert found.p == pytest.approx(known.pvalue, rel=1e-3)


def test_crossed_variance_is_the_sum_of_both() -> None:
    """A table that is exactly row + column: no rest, so var = var_rows / S + var_columns / P."""
    rows, columns = gauss(5, 1), gauss(1, 60, seed=2)
    error, _ = spread(rows + columns)
    assert error**2 == pytest.approx(rows.var(ddof=1) / 5 + columns.var(ddof=1) / 60)


@pytest.mark.parametrize("seeds, share", [(3, 1.0), (3, 0.1), (8, 0.5)])
def test_its_intervals_cover(seeds: int, share: float) -> None:
    """95 % intervals hold the truth about 95 % of the time, also with 3 seeds that differ a lot."""
    hits, trials = 0, 150
    for trial in range(trials):
        table = (
            gauss(seeds, 1, seed=trial) * share + gauss(1, 30, seed=trial + 10**6) + gauss(seeds, 30, seed=-~trial * 7)
        )
        found = estimate(table)
        hits += found.low <= 0 <= found.high
    assert 0.9 <= hits / trials <= 1.0


def test_flipping_signs_is_exact_for_few_and_agrees_for_many() -> None:
    assert flip_test([1.0, 2.0, 3.0], seed=0) == pytest.approx(2 / 8)
    assert flip_test([1.0, -1.0], seed=0) == 1.0 and flip_test([0.0, 0.0], seed=0) == 1.0
    gaps = gauss(30) + 0.45
    assert flip_test(gaps, seed=0) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=0.02)
    assert flip_test(gaps, seed=3) == flip_test(gaps, seed=3)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.5, math.nan, 0.9])
    assert corrected[0] == 1.0 and math.isnan(corrected[1])


def test_pairing_removes_what_arms_share() -> None:
    """Seeds and prompts vary a lot, the effect does not: the means' intervals overlap, the difference is sharp."""
    shared = 3 * gauss(3, 20)
    values = {
        "first": {s: {"m": list(shared[s])} for s in range(3)},
        "second": {s: {"m": list(shared[s] + 0.5)} for s in range(3)},
    }
    means, gaps = compare(values, "m", seed=0)
    assert means["first"].high > means["second"].low
    assert gaps["second"].value == pytest.approx(0.5) and gaps["second"].low == pytest.approx(0.5)


def test_missing_values_and_failed_cells_are_left_out_of_both_sides() -> None:
    values = {
        "first": {0: {"m": [1.0, None, 3.0, 5.0]}, 1: {"m": [1.0, 2.0, 3.0, 5.0]}},
        "second": {0: {"m": [2.0, 9.0, 4.0, None]}},
        "third": {},
    }
    means, gaps = compare(values, "m", seed=0)
    assert set(means) == {"first", "second"} and set(gaps) == {"second"}
    assert gaps["second"].value == 1.0 and (gaps["second"].seeds, gaps["second"].prompts) == (1, 2)


def test_one_number_has_no_interval() -> None:
    found = estimate(np.array([[0.25]]))
    assert found.value == 0.25 and math.isnan(found.low) and found.row()["low"] is None
