"""A run as one self-contained HTML file: what it makes, what it scores, how it learned.

The one idea: the report shows the files that a user gets and reads them with the same readers that score them, so that
what the picture claims and what the table says cannot drift apart. What a run lacks is left out, with a note.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from mmdiff.errors import UserError
from mmdiff.report import gallery, learning, scores


def write_report(
    run: str | Path, *, clips: Sequence[str | Path] = (), count: int = 64, seed: int = 1, progress: bool = True
) -> Path:
    """Write RUN/report.html and return its path.

    `clips` are output folders of `tools/sample_video.py`, shown side by side in this order. Their side files name the
    models that made them, and each of these is scored on `count` held-out prompts of the run's data set (0: none).
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} is not a run: it holds no config.yaml. Give the folder that `run=` named in training."
        )
    shown = [gallery.read(Path(place)) for place in clips]
    models = list(dict.fromkeys(one.run for one in shown)) or [str(folder)]
    parts = [gallery.section(shown), scores.section(folder, models, count=count, seed=seed, progress=progress)]
    page = string.Template((files(__package__) / "page.html").read_text(encoding="utf-8")).substitute(
        title=f"mmdiff · {escape(folder.name)}",
        lead=_lead(folder),
        sections="\n".join([*parts, learning.section(folder)]),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _lead(folder: Path) -> str:
    """One sentence about the run from what the run wrote down itself."""
    rows = learning.read_log(folder)
    if not rows:
        return "No log of training lies here: the run has not begun, or this is an exported one."
    taken = learning.seconds(rows)
    pace = f", {sum(taken) / len(taken):.2f} s a step (mean of the logged ones)" if taken else ""
    return f"{rows[-1]['step']:,} steps{pace}."
