"""The leaderboard: what is finished and evaluated, nothing else, and only like beside like."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mmdiff.leaderboard import Row, collect, document


def entry(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | int | None]:
    return {"value": value, "low": low, "high": high, "n": 64}


def row(name: str, prompts: str = "a", **metrics: dict[str, float | int | None]) -> Row:
    protocol = {
        "prompts_hash": prompts, "preprocessing_hash": "p", "n": 64, "split": "iid", "modalities": ["video", "audio"],
        "device": "cpu",
    }  # fmt: skip
    return Row(name, 1_234_567, 2_000_000_000_000, 12.4, 0.25, metrics, protocol)


def test_rows_are_values_with_intervals_and_gaps_are_dashes() -> None:
    rows = [row("one", facts=entry(0.41, 0.34, 0.48), lag_ms=entry(-3.21)), row("two", facts=entry(None))]
    text = document(rows, command="x")
    assert "| one | 1,234,567 | 2.00e+12 | 12 | 0.25 |" in text
    assert "| one | 0.410 [0.340, 0.480] |" in text and "| two | – |" in text
    assert "| lag_ms | -3.2 | – |" in text


def test_runs_judged_on_other_captions_stand_apart() -> None:
    text = document([row("one"), row("two", prompts="b"), row("three")], command="x")
    first, second = text.split("## 64 captions")[1:]
    assert "one" in first and "three" in first and "two" not in first and "two" in second


def test_a_run_that_is_not_finished_is_absent(tmp_path: Path) -> None:
    for name, files in {"half": ["config.yaml", "evaluation.json"], "blind": ["config.yaml", "DONE"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    assert collect(tmp_path) == []


def test_a_finished_run_is_read_from_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "DONE").write_text("100\n")
    (run / "log.jsonl").write_text("".join(json.dumps({"step": n, "step_s": 0.6}) + "\n" for n in (10, 20)))
    protocol = row("x").protocol | {"checkpoint": {"step": 100, "hash": "x"}, "seeds": [1]}
    clips = {"prompts": ["a"], "ids": ["b"], "values": {"facts": [0.5]}}
    result = {"rows": {"model": {"facts": entry(0.5)}}, "protocol": protocol, "per_clip": clips}
    (run / "evaluation.json").write_text(json.dumps(result))
    cost = {"checkpoint": protocol["checkpoint"], "parameters": 5, "flops": 70, "sampling": 0.5}
    (run / "cost.json").write_text(json.dumps(cost))
    (found,) = collect(tmp_path)
    assert (found.name, found.parameters, found.flops, found.sampling) == ("one", 5, 70, 0.5)
    assert math.isclose(found.minutes, 1.0)
