"""The whole evaluation: anchors at their places, cheats found out, the same JSON whatever happened in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import UserError
from mmdiff.evaluate import evaluate
from mmdiff.metrics.nulls import NULLS
from mmdiff.metrics.score import Clip
from mmdiff.noise import rng

N = 16


def judge(run: Path | None, **options: Any) -> dict[str, Any]:
    return evaluate(run, n=N, devices=["cpu"], progress=False, **options)


def values(row: dict[str, Any]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in row.items()}


def late(clip: Clip, seconds: float) -> Clip:
    video, audio, fps, rate = clip
    return video, np.concatenate([np.zeros(round(seconds * rate), np.float32), audio])[: len(audio)], fps, rate


def test_anchors_stand_where_they_should_and_every_null_fails(model) -> None:
    run, _ = model()
    result = judge(run, out=run / "evaluation.json")
    rows = result["rows"]
    oracle = rows["oracle"]
    assert list(rows) == ["oracle", "codec", "model", *NULLS, "copier"]
    for name in ("facts", "colour_count", "shape", "direction", "timbre", "sync_f1"):
        assert oracle[name]["value"] >= 0.95 and rows["model"][name]["value"] >= 0.95, name
    for name in [*NULLS, "copier"]:
        failed = [m for m in ("facts", "direction", "timbre", "sync_f1") if rows[name][m]["high"] < oracle[m]["low"]]
        assert failed, name
    assert rows["copier"]["memorised_video"]["value"] == 1 and oracle["memorised_video"]["value"] < 0.2
    assert oracle["fd_rand_motion_ratio"]["value"] == 1 and rows["static"]["fd_rand_motion_ratio"]["value"] > 4
    record = result["protocol"]
    assert record["checkpoint"]["step"] == 9 and record["seeds"] == [1] and record["ema"] is True
    assert (record["n"], record["steps"], record["sampler"]) == (N, 3, "euler") and len(record["cautions"]) == 2
    assert json.loads((run / "evaluation.json").read_text()) == result
    assert {entry["modality"] for entry in result["nearest"]} == {"video", "audio"}
    assert len(result["per_clip"]["values"]["facts"]) == N


def test_interrupted_or_not_and_cached_or_not_the_json_is_the_same(model, tmp_path: Path) -> None:
    run, system = model(lambda clip, i: late(clip, 0.05))
    whole = judge(run, cache=tmp_path / "a", out=tmp_path / "a.json")
    system.made, system.patience = 0, 8
    with pytest.raises(KeyboardInterrupt):
        judge(run, cache=tmp_path / "b")
    system.made, system.patience = 0, 8  # what was kept is not made again
    assert judge(run, cache=tmp_path / "b", out=tmp_path / "b.json") == whole and system.made == 8
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    system.patience = 0
    assert judge(run, cache=tmp_path / "b") == whole
    next((tmp_path / "b" / "rows").glob("*.json")).write_text("{")
    assert judge(run, cache=tmp_path / "b") == whole


def test_eighty_milliseconds_read_eighty(model, cache: Path) -> None:
    run, _ = model(lambda clip, i: late(clip, 0.08))
    row = judge(run, training=0, cache=cache)["rows"]["model"]
    assert row["lag_ms"]["value"] == pytest.approx(80, abs=5) and "memorised_video" not in row
    assert row["sync_f1"]["high"] < 0.4


def test_metrics_rank_five_checkpoints(model, cache: Path) -> None:
    """Checkpoints that differ by known steps: less grain, less delay, fewer clips of other captions."""
    found = []
    for rung in range(5):
        share = (4 - rung) / 4

        def worse(clip: Clip, i: int, share: float = share) -> Clip:
            draw = rng(i)
            video = clip[0] + 40 * share * draw.standard_normal(clip[0].shape)
            sound = late(clip, 0.12 * share * draw.uniform())[1] + 0.1 * share * draw.standard_normal(len(clip[1]))
            return np.clip(video, 0, 255).astype(np.uint8), sound.astype(np.float32), *clip[2:]

        run, _ = model(worse)
        found.append(values(judge(run, training=0, cache=cache)["rows"]["model"]))
    lower = ["sync_cost_ms"] + [f"{kind}_rand_{s}" for kind in ("fd", "mmd") for s in ("appearance", "motion")]
    for metric, better in ({"sync_f1": 1} | dict.fromkeys(lower, -1)).items():
        ranked = [better * rung[metric] for rung in found]
        assert ranked == sorted(ranked) and ranked[0] < ranked[-1], (metric, ranked)


def test_a_model_that_ignores_its_caption_is_told_by_its_facts_alone(model, cache: Path) -> None:
    run, system = model()
    texts = list(system.known)
    system.known = dict(zip(texts, [system.known[text] for text in texts[1:] + texts[:1]], strict=True))
    row = judge(run, training=0, cache=cache)["rows"]["model"]
    assert row["facts"]["high"] < 0.3 and row["sync_f1"]["low"] > 0.8


def test_seen_and_unseen_combinations_stand_apart(model, cache: Path) -> None:
    run, _ = model()
    row = evaluate(run, split="iid,comp", n=8, devices=["cpu"], training=0, cache=cache, progress=False)["rows"][
        "model"
    ]
    assert row["facts_seen"]["n"] + row["facts_unseen"]["n"] == row["facts"]["n"] == 16
    assert row["facts_unseen"]["n"] == 8


def test_a_model_of_pictures_is_judged_by_what_can_be_seen(model, cache: Path) -> None:
    run, _ = model(has=("video",))
    result = judge(run, training=0, cache=cache)
    row = values(result["rows"]["model"])
    assert row["facts"] == 1 and row["timbre"] is None and "sync_f1" not in row and "fd_rand_spectrum" not in row
    assert list(result["rows"]) == [
        "oracle",
        "codec",
        "model",
        "noise",
        "static",
        "mean clip",
        "caption-ignoring",
        "copier",
    ]


def test_a_model_of_sounds_is_judged_by_what_can_be_heard(model, cache: Path) -> None:
    run, _ = model(has=("audio",))
    result = judge(run, training=0, cache=cache)
    row = values(result["rows"]["model"])
    assert row["facts"] == row["timbre"] == result["rows"]["oracle"]["timbre"]["value"] > 0.95
    assert row["shape"] is None and result["rows"]["silent"]["timbre"]["value"] == 0


def test_several_clips_a_caption_are_one_piece_of_evidence(model, cache: Path) -> None:
    run, _ = model()
    result = judge(run, number=2, training=0, cache=cache)
    row = result["rows"]["model"]
    assert row["facts"]["n"] <= N and result["protocol"]["clips_per_prompt"] == 2
    assert row["free_entropy_bits"]["value"] == 0  # both clips of a caption are the same


def test_what_selects_a_checkpoint_does_not_report_it(model, cache: Path) -> None:
    run, _ = model()
    cautions = judge(run, seed=0, training=0, cache=cache)["protocol"]["cautions"]
    assert any("seed 0" in text for text in cautions)


def test_mistakes_are_told(model, cache: Path, tmp_path: Path) -> None:
    run, _ = model()
    with pytest.raises(UserError, match="nothing to judge"):
        evaluate()
    with pytest.raises(UserError, match="no clip has split 'nowhere'"):
        judge(run, split="nowhere")
    with pytest.raises(UserError, match="is not a run"):
        judge(tmp_path)
    with pytest.raises(UserError, match="no plug-in called 'fvdd'"):
        judge(run, plugins={"fvdd": "x"}, training=0, cache=cache)
