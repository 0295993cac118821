"""Numbers and classes as conditions: measured from clips in training, asked for in sampling, kept by the null view."""

from __future__ import annotations

import pytest
import torch

from mmdiff import noise
from mmdiff.batch import Batch, ClipShape
from mmdiff.conditioners import Conditioners, FrameRate, Label, MotionBucket, Number, emptied
from mmdiff.conditioners.numbers import motion
from mmdiff.errors import UserError


def drifting(speed: float, *, frames: int = 8, size: int = 32) -> torch.Tensor:
    """(1 3 t h w): a smooth texture that moves to the right by so many pixels a frame."""
    waves = noise.normal((6, 4), keys=[noise.key("texture")])[0]  # (k 4)
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, size, size)), indexing="ij")
    rows, columns = 0.4 * waves[:, 0], 0.4 * waves[:, 1]
    phases = columns[:, None, None, None] * (x - speed * t) + rows[:, None, None, None] * y
    grey = (phases + waves[:, 2, None, None, None]).sin().mean(0)
    return grey[None, None].expand(1, 3, -1, -1, -1)


def test_motion_grows_with_the_flow_and_is_of_its_size() -> None:
    fps = torch.tensor([8.0])
    found = torch.cat([motion(drifting(speed), fps) for speed in (0.0, 0.25, 0.5, 1.0, 2.0)])
    assert found[0] == 0 and (found.diff() > 0).all()
    true = torch.tensor([0.25, 0.5, 1.0, 2.0]) * 8 / 32
    assert ((found[1:] / true) > 0.4).all() and ((found[1:] / true) < 1.0).all()
    torch.testing.assert_close(motion(0.3 * drifting(1.0), fps), motion(drifting(1.0), fps))
    torch.testing.assert_close(motion(drifting(1.0), 2 * fps), 2 * motion(drifting(1.0), fps))
    assert motion(drifting(1.0, frames=1), fps) == 0


def test_the_bucket_is_measured_in_training_and_asked_for_in_sampling() -> None:
    part = MotionBucket(width=8, buckets=11, fastest=1.0, usual=0.5)
    clips = Batch(video=torch.cat([drifting(0.0), drifting(2.0)]), fps=torch.full((2,), 8.0), text=["a", "b"])
    still, fast = part.bucket(clips).tolist()
    assert still == 0 and 0 < fast <= 10
    shape = ClipShape(frames=8, fps=8.0, size=(32, 32), rate=8000)
    assert part.bucket(Batch(text=["a", "b"], shape=shape)).tolist() == [5, 5]
    asked = Batch(text=["a", "b"], shape=shape, motion=torch.tensor([0.0, 9.0]))
    assert part.bucket(asked).tolist() == [0, 10]
    vectors = part(asked)["vector"]
    assert vectors.shape == (2, 8) and not torch.equal(vectors[0], vectors[1])


def test_seconds_are_those_of_the_clips_or_of_what_is_asked_for() -> None:
    part, shape = Number(of="seconds", width=8, top=10.0), ClipShape(frames=16, fps=8.0, size=(4, 4), rate=100)
    video = Batch(text=["x"], video=torch.zeros(1, 3, 16, 4, 4), fps=torch.tensor([8.0]))
    audio = Batch(text=["x"], audio=torch.zeros(1, 1, 200), rate=100)
    wanted = part(Batch(text=["x"], shape=shape))["vector"]
    torch.testing.assert_close(part(video)["vector"], wanted)
    torch.testing.assert_close(part(audio)["vector"], wanted)
    assert not torch.equal(part(Batch(text=["x"], shape=ClipShape(8, 8.0, (4, 4), 100)))["vector"], wanted)


def test_nothing_empties_a_number_but_a_class_is_dropped_with_the_text() -> None:
    both = Conditioners([FrameRate(width=8), Label(names=["ball", "cube"], width=8)])
    batch = Batch(text=["ball", "cube"], fps=torch.tensor([8.0, 24.0]))
    rate, label = both.parts[0], both.parts[1]
    torch.testing.assert_close(both(batch)["vector"], rate(batch)["vector"] + label.table.weight[1:])
    torch.testing.assert_close(both(emptied(batch))["vector"], rate(batch)["vector"] + label.table.weight[:1])


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="no class 'cone'"):
        Label(names=["ball"], width=8)(Batch(text=["cone"]))
    with pytest.raises(UserError, match="different"):
        Label(names=["ball", "ball"], width=8)
    with pytest.raises(UserError, match="speed"):
        Number(of="speed", width=8, top=1.0)
    with pytest.raises(UserError, match="buckets"):
        MotionBucket(width=8, buckets=1)
