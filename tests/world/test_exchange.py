"""An exchange changes one fact of one object and nothing else, in every template."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from mmdiff.world.caption import TEMPLATES, captions, parse
from mmdiff.world.exchange import WORDS, exchanged
from mmdiff.world.scene import sample_scene
from mmdiff.world.things import TIERS

WAYS = ("left or right", "up or down")  # of one fact, its direction; a clip with the other says neither


@pytest.mark.parametrize("split", TEMPLATES)
@pytest.mark.parametrize("fact", WORDS)
def test_one_fact_of_one_object_changes(split: str, fact: str) -> None:
    changed = 0
    for i in range(40):
        scene = sample_scene(seed=0, index=i, split="train", tier=TIERS["cpu"])
        for one in captions(scene, seconds=2.0, key=i, template_split=split):
            other = exchanged(one.text, fact, key=i)
            name_of = "direction" if fact in WAYS else fact
            stated = [getattr(thing, name_of) for thing in parse(one.text)]
            assert other is not None or set(stated) == {None} or fact in ("size", "shape", "timbre", *WAYS)
            if other is not None:
                changed += 1
                pairs = zip(parse(one.text), parse(other), strict=True)
                off = [name for a, b in pairs for name, value in asdict(a).items() if value != asdict(b)[name]]
                assert off == [name_of], (one.text, other)
    assert changed > 5


def test_what_is_not_stated_is_not_exchanged() -> None:
    assert exchanged("a red ball falls and bounces", "left or right", key=0) is None
    assert exchanged("a red ball slides left", "left or right", key=0) == "a red ball slides right"
    assert exchanged("a red ball slides left", "up or down", key=0) is None
    assert exchanged("a red ball slides to the top", "up or down", key=0) == "a red ball slides to the bottom"
    counts = {exchanged("a red box bounces 2 times", "bounces", key=k) for k in range(40)}
    assert counts == {f"a red box bounces {n}" for n in ("1 time", "3 times", "4 times")}
    assert exchanged("a small red ball stays still while a large blue box falls", "size", key=0) is None
