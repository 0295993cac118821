"""Models, ground truth and nulls under the same readers, on the same held-out prompts.

The one idea: a number means nothing alone. Above every table stands the ground truth (oracle) and the ground truth
through the model's codec, which no model can beat; below it stand clips that are wrong in a known way, which every
model has to beat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdiff import build, noise
from mmdiff.batch import Batch
from mmdiff.data import media
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.generate import Settings, default_devices, generate, plan
from mmdiff.metrics.score import Clip, Row, score
from mmdiff.metrics.statistics import caution
from mmdiff.progress import bar
from mmdiff.train.settings import Sample

SPLIT = "iid"  # held out from training and from the choice of a checkpoint (which is made on val)
COLUMNS = {
    "facts": "all facts", "colour_count": "colours + count", "shape": "shape", "direction": "motion", "timbre": "sound",
    "sync_f1": "sync F1", "sync_f1_shuffled": "… shuffled", "sync_cost_ms": "sync cost, ms",
}  # fmt: skip


def section(folder: Path, models: Sequence[str], *, count: int, seed: int, progress: bool) -> str:
    """The table of scores, also written to RUN/scores.json; a note where nothing says what is true of the clips."""
    if not count:
        return ""
    try:
        truth, prompts = references(folder, count)
        rows = measure(models, truth, prompts, seed=seed, progress=progress)
    except UserError as error:
        return f'<h2>Scores</h2><p class="note">Left out: {escape(str(error))}</p>'
    protocol = {"split": SPLIT, "prompts": len(prompts), "seed": seed, "models": list(models)}
    (folder / "scores.json").write_text(json.dumps(protocol | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return f"<h2>Scores</h2>{table(rows, models)}{_protocol(prompts, seed)}"


def references(folder: Path, count: int) -> tuple[list[Clip], list[str]]:
    """The first `count` held-out clips of a run's data set with their fullest captions, as the run would read them."""
    fixed = {"split": SPLIT, "caption": "first", "window": "start", "crop": "center", "cache": False}
    clips = build.make(build.overlay(build.read(folder / "config.yaml")["data"], fixed))
    batch = gather(clips, range(min(count, len(clips))))
    if set(batch["valid"]) != {"video", "audio"} or not torch.stack([*batch["valid"].values()]).all():
        raise UserError("These scores judge picture and sound together, and some held-out clips lack one of them.")
    return [as_clip(batch, row) for row in range(len(batch["id"]))], batch["text"]


def measure(
    models: Sequence[str], truth: Sequence[Clip], prompts: Sequence[str], *, seed: int, progress: bool
) -> dict[str, Row]:
    """name -> score of the ground truth, of its codec rows, of the models and of the nulls."""
    clips: dict[str, Sequence[Clip]] = {"ground truth": truth}
    for name in models:
        system, config, _ = build.load(name, device=default_devices()[0])
        clips[f"ground truth, codec of {name}"] = codec(system, truth)
        clips[name] = dream(system, config, prompts, seed=seed, label=name, progress=progress)
    clips |= nulls(truth)
    rows = {}
    with bar("reading clips", total=len(clips), show=progress) as advance:
        for name, made in clips.items():
            rows[name] = score(made, prompts, seed=seed, references=truth)
            advance(1)
    return rows


def dream(
    system: Any, config: dict[str, Any], prompts: Sequence[str], *, seed: int, label: str, progress: bool
) -> list[Clip]:
    """One clip a prompt with the run's own sampling settings."""
    settings, made = Settings(seed=seed).resolved(Sample(**config.get("sample", {}))), []
    with bar(f"clips of {label}", total=len(prompts), show=progress) as advance:
        parts = generate(system, plan(prompts, 1), settings=settings, device=default_devices()[0], advance=advance)
        for share, batch in parts:
            made += [as_clip(batch, row) for row in range(len(share))]
    return made


def as_clip(batch: Batch, row: int) -> Clip:
    """One clip of a batch as the readers take it: video (t h w 3) uint8, audio (n,)."""
    if "video" not in batch or "audio" not in batch:
        raise UserError("These scores judge picture and sound together, and the run makes only one of them.")
    audio = batch["audio"][row, 0].detach().float().cpu().numpy()  # (n,)
    return media.pixels(batch["video"][row]).numpy(), audio, float(batch["fps"][row]), int(batch["rate"])


def as_batch(clips: Sequence[Clip]) -> Batch:
    """The way back: clips of one shape as a batch with everything valid."""
    videos = torch.stack([torch.from_numpy(video) for video, *_ in clips]).permute(0, 4, 1, 2, 3)  # (b 3 t h w)
    everywhere = torch.ones(len(clips), dtype=torch.bool)
    return Batch(
        video=videos.float() / 127.5 - 1,
        audio=torch.stack([torch.from_numpy(audio) for _, audio, *_ in clips])[:, None],  # (b 1 n)
        fps=torch.tensor([fps for *_, fps, _ in clips]),
        rate=clips[0][3],
        text=[""] * len(clips),
        id=[str(i) for i in range(len(clips))],
        valid={"video": everywhere, "audio": everywhere},
    )


@torch.no_grad()
def codec(system: Any, truth: Sequence[Clip]) -> list[Clip]:
    """The ground truth encoded and decoded: what the model would score if it modelled its latents perfectly."""
    batch = as_batch(truth)
    rest = Batch(fps=batch["fps"], rate=batch["rate"], text=batch["text"], id=batch["id"], valid=batch["valid"])
    back = system.decode(system.encode(batch), rest, keys=noise.keys(0, "codec", 0, batch["id"]))
    return [as_clip(back, row) for row in range(len(truth))]


def nulls(truth: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Clips that are wrong in a known way; each has to fail something."""
    n = len(truth)
    turned = [truth[(i + 1) % n] for i in range(n)]
    static = [(np.repeat(video[:1], len(video), 0), *rest) for video, *rest in truth]
    spam = [(video, _clicks(len(audio), rate), fps, rate) for video, audio, fps, rate in truth]
    return {
        "null: another clip": turned,
        "null: another clip's sound": [(a[0], b[1], a[2], a[3]) for a, b in zip(truth, turned, strict=True)],
        "null: silence": [(video, np.zeros_like(audio), fps, rate) for video, audio, fps, rate in truth],
        "null: a click every 80 ms": spam,
        "null: first frame only": static,  # type: ignore[dict-item]
    }


def _clicks(samples: int, rate: int) -> np.ndarray:
    """Short decaying tones every 80 ms -> (samples,) float32."""
    t = np.arange(samples) % round(0.08 * rate) / rate  # s since the last click
    return (0.5 * np.exp(-t / 0.01) * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)


def table(rows: Mapping[str, Row], models: Sequence[str]) -> str:
    """Rows of value and interval; models in bold."""
    head = "".join(f"<th>{label}</th>" for label in COLUMNS.values())
    body = "\n".join(
        f"<tr{' class=model' if name in models else ''}><td>{escape(name)}</td>"
        + "".join(_cell(row[metric], metric) for metric in COLUMNS)
        + "</tr>"
        for name, row in rows.items()
    )
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>\n{body}</table></div>'


def _cell(entry: Mapping[str, float], metric: str) -> str:
    if isnan(entry["value"]):
        return "<td>–</td>"
    digits = 0 if metric.endswith("_ms") else 2
    return f"<td>{entry['value']:.{digits}f}<small>{entry['low']:.{digits}f} – {entry['high']:.{digits}f}</small></td>"


def _protocol(prompts: Sequence[str], seed: int) -> str:
    """What a reader needs to believe the table."""
    few = caution(len(prompts))
    text = f"""{len(prompts)} prompts of the split “{SPLIT}” (the fullest caption of each clip; neither trained on nor
        used to choose a checkpoint), one clip a prompt, seed {seed}, averaged weights, each run's own sampler,
        steps and guidance. Shares of clips that fulfil what the caption states; “all facts” is their
        conjunction. Sync F1 matches impacts seen with onsets heard within 60 ms, both read from the clip;
        “shuffled” pairs the same pictures with the sounds of other clips. Small figures are 95 % bootstrap
        intervals over prompts.{f" Caution: {few}." if few else ""}"""
    return f'<p class="note">{escape(text)}</p>'
