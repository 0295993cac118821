"""Buckets and packs: which clip stands where is a pure function of (seed, step), and every clip has its turn."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.batch import ClipShape
from mmdiff.data.buckets import Buckets, Extent, kept, nearest, spread
from mmdiff.data.plans import Bucketed, Epoch, Line, Packed, Plan, compose
from mmdiff.errors import UserError


def shape(frames: int, h: int, w: int, fps: float = 8.0) -> ClipShape:
    return ClipShape(frames, fps, (h, w), 8000)


SHAPES = [shape(16, 32, 32), shape(16, 24, 40), shape(8, 32, 32), shape(1, 48, 48)]
WIDE, LONG, IMAGE = Extent(2.0, (240, 400)), Extent(9.0, (64, 64)), Extent(inf, (100, 90))


# ---- which shape ---------------------------------------------------------------------------------------------------


def test_a_clip_goes_where_most_of_it_is_kept() -> None:
    assert nearest(SHAPES, Extent(2.0, (32, 32))) == 0
    assert nearest(SHAPES, WIDE) == 1  # the aspect ratio decides
    assert nearest(SHAPES, LONG) == 0  # the longest window keeps most
    assert nearest(SHAPES, Extent(1.0, (32, 32))) == 2  # too short for the first
    assert nearest(SHAPES, IMAGE) == 3
    assert nearest(SHAPES, Extent(2.0, None)) == 0  # sound alone


def test_a_clip_too_short_for_all_goes_to_the_shortest_and_none_is_lost() -> None:
    assert nearest(SHAPES[:3], Extent(0.1, (32, 32))) == 2
    assert nearest(SHAPES[:2], IMAGE) in (0, 1)  # a still clip where no bucket is of images


def test_what_is_kept_is_one_only_for_the_clip_s_own_shape() -> None:
    assert kept(SHAPES[0], Extent(2.0, (32, 32))) == 1
    assert kept(SHAPES[0], Extent(2.0, (16, 16))) == kept(SHAPES[0], Extent(2.0, (64, 64))) == 0.25
    assert kept(SHAPES[0], Extent(4.0, (32, 32))) == 0.5


def test_spreading_uses_every_shape_that_a_clip_fills() -> None:
    found = Counter(spread(SHAPES, Extent(2.0, (32, 40)), f"clip-{i}") for i in range(600))
    assert set(found) == {0, 1, 2} and min(found.values()) > 150  # 48 x 48 would enlarge it
    assert spread(SHAPES, IMAGE, "a") == 3
    assert spread(SHAPES, Extent(0.01, (8, 8)), "a") == nearest(SHAPES, Extent(0.01, (8, 8)))


def test_mistaken_shapes_are_named() -> None:
    with pytest.raises(UserError, match="is not a mapping of frames, size"):
        Buckets(shapes=[{"frames": 3}])
    with pytest.raises(UserError, match="give at least one shape"):
        Buckets(shapes=[])


# ---- which step ----------------------------------------------------------------------------------------------------

EPOCH = Epoch(("large", "small", "none", "image"), (37, 90, 0, 11), (256, 128, 64, 16), 5)


def places(plan: Plan, steps: range) -> list[tuple[int, int]]:
    return [place for step in steps for unit in plan.step(step) for place in unit]  # type: ignore[misc]


@pytest.mark.parametrize("layout", [Bucketed(), Bucketed(multiple=4), Packed(512)], ids=str)
def test_no_place_is_visited_twice_and_none_is_left_out(layout: Bucketed | Packed) -> None:
    """Of each bucket's stream a run sees the beginning, in some order: what is left of an epoch waits, or is packed."""
    plan = layout(EPOCH, 1024)
    seen = places(plan, range(4000))
    assert len(set(seen)) == len(seen) and 2 not in {bucket for bucket, _ in seen}
    assert len(seen) == pytest.approx(4000 * plan.mean, rel=0.01)
    for bucket in (0, 1, 3):
        positions = sorted(position for b, position in seen if b == bucket)
        assert len(positions) / len(seen) == pytest.approx(EPOCH.counts[bucket] / 138, rel=0.02)  # its share of clips
        missing = positions[-1] + 1 - len(positions)
        assert missing <= EPOCH.counts[bucket] + 64  # only the running epoch and a waiting step have holes


def test_a_step_is_of_one_bucket_and_holds_what_the_tokens_hold() -> None:
    plan = Bucketed()(EPOCH, 1024)
    for step in range(100):
        units = plan.step(step)
        (bucket,) = {place[0] for unit in units for place in unit}  # type: ignore[index]
        assert len(units) == 1024 // EPOCH.costs[bucket]
    assert plan.sizes == (4, 8, 64) and plan.budget is None


def test_an_epoch_of_packs_visits_every_clip_once() -> None:
    plan = Packed(512)(EPOCH, 512)
    packs = list(compose(EPOCH.counts, EPOCH.costs, 512))
    for epoch in (0, 3):
        seen = places(plan, range(epoch * len(packs), (epoch + 1) * len(packs)))
        want = {(b, epoch * n + i) for b, n in enumerate(EPOCH.counts) for i in range(n)}
        assert set(seen) == want and len(seen) == len(want)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 64)), min_size=1, max_size=5), st.integers(64, 200))
def test_packs_are_never_over_full_and_hold_everything(buckets: list[tuple[int, int]], length: int) -> None:
    counts, costs = zip(*buckets, strict=True)
    packs = list(compose(counts, costs, length))
    assert [sum(pack[b] for pack in packs) for b in range(len(counts))] == list(counts)
    weights = [sum(n * c for n, c in zip(pack, costs, strict=True)) for pack in packs]
    assert all(0 < weight <= length for weight in weights)
    assert len(packs) <= 1 + 2 * sum(weights) / length  # at least half full, but for the last


def test_plans_are_functions_of_the_seed_and_the_step() -> None:
    for layout in (Bucketed(), Packed(512)):
        one, other = layout(EPOCH, 1024), layout(EPOCH, 1024)
        later = [other.step(step) for step in (1000, 3, 17)]
        assert later == [one.step(step) for step in (1000, 3, 17)]
        moved = layout(Epoch(EPOCH.names, EPOCH.counts, EPOCH.costs, 6), 1024)
        assert [moved.step(step) for step in range(8)] != [one.step(step) for step in range(8)]


def test_one_shape_is_a_line() -> None:
    plan = Line(4)
    assert plan.step(3) == [[12], [13], [14], [15]] and plan.sizes == (4,) and plan.mean == 4


def test_budgets_that_hold_no_clip_are_refused() -> None:
    with pytest.raises(UserError, match="tokens: 200 does not hold 1 clips of large, 256 tokens each"):
        Bucketed()(EPOCH, 200)
    with pytest.raises(UserError, match="length: 100 tokens do not hold a clip of large"):
        Packed(100)(EPOCH, 200)
    with pytest.raises(UserError, match="no multiple of 512"):
        Packed(512)(EPOCH, 1000)
