"""What a question found, as plain data: costs, cells, means, differences, curves. `report.py` only draws it.

The one idea: `result.json` is a function of the question's file. Nothing in it depends on the clock, the folder or how
often the runner was stopped; times are in `times.json` beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from mmdiff import evaluate, records
from mmdiff.ablate import budget
from mmdiff.ablate.budget import Cost
from mmdiff.ablate.compare import Values, clean, compare, holm
from mmdiff.ablate.question import Question
from mmdiff.ablate.runner import Runner
from mmdiff.files import write_text
from mmdiff.metrics.score import HEADLINES
from mmdiff.report.learning import read_log, seconds
from mmdiff.train.folder import differences, environment
from mmdiff.train.ranks import Ranks

AGAIN = "Delete the cell's folder: it is trained anew."
Errors = Mapping[str, str | None]  # cell -> what it ended with
Point = tuple[int, float]


def collect(question: Question, costs: Mapping[str, Cost], runner: Runner, errors: Errors) -> dict[str, Any]:
    """Everything that the cells left, compared."""
    values, curves = _values(question, runner, errors), _curves(question, costs, runner, errors)
    metrics = list(dict.fromkeys(name for cells in values.values() for row in cells.values() for name in row))
    return {
        "question": question.text,
        "base": str(question.base.name),
        "arms": {arm.name: _arm(question, arm.name, costs) for arm in question.arms},
        "seeds": list(question.seeds),
        "judge": vars(question.judge),
        "budget": vars(question.budget),
        "cells": {cell.name: _cell(runner, errors[cell.name], cell.name) for cell in question.cells()},
        "metrics": {metric: _compared(values, metric, seed=question.judge.seed) for metric in metrics},
        "headlines": headlines(question, metrics),
        "curves": curves,
    }


def headlines(question: Question, metrics: Sequence[str]) -> list[str]:
    """The metrics of the tables: those that the question names, or the house's and the held-out errors."""
    wanted = question.judge.metrics or [*HEADLINES, *(name for name in metrics if name.startswith("held_out_"))]
    return [name for name in wanted if name in metrics]


def write(result: Mapping[str, Any], out: Path) -> Path:
    """The result as JSON, whole or not at all."""
    path = out / "result.json"
    write_text(path, json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path


def write_times(question: Question, costs: Mapping[str, Cost], runner: Runner, errors: Errors) -> None:
    """What differs from run to run: seconds of the steps of each cell, the machine, and the source that it ran."""
    cells = [cell for cell in question.cells() if errors[cell.name] is None]
    seconds = {cell.name: _seconds(runner.folder(cell)) for cell in cells}
    measured = {name: cost.seconds_a_step for name, cost in costs.items()}
    found = {"measured_seconds_a_step": measured, "cells_mean_step_s": seconds, "machine": environment(Ranks())}
    found["commits"] = commits(question, runner, errors)
    write_text(runner.out / "times.json", json.dumps(found, indent=1) + "\n")


def commits(question: Question, runner: Runner, errors: Errors) -> dict[str, list[str]]:
    """Version of the source -> the cells that it trained; more than one, and the cells differ in more than they say."""
    found: dict[str, list[str]] = {}
    for cell in question.cells():
        if errors[cell.name] is None:
            stored = records.read(runner.folder(cell) / "environment.json", {"commit": (str, NoneType)}, again=AGAIN)
            found.setdefault(str(stored["commit"]), []).append(cell.name)
    return found


def _seconds(folder: Path) -> float | None:
    """Mean seconds of the logged steps."""
    steps = seconds(read_log(folder))
    return clean(sum(steps) / len(steps) if steps else math.nan)


def _arm(question: Question, name: str, costs: Mapping[str, Cost]) -> dict[str, Any]:
    """An arm's price and how its resolved config differs from the first arm's."""
    first, arm = question.arms[0], next(arm for arm in question.arms if arm.name == name)
    gap = differences(question.tree(first), question.tree(arm))
    return {"changes": arm.changes, "differs": gap} | budget.row(costs[name])


def _cell(runner: Runner, error: str | None, name: str) -> dict[str, Any]:
    if error is not None:
        return {"error": error}
    evaluation = evaluate.read(runner.out / "cells" / name / "evaluation.json")
    rows = {row: evaluation["rows"][row] for row in evaluation["rows"] if row in ("model", "oracle", "codec")}
    return {"rows": rows, "checkpoint": evaluation["protocol"]["checkpoint"]}


def _values(question: Question, runner: Runner, errors: Errors) -> Values:
    """arm -> seed -> metric -> one value a prompt; what only whole sets have (distances, held-out errors) is one."""
    found: dict[str, dict[int, dict[str, list[float | None]]]] = {arm.name: {} for arm in question.arms}
    for cell in question.cells():
        if errors[cell.name] is not None:
            continue
        folder = runner.folder(cell)
        evaluation = evaluate.read(folder / "evaluation.json")
        whole = {name: [entry["value"]] for name, entry in evaluation["rows"]["model"].items()}
        held_out = {f"held_out_{name}": [value] for name, value in _last(read_log(folder)).items()}
        found[cell.arm][cell.seed] = whole | evaluation["per_clip"]["values"] | held_out
    return found


def _last(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Modality -> its mean error over noise levels, at the last evaluation."""
    points = dict(_held_out(rows))
    return points[max(points)] if points else {}


def _held_out(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, modality -> mean over noise levels)."""
    for row in rows:
        if levels := row.get("held_out"):
            yield row["step"], {name: sum(by.values()) / len(by) for name, by in levels.items()}


def _compared(values: Values, metric: str, *, seed: int) -> dict[str, Any]:
    """Means of the arms, and their differences from the first with p-values that allow for the number of arms."""
    means, gaps = compare(values, metric, seed=seed)
    rows = {arm: gap.row() for arm, gap in gaps.items()}
    for row, p in zip(rows.values(), holm([gap.p for gap in gaps.values()])):
        row["p_holm"] = clean(p)
    return {"means": {arm: mean.row() for arm, mean in means.items()}, "differences": rows}


def _curves(question: Question, costs: Mapping[str, Cost], runner: Runner, errors: Errors) -> dict[str, Any]:
    """Modality -> arm -> (training FLOPs, held-out error) points, the mean over the seeds that have finished."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for arm in question.arms:
        cells = [cell for cell in question.cells() if cell.arm == arm.name and errors[cell.name] is None]
        logs = [dict(_held_out(read_log(runner.folder(cell)))) for cell in cells]
        for step in sorted(set.intersection(*map(set, logs))) if logs else ():
            for name in logs[0][step]:
                mean = sum(log[step][name] for log in logs) / len(logs)
                points = found.setdefault(name, {}).setdefault(arm.name, [])
                points.append([step * costs[arm.name].flops_a_step, mean])
    return found
