"""Questions to a model about real clips, whose answers need no sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmdiff import build
from mmdiff.batch import Batch
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.evaluate.clips import data_of
from mmdiff.files import write_text
from mmdiff.progress import bar

PART = 32  # clips at once
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Asked:
    """Who is asked about what: a run, and the first `n` clips of a split of its data; `seed` is that of all draws."""

    run: str | Path
    split: str = "iid"
    n: int = 64
    seed: int = 1
    ema: bool = True
    device: str = "cpu"
    progress: bool = True

    def each(self, ask: Callable[[Any, Batch], Answer], *, label: str) -> Iterator[Answer]:
        """What `ask(system, batch)` says of the clips, part by part. Raises UserError."""
        system, _, _ = build.load(self.run, ema=self.ema, device=self.device)
        if not hasattr(system, "denoiser"):
            raise UserError(f"{self.run} is no diffusion model, so that its likelihood cannot be asked for.")
        source = build.make(build.overlay(data_of(self.run), {"split": self.split}))
        count = min(self.n, len(source))
        with bar(label, total=count, show=self.progress) as advance:
            for first in range(0, count, PART):
                batch = gather(source, range(first, min(first + PART, count)))
                yield ask(system, batch)
                advance(len(batch["id"]))

    def keep(self, out: str | Path | None, name: str, **said: Any) -> Path:
        """Write what was said as JSON to `out`, or else to `name` in the run's folder -> its path."""
        path = Path(out or Path(self.run) / name)
        about = {"split": self.split, "n": self.n, "seed": self.seed, "ema": self.ema}
        write_text(path, json.dumps(about | said, indent=1) + "\n")
        return path
