"""The contact sheet: every clip in its place, in frames that lie evenly in time."""

from __future__ import annotations

import pytest
import torch

from mmdiff.errors import UserError
from mmdiff.report.sheet import PAPER, sheet


def clip(frames: int, value: int) -> torch.Tensor:
    """Frame k is of one colour, value + k."""
    return (value + torch.arange(frames)).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 4, 4, 3)


def test_frames_stand_in_rows_and_columns() -> None:
    picture = sheet([{"a": clip(6, 10), "b": clip(6, 30)}, {"b": clip(1, 70), "a": clip(6, 50)}], scale=2, gap=3)
    cell = 3 * 8 + 2  # three frames, a point between them
    assert picture.shape == (8 + 3 + 8, 2 * cell + 3, 3)
    assert [int(picture[0, x, 0]) for x in (0, 9, 18)] == [11, 13, 15]  # the middles of the thirds of six frames
    assert [int(picture[0, cell + 3 + x, 0]) for x in (0, 9, 18)] == [31, 33, 35]
    assert [int(picture[11, cell + 3 + x, 0]) for x in (0, 9, 18)] == [70, PAPER, PAPER]  # one frame is shown once
    assert int(picture[8, 0, 0]) == int(picture[0, 8, 0]) == PAPER


def test_a_row_that_lacks_a_caption_is_an_error() -> None:
    with pytest.raises(UserError, match="lacks a clip of 'b'"):
        sheet([{"a": clip(2, 0), "b": clip(2, 0)}, {"a": clip(2, 0)}])
