"""What is done to runs, and what must hold afterwards: each check raises AssertionError, or says what it did."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import launch
import trained

from mmdiff.train.checkpoint import verify

POINTS = 14  # calls that touch the disk in rank 0's part of a save (tests/train/test_checkpoint.py counts them)


@dataclass(frozen=True)
class Soak:
    """How much of it."""

    folder: Path
    data: Path
    kills: int = 20
    decodes: int = 5000
    suites: int = 20
    seed: int = 0


def random_kills(soak: Soak) -> str:
    """kill -9 of a random rank at a random moment, each time followed by the same command."""
    draw, changes = Random(soak.seed), (f"steps={20 * soak.kills}", "every.save=10")
    run, other = soak.folder / "killed", soak.folder / "undisturbed"
    trained.whole(other, *changes, data=soak.data)
    moments = []
    for number in range(soak.kills):
        process = trained.start(run, *changes, data=soak.data)
        try:
            goal = 0 if number % 5 == 4 else trained.steps(run) + draw.randrange(1, 20)  # every fifth while it starts
            reach(process, run, goal)
            time.sleep(draw.random() * (0.2 if goal else 3))
            os.kill(launch.ranks(process)[draw.randrange(2)], signal.SIGKILL)
            moments.append(trained.steps(run))
            code, _ = launch.finish(process, 180)
            assert code not in (0, 75), f"kill {number} was reported as success"
        finally:
            launch.end(process)
    trained.whole(run, *changes, data=soak.data)
    trained.assert_same(run, other)
    return f"{soak.kills} kills of rank 0 or 1, after steps {', '.join(map(str, moments))}; ended bit-identical"


def reach(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Wait until both ranks live and a step is logged."""
    launch.wait_for(lambda: len(launch.ranks(process)) == 2, 300)
    launch.wait_for(lambda: trained.steps(run) >= step or process.poll() is not None, trained.LONGEST)


def kills_in_a_save(soak: Soak) -> str:
    """kill -9 at every call that touches the disk in one save after another, on the rank that makes it."""
    changes = (f"steps={2 * POINTS + 10}", "every.save=2")
    run, other = soak.folder / "killed-in-save", soak.folder / "undisturbed-save"
    trained.whole(other, *changes, data=soak.data)
    trained.whole(run, "steps=4", "every.save=2", data=soak.data)
    points = [(0, after) for after in range(POINTS)] + [(1, 0), (1, 1)]
    for rank, after in points:
        code, output = trained.finish(
            trained.start(run, *changes, data=soak.data, fault=f"die:at=save,after={after},rank={rank}")
        )
        assert code != 0, f"point {after} of rank {rank} was never reached: {output[-500:]}"
        newest = trained.saved(run)[-1]
        assert all(verify(path) is None for path in trained.saved(run)), f"unsound after point {after} of rank {rank}"
        assert int(newest.name[5:]) >= trained.steps(run) - 2, f"more than one interval was lost at point {after}"
    trained.whole(run, *changes, data=soak.data)
    trained.assert_same(run, other)
    assert not list(run.glob("checkpoints/*tmp*")), "leftovers"
    return f"{len(points)} kills, one at each disk call of both ranks; nothing older than one interval; bit-identical"


def slow_saver(soak: Soak) -> str:
    """Rank 1 writes 10 s later than rank 0, while every name in the folder is verified all the time."""
    run, looks = soak.folder / "slow", 0
    process = trained.start(
        run, "steps=4", "every.save=2", data=soak.data, fault="slow:at=write_tensors,rank=1,seconds=10"
    )
    staged = 0
    try:
        while process.poll() is None:
            faults = {path.name: verify(path) for path in trained.saved(run)}
            assert not any(faults.values()), f"an incomplete checkpoint has a name: {faults}"
            staged, looks = staged + bool(list(run.glob("checkpoints/*.tmp-*"))), looks + 1
            time.sleep(0.02)
        code, output = launch.finish(process)
        assert code == 0 and staged > 20, output[-2000:]
    finally:
        launch.end(process)
    return f"{looks} looks at the folder, {staged} of them while a save was under way; no incomplete one had a name"


def stops(soak: Soak) -> str:
    """SIGTERM to one rank in a step, an evaluation and a save, with loader workers; also twice; then the same end."""
    changes = ("steps=12", "every.save=4", "every.evaluate=4", "engine.workers=1")
    other = soak.folder / "undisturbed-stop"
    trained.whole(other, *changes, data=soak.data)
    moments = [("step", 5), ("evaluate", 1), ("commit", 1), ("write_tensors", 2)]
    for number, (at, after) in enumerate(moments):
        run, times = soak.folder / f"stopped-{at}", 1 + number % 2
        fault = f"term:at={at},after={after},times={times},rank={0 if at != 'step' else 1}"
        process = trained.start(run, *changes, data=soak.data, fault=fault)
        code, output = trained.finish(process)
        assert code == 75, f"SIGTERM in {at} ended with {code}: {output[-2000:]}"
        newest = trained.saved(run)[-1]
        assert verify(newest) is None and int(newest.name[5:]) == trained.steps(run), f"not saved at its step: {newest}"
        trained.whole(run, *changes, data=soak.data)
        trained.assert_same(run, other)
    spent = ended(soak, "stopped-launcher", signal.SIGTERM)
    places = ", ".join(at for at, _ in moments)
    return f"SIGTERM in {places} (twice in every second): exit 75, that step saved, same end; launcher: {spent:.1f} s"


def killed_launcher(soak: Soak) -> str:
    """kill -9 of the `deepspeed` command, and of its launch.py: the ranks save and are gone."""
    outer = ended(soak, "orphaned", signal.SIGKILL)
    inner = ended(soak, "orphaned-inside", signal.SIGKILL, inside=True)
    return f"the command and its launch.py: that step saved, everything gone after {outer:.1f} and {inner:.1f} s"


def ended(soak: Soak, name: str, number: int, *, inside: bool = False) -> float:
    """Signal the launcher of a run with loader workers -> seconds until no process was left."""
    run = soak.folder / name
    process = trained.start(run, "steps=100000", "every.save=50000", "engine.workers=1", data=soak.data)
    try:
        reach(process, run, 2)
        pids = [pid for pid, line in launch.members(process).items() if "deepspeed.launcher.launch" in line]
        began = time.monotonic()
        os.kill(pids[0] if inside else process.pid, number)
        launch.wait_for(lambda: not launch.members(process), 60)
        spent = time.monotonic() - began
        assert int(trained.saved(run)[-1].name[5:]) == trained.steps(run), "not saved at its step"
        return spent
    finally:
        launch.end(process)


def stages(soak: Soak) -> str:
    """ZeRO 1, 2 and 3 in fp32 and bf16, 40 steps and a stop at 15: losses fall, the stop changes nothing."""
    ends = {}
    for stage in (1, 2, 3):
        for precision in ("fp32", "bf16"):
            changes = ("steps=40", "every.save=20", f"engine.precision={precision}")
            run, other = (soak.folder / f"zero{stage}-{precision}-{name}" for name in ("cut", "whole"))
            trained.whole(other, *changes, data=soak.data, stage=stage)
            code, output = trained.finish(
                trained.start(run, *changes, data=soak.data, stage=stage, fault="term:at=step,after=14")
            )
            assert code == 75, output[-2000:]
            trained.whole(run, *changes, data=soak.data, stage=stage)
            trained.assert_same(run, other)
            losses = [line["loss"] for line in trained.lines(run) if "loss" in line]
            assert sum(losses[-10:]) < sum(losses[:10]), f"{precision} under ZeRO-{stage} does not learn"
            ends[stage, precision] = losses
            shutil.rmtree(run)
    apart = max(abs(a - b) for n in (2, 3) for a, b in zip(ends[n, "fp32"], ends[1, "fp32"]))
    assert apart < 1e-4, f"the stages are {apart:.1e} apart"
    return (
        f"6 runs of 40 steps: losses fall, stop and resume bit-identical; fp32 losses of the stages within {apart:.0e}"
    )


CHECKS: dict[str, tuple[str, Callable[[Soak], str]]] = {
    "random kills": ("3", random_kills),
    "slow saver": ("5", slow_saver),
    "kills in a save": ("4", kills_in_a_save),
    "killed launcher": ("17", killed_launcher),
    "stops": ("14, 15", stops),
    "stages and precisions": ("1, 2", stages),
}
