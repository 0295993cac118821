"""An exchange changes one fact of one object and nothing else, in every template."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from mmdiff.world.caption import TEMPLATES, captions, parse
from mmdiff.world.exchange import WORDS, exchanged
from mmdiff.world.scene import sample_scene
from mmdiff.world.things import TIERS


@pytest.mark.parametrize("split", TEMPLATES)
@pytest.mark.parametrize("fact", WORDS)
def test_one_fact_of_one_object_changes(split: str, fact: str) -> None:
    changed = 0
    for i in range(40):
        scene = sample_scene(seed=0, index=i, split="train", tier=TIERS["cpu"])
        for one in captions(scene, seconds=2.0, key=i, template_split=split):
            other = exchanged(one.text, fact, key=i)
            stated = [getattr(thing, fact) for thing in parse(one.text)]
            assert other is not None or set(stated) == {None} or fact in ("size", "direction", "shape", "timbre")
            if other is not None:
                changed += 1
                pairs = zip(parse(one.text), parse(other), strict=True)
                off = [name for a, b in pairs for name, value in asdict(a).items() if value != asdict(b)[name]]
                assert off == [fact], (one.text, other)
    assert changed > 5


def test_what_is_not_stated_is_not_exchanged() -> None:
    assert exchanged("a red ball falls and bounces", "direction", key=0) is None
    assert exchanged("a red ball slides left", "direction", key=0) == "a red ball slides right"
    counts = {exchanged("a red box bounces 2 times", "bounces", key=k) for k in range(40)}
    assert counts == {f"a red box bounces {n}" for n in ("1 time", "3 times", "4 times")}
    assert exchanged("a small red ball stays still while a large blue box falls", "size", key=0) is None
