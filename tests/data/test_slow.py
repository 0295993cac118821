"""Clips that take far longer to decode than others are named once; durations are given, no clock is looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmdiff.data.clips import Clips
from mmdiff.data.decoder import Decoder
from mmdiff.data.loader import loader
from mmdiff.data.slow import ENOUGH, SECONDS, TOLD, Slow, described


def test_a_slow_clip_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    slow.see("first", 60.0)  # before there is a median
    for k in range(ENOUGH):
        slow.see(f"{k}", 0.2)
    for name, seconds in (("far", 2.5), ("far", 9.0), ("near", 1.9), ("quick", 0.9)):
        slow.see(name, seconds)
    assert slow.news() == (1, [{"id": "far", "seconds": 2.5, "median": 0.2}]) and slow.news() == (1, [])
    assert [record.message for record in caplog.records] == ["slow clip far: 2.5 s to decode, the median is 0.20 s"]


def test_the_console_stops_where_everything_is_slow_and_the_log_does_not(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    for k in range(ENOUGH + 3 * TOLD):
        slow.see(f"{k}", 0.1 if k < ENOUGH else 2.0)
    assert slow.news()[0] == 3 * TOLD and len(caplog.records) == TOLD + 1
    assert "log.jsonl names every one" in caplog.records[-1].message


def test_quick_clips_are_never_slow() -> None:
    """Ten times almost nothing is almost nothing."""
    slow = Slow()
    for k in range(3 * ENOUGH):
        slow.see(f"{k}", SECONDS if k % 10 == 9 else 0.001)
    assert slow.count == 0


def test_ranks_are_told_together() -> None:
    one, two = {"id": "a", "seconds": 3.0, "median": 0.1}, {"id": "b", "seconds": 4.0, "median": 0.1}
    assert described([(2, [one]), (1, [two])]) == {"slow": {"clips": 3, "new": [one, two]}}
    assert described([(2, []), (0, [])]) == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_reader_tells_how_long_it_took(
    workers: int, studio: SimpleNamespace, tmp_path: Path, monkeypatch: Any
) -> None:
    for k in range(4):
        studio.encode(tmp_path / f"{k}.mp4", studio.grey(24, 32, 32))
    shape: dict[str, Any] = {"frames": 4, "fps": 8, "size": [16, 16], "rate": 8000, "split": None}
    clips, window = Clips(tmp_path, **shape), Decoder.window
    assert clips[0]["took"] > 0

    def watched(self: Decoder, entry: Any, *rest: Any) -> Any:
        return replace(window(self, entry, *rest), took=30.0 if entry.id == "2.mp4" else 0.5)

    monkeypatch.setattr(Decoder, "window", watched)
    seen = [name for _, parts in loader(clips, plan=clips.plan(4), steps=9, workers=workers) for name in parts[0]["id"]]
    assert len(seen) == 36 and clips.slow.news() == (1, [{"id": "2.mp4", "seconds": 30.0, "median": 0.5}])
    still = Clips(tmp_path, **shape, modalities=["video"], window="start", crop="center", cache=True)
    assert [still[position]["took"] for position in (4, 5, 6, 7)].count(0.0) >= 1  # the clip that was tried is kept
    assert {still[position]["took"] for position in range(8, 12)} == {0.0}
