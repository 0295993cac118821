"""How a run learned: its log as curves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmdiff import records
from mmdiff.report import figures
from mmdiff.train.log import flat


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of RUN/log.jsonl in order; a line that a crash cut short is left out."""
    path = folder / "log.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            rows.append(records.parsed(line, {"step": int}))
    return sorted(rows, key=lambda row: int(row["step"]))


def seconds(rows: Sequence[dict[str, Any]]) -> list[float]:
    """What the logged steps took."""
    return [row["step_s"] for row in rows if isinstance(row.get("step_s"), float)]


def section(folder: Path) -> str:
    """Loss per modality, in training and on held-out clips, whole and by noise level."""
    rows = read_log(folder)
    losses = smooth(lines(rows, "loss"))
    whole = {name: points for name, points in losses.items() if "@" not in name}
    plots = [_plot("Training loss, a running mean of the logged steps", whole)]
    plots += by_level("Training loss", losses, "@") + by_level("Held-out error", lines(rows, "held_out"), "/")
    return f'<h2>Learning</h2><div class="plots">{"".join(plots)}</div>'


def by_level(title: str, named: dict[str, list[tuple[float, float]]], mark: str) -> list[str]:
    """A plot for each modality of the lines named modality<mark>t."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, points in named.items():
        modality, _, level = name.partition(mark)
        if level:
            found.setdefault(modality, {})[f"t = {level}"] = points
    return [
        _plot(f"{title} of {modality}, by noise level", dict(sorted(levels.items())))
        for modality, levels in found.items()
    ]


def _plot(title: str, named: dict[str, list[tuple[float, float]]]) -> str:
    return f"<div><h3>{title}</h3>{figures.curves(named, x='step')}</div>"


def lines(rows: Sequence[dict[str, Any]], family: str) -> dict[str, list[tuple[float, float]]]:
    """The logged numbers named family/..., or `family` itself where it has no parts -> name: (step, value) points."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in flat(row).items():
            if name.split("/")[0] == family:
                found.setdefault(name.removeprefix(f"{family}/"), []).append((row["step"], float(value)))
    return found if len(found) < 2 else {name: points for name, points in found.items() if name != family}


def smooth(lines: dict[str, list[tuple[float, float]]], keep: float = 0.9) -> dict[str, list[tuple[float, float]]]:
    """Bias-corrected exponential means of named lines; a NaN is left out and breaks nothing."""
    result: dict[str, list[tuple[float, float]]] = {}
    for name, points in lines.items():
        total = weight = 0.0
        result[name] = []
        for step, value in points:
            if value == value:
                total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
                result[name].append((step, total / weight))
    return result
