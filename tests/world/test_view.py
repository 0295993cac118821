"""Texture, light and a shaking camera: a function of the scene, read out of the picture, and in no other tier."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mmdiff.errors import UserError
from mmdiff.metrics.faithfulness import compare, read
from mmdiff.metrics.sync import match
from mmdiff.world.clip import make_clip
from mmdiff.world.listen import read_onsets
from mmdiff.world.measure import amounts, pixels
from mmdiff.world.render import render
from mmdiff.world.scene import TIERS, Scene, Tier, truth
from mmdiff.world.steady import camera
from mmdiff.world.view import GRAIN, SWAY, view_of

LIVE = Tier("gpu-m", 64, 32, 16.0, 8000, "live")  # small, for speed


def test_plain_tiers_hold_the_bytes_that_they_always_held() -> None:
    """Hashes of what the world rendered before there were views."""
    for name, digest in (("ci", "286a9e9b64789f51"), ("cpu", "abaf918270f3739e")):
        found = hashlib.sha256()
        for i in range(6):
            clip = make_clip(seed=0, index=i, split=("train", "comp", "count")[i % 3], tier=TIERS[name])
            found.update(clip.video.tobytes() + np.rint(clip.audio * 32767).astype("<i2").tobytes())
            assert not clip.camera.any()
        assert found.hexdigest()[:16] == digest


def test_the_view_is_a_function_of_the_scene_and_leaves_its_events_alone() -> None:
    one, same, other = (make_clip(seed=0, index=i, split="iid", tier=LIVE) for i in (3, 3, 4))
    plain = make_clip(seed=0, index=3, split="iid", tier=Tier("gpu-m", 64, 32, 16.0, 8000))
    assert np.array_equal(one.video, same.video) and np.array_equal(one.camera, same.camera)
    assert not np.array_equal(one.camera, other.camera)
    assert one.scene == plain.scene and one.events == plain.events and np.array_equal(one.audio, plain.audio)
    assert TIERS["gpu-l"].view == "live" and 0.1 < np.abs(one.camera).max() <= SWAY


def test_the_ground_moves_by_exactly_what_the_camera_moves() -> None:
    view, at = view_of(make_clip(seed=0, index=0, split="iid", tier=LIVE).scene, "live"), np.linspace(8, 20, 25)
    assert np.abs(view.grain(at, at) - GRAIN).max() <= GRAIN + 1e-6
    assert np.array_equal(view.grain(at + 0.5, at)[:, :-1], view.grain(at, at)[:, 1:])
    still = render(Scene((0.1, 0.1, 0.1), ()), LIVE).astype(float)
    assert np.abs(np.diff(still, axis=0)).max() < 30 and still.std() > 3


def test_the_camera_is_read_from_the_ground_and_facts_and_impacts_as_if_it_stood() -> None:
    errors = []
    for i in range(6):
        clip = make_clip(seed=77, index=i, split=("train", "comp", "count")[i % 3], tier=LIVE)
        x = pixels(clip.video)
        seen, true = camera(x, amounts(x)[1].any(1)), clip.camera - clip.camera.mean(0)
        assert np.abs(seen - true).max() < 0.06 and np.abs(true).max() > 0.15
        found = read(clip.video, clip.audio, fps=LIVE.fps, rate=LIVE.rate)
        assert compare(found, truth(clip.scene, LIVE.seconds))["facts"]
        times = [event.t for event in clip.events]
        one = match(times, found.impacts, expected=bool(times))
        assert not times or one.f1 == 1
        errors.append(one.mae)
    assert np.nanmean(errors) < 0.004


def test_a_ground_that_says_nothing_is_a_camera_at_rest() -> None:
    clip = make_clip(seed=1, index=0, split="iid", tier=TIERS["cpu"])
    for x in (
        pixels(clip.video),
        pixels(clip.video[:1]),
        pixels(make_clip(seed=1, index=0, split="iid", tier=TIERS["ci"]).video),
    ):
        assert not camera(x, amounts(x)[1].any(1)).any()


def test_sound_at_44100_hz_is_read_as_exactly_as_at_16000() -> None:
    tier = TIERS["gpu-l"].at(44100)
    for i in range(3):
        scene = make_clip(seed=2, index=i, split="count", tier=Tier("gpu-l", 16, 121, 24.0, 44100))
        times = [event.t for event in scene.events]
        one = match(times, read_onsets(scene.audio, tier.rate), expected=True)
        assert one.f1 == 1 and one.mae < 0.002
    with pytest.raises(UserError, match="outside 8000 to 48000"):
        tier.at(4000)
