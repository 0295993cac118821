"""A question in a file, and the cells that answer it.

The one idea: a cell is a command. A question names a recipe (`base`), the ways to change it (`vary`) and the seeds; it
expands to one training command per arm and seed, which anybody can run by hand and get the same numbers, because data,
noise and weights follow from the config alone (`mmdiff/noise.py`): arms of one seed see the same clips in the same
order under the same noise. The file:

    base: ../sounding_objects/joint.yaml        # relative to this file; keys beside it change it for every cell
    steps: 300
    question: Does the text encoder need depth?  # one sentence, the title of the report
    vary:                                       # several entries are crossed; the first arm is the one compared with
      system.conditioner.depth: [2, 4]                  # a dotted key and its values, or
      coupling:                                         # a name, and for each arm the keys that it changes
        shared: {}                                      # nothing: the base as it is
        shifted: {system.coupling: {kind: shifted_coupling, factors: {audio: 2.0}}}
    seeds: [0, 1, 2]                            # of data order, noise and initial weights, the same for every arm
    budget: {match: parameters, tolerance: 0.05}        # see Budget
    judge: {split: iid, n: 64, seed: 1}                 # see Judge
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmdiff import build, config
from mmdiff.config import Tree
from mmdiff.errors import UserError

Matched = Literal["parameters", "flops", "wall_clock", "steps"]
OWN = ("base", "question", "vary", "seeds", "budget", "judge")  # keys of a question that are no keys of a recipe
ROOT = Path(__file__).resolve().parents[2]  # where commands run
TOOL = "tools/train.py"


@dataclass
class Budget:
    """What arms must agree in; a question whose cells do not is refused, because its answer would mean nothing.

    parameters, flops (of the whole training, counted), wall_clock (steps times the measured seconds of one), steps
    (clips seen: steps x batch). `adjust: steps` gives each arm the steps that match the first arm's flops or wall clock
    instead of refusing.
    """

    match: list[Matched] = field(default_factory=lambda: ["steps"])
    tolerance: float = 0.05  # of the first arm's value
    adjust: Literal["nothing", "steps"] = "nothing"


@dataclass
class Judge:
    """What all cells are evaluated on: the first `n` captions of a split, as `tools/evaluate.py` does it."""

    split: str = "iid"
    n: int = 64
    seed: int = 1  # of the generated clips and of the intervals
    training: int = 0  # training clips in which copies are searched; 0 leaves that out
    clips: int = 3  # captions whose clips the report shows
    metrics: list[str] = field(default_factory=list)  # of the comparisons, first to last; empty: the headline metrics


@dataclass(frozen=True)
class Arm:
    """One way to change the base: dotted key -> value."""

    name: str
    changes: Tree


@dataclass(frozen=True)
class Cell:
    """An arm with a seed."""

    arm: str
    seed: int
    overrides: tuple[str, ...]  # key=value, of the base

    @property
    def name(self) -> str:
        """Also the name of its run folder."""
        return f"{self.arm}-s{self.seed}"

    def command(self, base: str | Path, run: str | Path, *, steps: int) -> list[str]:
        """The words of the training command, which works by hand as well."""
        return [sys.executable, TOOL, str(shorter(base)), *self.overrides, f"steps={steps}", f"run={shorter(run)}"]


@dataclass(frozen=True)
class Question:
    """A checked question."""

    path: Path
    base: Path
    text: str
    common: tuple[str, ...]  # overrides of every cell
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    budget: Budget
    judge: Judge

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an interrupted question has compared all arms on the seeds that it finished."""
        return [Cell(arm.name, seed, self.overrides(arm, seed)) for seed in self.seeds for arm in self.arms]

    def overrides(self, arm: Arm, seed: int) -> tuple[str, ...]:
        """What is laid over the base for one cell, without its steps and its run folder."""
        return (*self.common, *(_override(*change) for change in arm.changes.items()), f"seed={seed}")

    def tree(self, arm: Arm, seed: int | None = None) -> Tree:
        """The resolved config of a cell (of the first seed)."""
        return config.read(self.base, self.overrides(arm, self.seeds[0] if seed is None else seed))


def read(path: str | Path) -> Question:
    """The question in a file, every cell of it checked; raises UserError for whatever is wrong in it."""
    path = Path(path)
    own = config.layer(path)
    if not isinstance(own.get("base"), str) or not isinstance(own.get("vary"), Mapping) or not own["vary"]:
        raise UserError(
            f"{path} is no question: it needs `base` (a recipe) and `vary` (what differs between its arms)."
        )
    sections = {"budget": _budget(own.get("budget", {})), "judge": own.get("judge", {})}
    question = Question(
        path=path,
        base=Path(os.path.abspath(path.parent / own["base"])),
        text=str(own.get("question", "")),
        common=tuple(flat({key: value for key, value in own.items() if key not in OWN})),
        arms=tuple(expand(own["vary"])),
        seeds=_seeds(own.get("seeds", [0, 1, 2])),
        budget=build.settings(Budget, sections["budget"], "budget"),
        judge=build.settings(Judge, sections["judge"], "judge"),
    )
    _check(question)
    return question


def expand(vary: Mapping[str, Any]) -> Iterator[Arm]:
    """Every combination of one choice per entry of `vary`, the last entry changing fastest."""
    for choice in itertools.product(*(list(_choices(key, options)) for key, options in vary.items())):
        changes = [change for arm in choice for change in arm.changes.items()]
        if len({key for key, _ in changes}) < len(changes):
            raise UserError(
                f"vary: two entries change the same key in the arm {', '.join(arm.name for arm in choice)}."
            )
        yield Arm(",".join(arm.name for arm in choice), dict(changes))


def _choices(key: str, options: Any) -> Iterator[Arm]:
    if isinstance(options, list) and options:
        yield from (Arm(_slug(f"{key.split('.')[-1]}={_spoken(value)}"), {key: value}) for value in options)
    elif isinstance(options, Mapping) and options and all(isinstance(c, Mapping) for c in options.values()):
        yield from (Arm(_slug(str(name)), dict(changes)) for name, changes in options.items())
    else:
        raise UserError(
            f"vary.{key} must be a list of values of that key, or a mapping of names to the keys that each changes, "
            "such as {small: {system.denoiser.net.depth: 2}}."
        )


def _spoken(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("kind", "+".join(map(str, value))))
    return "+".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)


def _slug(name: str) -> str:
    """The name of an arm as a part of a path."""
    return re.sub(r"[^\w.=+-]+", "_", name)


def _seeds(given: Any) -> tuple[int, ...]:
    if (
        not isinstance(given, list)
        or not given
        or not all(type(s) is int for s in given)
        or len(set(given)) < len(given)
    ):
        raise UserError(f"seeds must be a list of different whole numbers, such as [0, 1, 2], not {given!r}.")
    return tuple(given)


def _budget(given: Any) -> Any:
    """`match` may be one word."""
    one = isinstance(given, Mapping) and isinstance(given.get("match"), str)
    return {**given, "match": [given["match"]]} if one else given


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A tree as overrides key=value; a node with a kind stays whole, as it is laid over the base whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and "kind" not in value and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield _override(f"{prefix}{key}", value)


def _override(key: str, value: Any) -> str:
    """ "key=value" with a value in JSON, which is YAML."""
    return f"{key}={json.dumps(value)}"


def shorter(path: str | Path) -> Path:
    """A path as commands say it, which run in the root of the source tree: relative to it, if it lies below."""
    whole = Path(os.path.abspath(path))
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole


def _check(question: Question) -> None:
    """Refuse cells that do not parse, are the same twice, choose their own seed or folder, or have other data."""
    names = [arm.name for arm in question.arms]
    if len(set(names)) < len(names):
        raise UserError(
            f"{question.path}: two arms are called the same ({', '.join(names)}). Give arms names of their own."
        )
    seen: dict[str, str] = {}
    for arm in question.arms:
        if taken := {"seed", "run"} & {key.split(".")[0] for key in arm.changes}:
            raise UserError(
                f"{question.path}, arm {arm.name}: {taken.pop()} is not for `vary`; seeds have a list of their own."
            )
        try:
            tree = question.tree(arm)
            build.parse(tree)
        except UserError as error:
            raise UserError(f"{question.path}, arm {arm.name}: {error}") from None
        text = json.dumps(tree, sort_keys=True, default=str)
        if text in seen:
            raise UserError(f"{question.path}: the arms {seen[text]} and {arm.name} are the same config.")
        seen[text] = arm.name
    _one_ground_truth(question)


def _one_ground_truth(question: Question) -> None:
    """All arms must be judged on the same clips."""
    first, *others = [(arm, question.tree(arm)["data"]) for arm in question.arms]
    for arm, data in others:
        if data.get("path") != first[1].get("path"):
            raise UserError(
                f"{question.path}: {arm.name} learns from {data.get('path')} and {first[0].name} from "
                f"{first[1].get('path')}, so that they would be judged on different clips. Use one data.path."
            )


def shown(words: list[str]) -> str:
    """A command as one types it."""
    return shlex.join(words)
