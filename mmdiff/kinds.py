"""The part that a `kind` names, and what `key.kind=other` on a command line does to the keys beside it.

In a file another kind replaces the whole node, in sight of who reads it. An override is one word about one key, so the
keys that the other kind takes too stay, and what it takes away is said.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff import config
from mmdiff.errors import UserError
from mmdiff.parts import PARTS


def find(kind: Any, path: str) -> Any:
    """The class or function that a kind names. Raises UserError where there is none."""
    if not isinstance(kind, str) or kind not in PARTS:
        near = nearest(str(kind), PARTS)
        raise UserError(f"{path}.kind: there is no {kind!r}{near} The kinds are {', '.join(PARTS)}.")
    module, name = PARTS[kind].split(":")
    return getattr(importlib.import_module(module), name)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not known: the one that may be meant, if any."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def read(path: str | Path, overrides: Sequence[str] = ()) -> config.Tree:
    """`config.read`, where an override of a `kind` alone keeps what still has a meaning."""
    return config.read(path, overrides, change=change)


def change(under: Mapping[str, Any], over: Mapping[str, Any], path: str) -> config.Tree:
    """The node under another kind; one line on stderr says which keys it lost."""
    if set(over) != {"kind"}:
        return dict(over)  # a whole node
    kept = {key: value for key, value in under.items() if key != "kind" and takes(path, over["kind"], key)}
    lost = [key for key in under if key != "kind" and key not in kept]
    if lost and os.environ.get("RANK", "0") == "0":
        print(f"{path}.kind={over['kind']} leaves out {', '.join(lost)} of {under['kind']}", file=sys.stderr)
    return {**over, **kept}


def takes(path: str, kind: Any, key: str) -> bool:
    """Whether a part of that kind has that key; every kind of optimizer has the same ones."""
    if path == "optimizer":
        return True
    if not isinstance(kind, str) or kind not in PARTS:
        return False  # an error as soon as the config is checked
    return key in inspect.signature(find(kind, path)).parameters
