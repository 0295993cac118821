"""What someone's clips are to be read for: a training that a config describes, or merely a shape."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmdiff import build
from mmdiff.batch import ClipShape
from mmdiff.data.buckets import Buckets
from mmdiff.data.clips import Clips
from mmdiff.data.window import Policy
from mmdiff.errors import UserError
from mmdiff.kinds import find


@dataclass(frozen=True)
class Recipe:
    """How clips are read, and what a training takes of them if there is one."""

    policy: Policy
    split: str | None = None
    buckets: Buckets | None = None
    seed: int = 0
    steps: int | None = None
    batch: int | None = None  # clips a step
    tokens: int | None = None  # or latent positions a step
    cost: Callable[[ClipShape], int] | None = None  # latent positions of a clip

    @property
    def shapes(self) -> list[ClipShape]:
        """The buckets, or the one shape."""
        own = self.policy.shape
        return [own] if self.buckets is None else self.buckets.shapes(own)


def from_config(config: str, overrides: Sequence[str], path: str | Path) -> Recipe:
    """The recipe of a training's config with `path` as its data; weights are not made, only what they are made for."""
    import torch

    run = build.parse(build.read(config, [*overrides, f"data.path={json.dumps(str(path))}"]))
    if find(run.data["kind"], "data") is not Clips:
        raise UserError(f"{config}: data.kind is {run.data['kind']}; only clips can be inspected.")
    if run.data.get("latents") is not None:
        raise UserError(
            f"data.latents is {run.data['latents']}: a training on latents reads no clip, and what tools/encode.py "
            "could not read is named in its output and its index. To look at what it read, add data.latents=null."
        )
    with torch.device("meta"):
        system = build.make_system(run)
    data = {name: p.default for name, p in inspect.signature(Clips).parameters.items()} | run.data
    return Recipe(
        policy=policy_of(data),
        split=data["split"],
        buckets=build.make(data["buckets"]),
        seed=data["seed"],
        steps=run.steps,
        batch=run.batch if run.tokens is None else None,
        tokens=run.tokens,
        cost=system.tokens,
    )


def policy_of(data: dict[str, Any]) -> Policy:
    """The policy that Clips makes of its keys. Raises UserError for values that a recipe may not have."""
    values = {f.name: data[f.name] for f in fields(Policy) if f.name in data}
    size = tuple(int(n) for n in values["size"])
    values |= {"fps": float(values["fps"]), "size": size if len(size) == 2 else (0, 0)}
    policy = Policy(**values | ({"modalities": tuple(values["modalities"])} if "modalities" in values else {}))
    policy.check()
    return policy
