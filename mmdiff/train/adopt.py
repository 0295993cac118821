"""Weights that a part of a system takes from another run, once, when its training starts."""

from __future__ import annotations

from typing import Any

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
