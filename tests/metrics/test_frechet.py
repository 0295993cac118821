"""Distances: closed forms, no bias where none should be, and blind spots that a second space sees."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdiff.metrics.diversity import entropy, vendi
from mmdiff.metrics.features import SPACES, features
from mmdiff.metrics.frechet import bandwidth, frechet, frechet_interval, mmd, mmd_interval
from mmdiff.metrics.score import Clip
from mmdiff.noise import rng
from mmdiff.world.clip import make_clip
from mmdiff.world.things import TIERS


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    a = rng(0).standard_normal((40_000, 3)) * [1.0, 2.0, 0.5]
    b = rng(1).standard_normal((40_000, 3)) * [2.0, 1.0, 0.5] + [1.0, 0.0, -2.0]
    assert frechet(a, b) == pytest.approx(1 + 4 + 1 + 1, rel=0.03)  # squared gaps of means and of deviations
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_does_not_hang_on_the_coordinates() -> None:
    a, b = (rng(i).standard_normal((300, 6)) @ rng(9 + i).standard_normal((6, 6)) for i in range(2))
    turn = np.linalg.qr(rng(5).standard_normal((6, 6)))[0]
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b)) == pytest.approx(frechet(b, a))


def test_the_floor_of_frechet_falls_as_one_over_n() -> None:
    floors = [np.mean([frechet(rng(2 * i).standard_normal((n, 8)), rng(2 * i + 1).standard_normal((n, 8)))
                       for i in range(20)]) for n in (100, 400)]  # fmt: skip
    assert floors[0] / floors[1] == pytest.approx(4, rel=0.25)


def test_the_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    gaps = [mmd(rng(2 * i).standard_normal((30, 4)), rng(2 * i + 1).standard_normal((30, 4)), width=2.0)
            for i in range(200)]  # fmt: skip
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / math.sqrt(200)
    far = mmd(rng(0).standard_normal((30, 4)) + 2, rng(1).standard_normal((30, 4)), width=2.0)
    assert far > 10 * np.std(gaps)
    assert bandwidth(np.zeros((4, 2))) == 1.0 and bandwidth(np.array([[0.0], [3.0]])) == 3.0


def test_intervals_hold_the_value_and_narrow_with_prompts() -> None:
    b = rng(0).standard_normal((400, 1, 4))
    for measure in (frechet_interval, mmd_interval):
        wide, narrow = (
            measure(rng(1).standard_normal((n, 1, 4)) + 1, b, prompts=[str(i) for i in range(n)], seed=0)
            for n in (50, 400)
        )
        assert wide.low < wide.value < wide.high and narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
        assert (wide.n, narrow.n) == (50, 400)


def test_vendi_counts_and_entropy_is_in_bits() -> None:
    apart = np.eye(6) * 100
    assert vendi(apart, width=1.0) == pytest.approx(6) and vendi(
        np.repeat(apart[:2], 3, 0), width=1.0
    ) == pytest.approx(2)
    assert vendi(np.ones((5, 3))) == pytest.approx(1)
    assert entropy([1] * 50) == 0 and entropy([i % 4 for i in range(4000)]) == pytest.approx(2, abs=1e-3)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    tier = TIERS["cpu"]
    made = [make_clip(seed=6, index=i, split="iid", tier=tier) for i in range(96)]
    return [(one.video, one.audio, tier.fps, tier.rate) for one in made]


def ratios(made: list[Clip], clips: list[Clip]) -> dict[str, float]:
    """Each space's distance of changed clips from other real ones, as a multiple of that of the unchanged."""
    half = len(clips) // 2
    found = {}
    for space in SPACES:
        real = features(clips[half:], space).reshape(-1, 128)
        floor = frechet(features(clips[:half], space).reshape(-1, 128), real)
        found[space] = frechet(features(made, space).reshape(-1, 128), real) / floor
    return found


def test_each_space_sees_what_the_other_is_blind_to(clips: list[Clip]) -> None:
    half = clips[: len(clips) // 2]
    shuffled = ratios([(v[rng(i).permutation(len(v))], a, f, r) for i, (v, a, f, r) in enumerate(half)], clips)
    assert shuffled["appearance"] < 1.5 and shuffled["motion"] > 10
    recoloured = ratios([(np.ascontiguousarray(v[..., ::-1]), a, f, r) for v, a, f, r in half], clips)
    assert recoloured["appearance"] > 1.05 and recoloured["spectrum"] == recoloured["time"] == pytest.approx(1)
    backwards = ratios([(v, np.ascontiguousarray(a[::-1]), f, r) for v, a, f, r in half], clips)
    assert backwards["spectrum"] < 1.5 and backwards["time"] > 2 and backwards["motion"] == pytest.approx(1)


def test_every_rung_of_a_ladder_is_farther(clips: list[Clip]) -> None:
    half = clips[: len(clips) // 2]

    def grain(amount: float) -> list[Clip]:
        return [(np.clip(v + amount * rng(i).standard_normal(v.shape), 0, 255).astype(np.uint8),
                 (a + amount / 255 * rng(i).standard_normal(a.shape)).astype(np.float32), f, r)
                for i, (v, a, f, r) in enumerate(half)]  # fmt: skip

    rungs = [ratios(grain(amount), clips) for amount in (0, 8, 24, 64)]
    for space in SPACES:
        if space != "time":
            assert [rung[space] for rung in rungs] == sorted(rung[space] for rung in rungs), space
        assert rungs[-1][space] > 2 * rungs[0][space], space


def test_features_are_a_function_of_the_clip(clips: list[Clip]) -> None:
    for space in SPACES:
        both = features(clips[:3], space), features(clips[2:3], space)
        assert both[0].shape[-1] == 128 and np.array_equal(both[0][2:], both[1])
