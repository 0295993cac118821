"""Prompts to files: every clip with a side file that says how to make it again.

The one idea: a clip is a function of (checkpoint, prompt, seed, index, settings). Its noise belongs to its id, never to
its place in a batch, so the batch may shrink until it fits the memory, and several devices may share the prompts,
without changing a clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty
from typing import Any, cast

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from mmdiff import __version__, build
from mmdiff.batch import Batch
from mmdiff.build import sampling_parts
from mmdiff.data import media
from mmdiff.errors import UserError
from mmdiff.material import given, repeated
from mmdiff.progress import Advance, bar
from mmdiff.request import Job, Settings, plan, read_prompts
from mmdiff.systems import windows
from mmdiff.systems.base import Report
from mmdiff.train.settings import Sample

__all__ = ["Job", "Settings", "plan", "read_prompts", "sample_jobs", "sample_prompts"]

AS_TRAINED = Settings()
FIRST_BATCH = {"cuda": 64, "cpu": 8}
Write = Callable[..., Path]  # (clips, row, job, out, *, settings, facts) -> path; see `write`
Work = tuple[str, list[Job], str, Settings, int, str, Write]  # the arguments of _work but the last


def sample_prompts(
    run: str | Path,
    prompts: Sequence[str],
    *,
    out: str | Path,
    settings: Settings = AS_TRAINED,
    number: int = 1,
    batch: int | None = None,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> list[Path]:
    """Write `number` clips a prompt into the folder `out` and return their paths in the order of the prompts.

    A clip is mp4 (H.264 + AAC), one frame alone is png, sound alone is wav; `NAME.json` beside it holds the prompt and
    everything that made it. `batch` None starts from a guess; in any case it is halved until it fits the memory.
    `devices` empty takes every GPU, or the CPU where there is none. Raises UserError for what the user can mend.
    """
    jobs = plan(prompts, number)
    return sample_jobs(run, jobs, out=out, settings=settings, batch=batch, devices=devices, progress=progress)


def sample_jobs(
    run: str | Path,
    jobs: Sequence[Job],
    *,
    out: str | Path,
    settings: Settings,
    batch: int | None = None,
    devices: Sequence[str] = (),
    progress: bool = True,
    label: str = "clips",
    keep: Write | None = None,
) -> list[Path]:
    """`sample_prompts` for planned jobs: `keep` (a function of a module; default `write`) puts each clip into `out`.

    Devices take turns by whole batches, so that the same jobs, batch and devices make the same batches again.
    """
    _writable(Path(out))
    chosen = list(devices) or default_devices()
    for name in chosen:
        _exists(name)
    size = batch or batch_size(len(jobs), chosen)
    batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    shares = [[job for part in batches[rank :: len(chosen)] for job in part] for rank in range(len(chosen))]
    work: list[Work] = [
        (str(run), share, str(out), settings, size, name, keep or write) for share, name in zip(shares, chosen) if share
    ]
    with bar(label, total=len(jobs), show=progress) as advance:
        made = _work(*work[0], advance) if len(work) == 1 else _spread(work, advance)
    return [path for _, path in sorted(made)]


def batch_size(jobs: int, devices: Sequence[str]) -> int:
    """A first guess at how many clips fit at once, no more than a device's share."""
    return max(1, min(FIRST_BATCH.get(torch.device(devices[0]).type, 8), -(-jobs // len(devices))))


def default_devices() -> list[str]:
    """Every GPU, or the CPU."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def _exists(name: str) -> None:
    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"There is no device called {name!r}. Say cpu, cuda:0, or several: cuda:0,cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"Device {name} does not exist: this machine has {count} GPUs. Leave --device out to use what is there."
        )


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Clips cannot be written to {out} ({error}). Choose another folder.") from None


# ---- one device ----------------------------------------------------------------------------------------------------


def _work(
    run: str, jobs: list[Job], out: str, settings: Settings, batch: int, device: str, keep: Write, advance: Advance
) -> list[tuple[int, Path]]:
    """Load the run on one device and make its share of the clips -> (index, path) pairs."""
    system, config, info = build.load(run, ema=settings.ema, device=device)
    settings = settings.resolved(Sample(**config.get("sample", {})))
    facts = {"run": run, "checkpoint": info, "mmdiff": __version__, "torch": torch.__version__, "device": device}
    made = []
    for share, clips in generate(system, jobs, settings=settings, batch=batch, device=device, advance=advance):
        for row, job in enumerate(share):
            made.append((job.index, keep(clips, row, job, Path(out), settings=settings, facts=facts)))
    return made


def generate(
    system: Any,
    jobs: Sequence[Job],
    *,
    settings: Settings,
    batch: int | None = None,
    device: str = "cpu",
    advance: Advance = lambda clips: None,
) -> Iterator[tuple[Sequence[Job], Batch]]:
    """Yield the jobs and their clips, part by part; a part that does not fit the memory is halved and tried again."""
    about = given(settings.material, system, settings.shape(system.shape)) if settings.material else Batch()
    size, done = batch or FIRST_BATCH.get(torch.device(device).type, 8), 0
    while done < len(jobs):
        share, told = jobs[done : done + size], [0.0]
        request: Batch = {"text": [job.prompt for job in share], "id": [job.id for job in share]}
        request |= repeated(about, len(share))
        if settings.negative is not None:
            request["negative"] = [settings.negative] * len(share)

        def report(step: int, steps: int, share: Sequence[Job] = share, told: list[float] = told) -> None:
            advance(len(share) * step / steps - told[0])
            told[0] = len(share) * step / steps

        try:
            clips = _clips(system, request, settings, report)
        except RuntimeError as error:
            if len(share) == 1 or not out_of_memory(error):
                raise
            advance(-told[0])
            size = len(share) // 2
            continue
        advance(len(share) - told[0])
        yield share, clips
        done += len(share)


def _clips(system: Any, request: Batch, settings: Settings, report: Report) -> Batch:
    """In one window if the clips are no longer than the system's own, else in several."""
    told = sampling_parts(settings.arguments()) | {"report": report}
    if settings.plain:
        return cast(Batch, system.generate(request, **told))
    shape, window = settings.shape(system.shape), settings.window(system.shape)
    if shape.frames <= window.frames:
        return cast(Batch, system.generate(request, shape=shape, **told))
    return windows.generate(system, request, shape=shape, window=window, overlap=settings.overlap, **told)


def out_of_memory(error: RuntimeError) -> bool:
    """True for a GPU's own exception and for the CPU allocator's plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


# ---- files ---------------------------------------------------------------------------------------------------------


def write(clips: Batch, row: int, job: Job, out: Path, *, settings: Settings, facts: dict[str, Any]) -> Path:
    """Write one clip of a batch and its side file -> the clip's path."""
    made_by = asdict(settings) | {"checkpoint": facts["checkpoint"], "prompt": job.prompt, "id": job.id}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()
    video = enlarged(media.pixels(clips["video"][row]), settings.scale) if "video" in clips else None  # (t h w 3)
    audio = clips["audio"][row] if "audio" in clips else None  # (c n)
    path = out / f"{job.index:04d}-{digest[:8]}"
    path = media.write_any(path, video, audio, fps=float(clips["fps"][row]), rate=int(clips.get("rate", 0)))
    shape = {
        "frames": 0 if video is None else len(video),
        "size": [] if video is None else list(video.shape[1:3]),
        "fps": float(clips["fps"][row]),
        "samples": 0 if audio is None else audio.shape[-1],
        "rate": int(clips.get("rate", 0)),
    }
    side = (
        {"prompt": job.prompt, "id": job.id, "index": job.index, "file": path.name} | asdict(settings) | shape | facts
    )
    side["material"] = asdict(settings.material) | {"sha256": settings.material.hashes()}
    path.with_suffix(".json").write_text(json.dumps(side, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def enlarged(video: Tensor, scale: int) -> Tensor:
    """(t h w 3) -> (t h*scale w*scale 3), by repeating pixels."""
    return video.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


# ---- several devices -----------------------------------------------------------------------------------------------


def _spread(work: list[Work], advance: Advance) -> list[tuple[int, Path]]:
    """One process a device; each tells its progress, then its results or its error, through one queue."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_child, args=(share, queue), daemon=True) for share in work]
    for worker in workers:
        worker.start()
    made: list[tuple[int, Path]] = []
    try:
        for message in _messages(workers, queue):
            if isinstance(message, float):
                advance(message)
            elif isinstance(message, str):
                raise UserError(message)
            else:
                made += message
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return made


def _child(share: Work, queue: Any) -> None:
    try:
        queue.put(_work(*share, lambda amount: queue.put(float(amount))))
    except UserError as error:
        queue.put(str(error))


def _messages(workers: list[Any], queue: Any) -> Iterator[Any]:
    """What the workers say until each has handed in its list; a worker that died without one is an error."""
    waiting = len(workers)
    while waiting:
        try:
            message = queue.get(timeout=1.0)
        except Empty:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise RuntimeError("A sampling process died; its own message is above.") from None
            continue
        waiting -= isinstance(message, list)
        yield message
