"""Clips that a model goes on with: a part of each held-out clip is given, and the rest of it is judged as any clip.

The one idea: what is given comes from the clip whose caption is judged, by the masks that the model was trained with,
so that sound made for a picture is judged against that picture; and how near both ends of the result are to that clip,
beside how near they are to another one, says whether the model held on to what it got.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmdiff import tasks
from mmdiff.batch import Batch
from mmdiff.build import sampling_parts
from mmdiff.errors import UserError
from mmdiff.evaluate.clips import Set, as_batch, keep, load, modalities, name_of
from mmdiff.generate import Job, Settings, batch_size, plan
from mmdiff.metrics.score import Clip, Row, pairings
from mmdiff.metrics.statistics import interval
from mmdiff.progress import bar

FRAME = "frame"  # the first frame is told, not held
TASKS = (FRAME, *(name for name in tasks.TASKS if name not in ("generate", *tasks.ABSENT)))
ENDS = {"first_frame": 0, "last_frame": -1}


def complete(
    system: Any,
    truth: Set,
    task: str,
    *,
    settings: Settings,
    checkpoint: dict[str, Any],
    design: str,
    cache: Path,
    batch: int | None,
    device: str,
    progress: bool,
) -> Set:
    """One clip for each true one, made from what the task gives of it; what is in the cache is not made again.

    task: a name of `TASKS`. The model's modalities decide what of the true clips is looked at. Raises UserError.
    """
    jobs, folder = plan(truth.prompts, 1), cache / "clips" / f"{design}-{task}-{truth.digest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    size, found = batch or batch_size(len(jobs), [device]), []
    names = [name_of(job, settings, checkpoint) for job in jobs]
    with bar(f"clips by {task}", total=len(jobs), show=progress) as advance:
        for i in range(0, len(jobs), size):
            share, paths = jobs[i : i + size], [folder / name for name in names[i : i + size]]
            if any(load(path) is None for path in paths):
                asked = request(system, truth.part(i, i + size), share, task, seed=settings.seed)
                made = system.generate(asked, **sampling_parts(settings.arguments()))
                for row, job in enumerate(share):
                    keep(made, row, job, folder, settings=settings, facts={"checkpoint": checkpoint})
            found += [cast(Clip, load(path)) for path in paths]
            advance(len(share))
    return Set(found, list(truth.prompts), [f"{folder.name}/{name}" for name in names])


def request(system: Any, truth: Set, jobs: Sequence[Job], task: str, *, seed: int) -> Batch:
    """What a system is asked: the captions of true clips with what the task gives of them."""
    if task not in TASKS:
        raise UserError(f"--give {task}: there is no such task; choose one of {', '.join(TASKS)}.")
    clips, about = as_batch(truth.clips), Batch(text=[job.prompt for job in jobs], id=[job.id for job in jobs])
    lacking = {*system.autoencoders} - {*modalities(truth.clips)}
    if lacking:
        raise UserError(f"--give {task}: the split has no {' and no '.join(sorted(lacking))} to give.")
    if task == FRAME:
        if not system.shown:
            raise UserError("--give frame: this model is not told a first frame; it may hold one (--give first_frame).")
        return cast(Batch, {**about, "frame": clips["video"][:, :, 0]})
    tasks.check({task: 1.0}, list(system.autoencoders))
    shapes = system.latent_shapes(system.blank(about))
    held = tasks.draw({task: 1.0}, shapes, seed=seed, step=0, ids=about["id"])
    return cast(Batch, {**about, "held": held, **{name: cast(Any, clips)[name] for name in shapes}})


def ends(judged: Set, truth: Set, *, seed: int) -> Row:
    """How far the first and the last frame are from those of the true clip: mean |difference| of values in [0, 1].

    `_shuffled` is the same against other clips. Nothing for clips without a picture.
    """
    if "video" not in modalities(judged.clips) or "video" not in modalities(truth.clips):
        return Row()
    row = Row()
    for name, at in ENDS.items():
        mine, theirs = (np.stack([clip[0][at] for clip in one.clips]) / 255.0 for one in (judged, truth))  # n h w 3
        away = [np.abs(mine - theirs[order]).mean((1, 2, 3)) for order in pairings(len(mine), seed=seed)]
        found = {f"{name}_error": np.abs(mine - theirs).mean((1, 2, 3))}
        found |= {f"{name}_error_shuffled": np.mean(away, 0)} if away else {}
        row |= {key: interval(each.tolist(), seed=seed, prompts=truth.prompts).row() for key, each in found.items()}
    return row
