"""What `key.kind=other` on a command line does to the keys beside it: those that the other kind takes too stay.

In a file another kind replaces the whole node, in sight of who reads it. An override is one word about one key, so what
it takes away is said.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff import config
from mmdiff.parts import PARTS


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
    module, name = PARTS[kind].split(":")
    return key in inspect.signature(getattr(importlib.import_module(module), name)).parameters
