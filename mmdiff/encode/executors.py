"""Where shards are made: in this process and its children, in one task of a SLURM array, or on a Ray cluster.

The one idea: an executor only says who visits which shard. All of them run the same `visit`, whose bytes hang on the
shard alone, so they may even be mixed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from mmdiff.encode.job import Job
from mmdiff.encode.work import Visit, visit
from mmdiff.errors import UserError

Work = tuple[str, int]  # split, number
Execute = Callable[[Job, Sequence[Work], int], Iterator[Visit]]


def local(job: Job, works: Sequence[Work], workers: int) -> Iterator[Visit]:
    """`workers` processes of this machine, one GPU after the other where there are several; 1 is this process."""
    if workers == 1:
        yield from (visit(job, *work) for work in works)
        return
    context = get_context("spawn")
    turn = context.Value("i", 0)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(turn, job.device)) as pool:
        try:
            for done in as_completed([pool.submit(visit, job, *work) for work in works]):
                yield done.result()
        except BrokenProcessPool:
            raise UserError("A worker was killed, perhaps for want of memory. Run the same command again.") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(turn: Any, device: str) -> None:
    """A worker ends with its parent, and takes the next GPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with turn.get_lock():
        place, turn.value = turn.value, turn.value + 1
    if device == "cuda":
        import torch

        torch.cuda.set_device(place % torch.cuda.device_count())


def slurm(job: Job, works: Sequence[Work], workers: int) -> Iterator[Visit]:
    """This task's share of an array: shard i belongs to task i mod the number of tasks."""
    return local(job, share(works), workers)


def share(works: Sequence[Work]) -> list[Work]:
    """The shards of this task of a SLURM array."""
    try:
        task, first, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "COUNT"))
    except (KeyError, ValueError):
        raise UserError(
            "--executor slurm runs inside an array: sbatch --array=0-99 tools/slurm/encode.sbatch SOURCE --out FOLDER."
        ) from None
    return list(works[(task - first) % count :: count])


def ray(job: Job, works: Sequence[Work], workers: int) -> Iterator[Visit]:
    """Tasks of Ray Data, `workers` at a time, on a cluster whose machines share the files."""
    try:
        import ray as cluster
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install 'mmdiff[ray]'.") from None

    def call(row: dict[str, Any]) -> dict[str, str]:
        return {"visit": json.dumps(asdict(visit(job, row["split"], int(row["number"]))))}

    rows = [{"split": split, "number": number} for split, number in works]
    data = cluster.data.from_items(rows, override_num_blocks=len(rows))
    for row in data.map(call, concurrency=workers).iter_rows():
        done = json.loads(row["visit"])
        yield Visit(**{**done, "stale": tuple(done["stale"])})


EXECUTORS: dict[str, Execute] = {"local": local, "slurm": slurm, "ray": ray}
