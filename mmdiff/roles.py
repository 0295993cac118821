"""Whether a part can play a role: what is called with (t) is no draw of times, which is called with (u, tokens=n).

The one idea: a role that is a protocol or a `Callable` is known by its methods and the arguments of its call, and so
is a part, so that the two are compared before anything is built.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any


def plays(part: Any, hint: Any) -> bool:
    """Whether what a kind makes can be what an annotation asks for; functions are taken on trust."""
    asked = typing.get_origin(hint) or hint
    if asked is Callable or getattr(asked, "_is_protocol", False):
        return not isinstance(part, type) or answers(part, hint)
    return isinstance(part, type) and isinstance(asked, type) and issubclass(part, asked)


def answers(part: type, role: Any) -> bool:
    """Whether what a class makes has the methods of the role (a protocol) and takes the arguments of its call."""
    methods = [name for name, what in vars(role).items() if inspect.isfunction(what) and name[0] != "_"]
    if not all(hasattr(part, name) for name in methods):
        return False
    if methods and "__call__" not in vars(role):
        return True
    call = _call(part)
    if call is None:
        return False
    given, named = _arguments(role)
    try:
        inspect.signature(call).bind(None, *given, **named)  # None is the object itself
    except TypeError:
        return False
    return True


def _call(part: type) -> Callable[..., Any] | None:
    """What runs when an object of the class is called: the forward of a network, or its __call__."""
    owners = [vars(base) for base in part.__mro__ if not base.__module__.startswith("torch.")]  # which has an empty one
    return next((owner[name] for name in ("forward", "__call__") for owner in owners if name in owner), None)


def _arguments(role: Any) -> tuple[list[Any], dict[str, Any]]:
    """Stand-ins for the arguments of a role: those of a Callable have places, those of a protocol have names."""
    if options := typing.get_args(role):
        return ([], {}) if options[0] is Ellipsis else (list(options[0]), {})
    _, *parameters = inspect.signature(role.__call__).parameters
    return [], dict.fromkeys(parameters)
