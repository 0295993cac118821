"""Where the clips of an evaluation come from: a run's data, the run itself, its codec, or any folder.

The one idea: they all become the same four things - picture, sound, frame rate, sample rate - before anything is
measured, so that a model, the ground truth and another system's files are judged by the same code. Generated clips are
kept as tensors under a name that is the hash of everything that made them, so nothing is made twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmdiff import build, noise
from mmdiff.batch import Batch
from mmdiff.data import media
from mmdiff.data.loader import gather
from mmdiff.errors import UserError
from mmdiff.files import replacing
from mmdiff.generate import Job, Settings, batch_size, default_devices, plan, sample_jobs
from mmdiff.metrics.score import Clip
from mmdiff.progress import bar

NO_VIDEO, NO_AUDIO = np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.float32)
PART = 32  # clips read or coded at once


@dataclass(frozen=True)
class Set:
    """Clips with a caption and a name each."""

    clips: list[Clip]
    prompts: list[str]
    ids: list[str]

    def only(self, modalities: Sequence[str]) -> Set:
        """The same clips without the modalities that are not named."""
        return replace(self, clips=[stripped(clip, modalities) for clip in self.clips])

    def part(self, first: int, last: int | None = None) -> Set:
        """The clips of a range of places."""
        return Set(self.clips[first:last], self.prompts[first:last], self.ids[first:last])

    def digest(self) -> str:
        """A hash of every byte of the clips, and of their captions."""
        found = hashlib.sha256(json.dumps(self.prompts).encode())
        for video, audio, fps, rate in self.clips:
            found.update(f"{video.shape} {audio.shape} {fps} {rate}".encode())
            found.update(np.ascontiguousarray(video).tobytes() + np.ascontiguousarray(audio).tobytes())
        return found.hexdigest()


def joined(sets: Sequence[Set]) -> Set:
    """Several sets as one."""
    return Set(*([item for one in sets for item in getattr(one, name)] for name in ("clips", "prompts", "ids")))


def stripped(clip: Clip, modalities: Sequence[str]) -> Clip:
    """A clip without the modalities that are not named."""
    video, audio, fps, rate = clip
    return video if "video" in modalities else NO_VIDEO, audio if "audio" in modalities else NO_AUDIO, fps, rate


def modalities(clips: Sequence[Clip]) -> list[str]:
    """What all of the clips have."""
    have = {"video": all(len(clip[0]) for clip in clips), "audio": all(len(clip[1]) for clip in clips)}
    return [name for name, there in have.items() if there]


# ---- real clips ----------------------------------------------------------------------------------------------------


def data_of(run: str | Path) -> dict[str, Any]:
    """The `data` section of a run's config, fixed so that every run of the same data reads the same clips first."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run: it holds no config.yaml. Give the folder that `run=` named in training.")
    fixed = {"seed": 0, "caption": "first", "window": "start", "crop": "center", "cache": False, "latents": None}
    return build.overlay(build.read(path)["data"], fixed)  # type: ignore[no-any-return]


def real(data: dict[str, Any], split: str, *, first: int = 0, count: int | None = None, progress: bool = False) -> Set:
    """Clips `first` to `first + count` of a split (None: to its end), with their fullest captions."""
    source = build.make(build.overlay(data, {"split": split}))
    places = range(first, len(source) if count is None else min(first + count, len(source)))
    found = Set([], [], [])
    with bar(f"reading {split}", total=len(places), show=progress) as advance:
        for start in range(0, len(places), PART):
            batch = gather(source, places[start : start + PART])
            found.clips.extend(as_clip(batch, row) for row in range(len(batch["id"])))
            found.prompts.extend(batch["text"])
            found.ids.extend(batch["id"])
            advance(len(batch["id"]))
    return found


def as_clip(batch: Batch, row: int) -> Clip:
    """One clip of a batch as the readers take it: video (t h w 3) uint8, audio (n,); what is not valid has length 0."""
    valid = batch.get("valid", {})
    there = [name for name in ("video", "audio") if name in batch and (name not in valid or bool(valid[name][row]))]
    video = media.pixels(batch["video"][row]).numpy() if "video" in there else NO_VIDEO
    audio = batch["audio"][row, 0].detach().float().cpu().numpy() if "audio" in there else NO_AUDIO  # (n,)
    return video, audio, float(batch["fps"][row]), int(batch.get("rate", 0))


def as_batch(clips: Sequence[Clip]) -> Batch:
    """The way back: clips of one shape as a batch with everything they have valid."""
    have, ids = modalities(clips), [str(i) for i in range(len(clips))]
    batch = Batch(fps=torch.tensor([fps for *_, fps, _ in clips]), rate=clips[0][3], text=[""] * len(clips), id=ids)
    batch["valid"] = {name: torch.ones(len(clips), dtype=torch.bool) for name in have}
    if "video" in have:
        videos = torch.stack([torch.from_numpy(np.array(video)) for video, *_ in clips])  # (b t h w 3)
        batch["video"] = videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    if "audio" in have:
        batch["audio"] = torch.stack([torch.from_numpy(np.array(audio)) for _, audio, *_ in clips])[:, None]  # (b 1 n)
    return batch


@torch.no_grad()
def codec(system: Any, truth: Sequence[Clip]) -> list[Clip]:
    """Real clips encoded and decoded: what the model would score if it modelled its latents perfectly."""
    made: list[Clip] = []
    for start in range(0, len(truth), PART):
        batch = as_batch(truth[start : start + PART])
        back = system.decode(system.encode(batch), batch, keys=noise.keys(0, "codec", start, batch["id"]))
        made += [as_clip(back, row) for row in range(len(batch["id"]))]
    return made


# ---- generated clips -----------------------------------------------------------------------------------------------


def dream(
    run: str | Path,
    prompts: Sequence[str],
    *,
    number: int,
    settings: Settings,
    checkpoint: dict[str, Any],
    design: str,
    cache: Path,
    batch: int | None = None,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> Set:
    """`number` clips a prompt; those that are already in the cache are not made again.

    `settings` are resolved; `design` is a hash of the system's config. Whole batches are made again where one of their
    clips is missing, so that an interrupted evaluation computes exactly what an uninterrupted one does.
    """
    jobs, folder, chosen = plan(prompts, number), cache / "clips" / design, list(devices) or default_devices()
    size = batch or batch_size(len(jobs), chosen)
    names = {job.index: name_of(job, settings, checkpoint) for job in jobs}
    batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    missing = [job for part in batches if any(load(folder / names[job.index]) is None for job in part) for job in part]
    if missing:
        label = f"clips of {Path(run).name}"
        sample_jobs(
            run, missing, out=folder, settings=settings, batch=size, devices=chosen, progress=progress, label=label,
            keep=keep,
        )  # fmt: skip
    clips = [load(folder / names[job.index]) for job in jobs]
    if any(clip is None for clip in clips):
        raise UserError(f"Clips in {folder} disappeared or were damaged while they were read. Run the command again.")
    return Set(
        [clip for clip in clips if clip is not None],
        [job.prompt for job in jobs],
        [f"{design}/{name}" for name in names.values()],
    )


def name_of(job: Job, settings: Settings, checkpoint: dict[str, Any]) -> str:
    """The file of one clip: a hash of all that made it."""
    made_by = asdict(replace(settings, scale=1)) | {"checkpoint": checkpoint, "prompt": job.prompt, "id": job.id}
    return hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()[:32] + ".safetensors"


def keep(clips: Batch, row: int, job: Job, out: Path, *, settings: Settings, facts: dict[str, Any]) -> Path:
    """Write one clip of a batch into the cache, without loss."""
    video, audio, fps, rate = as_clip(clips, row)
    path = out / name_of(job, settings, facts["checkpoint"])
    tensors = {"video": video, "audio": np.array(audio), "rates": np.array([fps, rate], np.float64)}
    with replacing(path) as staged:
        save_file(tensors, staged)
    return path


def load(path: Path) -> Clip | None:
    """A clip from the cache; None where it is not there or not whole."""
    try:
        found = load_file(path)
        return found["video"], found["audio"], float(found["rates"][0]), int(found["rates"][1])
    except (OSError, SafetensorError, KeyError):
        return None
