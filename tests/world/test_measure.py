"""The readers of pictures: exact on clean renders, right under blur and noise, and never an exception."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmdiff.metrics.sync import match
from mmdiff.noise import rng
from mmdiff.world import arcs
from mmdiff.world.measure import background, read_objects
from mmdiff.world.render import render
from mmdiff.world.scene import COLOURS, SHAPES, SIZES, TIERS, Motion, Object, Scene, impacts, sample_scene

CPU = TIERS["cpu"]
MOTIONS = (
    Motion("drop", gravity=90.0, restitution=0.7, start=(13.3, 6.2)),
    Motion("slide", direction="left", speed=20.0, restitution=0.7, start=(20.4, 12.7)),
    Motion("slide", direction="right", speed=17.0, restitution=0.8, start=(9.1, 18.2)),
    Motion("slide", direction="up", speed=19.0, restitution=0.7, start=(16.6, 21.9)),
    Motion("slide", direction="down", speed=16.0, restitution=0.75, start=(11.8, 9.3)),
    Motion("still", start=(15.7, 14.1)),
)


def worn(video: np.ndarray, *, blur: float, noise: float) -> np.ndarray:
    """The clip blurred by `blur` pixels, with normal noise of standard deviation `noise` on 0..1."""
    x = gaussian_filter(video / 255.0, (0, blur, blur, 0)) if blur else video / 255.0
    x = x + noise * rng(1).standard_normal(x.shape)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def census(tier_name: str, *, number: int, blur: float = 0.0, noise: float = 0.0) -> tuple[dict[str, float], float]:
    """Shares of scenes (colour_count) and objects (the rest) read right, and the mean error of impacts in seconds."""
    tier = TIERS[tier_name]
    marks: dict[str, list[bool]] = {name: [] for name in ("colour_count", "shape", "size", "motion", "impacts")}
    errors: list[float] = []
    for i in range(number):
        scene = sample_scene(seed=5, index=i, split=("train", "comp", "count")[i % 3], tier=tier)
        seen = {one.colour: one for one in read_objects(worn(render(scene, tier), blur=blur, noise=noise), tier.fps)}
        marks["colour_count"].append(sorted(seen) == sorted(thing.colour for thing in scene.objects))
        for thing in scene.objects:
            one, true = seen.get(thing.colour), [hit[0] for hit in impacts(thing, tier.seconds)]
            marks["shape"].append(one is not None and one.shape == thing.shape)
            marks["size"].append(one is not None and one.size == thing.size)
            way = thing.motion.direction or None
            marks["motion"].append(one is not None and (one.motion, one.direction) == (thing.motion.kind, way))
            same = one is not None and len(one.impacts) == len(true)
            marks["impacts"].append(same)
            errors += [abs(a - b) for a, b in zip(one.impacts, true, strict=True)] if one is not None and same else []
    return {name: float(np.mean(found)) for name, found in marks.items()}, float(np.mean(errors))


@pytest.mark.parametrize(
    ("tier", "number", "milliseconds"), [("ci", 60, 4.0), ("cpu", 90, 3.0), ("gpu-s", 30, 2.0), ("gpu-m", 9, 2.0)]
)
def test_clean_renders_are_read_right(tier: str, number: int, milliseconds: float) -> None:
    shares, error = census(tier, number=number)
    assert min(shares.values()) >= 0.98, shares
    assert error < milliseconds / 1000


@pytest.mark.parametrize(("tier", "blur", "noise"), [("ci", 0.4, 0.04), ("cpu", 0.8, 0.05), ("gpu-s", 1.6, 0.1)])
def test_blurred_noisy_renders_are_read_right(tier: str, blur: float, noise: float) -> None:
    shares, error = census(tier, number=45, blur=blur, noise=noise)
    assert min(shares.values()) >= 0.97, shares
    assert error < 0.006


def test_impacts_stay_readable_as_the_picture_decays() -> None:
    errors = [census("cpu", number=45, blur=blur, noise=noise)[1] for blur, noise in ((0, 0), (0.8, 0.05), (1.2, 0.15))]
    assert errors == sorted(errors) and errors[-1] < 0.015


@pytest.mark.parametrize("motion", MOTIONS, ids=lambda m: f"{m.kind}-{m.direction}")
def test_every_colour_shape_and_size_in_every_motion(motion: Motion) -> None:
    for colour, shape, size in product(COLOURS, SHAPES, SIZES):
        scene = Scene((0.1, 0.1, 0.1), (Object(colour, shape, size, motion, "bell"),))
        (one,) = read_objects(render(scene, CPU), CPU.fps)
        assert (one.colour, one.shape, one.size) == (colour, shape, size)
        assert (one.motion, one.direction) == (motion.kind, motion.direction or None)
        true = [hit[0] for hit in impacts(scene.objects[0], CPU.seconds)]
        assert match(true, one.impacts, expected=False).f1 == 1 if true else not one.impacts


def test_the_track_is_the_centre_of_mass() -> None:
    scene = Scene((0.1, 0.1, 0.1), (Object("red", "circle", "large", MOTIONS[5], "bell"),))
    (one,) = read_objects(render(scene, CPU), CPU.fps)
    assert np.allclose(one.track, np.array([15.7, 14.1]) / 32, atol=0.1 / 32)


def test_two_objects_of_one_colour_are_two() -> None:
    things = tuple(
        Object("green", shape, "small", Motion("still", start=(x, 16.0)), "bell")
        for shape, x in (("circle", 7.0), ("square", 24.0))
    )
    seen = read_objects(render(Scene((0.1, 0.1, 0.1), things), CPU), CPU.fps)
    assert sorted(one.shape for one in seen) == ["circle", "square"]


def test_colours_are_read_on_any_grey_and_at_half_contrast() -> None:
    for grey in (0.05, 0.2, 0.35):
        for colour in COLOURS:
            scene = Scene((grey,) * 3, (Object(colour, "square", "small", MOTIONS[0], "wood"),))
            video = render(scene, CPU)
            assert [one.colour for one in read_objects(video, CPU.fps)] == [colour]
            faded = np.rint(255 * grey + 0.6 * (video - 255.0 * grey)).clip(0, 255).astype(np.uint8)
            assert [one.colour for one in read_objects(faded, CPU.fps)] == [colour]


def test_float_and_bytes_read_alike() -> None:
    video = render(sample_scene(seed=1, index=0, split="train", tier=CPU), CPU)
    a, b = read_objects(video, CPU.fps), read_objects(video / 255.0, CPU.fps)
    assert [(x.colour, x.shape, x.motion) for x in a] == [(x.colour, x.shape, x.motion) for x in b]
    assert np.allclose(a[0].impacts, b[0].impacts, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros((16, 32, 32, 3), np.uint8),
        lambda: np.full((16, 32, 32, 3), 255, np.uint8),
        lambda: rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8),
        lambda: np.full((16, 32, 32, 3), np.nan),
        lambda: np.zeros((0, 32, 32, 3), np.uint8),
        lambda: np.zeros((1, 1, 1, 3), np.uint8),
        lambda: np.zeros((5, 7), np.uint8),
        lambda: rng(0).standard_normal((3, 40, 300, 3)),
    ],
)
def test_what_is_no_clip_of_ours_holds_no_object(make: Callable[[], np.ndarray]) -> None:
    assert read_objects(make(), 8.0) == []


def test_one_frame_is_still() -> None:
    video = render(sample_scene(seed=1, index=0, split="train", tier=CPU), CPU)[:1]
    assert all(one.motion == "still" and not one.impacts for one in read_objects(video, CPU.fps))


def test_background_is_the_commonest_colour() -> None:
    scene = Scene((0.2, 0.2, 0.2), (Object("red", "square", "large", MOTIONS[0], "wood"),))
    assert np.allclose(background(render(scene, CPU) / 255.0), 0.2, atol=1 / 255)


def test_arcs_meet_at_the_impact_of_an_exact_track() -> None:
    t = (np.arange(16) + 0.5) / 8
    hit, g = 0.93, 2.5
    y = np.where(t < hit, g * t**2 / 2, g * hit**2 / 2 - 0.7 * g * hit * (t - hit) + g * (t - hit) ** 2 / 2)
    found = arcs.fit(t, y, np.array([0.0, 2.0, g, 3.0]))
    assert found.gravity == g and arcs.impacts(found, t, 2.0) == pytest.approx([hit], abs=1e-9)


def test_an_apex_is_no_impact() -> None:
    t = (np.arange(16) + 0.5) / 8
    track = np.stack([np.full(16, 0.5), 0.8 - 1.2 * t + 1.25 * t**2 / 2], axis=1)  # thrown up, and down again
    assert arcs.follow(track, 8.0)[2] == ()


def test_a_hidden_object_keeps_its_impact() -> None:
    thing = Object("red", "circle", "small", MOTIONS[1], "bell")
    video = render(Scene((0.1, 0.1, 0.1), (thing,)), CPU)
    video[[2, 11]] = np.uint8(26)
    (one,) = read_objects(video, CPU.fps)
    assert np.isnan(one.track[2]).all()
    assert one.impacts == pytest.approx([hit[0] for hit in impacts(thing, 2.0)], abs=0.01)
