"""Configs as plain containers: YAML over the file that its `base` names, then `key=value` overrides, then references.

A config reads nothing but itself: `${data.fps}` is the value of another of its keys, and there are no other
interpolations, no environment and no code. Files come from strangers (a run folder is enough to rebuild a model), so
what a file may grow to is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mmdiff.errors import UserError

LARGEST = 1 << 17  # bytes of a file, and characters that references may write
MOST = 10_000  # values of a resolved config
DEEPEST = 50  # mappings and lists inside one another, and references to references
REFERENCE = re.compile(r"\$\{([\w.-]+)\}")
Tree = dict[str, Any]
Change = Callable[[Mapping[str, Any], Mapping[str, Any], str], Tree]  # a node, another kind of it, where


def replaced(under: Mapping[str, Any], over: Mapping[str, Any], path: str) -> Tree:
    """Nothing of the old kind stays."""
    return dict(over)


def read(path: str | Path, overrides: Sequence[str] = (), *, change: Change = replaced) -> Tree:
    """The resolved config: the file over its `base`, then the overrides, such as "system.drop=0.2".

    `change` says what an override that names another `kind` does to the keys beside it. Raises UserError for whatever
    is wrong in them.
    """
    tree = _read_file(Path(path), ())
    for item in overrides:
        tree = overlay(tree, _override(item), change)
    try:
        return cast(Tree, _Resolver(tree).value(tree, "", ()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def layer(path: str | Path) -> Tree:
    """What a file itself says, laid over nothing and not resolved."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}.")
    return _load(Path(path))


def dump(tree: Mapping[str, Any]) -> str:
    """YAML that `read` turns into the same values again: strings that could be taken for something else are quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Dumper, value: str) -> Any:
        plain = re.fullmatch(r"[A-Za-z_][\w ./-]*", value, re.ASCII)
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    Dumper.add_representer(str, text)
    return cast(str, yaml.dump(dict(tree), Dumper=Dumper, sort_keys=False, allow_unicode=True))


def overlay(under: Any, over: Any, change: Change = replaced, path: str = "") -> Any:
    """Merge mappings key by key; another `kind` replaces the node, so that no key of the old kind stays behind."""
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    if "kind" in over and over["kind"] != under.get("kind", over["kind"]):
        return change(under, over, path)
    inner = {key: overlay(under.get(key), value, change, f"{path}.{key}".lstrip(".")) for key, value in over.items()}
    return {**under, **inner}


def _read_file(path: Path, above: tuple[Path, ...]) -> Tree:
    """One file, laid over the file that its `base` names (relative to it)."""
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"There is no config {path}." + (f" Beside it are: {', '.join(near)}." if near else ""))
    if path.resolve() in above:
        raise UserError(f"{path} is its own base, by way of {' -> '.join(map(str, above))}.")
    tree = _load(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base is {base!r}, but must be the path of another config, relative to this one.")
    return cast(Tree, overlay(_read_file(path.parent / base, (*above, path.resolve())), tree))


def _load(path: Path) -> Tree:
    """The mapping that a file holds, nothing resolved."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 10} KiB, which no config needs.")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a config in YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path} must hold a mapping of names to values.")
    return cast(Tree, tree)


def spoken(text: str) -> Any:
    """A part in one word, as a command line says it: "2.5", "heun", "churn:amount=20,low=0.1", "cfg:interval=[0, 1]".

    A number, a name, or a mapping with `kind`; what stands behind an = is YAML. Raises UserError if it is not.
    """
    import yaml

    kind, _, rest = text.partition(":")
    try:
        if not rest:
            return yaml.safe_load(kind)
        values = yaml.safe_load("{" + re.sub(r"(\w+)=", r"\1: ", rest) + "}")
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is not KIND or KIND:KEY=VALUE,KEY=VALUE: {_one_line(error)}") from None
    return {"kind": kind, **values}


def spelt(choice: Any) -> str:
    """The word that `spoken` takes for a part, a name or a number: ancestral:eta=1.0."""
    if not isinstance(choice, Mapping):
        return str(choice)
    given = ",".join(f"{key}={spelt(value)}" for key, value in choice.items() if key != "kind")
    return f"{choice['kind']}:{given}" if given else str(choice["kind"])


def _override(item: str) -> Tree:
    """From "a.b=1" to {"a": {"b": 1}}."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not re.match(r"[A-Za-z_][\w-]*(\.[\w-]+)*=", item):
        raise UserError(f"The override {item!r} must look like key=value, such as steps=2000 or system.drop=0.2.")
    try:
        return cast(Tree, OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"The override {item!r} has a value that is not YAML: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


class _Resolver:
    """Puts values in the place of references, in a copy, and counts them: references to references can grow fast."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.count, self.written = tree, 0, 0

    def value(self, node: Any, path: str, through: tuple[str, ...]) -> Any:
        """The copy of a node; `through` are the references on the way to it."""
        self.count += 1
        if self.count > MOST:
            raise UserError(f"{path} makes the config larger than {MOST} values, which no config needs.")
        if max(path.count(".") + path.count("["), len(through)) > DEEPEST:
            raise UserError(f"{path[:80]}... lies deeper than {DEEPEST} levels, which no config needs.")
        if isinstance(node, Mapping):
            return {key: self.value(child, f"{path}.{key}".lstrip("."), through) for key, child in node.items()}
        if isinstance(node, list):
            return [self.value(child, f"{path}[{i}]", through) for i, child in enumerate(node)]
        if node == "???":
            raise UserError(f"{path} has to be chosen: give {path}=VALUE.")
        return self.text(node, path, through) if isinstance(node, str) and "${" in node else node

    def text(self, text: str, path: str, through: tuple[str, ...]) -> Any:
        """A string that holds references; one that is nothing but a reference becomes the value itself."""
        if "${" in REFERENCE.sub("", text):
            raise UserError(
                f"{path}: {text!r} is no reference; a config refers to its own keys alone, as ${{data.fps}}."
            )
        if whole := REFERENCE.fullmatch(text):
            return self.target(whole[1], path, through)
        filled = REFERENCE.sub(lambda match: str(self.target(match[1], path, through)), text)
        self.written += len(filled)
        if self.written > LARGEST:
            raise UserError(f"{path} makes the config longer than {LARGEST} characters, which no config needs.")
        return filled

    def target(self, name: str, path: str, through: tuple[str, ...]) -> Any:
        """The resolved value of the key that a reference names."""
        if name in through:
            raise UserError(f"{path}: {' -> '.join((*through, name))} refers to itself.")
        node: Any = self.tree
        for part in name.split("."):
            if not isinstance(node, Mapping) or part not in node:
                raise UserError(f"{path} refers to {name}, but there is no such key.")
            node = node[part]
        return self.value(node, path, (*through, name))
