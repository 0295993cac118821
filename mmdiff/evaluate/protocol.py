"""What a number needs beside it to be believed and repeated: the protocol record, and what to be careful about.

The one idea: everything that can change a number is in the record, and nothing else is: no date, no path of a cache, so
that two runs of one command write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdiff import __version__
from mmdiff.metrics import faithfulness, features, memorisation, score, statistics, sync
from mmdiff.metrics.score import Clip

FEW_FOR_FRECHET = 2048  # clips: below this published Frechet distances are not comparable with anything


def preprocessing(clips: Sequence[Clip]) -> dict[str, Any]:
    """How clips looked when they were read, and the constants of the readers."""
    video, audio, fps, rate = clips[0]
    return {
        "frames": len(video),
        "size": list(video.shape[1:3]) if len(video) else [],
        "fps": fps,
        "samples": len(audio),
        "rate": rate,
        "picture": "uint8 RGB, [0, 255]",
        "sound": "mono float in [-1, 1]",
        "sync": {"window_s": sync.WINDOW, "horizon_s": sync.HORIZON, "shuffles": score.SHUFFLES},
        "features": {"seed": features.SEED, "side": features.SIDE, "frames": features.FRAMES, "hop_s": features.HOP},
        "copies": {"side": memorisation.SIDE, "frames": memorisation.FRAMES, "quantile": memorisation.QUANTILE},
        "facts": list(faithfulness.JUDGED),
    }


def digest(record: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that decide what is computed."""
    return {
        "mmdiff": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def hardware(device: str) -> str:
    """The kind of device that made the clips: scores may change with it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def cautions(*, n: int, split: str, seed: int, config: dict[str, Any], reference: int) -> list[str]:
    """What a reader of the table should know before believing it; empty where there is nothing."""
    found = [statistics.caution(n)] if statistics.caution(n) else []
    if reference and min(n, reference) < FEW_FOR_FRECHET:
        found.append(
            f"distances use {n} clips against {reference}: compare them with the oracle row of this table "
            "(real against real) and with nothing else"
        )
    if "val" in split.split(","):
        found.append("the split val chooses checkpoints while training; report another split")
    if seed == config.get("seed"):
        found.append(f"seed {seed} is also the seed of the run's own previews; report another seed")
    return found


def source(path: str | Path) -> str:
    """A path as it was given, with forward slashes."""
    return Path(path).as_posix()
