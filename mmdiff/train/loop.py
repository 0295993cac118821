"""The training loop, top to bottom: batch -> loss -> gradient -> update -> log, evaluate, preview, save.

A run is a function of its config. Its state is weights, moments and the step; data, noise and the order of both follow
from (seed, step, sample id), so the same command continues a stopped run as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmdiff.batch import Batch
from mmdiff.data.loader import gather, loader
from mmdiff.data.plans import Budget, Plan
from mmdiff.data.slow import described as slow
from mmdiff.errors import UserError
from mmdiff.files import replacing, write_text
from mmdiff.train import engine as engines
from mmdiff.train import folder as folders
from mmdiff.train.adopt import adopt_weights, begin_from
from mmdiff.train.checkpoint import Checkpoints
from mmdiff.train.engine import Engine
from mmdiff.train.health import Watch, stretches
from mmdiff.train.judge import evaluate, preview
from mmdiff.train.log import Log
from mmdiff.train.memory import rehearse
from mmdiff.train.pulse import Pulse, pulse
from mmdiff.train.ranks import OwnError, Ranks
from mmdiff.train.settings import Config, Run
from mmdiff.train.stop import Stop
from mmdiff.train.update import Speed, Update, describe

DONE, STOPPED = 0, 75  # exit codes
FITTED_ON = 1024  # clips from which autoencoders take their statistics


def fit(run: Run, *, config: Config, system: Any, train: Any, held_out: Any, ranks: Ranks, stop: Stop) -> int:
    """Train `system` on the data set `train`, or continue; -> the exit code, 0 done or 75 stopped after saving.

    `config` is the resolved config that made everything, kept beside each checkpoint. Raises UserError for what the
    user can mend and NoSoundCheckpoint if there is nothing sound to continue from.
    """
    with folders.opened(run.run, config, ranks) as folder:
        plan = train.plan(run.batch if run.tokens is None else Budget(run.tokens, system.tokens))
        if run.start is not None:
            begin_from(system, run.start, tell=ranks.first)
        fit_statistics(system, train, run, folder, ranks)
        train.check(system)
        held_out.check(system)
        engine = engines.make(run, system, ranks)
        checkpoints = Checkpoints(folder, keep=run.keep, ranks=ranks)
        first, speed = checkpoints.load(engine), Speed(plan.mean, ranks)
        watch = Watch(run.health, checkpoints.notes, tell=ranks.first)
        if ranks.first and first < run.steps:
            (folder / "DONE").unlink(missing_ok=True)
        log = Log(folder, step=first, steps=run.steps, active=ranks.first)
        with log, pulse(folder, ranks, every=run.health.beat) as here:
            if run.health.rehearse and first < run.steps:
                rehearse(engine, train, plan, run, folder, here.at)
            for step, batches, wait in stream(train, plan, run, ranks, here, after=first):
                with speed.counted():
                    update = train_step(engine, batches, run, step)
                    loss, asked = ranks.total(update.loss / ranks.world, float(stop.asked))
                due, spike = Due(run, step, stopping=asked > 0), watch.see(loss, skipped=update.skipped)

                record = {}
                if due.log or update.skipped or spike:
                    record = describe(update, loss, ranks, suspect=spike > 0)
                    record |= speed.describe(step, update.seconds, wait) | slow(ranks.collect(train.slow.news()))
                    log.progress(step, record)
                if spike:
                    back = partial(checkpoints.load, engine, multiple=run.every.save or 1)
                    record |= watch.answer(step, spike, record["ids"], back=back)
                if due.evaluate:
                    here.at("evaluation", step)
                    record["held_out"] = evaluate(engine, held_out, run, ranks)
                if due.sample:
                    here.at("previews", step)
                    log.previews(preview(engine, held_out, run), step)
                log.write(step, record)
                watch.check(step, record)
                here.at("checkpoint", step)
                while due.save and (failed := checkpoints.save(engine, step, config)):
                    log.write(step, failed)
                    if not due.final:
                        break
                if due.stop:
                    return STOPPED
        if ranks.first:
            write_text(folder / "DONE", f"{max(first, run.steps)}\n")
    return DONE


class Due:
    """What is to be done after a step: the last one does everything that is ever done, a stopping one only saves."""

    def __init__(self, run: Run, step: int, *, stopping: bool) -> None:
        last = step == run.steps

        def now(interval: int) -> bool:
            return interval > 0 and (last or step % interval == 0)

        self.log, self.save = now(run.every.log), last or stopping or now(run.every.save)
        self.evaluate, self.sample = (now(i) and (last or not stopping) for i in (run.every.evaluate, run.every.sample))
        self.stop, self.final = stopping and not last, stopping or last  # a final save is tried until it is given up


def train_step(engine: Engine, batches: list[Batch], run: Run, step: int) -> Update:
    """Forward, backward and update of every player on one rank's micro-batches."""
    began, update = time.monotonic(), Update(ids=[name for batch in batches for name in batch["id"]])
    for player in engine.players:
        for batch in batches:
            loss, logs = engine.forward(batch, seed=run.seed, step=step, player=player)
            engine.backward(loss, player)
            update.add(loss.detach(), logs, share=1 / len(batches))
        update.close(engine.step(player, step=step))
    update.loss, update.seconds = float(update.total), time.monotonic() - began
    return update


def stream(
    train: Any, plan: Plan, run: Run, ranks: Ranks, here: Pulse, *, after: int
) -> Iterator[tuple[int, list[Batch], float]]:
    """(step, this rank's micro-batches, seconds waited for them) for every step that is left; 1 is the first step."""
    share = {"rank": ranks.rank, "world": ranks.world, "accumulate": run.accumulate, "workers": run.engine.workers}
    for before, last in stretches(run.health.skip, after=after, steps=run.steps):
        batches = loader(train, plan=plan, steps=last, start_step=before, **share)
        for step in range(before + 1, last + 1):
            began = time.monotonic()
            here.at("data", step)
            try:
                _, micro = next(batches)
            except UserError as error:
                raise OwnError(str(error)) from error
            here.at("training", step, [name for batch in micro for name in batch["id"]])
            yield step, micro, time.monotonic() - began


def fit_statistics(system: Any, train: Any, run: Run, folder: Path, ranks: Ranks) -> None:
    """What parts take from other runs and from data without gradients, once, by the first rank: latents.safetensors."""
    if fitted(system):
        return
    path = folder / "latents.safetensors"
    if ranks.first and not path.is_file():
        before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
        train.lend(system)
        take_statistics(system, train, run.batch)
        after = {name: tensor.contiguous() for name, tensor in system.state_dict().items()}
        changed = {name: t for name, t in after.items() if name not in before or not torch.equal(t, before[name])}
        with replacing(path) as staged:
            save_file(changed, staged)
    ranks.barrier()
    try:
        system.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it: it is fitted anew from the data.") from None


def take_statistics(system: Any, train: Any, batch: int) -> None:
    """Adopt weights, then fit what has none yet to the first clips, `batch` at a time."""
    adopt_weights(system)
    if not fitted(system):
        firsts = range(0, min(FITTED_ON, len(train)), batch)
        system.fit(gather(train, range(i, min(i + batch, len(train)))) for i in firsts)


def fitted(system: Any) -> bool:
    """Whether every part has what it needs beside its initial weights."""
    return all(getattr(module, "fitted", True) for module in system.modules())
