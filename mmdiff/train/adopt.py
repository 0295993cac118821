"""Weights that a system, or a part of it, takes from another run when its training starts."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from mmdiff.errors import UserError
from mmdiff.train.checkpoint import load_weights


def adopt_weights(system: Any) -> None:
    """Give every part that names a `run` and has no weights yet the averaged weights of that run's `source`.

    Raises UserError where the run has none, or weights of another shape.
    """
    for module in system.modules():
        if hasattr(module, "adopt") and not module.fitted:
            weights, _, _ = load_weights(module.run)
            inside = f"{module.source}."
            state = {n.removeprefix(inside): t for n, t in weights.items() if n.startswith(inside)}
            if not state:
                raise UserError(f"The run {module.run} trained no {module.source}; name a run that did.")
            try:
                module.adopt(state)
            except RuntimeError as error:
                said = " ".join(str(error).split())[:300]
                raise UserError(
                    f"The {module.source} of {module.run} is built otherwise than the config here says: {said} "
                    "Copy its keys from that run's config.yaml."
                ) from None


def begin_from(system: Any, run: str, *, tell: bool = True) -> None:
    """Initial weights, by name, from a run or an exported folder; what stays as it was and what fits nowhere is told.

    A parameter under several names needs one of them. Raises UserError where no name or a shape does not fit.
    """
    weights, step, _ = load_weights(run)
    own = system.state_dict()
    weights |= widened(system, own, weights)
    for name in sorted(own.keys() & weights.keys()):
        if own[name].shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
            raise UserError(f"start: {name} is {shapes}; build the system as {run} was built.")
    unexpected = sorted(system.load_state_dict(weights, strict=False).unexpected_keys)
    found = {tensor.data_ptr() for name, tensor in own.items() if name in weights}
    missing = [name for name, tensor in own.items() if name not in weights and tensor.data_ptr() not in found]
    if not own.keys() & weights.keys():
        raise UserError(f"start: no weight of {run} has a name of this system, such as {next(iter(own))}.")
    if tell:
        print(
            f"started from {run} at step {step}{_named('new', missing)}{_named('unused', unexpected)}", file=sys.stderr
        )


def widened(system: Any, own: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (out in ...) that a module lets grow (`wider`), with zeros for the inputs that the run did not have."""
    grown = {}
    for front, module in system.named_modules():
        for name in (f"{front}.{leaf}" for leaf in getattr(module, "wider", ())):
            if name in weights and own[name].shape[1] > weights[name].shape[1]:
                grown[name] = torch.zeros_like(own[name], dtype=weights[name].dtype)
                grown[name][:, : weights[name].shape[1]] = weights[name]
    return grown


def _named(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; {what}: {', '.join(names[:8])}{more}" if names else ""
