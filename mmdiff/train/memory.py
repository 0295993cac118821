"""Memory: how much a step needed at most, every shape tried before the first step, and what to turn if it is too much.

A bucket that does not fit should end a run in its first minute and not in its third hour, so each is gone through once,
forward and backward, with a loss that is not a number: the step is then skipped like any other of its kind, and leaves
weights, moments and average as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mmdiff.batch import Batch
from mmdiff.data.loader import loader
from mmdiff.data.plans import Plan
from mmdiff.files import write_text
from mmdiff.train.engine import Engine
from mmdiff.train.settings import Run

Mark = Callable[[str, int, list[str]], None]


def peak(device: torch.device) -> float:
    """GB that this process held at most since the last call: on the GPU, or in all on Linux; elsewhere 0.

    Where /proc/self/clear_refs may not be written it is the most since the process began.
    """
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most / 1e9
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    most = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is held now
    return most / 1e9


def rehearse(engine: Engine, train: Any, plan: Plan, run: Run, folder: Path, mark: Mark) -> None:
    """One step of every bucket that changes nothing; its peak goes to memory.json. Every rank must call it."""
    ranks, peaks = engine.ranks, {}
    for step in plan.rehearsal:
        share = {"rank": ranks.rank, "world": ranks.world, "accumulate": run.accumulate}
        _, batches = next(loader(train, plan=plan, steps=step + 1, start_step=step, **share))
        mark("rehearsal", 0, [name for batch in batches for name in batch["id"]])
        peak(ranks.device)
        for player in engine.players:
            for batch in batches:
                loss, _ = engine.forward(batch, seed=run.seed, step=1, player=player)
                engine.backward(loss * float("nan"), player)
            engine.step(player, step=1)
        peaks[shape(batches[0])] = peak(ranks.device)
    if ranks.first and peaks:
        write_text(folder / "memory.json", json.dumps({"unit": "GB", "rank": 0, "peaks": peaks}, indent=1) + "\n")


def shape(batch: Batch) -> str:
    """The sizes of a micro-batch, such as "video 4x3x16x32x32 audio 4x1x16000"."""
    return " ".join(f"{name} {'x'.join(map(str, batch[name].shape))}" for name in ("video", "audio") if name in batch)  # type: ignore[literal-required]


def advice(error: BaseException) -> str | None:
    """What to do about an error, if it says that memory was not enough."""
    said = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in said:
        return None
    return (
        f"memory was not enough ({' '.join(said.split())[:160]}). A larger accumulate makes micro-batches smaller, and "
        "engine.precision=bf16 what is kept for the backward pass; more GPUs with engine.config=configs/deepspeed/"
        "zero2.json or zero3.json share weights and moments, and offload_optimizer in that file puts moments on the "
        "CPU. With any of these the same command goes on from the last checkpoint; a smaller batch, tokens or model is "
        "another run."
    )
