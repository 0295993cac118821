"""Parts that were built one by one and have to go together: told when a system is built, not by its first step.

The one idea: a part says itself what it is for (a network the modalities that it denoises, a coupling or a weighting
the ones that it names), and a system compares that with what it makes.
"""

from __future__ import annotations

from typing import Any

from mmdiff.errors import UserError


def check(system: Any) -> None:
    """Refuse a system of diffusion whose network, coupling or weights are for something else."""
    if not hasattr(system, "denoiser"):
        return
    names = list(system.latent_shapes())  # which asks every codec whether it fits the clips
    net = getattr(system.denoiser.net, "net", system.denoiser.net)  # behind the door of a joint system
    if sorted(denoised_by(net)) != sorted(names):
        said = " and ".join(denoised_by(net)) or "nothing"
        raise UserError(
            f"The network {type(net).__name__} denoises {said}, but the system makes {' and '.join(names)}. For both "
            "take kind: joint with a joint_dit or a joint_unet; for one of them kind: diffusion with a dit or a unet, "
            "whose `modality` is that of the system."
        )
    for key in ("coupling", "weights"):
        part = getattr(system, key)
        named = {name for inner in (part, *getattr(part, "parts", ())) for name in getattr(inner, "factors", ())}
        if named - set(names):
            wrong = ", ".join(sorted(named - set(names)))
            raise UserError(f"{key}.factors names {wrong}; the modalities are {', '.join(names)}.")


def denoised_by(net: Any) -> list[str]:
    """The modalities of a network's inputs; empty for a part that is no network of diffusion."""
    alone = [net.modality] if hasattr(net, "modality") else []
    return list(net.branches) if hasattr(net, "branches") else alone
