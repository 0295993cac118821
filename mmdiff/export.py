"""A run as something to give away: its averaged weights in one file, beside the config that rebuilds the system."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmdiff import build, config
from mmdiff.errors import UserError


def export(run: str | Path, out: str | Path, *, half: bool = False) -> Path:
    """Write OUT/model.safetensors and OUT/config.yaml from the newest sound checkpoint -> the weights' path.

    A tensor that parts share is stored once. `half` stores matrices as float16, which halves the file; they are float32
    again once loaded. Raises UserError where RUN is not a run, or a weight does not fit into float16.
    """
    system, tree, facts = build.load(run)
    first = build.first_names(system)
    weights = {name: w for name, w in system.state_dict().items() if first.get(name, name) == name}
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    stored = {name: (_halved(name, w) if half else w).contiguous() for name, w in weights.items()}
    path = target / "model.safetensors"
    save_file(stored, path, metadata={"step": str(facts["step"]), "source": facts["hash"]})
    path.chmod(0o644)  # safetensors makes it private
    (target / "config.yaml").write_text(config.dump(tree), encoding="utf-8")
    return path


def _halved(name: str, weight: Tensor) -> Tensor:
    """Learned matrices in float16; gains, biases and the statistics of codecs keep their precision."""
    if weight.dtype != torch.float32 or weight.ndim < 2 or name.startswith("autoencoders"):
        return weight
    small = weight.half()
    if not small.isfinite().all():
        raise UserError(f"{name} holds values beyond float16; export it without --half.")
    return small
