"""Pictures agree with the kinematics, cover the right area, and mean the same on every tier."""

from __future__ import annotations

import numpy as np
import pytest

from mmdiff.world.render import coverage, render
from mmdiff.world.scene import COLOURS, TIERS, Motion, Object, Scene, Tier, events, position, sample_scene

CPU = TIERS["cpu"]


def amount(video: np.ndarray, scene: Scene, colour: str) -> np.ndarray:
    """Coverage of every pixel by an object of that colour, alone in the scene -> (t h w)."""
    ground, ink = np.rint(np.array(scene.background) * 255) / 255, np.array(COLOURS[colour])
    return ((video / 255 - ground) @ (ink - ground)) / ((ink - ground) @ (ink - ground))


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi), ("square", 4.0), ("triangle", 2.0)])
def test_coverage_has_the_area_of_the_shape(shape: str, area: float) -> None:
    x = np.linspace(8, 9, 7)
    mask = coverage(shape, x, x + 0.3, 4.5, 18)
    assert mask.shape == (7, 18, 18) and mask.min() >= 0 and mask.max() == 1
    assert mask.sum((1, 2)) == pytest.approx([area * 4.5**2] * 7, rel=0.01)


def test_the_centroid_of_a_ball_is_its_position() -> None:
    for i in range(30):
        scene = sample_scene(seed=3, index=i, split="train", tier=CPU)
        if len(scene.objects) > 1 or scene.objects[0].shape == "triangle":
            continue
        mask = amount(render(scene, CPU), scene, scene.objects[0].colour)
        x, y = position(scene.objects[0], (np.arange(16) + 0.5) / 8)
        mass = mask.sum((1, 2))
        assert (mask.sum(1) @ (np.arange(32) + 0.5)) / mass == pytest.approx(x, abs=0.05)
        assert (mask.sum(2) @ (np.arange(32) + 0.5)) / mass == pytest.approx(y, abs=0.05)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_a_shape_on_the_floor_touches_the_last_row(shape: str) -> None:
    thing = Object("red", shape, "small", Motion("still", start=(16.0, 29.0)), "bell")
    video = render(Scene((0.1, 0.1, 0.1), (thing,)), CPU)
    mask = amount(video, Scene((0.1, 0.1, 0.1), ()), "red")[0]
    assert mask[31].max() > 0.9 and mask[25].max() < 0.05 and mask[26].max() > 0.1


def test_a_tier_changes_resolution_and_not_the_picture() -> None:
    small, large = Tier("a", 32, 16, 8.0, 8000), Tier("b", 128, 16, 8.0, 8000)
    for i in range(10):
        scene = sample_scene(seed=0, index=i, split="train", tier=small)
        fine = render(scene, large).reshape(16, 32, 4, 32, 4, 3).mean((2, 4))
        assert np.abs(fine - render(scene, small)).mean() < 0.3


def test_shapes_and_types_on_every_tier() -> None:
    for name in ("ci", "cpu", "gpu-s"):
        tier = TIERS[name]
        scene = sample_scene(seed=0, index=0, split="count", tier=tier)
        video = render(scene, tier)
        assert video.shape == (tier.frames, tier.size, tier.size, 3) and video.dtype == np.uint8
        assert np.array_equal(video, render(scene, tier))


def test_the_lowest_frame_is_beside_the_first_impact() -> None:
    for i in range(40):
        scene = sample_scene(seed=0, index=i, split="train", tier=CPU)
        if len(scene.objects) > 1 or scene.objects[0].motion.kind != "drop":
            continue
        mask = amount(render(scene, CPU), scene, scene.objects[0].colour)
        y = (mask.sum(2) @ (np.arange(32) + 0.5)) / mask.sum((1, 2))
        t = events(scene, 2.0)[0].t
        until = int(t * 8 + 1.5)
        assert abs((np.argmax(y[: until + 1]) + 0.5) / 8 - t) <= 1 / 8


def test_an_empty_scene_is_its_background() -> None:
    assert np.all(render(Scene((0.2, 0.2, 0.2), ()), CPU) == 51)
