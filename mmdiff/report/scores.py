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

import torch

from mmdiff import build, noise
from mmdiff.batch import Batch
from mmdiff.data import media
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.generate import Settings, default_devices, generate, plan
from mmdiff.metrics.nulls import NULLS, copier
from mmdiff.metrics.score import Clip, Row, score
from mmdiff.metrics.statistics import caution
from mmdiff.progress import bar
from mmdiff.train.settings import Sample

Clips = tuple[list[Clip], list[str]]  # and their captions
COPIED = 512  # training clips that the copier may choose from
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
        truth, prompts = references(folder, SPLIT, count)
        cheats = nulls(truth, prompts, training=references(folder, "train", COPIED), seed=seed)
        rows = measure(models, truth, prompts, cheats=cheats, seed=seed, progress=progress)
    except UserError as error:
        return f'<h2>Scores</h2><p class="note">Left out: {escape(str(error))}</p>'
    protocol = {"split": SPLIT, "prompts": len(prompts), "seed": seed, "models": list(models)}
    (folder / "scores.json").write_text(json.dumps(protocol | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return f"<h2>Scores</h2>{table(rows, models)}{_protocol(prompts, seed)}"


def references(folder: Path, split: str, count: int) -> Clips:
    """The first `count` clips of a split of a run's data set, as the run reads them, with their fullest captions."""
    fixed = {"split": split, "caption": "first", "window": "start", "crop": "center", "cache": False}
    clips = build.make(build.overlay(build.read(folder / "config.yaml")["data"], fixed))
    batch = gather(clips, range(min(count, len(clips))))
    if set(batch["valid"]) != {"video", "audio"} or not torch.stack([*batch["valid"].values()]).all():
        raise UserError("These scores judge picture and sound together, and some held-out clips lack one of them.")
    return [as_clip(batch, row) for row in range(len(batch["id"]))], batch["text"]


def measure(
    models: Sequence[str],
    truth: Sequence[Clip],
    prompts: Sequence[str],
    *,
    cheats: Mapping[str, Sequence[Clip]],
    seed: int,
    progress: bool,
) -> dict[str, Row]:
    """name -> score of the ground truth, of its codec rows, of the models and of the nulls."""
    clips: dict[str, Sequence[Clip]] = {"ground truth": truth}
    for name in models:
        system, config, _ = build.load(name, device=default_devices()[0])
        clips[f"ground truth, codec of {name}"] = codec(system, truth)
        clips[name] = dream(system, config, prompts, seed=seed, label=name, progress=progress)
    clips |= {f"null: {name}": made for name, made in cheats.items()}
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


def nulls(truth: Sequence[Clip], prompts: Sequence[str], *, training: Clips, seed: int) -> dict[str, list[Clip]]:
    """Every way to cheat that the metrics have to see through, on the same prompts."""
    rows = {name: make(truth, prompts, seed=seed) for name, make in NULLS.items()}
    return rows | {"copier of training clips": copier(training[0], prompts, known=training[1])}


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
