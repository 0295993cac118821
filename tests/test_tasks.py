"""Masks of tasks: what they mark, and that the draw belongs to (seed, step, id) alone."""

from __future__ import annotations

import pytest
import torch

from mmdiff import tasks
from mmdiff.errors import UserError

SHAPES = {"video": (128, 4, 4, 4), "audio": (64, 32)}
U = (0.4, 0.6, 0.3, 0.9)


def test_masks_have_the_shape_of_one_channel() -> None:
    for name, (task, _) in tasks.TASKS.items():
        masks = task(SHAPES, U)
        assert {n: tuple(m.shape) for n, m in masks.items()} == {"video": (1, 4, 4, 4), "audio": (1, 32)}, name
        assert all(m.dtype == torch.bool for m in masks.values())


def test_ends_of_the_picture() -> None:
    def steps(task: tasks.Task) -> list[bool]:
        masks = task(SHAPES, U)
        assert not masks["audio"].any()
        assert torch.equal(masks["video"].all((2, 3)), masks["video"].any(-1).any(-1))
        return masks["video"].all((2, 3))[0].tolist()

    assert steps(tasks.first_frame) == [True, False, False, False]
    assert steps(tasks.last_frame) == [False, False, False, True]
    assert steps(tasks.interpolate) == [True, False, False, True]


@pytest.mark.parametrize("u", [0.0, 0.2, 0.4, 0.7, 0.999])
def test_a_cut_is_one_second_for_picture_and_sound(u: float) -> None:
    masks = tasks.extend(SHAPES, (u, 0, 0, 0))
    video, audio = masks["video"][0, :, 0, 0], masks["audio"][0]
    assert 1 <= video.sum() <= 3 and audio.sum() == 8 * video.sum()
    assert video[: int(video.sum())].all() and audio[: int(audio.sum())].all()
    back = tasks.extend_backward(SHAPES, (u, 0, 0, 0))
    assert back["video"][0, -1].all() and not back["video"][0, 0].any()


def test_an_image_has_no_frame_to_hold() -> None:
    for task in (tasks.first_frame, tasks.interpolate, tasks.extend, tasks.extend_backward):
        assert not task({"video": (3, 1, 8, 8)}, U)["video"].any()


@pytest.mark.parametrize("u", [(0, 0, 0, 0), U, (0.999,) * 4])
def test_the_box_lies_inside(u: tuple[float, ...]) -> None:
    hole = ~tasks.inpaint(SHAPES, u)["video"]
    assert hole.any() and not hole.all() and torch.equal(hole[:, :1].expand_as(hole), hole)
    assert torch.equal(tasks.outpaint(SHAPES, u)["video"], hole) and tasks.outpaint(SHAPES, u)["audio"].all()
    gap = ~tasks.inpaint_time(SHAPES, u)["audio"]
    assert 8 <= gap.sum() <= 24


def test_one_modality_from_the_other() -> None:
    v2a, a2v = tasks.video_to_audio(SHAPES, U), tasks.audio_to_video(SHAPES, U)
    assert v2a["video"].all() and not v2a["audio"].any() and a2v["audio"].all() and not a2v["video"].any()


def test_the_draw_belongs_to_the_clip() -> None:
    odds = {"generate": 1.0, "first_frame": 2.0, "inpaint": 3.0, "extend": 2.0}
    ids = [f"clip-{i}" for i in range(6)]
    together = tasks.draw(odds, SHAPES, seed=1, step=2, ids=ids)
    for i, name in enumerate(ids):
        alone = tasks.draw(odds, SHAPES, seed=1, step=2, ids=[name])
        assert all(torch.equal(alone[n][0], together[n][i]) for n in SHAPES)
    assert together["video"].shape == (6, 1, 4, 4, 4)
    assert tasks.draw({}, SHAPES, seed=1, step=2, ids=ids) == {}


def test_tasks_come_as_often_as_asked() -> None:
    ids = [str(i) for i in range(2000)]
    masks = tasks.draw({"generate": 6, "video_to_audio": 3, "audio_to_video": 1}, SHAPES, seed=0, step=0, ids=ids)
    share = [float(masks[n].flatten(1).all(1).float().mean()) for n in SHAPES]
    assert share == pytest.approx([0.3, 0.1], abs=0.03)


@pytest.mark.parametrize(
    ("odds", "says"),
    [({"firstframe": 1.0}, "no task"), ({"video_to_audio": 1.0}, "needs audio"), ({"extend": -1.0}, "odds")],
)
def test_wrong_odds_are_refused(odds: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tasks.check(odds, ["video"])


def test_a_step_is_given_only_if_all_of_it_is() -> None:
    seconds = (torch.arange(4) + 0.5) / 2
    assert tasks.within(seconds, 0.0, 1.0).tolist() == [True, True, False, False]
    assert tasks.within(seconds, 0.1, 1.9).tolist() == [False, True, True, False]
