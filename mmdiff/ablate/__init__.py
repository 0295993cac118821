"""From a question's file to its answer: plan the cells, run them, compare what they left, draw the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from mmdiff import records
from mmdiff.ablate import budget, report, result
from mmdiff.ablate.budget import Cost
from mmdiff.ablate.question import Question, read, shown
from mmdiff.ablate.runner import Runner
from mmdiff.errors import UserError
from mmdiff.files import write_text

COST = {field.name: records.NUMBER for field in fields(Cost)}


@dataclass(frozen=True)
class Plan:
    """A question whose cells are priced and may be compared."""

    question: Question
    costs: dict[str, Cost]  # arm -> its cost
    runner: Runner

    def __str__(self) -> str:
        """The cells, their prices and their commands."""
        table = budget.table(self.costs, seeds=len(self.question.seeds))
        lines = [shown(self.runner.training(cell)) for cell in self.question.cells()]
        return "\n".join([table, "", *lines])


def plan(
    path: str | Path,
    *,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    gpus: Sequence[str] = (),
    launcher: str = "{command}",
) -> Plan:
    """Read a question, measure its arms, and refuse it where they are not matched; nothing is trained yet.

    `only` keeps some of the arms, the first being the one that others are compared with. Measurements are kept in
    OUT/plan.json, so that steps which were chosen by a clock stay the same when the question is continued.
    """
    question = _only(read(path), only)
    folder = Path(out or Path("runs/ablations") / question.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    costs = budget.adjusted(_costs(question, folder / "plan.json"), question.budget)
    budget.refuse(costs, question.budget)
    steps = {name: cost.steps for name, cost in costs.items()}
    return Plan(question, costs, Runner(question, steps, folder, jobs=jobs, gpus=gpus, launcher=launcher))


def _only(question: Question, names: Sequence[str]) -> Question:
    known = {arm.name: arm for arm in question.arms}
    if missing := [name for name in names if name not in known]:
        raise UserError(f"{question.path} has no arm {missing[0]}; its arms are {', '.join(known)}.")
    return replace(question, arms=tuple(known[name] for name in names)) if names else question


def _costs(question: Question, path: Path) -> dict[str, Cost]:
    """arm -> cost, measured unless the plan knows the very same config."""
    again = "Delete it: costs are measured anew."
    known = records.read(path, {str: {"config": str, "cost": COST}}, again=again) if path.is_file() else {}
    for arm in question.arms:
        tree = question.tree(arm)
        mark = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
        if known.get(arm.name, {}).get("config") != mark:
            known[arm.name] = {"config": mark, "cost": asdict(budget.measure(tree))}
            write_text(path, json.dumps(known, indent=1) + "\n")
    return {arm.name: Cost(**{name: known[arm.name]["cost"][name] for name in COST}) for arm in question.arms}


def answer(planned: Plan, *, clips: bool = True, progress: bool = True) -> list[Path]:
    """Run what is not done, compare, write OUT/result.json, OUT/times.json and OUT/report.html -> the JSON, the page.

    The same question gives the same result.json, however often this was interrupted.
    """
    question, runner = planned.question, planned.runner
    errors = runner.run(progress=progress)
    found = result.collect(question, planned.costs, runner, errors)
    result.write_times(question, planned.costs, runner, errors)
    commits = result.commits(question, runner, errors)
    return [result.write(found, runner.out), report.write(found, question, runner, commits=commits, clips=clips)]
