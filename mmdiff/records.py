"""JSON that mmdiff wrote and reads again: compared with what it has to hold before anybody looks into it.

The one idea: a shape is JSON whose values are types. A mapping needs the keys of its shape and may have more; {str: X}
is a mapping of any names to X; [X] is a list of X; a tuple is a choice of types. So one sentence tells what is wrong
where, and no reader has to expect that a number is a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any

from mmdiff.errors import UserError

NUMBER = (int, float)
MAYBE = (int, float, NoneType)


def read(path: str | Path, shape: Any, *, again: str) -> Any:
    """The value in a file. Raises UserError where it is not of the shape; `again` says how to have another."""
    try:
        return parsed(Path(path).read_text(encoding="utf-8"), shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({str(error)[:200]}). {again}") from None


def parsed(text: str, shape: Any) -> Any:
    """The value of a text. Raises ValueError saying what is wrong where."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for fault in faults(value, shape):
        raise ValueError(fault)
    return value


def faults(value: Any, shape: Any, place: str = "it") -> Iterator[str]:
    """Where a value is not of a shape."""
    if isinstance(shape, dict):
        yield from _of_mapping(value, shape, place)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place} is no list"
        for k, item in enumerate(value if isinstance(value, list) else ()):
            yield from faults(item, shape[0], f"{place}[{k}]")
    elif not isinstance(value, shape) or (isinstance(value, bool) and bool not in _choices(shape)):
        yield f"{place} is no {' or '.join(kind.__name__ for kind in _choices(shape))}"
    elif isinstance(value, float) and not isfinite(value):
        yield f"{place} is {value}"


def _of_mapping(value: Any, shape: dict[Any, Any], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place} is no mapping"
        return
    for key in value if str in shape else shape:
        if key not in value:
            yield f"{place} has no {key}"
        else:
            yield from faults(value[key], shape[str] if str in shape else shape[key], f"{place}.{key}")


def _choices(shape: Any) -> Sequence[type]:
    return shape if isinstance(shape, tuple) else (shape,)
