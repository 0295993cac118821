"""Batches: the same whatever the workers, the ranks, the micro steps and the place where one resumes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmdiff.batch import Batch, ClipShape
from mmdiff.data.buckets import Buckets
from mmdiff.data.clips import Clips
from mmdiff.data.loader import gather, loader
from mmdiff.data.plans import Bucketed, Budget, Packed
from mmdiff.errors import UserError

STEPS, BATCH = 5, 4


@pytest.fixture(scope="module")
def path(studio: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips")
    for k in range(7):
        studio.encode(
            path / f"{k}.mp4", studio.grey(24 + 3 * k, 32, 40), studio.click(1 + k / 8, 8000, [0.5]), rate=8000
        )
        (path / f"{k}.txt").write_text("a\nb\nc")
    (path / "bad.mp4").write_bytes(b"")
    return path


@pytest.fixture
def clips(path: Path) -> Clips:
    return Clips(path, frames=8, fps=8, size=[24, 24], rate=8000, split=None)


def flat(clips: Clips, **arguments: Any) -> list[tuple[int, Batch]]:
    plan = clips.plan(arguments.pop("batch", BATCH))
    return [
        (step, part) for step, parts in loader(clips, **{"plan": plan, "steps": STEPS, **arguments}) for part in parts
    ]


def equal(a: Batch, b: Batch) -> bool:
    tensors = torch.equal(a["video"], b["video"]) and torch.equal(a["audio"], b["audio"])
    return tensors and a["id"] == b["id"] and a["text"] == b["text"]


def joined(parts: list[Batch]) -> Batch:
    return {
        "video": torch.cat([part["video"] for part in parts]),
        "audio": torch.cat([part["audio"] for part in parts]),
        "id": [name for part in parts for name in part["id"]],
        "text": [text for part in parts for text in part["text"]],
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers: int, clips: Clips, path: Path) -> None:
    alone = flat(clips)
    assert [step for step, _ in alone] == list(range(STEPS)) and alone[0][1]["video"].shape == (4, 3, 8, 24, 24)
    other = Clips(path, frames=8, fps=8, size=[24, 24], rate=8000, split=None)
    many = flat(other, workers=workers)
    assert all(equal(a, b) and s == t for (s, a), (t, b) in zip(alone, many, strict=True))
    assert other.bad == clips.bad and other.replaced == clips.replaced and len(clips.bad) == 1


def test_ranks_and_micro_steps_share_the_same_samples(clips: Clips) -> None:
    alone = flat(clips)
    ranks = [flat(clips, rank=rank, world=2) for rank in (0, 1)]
    micro = flat(clips, accumulate=2)
    both = [flat(clips, rank=rank, world=2, accumulate=2) for rank in (0, 1)]
    for step in range(STEPS):
        whole = alone[step][1]
        assert equal(whole, joined([ranks[0][step][1], ranks[1][step][1]]))
        assert equal(whole, joined([micro[2 * step][1], micro[2 * step + 1][1]]))
        assert equal(whole, joined([both[rank][2 * step + part][1] for rank in (0, 1) for part in (0, 1)]))


def test_resuming_is_beginning_at_another_position(clips: Clips) -> None:
    whole, later = flat(clips), flat(clips, start_step=3)
    assert [step for step, _ in later] == [3, 4]
    assert all(equal(a[1], b[1]) for a, b in zip(whole[3:], later, strict=True))
    assert flat(clips, start_step=STEPS) == []
    assert equal(gather(clips, range(4, 8)), whole[1][1])
    assert flat(clips, start_step=10**6, steps=10**6 + 1)[0][0] == 10**6


def test_an_epoch_visits_every_clip_once(clips: Clips) -> None:
    order = clips._candidates
    for epoch in (0, 1, 5):
        assert sorted(next(order(epoch, place)) for place in range(len(clips))) == list(range(len(clips)))


def test_the_global_generator_is_left_alone(clips: Clips) -> None:
    before = torch.get_rng_state()
    flat(clips, steps=2, workers=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_as_one_paragraph(workers: int, clips: Clips) -> None:
    clips.entries = clips.entries[-1:]
    clips.entries[0].video.write_bytes(b"") if clips.entries[0].id == "bad.mp4" else None
    clips.entries = [type(clips.entries[0])("gone", Path("/nowhere/gone.mp4"), None)]
    with pytest.raises(UserError) as caught:
        flat(clips, workers=workers)
    assert str(caught.value).count("\n") == 0 and "gone.mp4" in str(caught.value)


def test_batches_that_cannot_be_shared_are_refused_at_once(clips: Clips) -> None:
    with pytest.raises(UserError, match="batch 4 cannot be shared by 3 ranks"):
        loader(clips, plan=clips.plan(4), steps=1, world=3)
    with pytest.raises(UserError, match="rank 2"):
        loader(clips, plan=clips.plan(4), steps=1, world=2, rank=2)


# ---- many shapes ---------------------------------------------------------------------------------------------------

SHAPES = [{"frames": 8, "size": [24, 24]}, {"frames": 16, "size": [16, 24]}, {"frames": 1, "size": [8, 8], "fps": 4}]


def cost(shape: ClipShape) -> int:
    return shape.frames * shape.size[0] * shape.size[1] // 64


def shaped(path: Path, layout: Any, assign: str = "spread") -> Clips:
    buckets = Buckets(shapes=SHAPES, assign=assign, layout=layout)  # type: ignore[arg-type]
    return Clips(path, frames=8, fps=8, size=[24, 24], rate=8000, split=None, buckets=buckets)


def test_a_step_has_one_shape_and_ranks_share_it(path: Path) -> None:
    budget = Budget(4 * cost(ClipShape(16, 8.0, (16, 24), 8000)), cost)
    clips = shaped(path, Bucketed(multiple=4))
    alone = flat(clips, batch=budget)
    ranks = [flat(shaped(path, Bucketed(multiple=4)), batch=budget, rank=r, world=2, workers=r) for r in (0, 1)]
    for step, (_, whole) in enumerate(alone):
        assert equal(whole, joined([ranks[0][step][1], ranks[1][step][1]]))
        shape = ClipShape(whole["video"].shape[2], 8.0, tuple(whole["video"].shape[3:]), 8000)
        assert len(whole["id"]) == budget.tokens // cost(shape) // 4 * 4
    assert sum(map(len, clips._rooms)) == len(clips) and len(clips.bad) <= 1
    assert clips[0]["video"].shape == (3, 8, 24, 24)  # plain positions have the data's own shape
    later = flat(shaped(path, Bucketed(multiple=4)), batch=budget, start_step=3)
    assert all(equal(a[1], b[1]) for a, b in zip(alone[3:], later, strict=True))


def test_a_packed_step_holds_clips_of_many_shapes(path: Path) -> None:
    budget = Budget(2 * 160, cost)
    whole = flat(shaped(path, Packed(160)), batch=budget, steps=1)[0][1]
    halves = [flat(shaped(path, Packed(160)), batch=budget, steps=1, rank=r, world=2)[0][1] for r in (0, 1)]
    assert whole["budget"] == 320 and halves[0]["budget"] == 160
    assert sorted(whole["id"]) == sorted(halves[0]["id"] + halves[1]["id"])
    assert whole["id"] == [name for part in whole["parts"] for name in part["id"]]
    shapes = [tuple(part["video"].shape[1:]) for part in whole["parts"]]
    assert len(set(shapes)) == len(shapes) >= 2
    assert {float(part["fps"][0]) for part in whole["parts"] if part["video"].shape[2] == 1} <= {4.0}


def test_buckets_want_tokens(path: Path) -> None:
    with pytest.raises(UserError, match="data.buckets needs `tokens`"):
        flat(shaped(path, Bucketed()), batch=4)
    with pytest.raises(UserError, match="data.buckets.layout.multiple"):
        flat(shaped(path, Bucketed(), "nearest"), batch=Budget(360, cost), world=2)
