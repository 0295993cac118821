"""The readers of sound: onsets within milliseconds, timbres by name, and silence left silent."""

from __future__ import annotations

import numpy as np
import pytest

from mmdiff.metrics.sync import match
from mmdiff.noise import rng
from mmdiff.world.listen import mono, read_onsets, read_strikes, read_timbre
from mmdiff.world.scene import SIZES, TIERS, TIMBRES, Motion, Object, Scene, events, sample_scene
from mmdiff.world.sound import synthesize


def census(tier_name: str, *, number: int, noise: float = 0.0, binding: str = "by_shape") -> dict[str, float]:
    """Mean F1 of onsets, mean error and bias in ms, shares of timbres and sizes named right."""
    tier = TIERS[tier_name]
    f1, errors, timbre, size = [], [], [], []
    for i in range(number):
        split = ("train", "comp", "count")[i % 3]
        scene = sample_scene(seed=5, index=i, split=split, tier=tier, binding=binding)
        sound = synthesize(scene, tier) + noise * rng(i).standard_normal(tier.samples)
        strikes, true = read_strikes(sound, tier.rate), events(scene, tier.seconds)
        found = match([e.t for e in true], [s.t for s in strikes], expected=False)
        f1.append(found.f1)
        for j, k in found.pairs:
            errors.append(strikes[k].t - true[j].t)
            timbre.append(strikes[k].timbre == scene.objects[true[j].object].timbre)
            size.append(strikes[k].size == scene.objects[true[j].object].size)
    ms = 1000 * np.array(errors)
    return {
        "f1": float(np.nanmean(f1)),
        "mae": float(np.abs(ms).mean()),
        "bias": float(ms.mean()),
        "timbre": float(np.mean(timbre)),
        "size": float(np.mean(size)),
    }


@pytest.mark.parametrize(("tier", "number"), [("ci", 90), ("cpu", 120), ("gpu-s", 60), ("gpu-l", 15)])
def test_clean_sounds_are_read_right(tier: str, number: int) -> None:
    got = census(tier, number=number)
    assert got["f1"] >= 0.995 and got["timbre"] >= 0.98 and got["size"] >= 0.98, got
    assert got["mae"] < 1.5 and abs(got["bias"]) < 1.0


def test_any_timbre_on_any_shape() -> None:
    got = census("cpu", number=60, binding="random")
    assert got["f1"] >= 0.99 and got["timbre"] >= 0.98, got


def test_onsets_hold_under_hiss_and_fall_as_it_grows() -> None:
    ladder = [census("cpu", number=60, noise=level) for level in (0.0, 0.006, 0.02, 0.1)]
    f1 = [got["f1"] for got in ladder]
    assert f1[1] >= 0.98 and f1 == sorted(f1, reverse=True) and f1[-1] < 0.7, f1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("timbre", TIMBRES)
@pytest.mark.parametrize("tier_name", ["cpu", "gpu-s"])
def test_one_strike(tier_name: str, timbre: str, size: str) -> None:
    tier = TIERS[tier_name]
    thing = Object("red", "circle", size, Motion("slide", "left", speed=10.0, start=(16.0, 16.0)), timbre)
    scene = Scene((0.1, 0.1, 0.1), (thing,))
    sound, (event,) = synthesize(scene, tier), events(scene, tier.seconds)
    (strike,) = read_strikes(sound, tier.rate)
    assert strike.t == pytest.approx(event.t, abs=0.003)
    assert (strike.timbre, strike.size) == (timbre, size) == read_timbre(sound, tier.rate, event.t)


def test_a_shift_of_the_sound_is_a_shift_of_the_onsets() -> None:
    tier = TIERS["cpu"]
    sound = synthesize(sample_scene(seed=2, index=3, split="count", tier=tier), tier)
    late = np.concatenate([np.zeros(640, np.float32), sound])  # 80 ms
    assert np.subtract(read_onsets(late, tier.rate), read_onsets(sound, tier.rate)) == pytest.approx(0.08, abs=0.002)


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(16000),
        1e-6 * rng(0).standard_normal(16000),
        np.full(16000, 0.5),
        np.full(16000, np.nan),
        np.zeros(0),
        np.zeros(3),
        0.3 * np.sin(np.arange(16000)),
    ],
    ids=["silence", "faint", "constant", "nan", "empty", "three", "sine"],
)
def test_nothing_is_struck(sound: np.ndarray) -> None:
    assert [t for t in read_onsets(sound, 8000) if 0.05 < t < 1.95] == []


def test_samples_of_any_kind() -> None:
    whole = (np.sin(np.arange(1000)) * 20000).astype(np.int16)
    assert np.allclose(mono(whole), whole / 32768)
    assert mono(np.ones((2, 5))).shape == (5,) and mono(np.ones((1, 5))).shape == (5,)
    assert np.isfinite(mono(np.array([np.nan, np.inf, -np.inf]))).all()
