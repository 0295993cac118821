"""All finished recipes in one document: what they cost and what they score, on the same captions.

The one idea: nothing is typed. Every number comes from a run's own folder (its config, its log, its evaluation.json) or
is counted by running it, and a run that is not finished or not evaluated is absent. Runs that were judged on other
captions or on clips of another shape stand in a table of their own, because their numbers do not compare.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmdiff import build, config, evaluate, records
from mmdiff.ablate.budget import measure
from mmdiff.errors import UserError
from mmdiff.files import write_text
from mmdiff.generate import Job, Settings, default_devices, generate
from mmdiff.metrics.score import HEADLINES
from mmdiff.report.learning import read_log, seconds
from mmdiff.train.settings import Sample

TIMED = 8  # clips whose generation is timed
KNOWN = ("value", "low", "high")
COST = {"checkpoint": {}, "parameters": int, "flops": int, "sampling": records.NUMBER}


@dataclass(frozen=True)
class Row:
    """One recipe."""

    name: str
    parameters: int
    flops: int  # of the whole training
    minutes: float  # of training steps
    sampling: float  # seconds a clip, in a batch of TIMED
    row: Mapping[str, Mapping[str, Any]]  # metric -> value, low, high, n
    protocol: Mapping[str, Any]

    @property
    def group(self) -> tuple[str, str]:
        """Rows of one group were judged on the same captions in the same way."""
        return self.protocol["prompts_hash"], self.protocol["preprocessing_hash"]


def collect(folder: str | Path) -> list[Row]:
    """The finished and evaluated runs below a folder, by name."""
    runs = sorted(path.parent for path in Path(folder).glob("*/evaluation.json"))
    return [_row(run) for run in runs if (run / "DONE").is_file() and (run / "config.yaml").is_file()]


def _row(run: Path) -> Row:
    evaluation, done = evaluate.read(run / "evaluation.json"), (run / "DONE").read_text(encoding="utf-8").strip()
    if not done.isdecimal():
        raise UserError(f"{run / 'DONE'} holds no number of steps: train again with the same command.")
    cost, steps = _cost(run, evaluation["protocol"]["checkpoint"]), seconds(read_log(run))
    total = int(done) * (sum(steps) / len(steps) if steps else math.nan)
    parts = {name: cost[name] for name in ("parameters", "flops", "sampling")}
    return Row(run.name, minutes=total / 60, row=evaluation["rows"]["model"], protocol=evaluation["protocol"], **parts)


def _cost(run: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What has to be run to be known; kept in RUN/cost.json for as long as the weights stay the same."""
    path, again = run / "cost.json", "Delete it: it is measured anew."
    known = records.read(path, COST, again=again) if path.is_file() else None
    if known is None or known["checkpoint"] != checkpoint:
        cost = measure(config.read(run / "config.yaml"))
        known = {"checkpoint": checkpoint, "flops": cost.flops, "sampling": _sampling(run)} | asdict(cost)
        write_text(path, json.dumps(known, indent=1) + "\n")
    return dict(known)


def _sampling(run: Path) -> float:
    """Seconds a clip, with the run's own sampler, steps and guidance; a batch before it warms up."""
    device = default_devices()[0]
    system, tree, _ = build.load(run, device=device)
    settings = Settings().resolved(Sample(**tree.get("sample", {})))
    jobs = [Job(i, "a red ball falls", str(i)) for i in range(TIMED)]
    for _ in range(2):
        began = time.monotonic()
        list(generate(system, jobs, settings=settings, batch=TIMED, device=device))
    return (time.monotonic() - began) / TIMED


# ---- the document --------------------------------------------------------------------------------------------------


def document(rows: Sequence[Row], *, command: str) -> str:
    """Markdown: for every group of comparable rows what they cost, their headline metrics, and all metrics."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    head = (
        f"# Leaderboard\n\nMade by `{command}` from finished runs; nothing is typed by hand, and recipes that have not "
        "been run and evaluated are absent. Brackets are 95 % intervals over captions, of one training seed each. "
        "Minutes and seconds are by the clock, of machines that other work may have shared; FLOP are counted."
    )
    return "\n\n".join([head, *(_section(group) for group in groups.values())]) + "\n"


def _section(rows: Sequence[Row]) -> str:
    first = rows[0].protocol
    title = f"## {first['n']} captions of “{first['split']}”, {' and '.join(first['modalities'])}"
    note = f"Machine of the sampling seconds: {first.get('device', 'unknown')}. Captions {first['prompts_hash']}."
    metrics = list(dict.fromkeys(name for row in rows for name in row.row if _known(row, name)))
    short = [name for name in HEADLINES if name in metrics]
    return "\n\n".join([title, note, _costs(rows), _scores(rows, short), "### Every metric", _every(rows, metrics)])


def _costs(rows: Sequence[Row]) -> str:
    lines = [f"| {r.name} | {r.parameters:,} | {r.flops:.2e} | {r.minutes:.0f} | {r.sampling:.2f} |" for r in rows]
    return _table(["recipe", "parameters", "training FLOP", "training minutes", "seconds a clip"], lines)


def _scores(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    lines = [f"| {row.name} | {' | '.join(_cell(row, name) for name in metrics)} |" for row in rows]
    return _table(["recipe", *metrics], lines)


def _every(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    lines = [f"| {name} | {' | '.join(_cell(row, name) for row in rows)} |" for name in metrics]
    return _table(["metric", *(row.name for row in rows)], lines)


def _table(head: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}", *lines])


def _known(row: Row, metric: str) -> bool:
    return metric in row.row and row.row[metric]["value"] is not None


def _cell(row: Row, metric: str) -> str:
    if not _known(row, metric):
        return "–"
    value, low, high = (row.row[metric][key] for key in KNOWN)
    digits = 1 if metric.endswith("_ms") else 3
    return f"{value:.{digits}f}" + ("" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]")
