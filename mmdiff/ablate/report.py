"""A question's page: the answer in tables, what learning cost, what differs, the clips of all arms side by side.

The one idea: the page draws `result.json` and adds only pictures, so that neither can claim what the other does not.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmdiff import evaluate
from mmdiff.ablate.question import Question, shown
from mmdiff.ablate.runner import Runner
from mmdiff.generate import Settings, sample_prompts
from mmdiff.report import figures, gallery
from mmdiff.report.scores import COLUMNS

Result = Mapping[str, Any]
HELD_OUT = {"held_out_video": "held-out error, picture", "held_out_audio": "held-out error, sound"}
UNITS = {"EFLOP": 1e18, "PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "FLOP": 1}
SURE = 0.05  # of a p-value, after Holm's correction


def write(
    result: Result, question: Question, runner: Runner, *, commits: Mapping[str, Sequence[str]], clips: bool = True
) -> Path:
    """OUT/report.html."""
    sections = [
        mixed(commits),
        answer(result),
        gaps(result),
        failures(result),
        curves(result),
        arms(result),
        commands(question, runner),
    ]
    if clips and question.judge.clips:
        sections.insert(4, gallery.section(_dreamt(result, question, runner)))
    template = string.Template((files("mmdiff.report") / "page.html").read_text(encoding="utf-8"))
    title = question.text or question.name
    page = template.substitute(title=escape(title), lead=escape(_lead(result)), sections="\n".join(sections))
    path = runner.out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _lead(result: Result) -> str:
    done = sum("error" not in cell for cell in result["cells"].values())
    arms, seeds, judge = len(result["arms"]), len(result["seeds"]), result["judge"]
    matched = " and ".join(result["budget"]["match"]).replace("_", " ")
    return (
        f"{arms} arms x {seeds} seeds, {done} of {len(result['cells'])} cells finished; matched in {matched}; judged "
        f"on the first {judge['n']} captions of “{judge['split']}”. Arms of one seed saw the same clips and noise."
    )


def mixed(commits: Mapping[str, Sequence[str]]) -> str:
    """A caution where the cells were not trained by one version of the source."""
    if len(commits) < 2:
        return ""
    told = "; ".join(f"{commit}: {', '.join(cells)}" for commit, cells in commits.items())
    return f'<p class="note">Caution: these cells were trained by different versions of mmdiff ({escape(told)}).</p>'


# ---- tables --------------------------------------------------------------------------------------------------------


def _label(metric: str) -> str:
    return (COLUMNS | HELD_OUT).get(metric, metric.replace("_", " "))


def answer(result: Result) -> str:
    """Means of every arm with intervals over seeds and prompts."""
    names = result["headlines"]
    head = "".join(f"<th>{escape(_label(name))}</th>" for name in names)
    body = "\n".join(
        f"<tr><td>{escape(arm)}</td>"
        + "".join(_mean(result["metrics"][name]["means"].get(arm), name) for name in names)
        + "</tr>"
        for arm in result["arms"]
    )
    note = (
        "Means over seeds and prompts. Small figures are 95 % intervals in which both vary (crossed random effects, "
        "Student's t), so that they speak of the recipe and not of one training."
    )
    return f'<h2>Arms</h2>{_table(head, body)}<p class="note">{note}</p>'


def gaps(result: Result) -> str:
    """Every arm minus the first one."""
    names, first = result["headlines"], next(iter(result["arms"]))
    head = "".join(f"<th>{escape(_label(name))}</th>" for name in names)
    body = "\n".join(
        f"<tr><td>{escape(arm)}</td>"
        + "".join(_gap(result["metrics"][name]["differences"].get(arm), name) for name in names)
        + "</tr>"
        for arm in result["arms"]
        if arm != first
    )
    note = (
        f"Each arm minus “{escape(first)}”, paired by seed and prompt, with its 95 % interval. p is that of the "
        "recipes (over seeds and prompts, Holm's correction over arms; bold below 0.05), p' that of these very models "
        "(over prompts, random signs): with few seeds p' can be small where p is not, and only p speaks of the next "
        "training."
    )
    return f'<h2>Differences</h2>{_table(head, body)}<p class="note">{note}</p>'


def _table(head: str, body: str) -> str:
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>\n{body}</table></div>'


def _mean(entry: Mapping[str, Any] | None, metric: str) -> str:
    if entry is None or entry["value"] is None:
        return "<td>–</td>"
    return f"<td>{_number(entry['value'], metric)}<small>{_range(entry, metric)}</small></td>"


def _gap(entry: Mapping[str, Any] | None, metric: str) -> str:
    if entry is None or entry["value"] is None:
        return "<td>–</td>"
    value = f"{'+' if entry['value'] > 0 else ''}{_number(entry['value'], metric)}"
    if entry["p_holm"] is not None and entry["p_holm"] < SURE:
        value = f"<b>{value}</b>"
    ps = f"p {_p(entry['p_holm'])}" + (f", p' {_p(entry['p_models'])}" if entry["p_models"] is not None else "")
    return f"<td>{value}<small>{_range(entry, metric)}</small><small>{ps}</small></td>"


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _range(entry: Mapping[str, Any], metric: str) -> str:
    if entry["low"] is None:
        return "one value"
    return f"{_number(entry['low'], metric)} – {_number(entry['high'], metric)}"


def _number(value: float, metric: str) -> str:
    return f"{value:.{0 if metric.endswith('_ms') else 4 if metric.startswith('held_out') else 2}f}"


def failures(result: Result) -> str:
    """The cells that failed, with their errors."""
    failed = {name: cell["error"] for name, cell in result["cells"].items() if "error" in cell}
    body = "".join(f"<tr><td>{escape(n)}</td><td><code>{escape(e)}</code></td></tr>" for n, e in failed.items())
    if not failed:
        return ""
    note = "They are left out of the tables above; the other cells stand."
    return f'<h2>Failed cells</h2><table class="record">{body}</table><p class="note">{note}</p>'


def curves(result: Result) -> str:
    """Held-out errors over the arithmetic that was paid for them."""
    most = max((x for lines in result["curves"].values() for points in lines.values() for x, _ in points), default=0)
    unit, scale = next((name, size) for name, size in UNITS.items() if most >= size or size == 1)
    plots = []
    for name, lines in result["curves"].items():
        scaled = {arm: [(x / scale, y) for x, y in points] for arm, points in lines.items()}
        plot = figures.curves(scaled, x=f"training, {unit}")
        plots.append(f"<div><h3>Held-out error of {escape(name)}, mean over noise levels and seeds</h3>{plot}</div>")
    return f'<h2>Learning at equal compute</h2><div class="plots">{"".join(plots)}</div>'


def arms(result: Result) -> str:
    """What each arm costs, and the lines in which its config differs from the first one's."""
    head = "<th>parameters</th><th>steps</th><th>training FLOP</th><th>memory</th><th>differs from the first in</th>"
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{arm['parameters']:,}</td><td>{arm['steps']:,}</td><td>{arm['flops']:.2e}</td>"
        f"<td>{arm['memory'] / 2**20:.0f} MiB</td><td>{_lines(arm['differs'])}</td></tr>"
        for name, arm in result["arms"].items()
    )
    return f"<h2>Configs</h2>{_table(head, body)}"


def _lines(lines: Sequence[str]) -> str:
    return "<br>".join(f"<code>{escape(line)}</code>" for line in lines) or "–"


def commands(question: Question, runner: Runner) -> str:
    """The commands of every cell, to be run by hand."""
    lines = "\n".join(f"{shown(runner.training(cell))}\n{shown(runner.judging(cell))}" for cell in question.cells())
    note = "Each can be run by hand from the root of the source tree and gives the same numbers."
    return f'<h2>Commands</h2><p class="note">{note}</p><div class="scroll"><pre>{escape(lines)}</pre></div>'


# ---- clips ---------------------------------------------------------------------------------------------------------


def _dreamt(result: Result, question: Question, runner: Runner) -> list[gallery.Gallery]:
    """The first seed's clips of each arm that finished it, for the same captions with the same seed."""
    found = []
    for arm in question.arms:
        cell = next(cell for cell in question.cells() if cell.arm == arm.name)
        if "error" not in result["cells"][cell.name]:
            folder, out = runner.folder(cell), runner.out / "clips" / cell.name
            prompts = _captions(folder, question.judge.clips)
            settings = Settings(seed=question.judge.seed, scale=4)
            sample_prompts(folder, prompts, out=out, settings=settings, progress=False)
            found.append(replace(gallery.read(out), run=arm.name))
    return found


def _captions(folder: Path, count: int) -> list[str]:
    return list(dict.fromkeys(evaluate.read(folder / "evaluation.json")["per_clip"]["prompts"]))[:count]
