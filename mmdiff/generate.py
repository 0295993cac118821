"""Prompts to files: every clip with a side file that says how to make it again.

The one idea: a clip is a function of (checkpoint, prompt, seed, index, settings). Its noise belongs to its id, never to
its place in a batch, so the batch may shrink until it fits the memory, and several devices may share the prompts,
without changing a clip.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any, cast

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from mmdiff import __version__, build
from mmdiff.batch import Batch, ClipShape
from mmdiff.data import media
from mmdiff.errors import UserError
from mmdiff.material import Material, read
from mmdiff.progress import Advance, bar
from mmdiff.sampling import SAMPLERS
from mmdiff.train.settings import Sample

FIRST_BATCH = {"cuda": 64, "cpu": 8}
Write = Callable[..., Path]  # (clips, row, job, out, *, settings, facts) -> path; see `write`
Work = tuple[str, list["Job"], str, "Settings", int, str, Write]  # the arguments of _work but the last
CHOICES = ("steps", "guidance", "sampler")


@dataclass(frozen=True)
class Settings:
    """How clips are made; None leaves a choice to the run's own config (its `sample` section)."""

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    ema: bool = True
    scale: int = 1  # whole-number enlargement of the written pictures, for players that show 32x32 as a dot
    negative: str | None = None  # what guidance moves away from, instead of from the empty prompt
    fps: float | None = None  # these three are the run's own where they are None
    size: tuple[int, int] | None = None  # (h, w)
    seconds: float | None = None
    material: Material = Material()  # files that the clip is made from

    def resolved(self, sample: Sample) -> Settings:
        """Fill what was not chosen from the run's `sample` section, and refuse what cannot be."""
        choices = {name: getattr(sample, name) for name in CHOICES if getattr(self, name) is None}
        settings = replace(self, **choices)
        if settings.sampler is not None and settings.sampler not in SAMPLERS:
            raise UserError(f"There is no sampler called {settings.sampler!r}. Choose one of {', '.join(SAMPLERS)}.")
        if min(1 if settings.steps is None else settings.steps, self.scale) < 1:
            raise UserError(f"Steps ({settings.steps}) and scale ({self.scale}) have to be 1 or more.")
        return settings

    def arguments(self) -> dict[str, Any]:
        """What `System.generate` is told."""
        choices = {name: getattr(self, name) for name in CHOICES}
        return {"seed": self.seed} | {name: value for name, value in choices.items() if value is not None}

    def shape(self, own: ClipShape) -> ClipShape:
        """The shape of the clips: the system's own but for what was chosen."""
        fps = own.fps if self.fps is None else self.fps
        frames = own.frames if self.seconds is None and self.fps is None else round((self.seconds or own.seconds) * fps)
        if frames < 1 or fps <= 0 or (self.size and min(self.size) < 1):
            raise UserError(f"A clip of {frames} frames at {fps} fps and size {self.size} cannot be made.")
        return replace(own, fps=fps, frames=frames, size=self.size or own.size)


@dataclass(frozen=True)
class Job:
    """One clip to make: its place in the output, its prompt and the id that its noise belongs to."""

    index: int
    prompt: str
    id: str


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line; empty lines and lines that start with # are left out.

    Raises UserError where the file is missing, is not text, or holds no prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The prompt file {path} cannot be read ({error}). It is a UTF-8 text, one prompt a line."
        ) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise UserError(f"The prompt file {path} holds no prompt. Write one prompt a line.")
    return prompts


def sample_prompts(
    run: str | Path,
    prompts: Sequence[str],
    *,
    out: str | Path,
    settings: Settings = Settings(),
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


def plan(prompts: Sequence[str], number: int) -> list[Job]:
    """`number` jobs a prompt; ids depend on the place of the prompt, so that an edited prompt keeps its noise."""
    if number < 1 or not prompts:
        raise UserError(
            f"There is nothing to make: {len(prompts)} prompts, {number} clips each. "
            "Give --prompt TEXT or --prompts FILE, and a --number from 1."
        )
    clean = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]  # lone surrogates cannot be encoded
    pairs = [(place, prompt, n) for place, prompt in enumerate(clean) for n in range(number)]
    return [Job(index, prompt, f"{place}-{n}") for index, (place, prompt, n) in enumerate(pairs)]


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
    about = given(system, settings)
    chosen = {} if plain(settings) else {"shape": settings.shape(system.shape)}
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
            clips = system.generate(request, report=report, **chosen, **settings.arguments())
        except RuntimeError as error:
            if len(share) == 1 or not out_of_memory(error):
                raise
            advance(-told[0])
            size = len(share) // 2
            continue
        advance(len(share) - told[0])
        yield share, clips
        done += len(share)


def plain(settings: Settings) -> bool:
    """Whether the clips have the shape that the system was built for."""
    return settings.fps is None and settings.size is None and settings.seconds is None


def given(system: Any, settings: Settings) -> Batch:
    """What the files give of one clip; warns where the model was not trained for it."""
    material = settings.material
    if not material:
        return Batch()
    if not set(material.tasks()) & {name for name, odds in system.tasks.items() if odds > 0}:
        warnings.warn(
            f"This model was not trained for the task {material.tasks()[0]}, so it may not go well with what is given; "
            "train with the system's key `tasks`.",
            stacklevel=2,
        )
    shape = settings.shape(system.shape)
    seconds = system.seconds(system.blank(Batch(text=[""], id=[""]), shape))
    return read(material, shape, {name: midpoints[0] for name, midpoints in seconds.items()})


def repeated(about: Batch, b: int) -> Batch:
    """What is given of one clip, for b clips."""
    clips = {name: about[name].expand(b, *about[name].shape[1:]) for name in ("video", "audio") if name in about}  # type: ignore[literal-required]
    held = {"held": about["held"]} if "held" in about else {}
    return cast(Batch, {**clips, **held})


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
