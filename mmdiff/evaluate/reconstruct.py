"""Codecs side by side: a run's autoencoder and any others, fitted to the same clips, on the same held-out clips.

The one idea: a codec is better only where it keeps more in as many numbers, so each row says how many numbers a clip
becomes, and differences are taken clip by clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdiff import build, noise
from mmdiff.batch import Batch
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.metrics import reconstruction
from mmdiff.metrics.statistics import Interval, difference, interval
from mmdiff.models.tower import distance

FITTED_ON, AT_ONCE = 1024, 32  # clips


def compare(
    run: str, *, against: Sequence[str], split: str, count: int, tower: str | None, seed: int
) -> dict[str, dict[str, Any]]:
    """name -> {"numbers": of a clip's latent, metric: interval over clips, metric + " gain": over the run's, paired}.

    `against` are nodes of a config, such as "{kind: pca, patch: [4, 8, 8], components: 32}"; every codec is fitted to
    the same training clips. Raises UserError for a run without an autoencoder.
    """
    system, tree, _ = build.load(run)
    modality, own = codec_of(system, run)
    codecs = {run: own} | {text: _other(text) for text in against}
    train, held = (_clips(tree, name) for name in ("train", split))
    fitting = _of(gather(train, range(min(FITTED_ON, len(train)))), modality)
    clips = gather(held, range(min(count, len(held))))
    seen = None if tower is None or modality != "video" else build.load(tower)[0].learner["tower"]
    values, rows = {}, {}
    for name, codec in codecs.items():
        if not codec.fitted:
            codec.fit(fitting)
        values[name] = measure(codec, clips, modality, seen=seen)
        numbers = math.prod(codec.grid(_of(clips, modality).shape[1:]))
        rows[name] = {"numbers": numbers} | {m: interval(v, seed=seed) for m, v in values[name].items()}
        if name != run:
            gains = {m: difference(values[run][m], v, seed=seed) for m, v in values[name].items()}
            rows[name] |= {f"{m} gain": gain for m, gain in gains.items()}
    return rows


def codec_of(system: Any, run: str) -> tuple[str, Any]:
    """(modality, autoencoder) of a system that trains one, or that models the latents of one."""
    if hasattr(system, "autoencoder"):
        return system.modality, system.autoencoder
    if len(getattr(system, "autoencoders", ())) != 1:
        raise UserError(f"{run} holds no single autoencoder; name a run that trained one.")
    return next(iter(system.autoencoders.items()))  # type: ignore[no-any-return]


@torch.no_grad()
def measure(codec: Any, batch: Batch, modality: str, *, seen: Any) -> reconstruction.Values:
    """Every metric of the modality, one value a clip."""
    found: reconstruction.Values = {}
    for first in range(0, len(batch["id"]), AT_ONCE):
        x = _of(batch, modality)[first : first + AT_ONCE]
        z = codec.encode(x)
        keys = noise.keys(0, "codec", 0, batch["id"][first : first + AT_ONCE])
        y = codec.decode(z, keys=keys) if getattr(codec, "invents_phase", False) else codec.decode(z)
        if modality == "audio":
            part = reconstruction.sounds(x, y, rate=batch["rate"])
        else:
            part = reconstruction.pictures(x, y, perceptual=None if seen is None else _far(seen))
        for name, values in part.items():
            found.setdefault(name, []).extend(values)
    return found


def _of(batch: Batch, modality: str) -> Tensor:
    return batch[modality]  # type: ignore[literal-required,no-any-return]


def _far(tower: Any) -> Any:
    """The distance of clips in a tower's features."""
    return lambda x, y: torch.stack([distance(a, b) for a, b in zip(tower(x), tower(y), strict=True)]).sum(0)


def _clips(tree: Mapping[str, Any], split: str) -> Any:
    """A split of a run's data, each clip from its start."""
    fixed = {"split": split, "caption": "first", "window": "start", "crop": "center", "cache": False, "latents": None}
    return build.make(build.overlay(tree["data"], fixed))


def _other(text: str) -> Any:
    """A codec from a node written in one line."""
    import yaml

    try:
        node = yaml.safe_load(text)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, dict) or "kind" not in node:
        raise UserError(f"--against {text!r} must look like '{{kind: pca, patch: [4, 8, 8], components: 32}}'.")
    build.check(node, "--against")
    return build.make(node)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows as text: value [95 % interval], and below each rival what the run gains over it."""
    lines = []
    for name, row in rows.items():
        lines.append(f"{name}  ({row['numbers']} numbers a clip)")
        for metric, value in row.items():
            if isinstance(value, Interval):
                lines.append(f"    {metric:22} {value.value:9.4f}  [{value.low:.4f}, {value.high:.4f}]  n={value.n}")
    return "\n".join(lines)
