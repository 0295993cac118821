"""Impacts against brute-force integration, admissibility, the mix, and splits that share no scene."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from mmdiff.errors import UserError
from mmdiff.world.scene import (
    CANVAS,
    HELD_OUT_BINDINGS,
    HELD_OUT_PAIRS,
    SPLITS,
    TIERS,
    Event,
    Motion,
    Object,
    ObjectFacts,
    Scene,
    Tier,
    admissible,
    events,
    impacts,
    position,
    radius,
    sample_scene,
    split_of,
    truth,
)

CPU = TIERS["cpu"]


def draw(split: str, number: int, *, tier: Tier = CPU, seed: int = 0) -> list[Scene]:
    binding = "by_material_text" if split == "bind" else "by_shape"
    return [sample_scene(seed=seed, index=i, split=split, tier=tier, binding=binding) for i in range(number)]


def integrate(thing: Object, seconds: float, step: float = 1e-5) -> tuple[list[float], np.ndarray]:
    """Impact times and path of one axis by small steps: the same physics with no closed form."""
    move, r = thing.motion, radius(thing)
    across = move.direction in ("left", "right")
    at = move.start[0] if across else move.start[1]
    sign = {"": 0, "left": -1, "up": -1, "right": 1, "down": 1}[move.direction]
    v, times, path = sign * move.speed, [], []
    for i in range(round(seconds / step)):
        path.append(at)
        at += v * step + move.gravity * step**2 / 2
        v += move.gravity * step
        if (at > CANVAS - r and v > 0) or (at < r and v < 0):
            times.append((i + 1) * step)
            at, v = min(max(at, r), CANVAS - r), -move.restitution * v
    return times, np.array(path)


def test_closed_form_agrees_with_small_steps() -> None:
    scenes = [*draw("train", 8), *draw("count", 4)]
    for thing in [thing for scene in scenes for thing in scene.objects]:
        times, path = integrate(thing, CPU.seconds)
        assert np.allclose(times, [hit[0] for hit in impacts(thing, CPU.seconds)], atol=1e-3)
        x, y = position(thing, np.arange(len(path)) * 1e-5)
        along = x if thing.motion.direction in ("left", "right") else y
        assert np.abs(along - path).max() < 0.02


def test_impact_speed_follows_energy_and_restitution() -> None:
    ball = Object("red", "circle", "small", Motion("drop", gravity=100, restitution=0.5, start=(16, 16.5)), "bell")
    hits = impacts(ball, 2.0)
    fall = (2 * 12.5 / 100) ** 0.5
    assert [hit[2] for hit in hits[:3]] == pytest.approx([100 * fall, 50 * fall, 25 * fall])
    assert [hit[0] for hit in hits[:3]] == pytest.approx([fall, 2 * fall, 2.5 * fall])


def test_a_dying_ball_and_a_fast_slide_stay_finite_and_inside() -> None:
    dead = Object("red", "circle", "small", Motion("drop", gravity=100, restitution=0.1, start=(16, 20)), "bell")
    fast = Object("red", "circle", "small", Motion("slide", "left", speed=90, restitution=0.9, start=(16, 20)), "bell")
    for thing in (dead, fast):
        x, y = position(thing, np.linspace(0, 5, 2001))
        assert len(impacts(thing, 5.0)) <= 64
        for along in (x, y):
            assert along.min() >= 3 - 1e-9 and along.max() <= 29 + 1e-9
    assert {where for _, where, _ in impacts(fast, 5.0)} == {"left", "right"}


def test_position_takes_any_shape_of_times() -> None:
    thing = draw("train", 1)[0].objects[0]
    x, y = position(thing, 0.5)
    assert x.shape == y.shape == ()
    assert position(thing, np.zeros((2, 3)))[1].shape == (2, 3)
    assert (float(position(thing, 0.0)[0]), float(position(thing, 0.0)[1])) == pytest.approx(thing.motion.start)


@pytest.mark.parametrize("name", list(TIERS))
def test_every_scene_is_admissible_and_inside_on_every_tier(name: str) -> None:
    tier = TIERS[name]
    for split in SPLITS:
        for scene in draw(split, 40, tier=tier):
            assert admissible(scene, tier)
            assert len({thing.colour for thing in scene.objects}) == len(scene.objects)
            for thing in scene.objects:
                for along in position(thing, np.linspace(0, tier.seconds, 101)):
                    assert along.min() > radius(thing) - 1e-6 and along.max() < CANVAS - radius(thing) + 1e-6


def test_objects_never_touch() -> None:
    for scene in [*draw("train", 200), *draw("count", 100)]:
        boxes = [(*position(thing, np.linspace(0, 2, 201)), radius(thing)) for thing in scene.objects]
        for i, (x, y, r) in enumerate(boxes):
            for other_x, other_y, other_r in boxes[:i]:
                apart = np.maximum(np.abs(x - other_x), np.abs(y - other_y))
                assert apart.min() > r + other_r


def test_the_mix_of_training_scenes() -> None:
    scenes = draw("train", 3000)
    first = Counter(scene.objects[0].motion.kind for scene in scenes)
    assert first["drop"] / 3000 == pytest.approx(0.5, abs=0.03)
    assert first["slide"] / 3000 == pytest.approx(0.4, abs=0.03)
    assert sum(len(scene.objects) == 1 for scene in scenes) / 3000 == pytest.approx(0.8, abs=0.03)
    silent = [scene for scene in scenes if not events(scene, 2.0)]
    assert len(silent) / 3000 == pytest.approx(0.05, abs=0.015)
    assert all(thing.motion.kind == "still" for scene in silent for thing in scene.objects)
    counts = Counter(truth(scene, 2.0)[0].bounces for scene in scenes if len(scene.objects) == 1)
    assert [counts[n] / sum(counts[k] for k in (1, 2, 3)) for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert counts[4] == 0
    ways = Counter(scene.objects[0].motion.direction for scene in scenes)
    assert all(ways[way] / first["slide"] == pytest.approx(0.25, abs=0.05) for way in ("left", "right", "up", "down"))
    used = {(thing.colour, thing.shape) for scene in scenes for thing in scene.objects}
    assert len(used) == 12 and not used & HELD_OUT_PAIRS


def test_slide_impacts_are_uniform_in_their_window() -> None:
    times = [e.t for scene in draw("train", 4000) if len(scene.objects) == 1 for e in events(scene, 2.0)
             if scene.objects[0].motion.kind == "slide"]  # fmt: skip
    share = np.histogram(times, bins=4, range=(2.1 / 8, 2 - 2.1 / 8))[0] / len(times)
    assert share == pytest.approx([0.25] * 4, abs=0.04)


def test_splits_are_disjoint_by_rule_whatever_the_seed() -> None:
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        scenes = draw(split, 150, seed=0) + draw(split, 150, seed=1)
        assert {split_of(scene, 2.0) for scene in scenes} == {split}
        seen[split] = {json.dumps(scene.to_json()) for scene in scenes}
        assert len(seen[split]) == 300
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


def test_what_each_held_out_split_holds() -> None:
    assert all((s.objects[0].colour, s.objects[0].shape) in HELD_OUT_PAIRS for s in draw("comp", 50))
    assert all((s.objects[0].timbre, s.objects[0].shape) in HELD_OUT_BINDINGS for s in draw("bind", 50))
    for scene in draw("count", 50):
        assert len(scene.objects) == 3 or truth(scene, 2.0)[0].bounces == 4
    material = [sample_scene(seed=0, index=i, split="train", tier=CPU, binding="by_material_text") for i in range(300)]
    assert not {(o.timbre, o.shape) for s in material for o in s.objects} & HELD_OUT_BINDINGS
    assert len({(o.timbre, o.shape) for s in material for o in s.objects}) == 6


def test_a_scene_is_a_function_of_its_arguments() -> None:
    assert draw("train", 5) == draw("train", 5)
    assert draw("train", 5) != draw("train", 5, seed=1)


def test_json_round_trips_exactly() -> None:
    for scene in draw("count", 20):
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
        for event in events(scene, 2.0):
            assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event
        for facts in truth(scene, 2.0):
            assert ObjectFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert Tier.from_json(CPU.to_json()) == CPU


def test_unknown_words_are_user_errors() -> None:
    with pytest.raises(UserError, match="trian"):
        sample_scene(seed=0, index=0, split="trian", tier=CPU)
    with pytest.raises(UserError, match="by_material_text"):
        sample_scene(seed=0, index=0, split="bind", tier=CPU)
