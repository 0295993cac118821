"""Synchrony of ordinary clips, measured where truth is known: true pairs are told from shuffled ones, spam is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdiff.metrics.alignment import alignment_values, peaks
from mmdiff.metrics.nulls import NULLS
from mmdiff.metrics.score import Clip
from mmdiff.metrics.sync import auroc
from mmdiff.world.clip import make_clip
from mmdiff.world.things import TIERS


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    tier = TIERS["cpu"]
    made = [make_clip(seed=5, index=i, split="iid", tier=tier) for i in range(100)]
    return [(one.video, one.audio, tier.fps, tier.rate) for one in made if one.events]


def test_turns_tell_true_pairs_from_shuffled_where_energy_does_not(clips: list[Clip]) -> None:
    values = alignment_values(clips, seed=0)
    told = {name: auroc(values[f"{name}_f1"], values[f"{name}_f1_shuffled"]) for name in ("onset", "energy")}
    assert told["onset"] > 0.9 and told["energy"] < 0.6, told
    assert abs(np.nanmedian(values["onset_lag_ms"])) < 20


@pytest.mark.parametrize("null", ["shuffled pairing", "silent", "static", "onset spam", "noise"])
def test_no_null_wins(null: str, clips: list[Clip]) -> None:
    made = alignment_values(NULLS[null](clips, [""] * len(clips), seed=0), seed=0)
    assert np.nanmean(made["onset_f1"]) < 0.5 * np.nanmean(alignment_values(clips, seed=0)["onset_f1"])


def test_late_sound_reads_late(clips: list[Clip]) -> None:
    late = [(v, np.concatenate([np.zeros(640, np.float32), a])[: len(a)], f, r) for v, a, f, r in clips]
    lags = [np.nanmedian(alignment_values(made, seed=0)["onset_lag_ms"]) for made in (clips, late)]
    assert lags[1] - lags[0] == pytest.approx(80, abs=15)


def test_nothing_has_nothing_to_say() -> None:
    black = (np.zeros((16, 8, 8, 3), np.uint8), np.zeros(8000, np.float32), 8.0, 8000)
    assert all(math.isnan(v) for v in alignment_values([black] * 3, seed=0)["onset_f1"])


def test_peaks_are_placed_between_samples_and_ripples_are_left_out() -> None:
    t = np.arange(40) * 0.1
    curve = np.exp(-(((t - 1.23) / 0.2) ** 2)) + np.exp(-(((t - 3.0) / 0.2) ** 2)) + 0.02 * np.sin(20 * t)
    assert peaks(curve, start=0.0, step=0.1) == pytest.approx([1.23, 3.0], abs=0.02)
    assert peaks(np.ones(9), start=0.0, step=0.1) == []
