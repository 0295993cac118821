"""The score as a whole: ground truth at the top, every null failing, every corruption making it worse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmdiff.errors import UserError
from mmdiff.metrics.faithfulness import read
from mmdiff.metrics.nulls import NULLS, copier
from mmdiff.metrics.score import HEADLINES, Clip, Row, pairings, score, table
from mmdiff.metrics.sync import auroc, match
from mmdiff.noise import rng
from mmdiff.world.clip import make_clip
from mmdiff.world.scene import TIERS

CPU = TIERS["cpu"]
NAMES = ("facts", "colour_count", "shape", "direction", "timbre", "sync_f1", "sync_f1_shuffled", "sync_skill", "lag_ms")


def world(splits: tuple[str, ...], number: int, *, seed: int = 3) -> tuple[list[Clip], list[str]]:
    """`number` clips a split, and the caption of each that states every fact."""
    made = [make_clip(seed=seed, index=i, split=split, tier=CPU) for split in splits for i in range(number)]
    return [(one.video, one.audio, CPU.fps, CPU.rate) for one in made], [one.captions[0].text for one in made]


@pytest.fixture(scope="module")
def truth() -> tuple[list[Clip], list[str]]:
    return world(("iid", "comp", "count"), 16)


@pytest.fixture(scope="module")
def oracle(truth: tuple[list[Clip], list[str]]) -> Row:
    clips, prompts = truth
    return score(clips, prompts, seed=0, references=clips)


def late(clip: Clip, seconds: float) -> Clip:
    video, audio, fps, rate = clip
    lag = round(seconds * rate)
    return video, np.concatenate([np.zeros(lag, np.float32), audio])[: len(audio)], fps, rate


def test_ground_truth_is_at_the_top(oracle: Row) -> None:
    for name in ("facts", "colour_count", "shape", "size", "direction", "bounces", "timbre", "sync_f1"):
        assert oracle[name]["value"] >= 0.98, name
    assert oracle["sync_skill"]["value"] == pytest.approx(1.0)
    assert abs(oracle["lag_ms"]["value"]) < 2 and oracle["sync_mae_ms"]["value"] < 4
    assert oracle["sync_f1_shuffled"]["high"] < oracle["sync_f1"]["low"]
    assert set(NAMES) | {"sync_mae_ms", "sync_cost_ms"} <= set(oracle)


@pytest.mark.parametrize("name", NULLS)
def test_every_null_fails_a_headline(name: str, truth: tuple[list[Clip], list[str]], oracle: Row) -> None:
    clips, prompts = truth
    row = score(NULLS[name](clips, prompts, seed=0), prompts, seed=0, references=clips)
    lower = [m for m in HEADLINES if m != "sync_cost_ms" and row[m]["high"] < min(0.7, oracle[m]["low"])]
    assert lower and row["facts"]["high"] < 0.6, row
    if name in ("silent", "static", "onset spam", "shuffled pairing", "mean clip", "noise"):
        assert row["sync_f1"]["high"] < 0.4 and row["sync_cost_ms"]["low"] > 100


def test_a_copier_of_training_clips_fails_on_unseen_combinations() -> None:
    training, known = world(("train",), 96)
    _, prompts = world(("comp",), 24)
    row = score(copier(training, prompts, known=known), prompts, seed=0)
    assert row["facts"]["high"] < 0.4 and row["sync_f1"]["low"] > 0.9
    assert copier(training, known[:3], known=known)[1][0] is training[1][0]


def test_a_shift_of_eighty_milliseconds_is_read_and_drops_f1(truth: tuple[list[Clip], list[str]]) -> None:
    clips, prompts = truth
    row = score([late(clip, 0.08) for clip in clips], prompts, seed=0)
    assert row["lag_ms"]["value"] == pytest.approx(80, abs=5)
    assert row["sync_f1"]["high"] < 0.35
    early = score([(v, np.roll(a, -320), f, r) for v, a, f, r in clips], prompts, seed=0)
    assert early["lag_ms"]["value"] == pytest.approx(-40, abs=5) and early["sync_f1"]["low"] > 0.9


def test_true_pairs_are_told_from_shuffled_ones(truth: tuple[list[Clip], list[str]]) -> None:
    clips, _ = truth
    readings = [read(video, audio, fps=fps, rate=rate) for video, audio, fps, rate in clips]
    readings = [one for one in readings if one.impacts]
    true = [match(one.impacts, one.onsets) for one in readings]
    false = [
        match(one.impacts, readings[k].onsets)
        for others in pairings(len(readings), seed=0)
        for one, k in zip(readings, others, strict=True)
    ]
    assert auroc([m.f1 for m in true], [m.f1 for m in false]) > 0.97
    assert auroc([-m.cost for m in true], [-m.cost for m in false]) > 0.97


def jitter(clip: Clip, index: int, seconds: float) -> Clip:
    return late(clip, float(seconds * rng(index).uniform()))


def wear(clip: Clip, index: int, amount: float) -> Clip:
    x = gaussian_filter(clip[0] / 255.0, (0, amount, amount, 0))
    x += 0.12 * amount * rng(index).standard_normal(x.shape)
    return (np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8), *clip[1:])


def hiss(clip: Clip, index: int, amount: float) -> Clip:
    return (
        clip[0],
        clip[1] + np.float32(amount) * rng(index).standard_normal(len(clip[1])).astype(np.float32),
        *clip[2:],
    )


@pytest.mark.parametrize(
    ("corrupt", "amounts", "metric"),
    [
        (jitter, (0, 0.1, 0.25, 0.5), "sync_f1"),
        (wear, (0, 1.5, 2.5, 4), "facts"),
        (hiss, (0, 0.02, 0.1, 0.3), "sync_f1"),
        (hiss, (0, 0.1, 1.0), "timbre"),
    ],
    ids=["late sound", "blurred noisy picture", "hiss", "hiss on timbre"],
)
def test_every_rung_of_a_ladder_is_worse(corrupt, amounts, metric, truth: tuple[list[Clip], list[str]]) -> None:  # type: ignore[no-untyped-def]
    clips, prompts = truth
    worn = [[corrupt(clip, i, amount) if amount else clip for i, clip in enumerate(clips)] for amount in amounts]
    values = [score(made, prompts, seed=0)[metric]["value"] for made in worn]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.2, values


def test_the_same_clips_and_seed_give_the_same_row(truth: tuple[list[Clip], list[str]]) -> None:
    clips, prompts = truth[0][:6], truth[1][:6]
    assert str(score(clips, prompts, seed=1)) == str(score(clips, prompts, seed=1))


def test_still_scenes_have_nothing_to_say_about_sync() -> None:
    video, audio = np.zeros((16, 32, 32, 3), np.uint8), np.zeros(16000, np.float32)
    row = score([(video, audio, 8.0, 8000)] * 2, ["a red circle stays still", "a blue square stays still"], seed=0)
    assert row["sync_f1"]["n"] == 0 and math.isnan(row["sync_f1"]["value"]) and row["facts"]["value"] == 0
    stated = score([(video, audio, 8.0, 8000)] * 2, ["a red circle falls and bounces"] * 2, seed=0)
    assert stated["sync_f1"]["value"] == 0 and stated["sync_cost_ms"]["value"] == 500


def test_pairings_leave_nothing_in_place() -> None:
    for n in (2, 3, 20):
        for others in pairings(n, seed=0):
            assert sorted(others) == list(range(n)) and all(i != k for i, k in enumerate(others))
    assert pairings(1, seed=0) == []


def test_errors_say_what_to_do(truth: tuple[list[Clip], list[str]]) -> None:
    clips, prompts = truth
    with pytest.raises(UserError, match="one prompt a clip"):
        score(clips, prompts[:-1], seed=0)
    with pytest.raises(UserError, match="cannot be scored"):
        score(clips[:1], ["a dog barks"], seed=0)
    with pytest.raises(UserError, match="at least two clips"):
        NULLS["shuffled pairing"](clips[:1], prompts[:1], seed=0)
    with pytest.raises(UserError, match="training clips"):
        copier([], prompts, known=[])


def test_the_table_shows_values_intervals_and_a_caution(oracle: Row) -> None:
    text = table({"oracle": oracle}, metrics=["facts", "lag_ms"])
    assert (
        text.splitlines()[0] == "| | facts | lag_ms |" and "| oracle | 1.000 [" in text and "Caution: only 48" in text
    )
