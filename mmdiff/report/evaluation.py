"""An evaluation as a JSON file and, beside it, a page to look at: tables, nearest training pairs, the protocol.

The one idea: the page shows what the JSON holds and adds only pictures, so that neither can claim what the other does
not.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdiff.evaluate import NONE, OWN, Pair, cache_of, evaluate, pairs
from mmdiff.evaluate.clips import data_of
from mmdiff.generate import Settings
from mmdiff.report import figures, gallery, scores


def judge(
    *,
    run: str | None,
    split: str,
    n: int,
    against: str | None,
    clips: str | None,
    give: str | None,
    out: str | None,
    seed: int,
    number: int,
    training: int | None,
    cache: str | None,
    batch: int | None,
    plugins: Mapping[str, str | Path] = NONE,
    settings: Settings = OWN,
    prompts: Sequence[str] | None = None,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> list[Path]:
    """`evaluate` with the arguments of `tools/evaluate.py` -> the paths of the JSON and of the page that it wrote."""
    path = Path(out) if out else Path(run or str(clips)) / "evaluation.json"
    result = evaluate(
        run, split=split, n=n, seed=seed, number=number, settings=settings, prompts=prompts, against=against,
        clips=clips, give=give, training=training, plugins=plugins, cache=cache, out=path, batch=batch,
        devices=devices, progress=progress,
    )  # fmt: skip
    looked = pairs(result, data_of(run), cache=cache_of(run, clips, cache), clips=clips) if run is not None else []
    page = path.with_suffix(".html")
    page.write_text(render(result, looked, title=Path(run or str(clips)).name), encoding="utf-8")
    return [path, page]


def render(result: Mapping[str, Any], looked: Sequence[Pair], *, title: str) -> str:
    """The page as a text."""
    template = string.Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"mmdiff · evaluation of {escape(title)}",
        lead=_lead(result["protocol"]),
        sections="\n".join([section(result), copies(looked), record(result["protocol"])]),
    )


def _lead(protocol: Mapping[str, Any]) -> str:
    made = f"step {protocol['checkpoint']['step']:,} of {protocol['run']}" if "run" in protocol else protocol["clips"]
    return escape(f"{made}: {protocol['n']} captions, measured beside the ground truth and beside ways to cheat.")


def section(result: Mapping[str, Any]) -> str:
    """The tables of an evaluation, for any page."""
    rows, parts = result["rows"], []
    if any("facts" in row for row in rows.values()):
        parts.append(
            f"<h2>Facts and synchrony</h2>{scores.table(rows, scores.COLUMNS)}{scores.note(result['protocol'])}"
        )
    aligned = (
        "Onset F1 matches moments at which the picture turns round with onsets of sound, without knowing any scene; "
        "energy F1 does so with peaks of motion energy. Different pictures and sounds are effective numbers (Vendi "
        "scores); free choice is the entropy of what a caption leaves open, over several clips of it."
    )
    parts.append(
        f'<h2>Sync without scenes, diversity</h2>{scores.table(rows, scores.ALIGNED)}<p class="note">{aligned}</p>'
    )
    if any("first_frame_error" in row for row in rows.values()):
        given = (
            f"Given of each held-out clip: {escape(result['protocol']['given'])}. Mean difference of the first and the "
            "last frame from those of that clip, and from those of other clips, of a range of 1."
        )
        parts.append(f'<h2>What was given</h2>{scores.table(rows, scores.GIVEN)}<p class="note">{given}</p>')
    text = (
        "Appearance, motion, spectrum and time are Frechet distances in random features, as multiples of the distance "
        "of real clips from real clips (the first row): proxies, and no FID, FVD or FAD. Copied is the share of clips "
        "that lie nearer to a training clip than 99 % of unseen real clips do."
    )
    parts.append(f'<h2>Distances and copies</h2>{scores.table(rows, scores.DISTANCES)}<p class="note">{text}</p>')
    return "\n".join(parts)


def copies(looked: Sequence[Pair]) -> str:
    """The clips that are nearest to training clips, each above its neighbour."""
    if not looked:
        return ""
    note = "The judged clips that lie nearest to a training clip, above that clip. A distance below 1 counts as a copy."
    cards = "".join(_pair(*pair) for pair in looked)
    return f'<h2>Nearest training clips</h2><p class="note">{note}</p><div class="columns">{cards}</div>'


def _pair(mine: Any, theirs: Any, entry: Mapping[str, Any]) -> str:
    kind = {"video": "Picture", "audio": "Sound"}[entry["modality"]]
    pictures = "".join(_shown(clip, entry["modality"]) for clip in (mine, theirs))
    return (
        f'<section class="prompt"><p>{kind}: clip {entry["clip"]} and training clip {entry["training"]}, '
        f"distance {entry['distance']:.2f}</p>{pictures}</section>"
    )


def _shown(clip: Any, modality: str) -> str:
    video, audio, _, rate = clip
    if modality == "video":
        return figures.strip(torch.from_numpy(np.array(video)))
    sound = torch.from_numpy(np.array(audio))
    return figures.sound(gallery.log_mel(sound, rate=rate), seconds=len(audio) / rate, onsets=[], impacts=[])


def record(protocol: Mapping[str, Any]) -> str:
    """The protocol as a table of two columns."""
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(_spoken(value))}</code></td></tr>"
        for name, value in protocol.items()
    )
    return f'<h2>Protocol</h2><div class="scroll"><table class="record">{lines}</table></div>'


def _spoken(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_spoken(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_spoken, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
