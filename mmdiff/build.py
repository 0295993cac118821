"""From YAML to objects, and from a run folder back to a system: the only place that sees every part of the house.

A mapping with `kind` becomes `PARTS[kind](**its other keys)`, children first; a function is bound with `partial`. The
constructor's signature is the schema: unknown keys, missing keys and wrong types are errors before anything is built,
with the path of the key and the nearest valid name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from mmdiff.errors import UserError
from mmdiff.train.settings import Engine, Every, Optimizer, Sample

PARTS = {
    # data
    "clips": "mmdiff.data.clips:Clips",
    "clip_shape": "mmdiff.batch:ClipShape",
    # systems
    "diffusion": "mmdiff.systems.diffusion:Diffusion",
    "joint": "mmdiff.systems.joint:Joint",
    # autoencoders
    "pixels": "mmdiff.autoencoders.pixels:Pixels",
    "pca": "mmdiff.autoencoders.pca:PCA",
    "mel": "mmdiff.autoencoders.mel:Mel",
    # conditioners
    "text": "mmdiff.conditioners:Text",
    "hf_text": "mmdiff.conditioners:HFText",
    "conditioners": "mmdiff.conditioners:Conditioners",
    "frame_rate": "mmdiff.conditioners:FrameRate",
    # denoisers and networks
    "denoiser": "mmdiff.denoiser:Denoiser",
    "dit": "mmdiff.models.dit:DiT",
    "joint_dit": "mmdiff.models.joint:JointDiT",
    "branch": "mmdiff.models.joint:BranchSpec",
    # processes, draws of t, grids of sampling times
    "linear": "mmdiff.process:Linear",
    "cosine": "mmdiff.process:Cosine",
    "ddpm": "mmdiff.process:DDPM",
    "scaled_linear": "mmdiff.process:ScaledLinear",
    "edm": "mmdiff.process:EDM",
    "uniform": "mmdiff.process:Uniform",
    "logit_normal": "mmdiff.process:LogitNormal",
    "shifted": "mmdiff.process:Shifted",
    "uniform_grid": "mmdiff.sampling:uniform",
    "shifted_grid": "mmdiff.sampling:shifted",
    "karras_grid": "mmdiff.sampling:karras",
}


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
    accumulate: int = 1
    held_out: dict[str, Any] | None = None
    prepare: Prepare | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    engine: Engine = field(default_factory=Engine)
    sample: Sample = field(default_factory=Sample)
    every: Every = field(default_factory=Every)
    keep: int = 2


# ---- reading -------------------------------------------------------------------------------------------------------


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved config as plain containers: the file over its `base`, then `key=value` overrides."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = _read_file(Path(path), ())
    for item in overrides:
        tree = overlay(tree, _override(item))
    _refuse_resolvers(tree, "")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    return typing.cast(dict[str, Any], resolved)


def _read_file(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """One file, laid over the file that its `base` names (relative to it)."""
    import yaml
    from omegaconf import OmegaConf

    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"There is no config {path}." + (f" Beside it are: {', '.join(near)}." if near else ""))
    if path.resolve() in below:
        raise UserError(f"{path} is its own base, by way of {' -> '.join(map(str, below))}.")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of keys to values.")
    base = tree.pop("base", None)
    plain = typing.cast(dict[str, Any], tree)
    return plain if base is None else overlay(_read_file(path.parent / base, (*below, path.resolve())), plain)


def _override(item: str) -> dict[str, Any]:
    """"a.b=1" -> {"a": {"b": 1}}"""
    from omegaconf import OmegaConf

    if "=" not in item or item.startswith("="):
        raise UserError(f"The override {item!r} must look like key=value, such as steps=2000 or system.drop=0.2.")
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False))


def overlay(under: Any, over: Any) -> Any:
    """Merge mappings key by key; another `kind` replaces the node whole, so that no key of the old kind stays behind."""
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    if "kind" in over and over["kind"] != under.get("kind", over["kind"]):
        return dict(over)
    return {**under, **{key: overlay(under.get(key), value) for key, value in over.items()}}


def _refuse_resolvers(node: Any, path: str) -> None:
    """A config reads nothing but itself: no environment, no code."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            _refuse_resolvers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _refuse_resolvers(value, f"{path}[{i}]")
    elif isinstance(node, str) and "${" in node and ":" in node.split("${", 1)[1].split("}")[0]:
        raise UserError(f"{path}: {node!r} calls a resolver; a config may only refer to its own keys, as ${{data.fps}}.")


# ---- checking ------------------------------------------------------------------------------------------------------


def parse(tree: Mapping[str, Any]) -> Run:
    """Check a resolved config whole, before anything is built."""
    run = typing.cast(Run, _settings(Run, tree, ""))
    check(run.system, "system")
    check(run.data, "data")
    if run.held_out is not None:
        check(overlay(run.data, run.held_out), "held_out")
    if run.batch < 1 or run.steps < 0 or run.accumulate < 1 or run.batch % run.accumulate:
        raise UserError(
            f"batch {run.batch} must be a positive multiple of accumulate {run.accumulate}, and steps not negative."
        )
    return run


def _settings(cls: type, tree: Mapping[str, Any], path: str) -> Any:
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
            values[f.name] = _settings(inner, tree[f.name], where)
        else:
            values[f.name] = _typed(tree[f.name], hints[f.name], where)
    return cls(**values)


def _dataclass_in(hint: Any) -> type | None:
    options = typing.get_args(hint) or (hint,)
    return next((o for o in options if isinstance(o, type) and hasattr(o, "__dataclass_fields__")), None)


def check(node: Any, path: str) -> None:
    """Check a node and its children against the signatures of their parts."""
    if isinstance(node, list):
        for i, child in enumerate(node):
            check(child, f"{path}[{i}]")
    if not isinstance(node, Mapping):
        return
    for key, child in node.items():
        check(child, f"{path}.{key}")
    if "kind" not in node:
        return
    part = find(node["kind"], path)
    signature = inspect.signature(part)
    hints = typing.get_type_hints(part.__init__ if isinstance(part, type) else part)
    given = {key: value for key, value in node.items() if key != "kind"}
    _check_names(given, list(signature.parameters), f"{path} (kind: {node['kind']})")
    for name, value in given.items():
        if name in hints:
            _typed(value, hints[name], f"{path}.{name}")
    if isinstance(part, type):
        for name, parameter in signature.parameters.items():
            if parameter.default is parameter.empty and name not in given:
                raise UserError(f"{path}.{name} is missing: {node['kind']} needs it.")


def find(kind: str, path: str) -> Any:
    """The class or function that a kind names."""
    if kind not in PARTS:
        raise UserError(f"{path}.kind: there is no {kind!r}{_nearest(str(kind), PARTS)} The kinds are {', '.join(PARTS)}.")
    module, name = PARTS[kind].split(":")
    return getattr(importlib.import_module(module), name)


def _check_names(given: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for name in given:
        if name not in known:
            where = f"{path}: " if path else ""
            raise UserError(f"{where}there is no key {name!r}{_nearest(str(name), known)} The keys are {', '.join(known)}.")


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def _typed(value: Any, hint: Any, path: str) -> Any:
    """The value, if it fits the annotation; what cannot be judged from YAML (objects) passes."""
    if isinstance(value, Mapping) and "kind" in value or _fits(value, hint):
        return value
    wanted = getattr(hint, "__name__", str(hint)).replace("collections.abc.", "")
    raise UserError(f"{path} is {value!r} ({type(value).__name__}), but must be {wanted}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, str, bool):
        kinds = (int, float) if hint is float else (hint,)
        return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    if hint is type(None):
        return value is None
    if origin in (typing.Union, getattr(__import__("types"), "UnionType", None)):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    if origin is tuple and options and options[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(v, options[0]) or isinstance(v, Mapping) for v in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    return not isinstance(value, str | int | float | bool | list) and value is not None


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

    with torch.random.fork_rng():
        torch.manual_seed(noise.key(run.seed, "initialisation"))
        return make(run.system)


def load(path: str | Path, *, ema: bool = True, device: str = "cpu") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A trained system from a run folder or an exported one -> (system, config, {"step", "hash"})."""
    from mmdiff.train.checkpoint import load_weights

    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run: it holds no config.yaml. Give the folder that `run=` named in training.")
    tree = read(folder / "config.yaml")
    system = make_system(parse(tree))
    state, step, digest = load_weights(folder, ema=ema)
    system.load_state_dict(state)
    return system.eval().requires_grad_(False).to(device), tree, {"step": step, "hash": digest}
