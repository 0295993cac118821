"""Sound begins at the exact sample of its impact, never clips, and tells timbres and sizes apart."""

from __future__ import annotations

import numpy as np
import pytest

from mmdiff.world.scene import TIERS, Motion, Object, Scene, Tier, events, sample_scene
from mmdiff.world.sound import VOICES, synthesize

CPU = TIERS["cpu"]


def struck(timbre: str, size: str = "small", *, fall: float = 0.5, gravity: float = 100.0) -> Scene:
    """One impact at `fall` seconds."""
    r = {"small": 3.0, "large": 4.5}[size]
    move = Motion("drop", gravity=gravity, restitution=0.9, start=(16.0, 32 - r - gravity * fall**2 / 2))
    return Scene((0.1, 0.1, 0.1), (Object("red", "circle", size, move, timbre),))


@pytest.mark.parametrize("timbre", list(VOICES))
@pytest.mark.parametrize("fall", [0.4, 0.41237, 0.5])
def test_energy_starts_at_the_sample_of_the_event(timbre: str, fall: float) -> None:
    scene = struck(timbre, fall=fall)
    sound, t = synthesize(scene, CPU), events(scene, 2.0)[0].t
    first = int(np.ceil(t * 8000))
    assert not sound[:first].any()
    assert np.abs(sound[first : first + 3]).max() > 0
    assert (sound[first : first + 80] ** 2).mean() > 1e-4


def test_an_impact_between_samples_moves_the_wave_by_that_fraction() -> None:
    """The spectrum of a later impact is the earlier one's, turned by its delay, as far as the band allows."""
    early, late = struck("bell", fall=0.4), struck("bell", fall=0.4 + 0.25 / 8000)
    a, b = (np.fft.rfft(synthesize(scene, CPU)[:6000]) for scene in (early, late))
    at = round(650 / 8000 * 6000)
    turned = np.angle(b[at - 3 : at + 4] / a[at - 3 : at + 4])
    assert turned == pytest.approx(-2 * np.pi * 650 * 0.25 / 8000, abs=0.02)


@pytest.mark.parametrize("name", ["ci", "cpu", "gpu-s", "gpu-l"])
def test_nothing_clips_on_any_tier(name: str) -> None:
    tier = TIERS[name]
    for i in range(60):
        sound = synthesize(sample_scene(seed=0, index=i, split="count", tier=tier), tier)
        assert sound.shape == (tier.samples,) and sound.dtype == np.float32
        assert 0.05 < np.abs(sound).max() < 1


def test_the_worst_pile_of_bells_does_not_clip() -> None:
    beats = tuple(
        Object(
            "red", "circle", "large", struck("bell", "large", fall=0.3 + 0.08 * i, gravity=60).objects[0].motion, "bell"
        )
        for i in range(8)
    )
    assert np.abs(synthesize(Scene((0.1, 0.1, 0.1), beats), CPU)).max() < 1


def test_a_still_scene_is_silent_and_a_faster_impact_is_louder() -> None:
    thing = Object("red", "circle", "small", Motion("still"), "bell")
    assert not synthesize(Scene((0.1, 0.1, 0.1), (thing,)), CPU).any()
    soft, hard = (np.abs(synthesize(struck("bell", gravity=g), CPU)).max() for g in (50, 110))
    assert hard > 1.2 * soft


def test_size_sets_the_pitch_and_every_partial_is_below_nyquist() -> None:
    for timbre in ("bell", "click"):
        peaks = []
        for size in ("small", "large"):
            spectrum = np.abs(np.fft.rfft(synthesize(struck(timbre, size), CPU)[:7000]))
            peaks.append(np.argmax(spectrum) * 8000 / 7000)
        assert peaks[0] / peaks[1] == pytest.approx(1.25 / 0.75, rel=0.01)
    assert all(voice.hertz * 1.25 * max(voice.ratios) < 4000 for voice in VOICES.values())


def test_the_rate_changes_the_sampling_and_not_the_sound() -> None:
    fine = Tier("fine", 32, 16, 8.0, 16000)
    slow, fast = synthesize(struck("bell"), CPU), synthesize(struck("bell"), fine)
    assert np.abs(fast[::2] - slow).max() < 0.03  # the burst of noise differs, the partials do not


def test_the_same_scene_sounds_the_same() -> None:
    scene = sample_scene(seed=0, index=1, split="train", tier=CPU)
    assert np.array_equal(synthesize(scene, CPU), synthesize(scene, CPU))
