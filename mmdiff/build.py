"""From YAML to objects, and from a run folder back to a system: the only place that sees every part of the house.

A mapping with `kind` becomes `PARTS[kind](**its other keys)` (parts.py), children first; a function is bound with
`partial`. The constructor's signature is the schema: unknown keys, missing keys and wrong types are errors before
anything is built, with the path of the key and the nearest valid name.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mmdiff.config import overlay
from mmdiff.errors import UserError
from mmdiff.kinds import find, nearest, read
from mmdiff.roles import plays
from mmdiff.train import ranges
from mmdiff.train.settings import Engine, Every, Health, Optimizer, Sample

WALK = ("process", "times", "noise", "report")  # what a system tells the sampler that its config chose


@dataclass
class Prepare:
    """Which embedded data set to make if `data.path` is not there: datasets/<dataset>/prepare.py."""

    dataset: str
    tier: str = "cpu"
    clips: int = 1024


@dataclass
class Run:
    """The top level of a config. Nodes with a `kind` stay plain mappings until `make` builds them."""

    system: dict[str, Any]
    data: dict[str, Any]
    run: str = "runs/run"
    seed: int = 0
    steps: int = 1000
    batch: int = 16
    tokens: int | None = None
    accumulate: int = 1
    held_out: dict[str, Any] | None = None
    prepare: Prepare | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    engine: Engine = field(default_factory=Engine)
    sample: Sample = field(default_factory=Sample)
    every: Every = field(default_factory=Every)
    health: Health = field(default_factory=Health)
    keep: int = 2
    start: str | None = None  # a run or an exported folder whose weights this one begins with


# ---- checking ------------------------------------------------------------------------------------------------------


def parse(tree: Mapping[str, Any]) -> Run:
    """Check a resolved config whole, before anything is built."""
    from mmdiff.systems.base import System

    run = typing.cast(Run, settings(Run, tree, ""))
    ranges.check(tree)
    for name, node in (("system", run.system), ("data", run.data)):
        if "kind" not in node:
            raise UserError(f"{name}.kind is missing: it says which part the other keys describe.")
        check(node, name)
    _typed(run.system, System, "system")
    if run.held_out is not None:
        check(overlay(run.data, run.held_out), "held_out")
    run.sample = replace(run.sample, **sampling_parts(vars(run.sample)))
    if run.tokens is not None and run.tokens < 1:
        raise UserError(f"tokens {run.tokens} is what a step may hold: a positive number, or null to count clips.")
    if run.batch < 1 or run.steps < 0 or run.accumulate < 1 or (run.tokens is None and run.batch % run.accumulate):
        raise UserError(
            f"batch {run.batch} must be a positive multiple of accumulate {run.accumulate}, and steps not negative."
        )
    return run


def settings(cls: type, tree: Mapping[str, Any], path: str) -> Any:
    """A dataclass from a mapping, nested dataclasses included."""
    hints, values = typing.get_type_hints(cls), {}
    _check_names(tree, [f.name for f in fields(cls)], path)
    for f in fields(cls):
        where = f"{path}.{f.name}".lstrip(".")
        inner = _dataclass_in(hints[f.name])
        if f.name not in tree:
            if f.default is f.default_factory:  # both MISSING
                raise UserError(f"{where} is missing.")
        elif inner is not None and isinstance(tree[f.name], Mapping):
            values[f.name] = settings(inner, tree[f.name], where)
        else:
            values[f.name] = _typed(tree[f.name], hints[f.name], where)
    return cls(**values)


def _dataclass_in(hint: Any) -> type | None:
    options = typing.get_args(hint) or (hint,)
    return next((o for o in options if isinstance(o, type) and hasattr(o, "__dataclass_fields__")), None)


def check(node: Any, path: str, later: Sequence[str] = ()) -> None:
    """Check a node and its children against the signatures of their parts; `later` are keys that a caller adds."""
    if isinstance(node, list):
        for i, child in enumerate(node):
            check(child, f"{path}[{i}]")
    if not isinstance(node, Mapping):
        return
    for key, child in node.items():
        check(child, f"{path}.{key}")
    if "kind" in node:
        _check_part(node, path, later)


def _check_part(node: Mapping[str, Any], path: str, later: Sequence[str]) -> None:
    """Names, types and completeness of one part's keys; a function's positional arguments come from its caller."""
    part = find(node["kind"], path)
    parameters = inspect.signature(part, eval_str=True).parameters
    keys = {name: p for name, p in parameters.items() if isinstance(part, type) or p.kind is p.KEYWORD_ONLY}
    settable = {name: p for name, p in keys.items() if name not in later}
    given = {key: value for key, value in node.items() if key != "kind"}
    _check_names(given, list(settable), f"{path} (kind: {node['kind']})")
    for name, value in given.items():
        _typed(value, settable[name].annotation, f"{path}.{name}")
    for name, p in settable.items():
        if p.default is p.empty and name not in given:
            raise UserError(f"{path}.{name} is missing: {node['kind']} needs it.")


def _check_names(given: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for name in given:
        if name not in known:
            where, near = f"{path}: " if path else "", nearest(str(name), known)
            raise UserError(f"{where}there is no key {name!r}{near} The keys are {', '.join(known) or 'none'}.")


def _typed(value: Any, hint: Any, path: str) -> Any:
    """The value, if it fits the annotation."""
    if _fits(value, hint):
        return value
    is_part = isinstance(value, Mapping) and "kind" in value
    given = f"a {value['kind']}" if is_part else f"{str(value)[:80]!r} ({type(value).__name__})"
    raise UserError(f"{path} is {given}, but must be {_spoken(hint)}.")


def _spoken(hint: Any) -> str:
    """An annotation as a person would write it."""
    if typing.get_origin(hint) is typing.Annotated:
        return _spoken(hint.__metadata__[0])
    simple = isinstance(hint, type) and not typing.get_args(hint)
    if simple and hint not in (int, float, str, bool):
        article = "an" if hint.__name__[0] in "AE" else "a"
        return f"a part (a mapping with a kind) that makes {article} {hint.__name__}"
    return hint.__name__ if simple else re.sub(r"\b[a-z_]+(\.\w+)*\.", "", str(hint))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of YAML fits an annotation; a mapping with a kind stands for what it makes."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Annotated:  # a module that plays a role
        return all(_fits(value, asked) for asked in (hint.__origin__, *hint.__metadata__))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if isinstance(value, Mapping) and "kind" in value and origin not in (dict, Mapping):
        return plays(find(value["kind"], ""), hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool, type(None)):
        return type(value) is hint
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin is tuple and options[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, options[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, options[1]) for item in value.values())
    return False  # an object, which only a kind can make


def sampling_parts(choices: Mapping[str, Any], path: str = "sample") -> dict[str, Any]:
    """The choices of a `sample` section, its sampler and its guidance checked and made: names, numbers or parts."""
    from mmdiff.guidance import GUIDES
    from mmdiff.sampling import SAMPLERS

    made = dict(choices)
    for name, known in (("sampler", SAMPLERS), ("guidance", GUIDES)):
        node = {"kind": made.get(name)} if isinstance(made.get(name), str) else made.get(name)
        if isinstance(node, Mapping):
            if node.get("kind") not in known:
                near = nearest(str(node.get("kind")), known)
                raise UserError(
                    f"{path}.{name}: there is no {node.get('kind')!r}{near} Choose one of {', '.join(known)}."
                )
            check(node, f"{path}.{name}", later=WALK)
            made[name] = make(node)
    return made


# ---- building ------------------------------------------------------------------------------------------------------


def make(node: Any) -> Any:
    """Build a checked node, children first."""
    if isinstance(node, list):
        return [make(child) for child in node]
    if not isinstance(node, Mapping):
        return node
    built = {key: make(child) for key, child in node.items() if key != "kind"}
    if "kind" not in node:
        return built
    part = find(node["kind"], "")
    return part(**built) if isinstance(part, type) else partial(part, **built)


def make_system(run: Run) -> Any:
    """The system, its weights initialised as a function of the seed."""
    import torch

    from mmdiff import noise
    from mmdiff.systems import fitting

    with torch.random.fork_rng():
        torch.manual_seed(noise.key(run.seed, "initialisation"))
        system = make(run.system)
    fitting.check(system)
    return system


def load(path: str | Path, *, ema: bool = True, device: str = "cpu") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A trained system from a run folder or an exported one -> (system, config, {"step", "hash"})."""
    from mmdiff.train.checkpoint import load_weights

    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run: it holds no config.yaml. Give the folder that run= named in training.")
    tree = read(folder / "config.yaml")
    system = make_system(parse(tree))
    state, step, digest = load_weights(folder, ema=ema)
    first = first_names(system)
    try:
        system.load_state_dict(state | {name: state[first[name]] for name in first})
    except (KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: its weights are not those of its config.yaml ({said}).") from None
    return system.eval().requires_grad_(False).to(device), tree, {"step": step, "hash": digest}


def first_names(system: Any) -> dict[str, str]:
    """Parameter -> the first name of the same object: shared parameters are averaged and exported under that one."""
    seen: dict[int, str] = {}
    return {name: seen.setdefault(id(p), name) for name, p in system.named_parameters(remove_duplicate=False)}


class Trained:
    """The weaker model of autoguidance: another run or an exported one, asked the same; loaded once it is needed."""

    def __init__(self, *, run: str, ema: bool = True) -> None:
        self.run, self.ema = run, ema

    def __call__(self, views: Any) -> Any:
        return views.look(by=_weaker(self.run, self.ema))


@lru_cache(maxsize=1)
def _weaker(run: str, ema: bool) -> Any:
    return load(run, ema=ema)[0]
