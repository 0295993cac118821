"""The clips of several models beside their captions, with what can be seen and heard in them marked.

The one idea: a clip is read back from the very file that the page plays, through the world's readers, which know
nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiff import records
from mmdiff.data import apart
from mmdiff.errors import UserError
from mmdiff.metrics import faithfulness
from mmdiff.report import figures
from mmdiff.world.caption import parse

QUIET = -40.0  # dB: what lies below it everywhere is shown as silence, not as noise at full brightness
MOTIONS = {"drop": "falling", "slide": "sliding", "still": "still"}
LABELS = {"count": "count", "colour_count": "colours", "shape": "shape", "size": "size", "direction": "motion"}
LABELS |= {"bounces": "bounces", "timbre": "sound"}


SIDE = {
    "prompt": str, "run": str, "file": str, "checkpoint": {"step": int}, "frames": int, "fps": records.NUMBER,
    "samples": int, "rate": int,
}  # fmt: skip
AGAIN = "Make the clips again with tools/sample_video.py."
LONGEST = 1 << 30  # frames or samples of a clip


@dataclass(frozen=True)
class Gallery:
    """What one model made of a list of prompts: a folder of `tools/sample_video.py`."""

    run: str
    clips: dict[str, tuple[Path, dict[str, Any]]]  # prompt -> its first clip and the side file's content


def read(folder: Path) -> Gallery:
    """Collect the clips of a folder by their side files; UserError where there is none."""
    sides = [_side(path) for path in sorted(folder.glob("[0-9]*.json"))]
    if not sides:
        raise UserError(
            f"{folder} holds no clips with .json side files. Make some: tools/sample_video.py RUN --out {folder}"
        )
    clips: dict[str, tuple[Path, dict[str, Any]]] = {}
    newest = max(side["checkpoint"]["step"] for side in sides)
    for side in sides:
        if side["checkpoint"]["step"] == newest:
            clips.setdefault(side["prompt"], (folder / side["file"], side))
    return Gallery(sides[-1]["run"], clips)


def _side(path: Path) -> dict[str, Any]:
    """A side file whose numbers can be those of a clip, and whose clip lies beside it."""
    side: dict[str, Any] = records.read(path, SIDE, again=AGAIN)
    able = 0 <= side["frames"] < LONGEST and 0 <= side["samples"] < LONGEST
    able = able and (not side["frames"] or 1e-3 < side["fps"] < 1e6) and (not side["samples"] or 0 < side["rate"] < 1e6)
    if not able or Path(side["file"]).name != side["file"]:
        raise UserError(f"{path} describes no clip beside it: look at its frames, fps, samples, rate and file. {AGAIN}")
    return side


def section(galleries: Sequence[Gallery]) -> str:
    """One card a prompt, one column a model."""
    if not galleries:
        return '<h2>Clips</h2><p class="note">No folder of clips was given (--clips).</p>'
    prompts = dict.fromkeys(prompt for gallery in galleries for prompt in gallery.clips)
    cards = "\n".join(_card(prompt, galleries) for prompt in prompts)
    note = (
        "Under the frames: the sound, pitch over time (log-mel). Triangles are impacts seen in the pictures, dashed "
        "lines are onsets heard in the sound; both are read from the clip alone. Where they meet, the two agree."
    )
    return f'<h2>Clips</h2><p class="note">{note}</p>{cards}'


def _card(prompt: str, galleries: Sequence[Gallery]) -> str:
    columns = [clip(*g.clips[prompt], title=g.run) for g in galleries if prompt in g.clips]
    return f'<section class="prompt"><p>{escape(prompt)}</p><div class="columns">{"".join(columns)}</div></section>'


def clip(path: Path, side: dict[str, Any], *, title: str) -> str:
    """One model's clip: the player, its frames, its sound, and what the readers say about it."""
    video, audio = load(path, side)
    reading = faithfulness.read(video.numpy(), audio.numpy(), fps=side["fps"] or 1.0, rate=side["rate"] or 8000)
    parts = [figures.strip(video)] if len(video) > 1 else []
    if len(audio):
        level, seconds = log_mel(audio, rate=side["rate"]), len(audio) / side["rate"]
        parts.append(figures.sound(level, seconds=seconds, onsets=reading.onsets, impacts=reading.impacts))
    return (
        f'<div class="clip"><h3>{escape(title)}</h3>{_player(path, video)}<div>{"".join(parts)}</div>'
        f'<p class="facts">{_facts(reading, side["prompt"])}</p></div>'
    )


def load(path: Path, side: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The file back as video uint8 (t h w 3) and audio (n,); what it lacks has length 0."""
    video, audio = torch.zeros(0, 1, 1, 3, dtype=torch.uint8), torch.zeros(0)
    if path.suffix == ".png":
        video = apart.read_image(path)
    elif side["frames"]:
        video = apart.read_video(path, start=0.0, fps=side["fps"], frames=side["frames"])
    if side["samples"]:
        audio = apart.read_audio(path, start=0.0, seconds=side["samples"] / side["rate"], rate=side["rate"])[0]
    return video, audio


def _facts(reading: faithfulness.Reading, prompt: str) -> str:
    """What was read, and which stated facts hold; a prompt that states none in the world's words is only read."""
    things = [
        " ".join(filter(None, (o.size, o.colour, o.shape, MOTIONS[o.motion], o.direction))) for o in reading.objects
    ]
    times = f"Impacts seen: {len(reading.impacts)}, onsets heard: {len(reading.onsets)}."
    seen = f"Seen: {'; '.join(things) or 'nothing'}. {times}"
    try:
        marks = faithfulness.compare(reading, parse(prompt))
    except UserError:
        return escape(seen)
    verdicts = [(name, mark) for name, mark in marks.items() if mark is not None and name not in ("facts", "colour")]
    told = " ".join(
        f'<span class="{"yes" if ok else "no"}">{"✓" if ok else "✗"} {LABELS[name]}</span>' for name, ok in verdicts
    )
    return f"{told}<br>{escape(seen)}"


def _player(path: Path, video: Tensor) -> str:
    source = figures.embed(path)
    if path.suffix == ".mp4":
        poster = f' poster="{figures.png(video[len(video) // 2])}"' if len(video) else ""
        return f'<video src="{source}"{poster} controls loop playsinline preload="metadata"></video>'
    return (
        f'<audio src="{source}" controls></audio>' if path.suffix == ".wav" else f'<img class="still" src="{source}">'
    )


def log_mel(audio: Tensor, *, rate: int, bands: int = 40) -> Tensor:
    """Samples (n,) -> (bands frames) in [0, 1]: 1 is the loudest point, but at least QUIET, and 0 is 60 dB below."""
    from mmdiff.autoencoders.mel import Mel

    hop = max(2, rate // 100)
    picture = Mel(rate=rate, hop=hop, window=4 * hop, bands=bands).log_mel(audio[None, None])[0]
    level = 20 * torch.log10(picture.expm1().clamp(min=1e-6))
    return ((level - max(float(level.max()), QUIET)) / 60 + 1).clamp(0, 1)
