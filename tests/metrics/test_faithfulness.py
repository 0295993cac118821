"""Facts of a clip against facts of a caption: each wrong fact fails itself and the conjunction, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmdiff.metrics.faithfulness import Reading, assign, compare, score_clip
from mmdiff.world.caption import parse
from mmdiff.world.clip import Clip, make_clip
from mmdiff.world.listen import Strike
from mmdiff.world.measure import SeenObject
from mmdiff.world.scene import TIERS, ObjectFacts

CPU = TIERS["cpu"]
TRACK = np.zeros((16, 2))
BALL = SeenObject("red", "circle", "small", TRACK, "drop", None, (0.5, 1.1))
BOX = SeenObject("blue", "square", "large", TRACK, "slide", "left", (0.8,))
READING = Reading(
    (BALL, BOX), (Strike(0.51, "bell", "small"), Strike(0.8, "wood", "large"), Strike(1.1, "bell", "small"))
)
FACTS = (
    ObjectFacts("red", "circle", "small", "drop", None, 2, "bell"),
    ObjectFacts("blue", "square", "large", "slide", "left", None, "wood"),
)
WRONG = {
    "shape": {"shape": "triangle"},
    "size": {"size": "large"},
    "direction": {"motion": "still"},
    "bounces": {"bounces": 3},
    "timbre": {"timbre": "click"},
}


def test_a_right_clip_holds_every_fact() -> None:
    assert all(compare(READING, FACTS).values()) and all(compare(READING, FACTS[::-1]).values())


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_fact_fails_alone_and_the_conjunction(name: str) -> None:
    marks = compare(READING, (replace(FACTS[0], **WRONG[name]), FACTS[1]))
    assert {key for key, mark in marks.items() if mark is False} == {name, "facts"}


def test_the_wrong_way_is_a_wrong_direction() -> None:
    marks = compare(READING, (FACTS[0], replace(FACTS[1], direction="right")))
    assert marks["direction"] is False


def test_an_extra_object_fails_the_count_but_no_colour() -> None:
    marks = compare(READING, FACTS[:1])
    assert (marks["count"], marks["colour_count"], marks["colour"], marks["facts"]) == (False, False, True, False)


def test_an_absent_object_fails_all_that_is_stated_about_it() -> None:
    marks = compare(Reading((), ()), FACTS)
    assert not any(marks.values())


def test_what_is_not_stated_is_not_scored() -> None:
    vague = ObjectFacts("red", "circle", None, "drop", None, None, None)
    marks = compare(Reading((BALL,), ()), (vague,))
    assert marks["size"] is marks["bounces"] is marks["timbre"] is None and marks["facts"] is True


def test_silence_is_a_wrong_timbre() -> None:
    assert compare(Reading((BALL,), ()), FACTS[:1])["timbre"] is False


def test_timbres_belong_to_the_nearest_impacts() -> None:
    swapped = Reading(
        READING.objects, tuple(replace(s, timbre="wood" if s.timbre == "bell" else "bell") for s in READING.strikes)
    )
    assert compare(swapped, FACTS)["timbre"] is False


def test_objects_go_to_the_facts_that_they_fit() -> None:
    twin = replace(BALL, shape="square")
    two = (replace(FACTS[0], shape="square"), FACTS[0])
    assert [one.shape if one else None for one in assign((BALL, twin), two)] == ["square", "circle"]
    assert len(assign((BALL, BOX), FACTS * 3)) == 6


def clip(split: str, index: int) -> Clip:
    return make_clip(seed=4, index=index, split=split, tier=CPU)


@pytest.mark.parametrize("split", ["train", "val", "iid", "comp", "count", "para"])
def test_ground_truth_is_faithful_to_each_of_its_captions(split: str) -> None:
    for index in range(6):
        one = clip(split, index)
        for caption in one.captions:
            facts = parse(caption.text)
            marks = score_clip(one.video, one.audio, fps=CPU.fps, rate=CPU.rate, facts=facts)
            assert marks["facts"], (caption.text, marks)
