"""Clips made elsewhere: whatever way captions stand beside them, and nothing left out in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from worlds_made import save, worlds

from mmdiff.batch import ClipShape
from mmdiff.errors import UserError
from mmdiff.evaluate import evaluate
from mmdiff.evaluate.clips import as_batch, as_clip
from mmdiff.evaluate.folder import folder

CLIPS = worlds("iid", 20)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Ten captions in .txt files, ten in side files."""
    for i, (clip, text) in enumerate(CLIPS):
        save(tmp_path, f"{i:02d}", clip)
        if i % 2:
            (tmp_path / f"{i:02d}.txt").write_text(text + "\n")
        else:
            (tmp_path / f"{i:02d}.json").write_text(json.dumps({"prompt": text}))
    return tmp_path


def test_a_folder_is_judged_without_any_run(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "result.json"
    result = evaluate(clips=made, out=out, progress=False)
    row = result["rows"]["clips"]
    assert row["facts"]["value"] >= 0.95 and row["sync_f1"]["value"] >= 0.95 and row["facts"]["n"] == 20
    assert abs(row["lag_ms"]["value"]) < 5 and json.loads(out.read_text()) == result
    assert "fd_rand_motion" not in row and result["protocol"]["clips"] == made.as_posix()
    again = evaluate(clips=made, cache=tmp_path / "other", progress=False)
    assert again == result


def test_real_clips_to_compare_with_bring_distances(made: Path, data: Path) -> None:
    row = evaluate(clips=made, against=data, progress=False)["rows"]["clips"]
    assert row["fd_rand_motion"]["value"] > 0 and row["fd_rand_spectrum"]["n"] == 20


def test_with_a_run_the_anchors_stand_beside_the_clips(made: Path, model, cache: Path) -> None:
    run, _ = model()
    result = evaluate(run, clips=made, n=16, training=0, cache=cache, progress=False)
    assert {"oracle", "clips", "silent"} <= set(result["rows"]) and "codec" not in result["rows"]


def test_captions_of_no_world_leave_facts_out_and_mixed_ones_are_an_error(made: Path) -> None:
    (made / "01.txt").write_text("a dog barks\n")
    with pytest.raises(UserError, match="a dog barks"):
        evaluate(clips=made, progress=False)
    for i in range(20):
        (made / f"{i:02d}.json").unlink(missing_ok=True)
        (made / f"{i:02d}.txt").write_text(f"a dog barks {i} times\n")
    row = evaluate(clips=made, progress=False)["rows"]["clips"]
    assert "facts" not in row and row["onset_f1"]["low"] > row["onset_f1_shuffled"]["high"]


def test_what_cannot_be_judged_is_named(made: Path) -> None:
    (made / "04.wav").unlink()
    with pytest.raises(UserError, match="1 of 20 clips have no sound.*04"):
        evaluate(clips=made, progress=False)
    (made / "04.mp4").write_bytes(b"no clip")
    with pytest.raises(UserError, match="04.mp4"):
        evaluate(clips=made, progress=False)
    (made / "02.json").write_text("[]")
    with pytest.raises(UserError, match="02.json"):
        folder(made, shape=ClipShape(16, 8.0, (32, 32), 8000))


def test_clips_survive_the_way_to_a_batch_and_back() -> None:
    truth = [clip for clip, _ in CLIPS[:2]]
    batch = as_batch(truth)
    for row, (video, audio, *rates) in enumerate(truth):
        back = as_clip(batch, row)
        assert np.array_equal(back[0], video) and np.array_equal(back[1], audio) and list(back[2:]) == rates
