"""What two ranks of one launch do for test_zero.py: `deepspeed ranks_do.py FOLDER`. Each part leaves a run folder.

A launch of one rank does only what moving needs (`moves`), and waits for the checkpoints of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
STAGES, WORLDS = (0, 1, 2, 3), (1, 2)
ENGINES = ["torch", *(f"world{world}-zero{stage}" for world in WORLDS for stage in STAGES)]
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
torch.set_num_threads(1)

import fakes  # noqa: E402

from mmdiff.errors import UserError  # noqa: E402
from mmdiff.train import engine as engines  # noqa: E402
from mmdiff.train import ranks  # noqa: E402
from mmdiff.train.checkpoint import Checkpoints  # noqa: E402
from mmdiff.train.loop import STOPPED  # noqa: E402
from mmdiff.train.settings import Engine, Every, Health, Optimizer  # noqa: E402
from mmdiff.train.stop import Stop  # noqa: E402


def engine(folder: Path, stage: int, precision: str = "fp32", *, offload: bool = False) -> Engine:
    """The settings of a ZeRO stage; small buckets, so that there are several, and no parameter kept whole."""
    zero = {"stage": stage, "reduce_bucket_size": 200, "allgather_bucket_size": 200}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 20, "stage3_prefetch_bucket_size": 100}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    path = folder / f"zero{stage}-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    return Engine(config=str(path), precision=precision)


class Asked(Stop):
    """Asked to stop on one rank only, the last, at the third look."""

    def __init__(self, me: ranks.Ranks) -> None:
        super().__init__()
        self.looks = 3 if me.rank == me.world - 1 else 10**9

    @property
    def asked(self) -> bool:
        self.looks -= 1
        return self.looks <= 0

    @asked.setter
    def asked(self, value: bool) -> None: ...


def moves(folder: Path, me: ranks.Ranks) -> None:
    """Begin a run at each stage, read what every other engine began at each stage, and finish one of those."""
    for stage in STAGES:
        begun = fakes.Run(str(folder / f"world{me.world}-zero{stage}"), accumulate=2, engine=engine(folder, stage))
        fakes.train(begun, stop=Asked(me))
    me.barrier()
    (folder / f"begun{me.world}").touch()
    end = time.monotonic() + 300
    while not all((folder / f"begun{world}").exists() for world in WORLDS) and time.monotonic() < end:
        time.sleep(0.1)
    for stage in STAGES:
        run = fakes.Run("", accumulate=2, engine=engine(folder, stage))
        built, name = engines.make(run, fakes.System(), me), f"world{me.world}-zero{stage}"
        for source in ENGINES:
            assert Checkpoints(folder / source, keep=2, ranks=me).load(built) == 3
            assert not Checkpoints(folder / "copies" / f"{source}-{name}", keep=2, ranks=me).save(built, 3, {})
        moved = (
            folder / "moved" / f"{ENGINES[ENGINES.index(name) - 4]}-{name}"
        )  # its number of ranks or its stage differs
        if me.first:
            shutil.copytree(folder / moved.name.removesuffix(f"-{name}") / "checkpoints", moved / "checkpoints")
        fakes.train(replace(run, run=str(moved)))


def main(folder: Path) -> None:
    joined = ranks.join(engine(folder, 0))
    me, codes = joined.rank, {}
    moves(folder, joined)
    if joined.world == 1:
        return
    for stage in STAGES:
        run = fakes.Run(str(folder / f"whole{stage}"), accumulate=2, engine=engine(folder, stage))
        codes[f"whole{stage}"] = fakes.train(run)
        cut = replace(run, run=str(folder / f"cut{stage}"), keep=3)
        codes[f"stop{stage}"] = fakes.train(cut, stop=Asked(joined))
        codes[f"cut{stage}"] = fakes.train(replace(cut, every=Every(log=1, save=4, sample=5, evaluate=5)))
        bad = replace(run, run=str(folder / f"nan{stage}"), accumulate=1)
        system = fakes.System({3: fakes.second_half(step=3)}, burst={6: fakes.second_half(step=6)})
        codes[f"nan{stage}"] = fakes.train(bad, system=system)
    shared = fakes.Run(str(folder / "shared"), accumulate=2, engine=engine(folder, 3))
    codes["begun shared"] = fakes.train(shared, system=fakes.Shared(), stop=Asked(joined)) - STOPPED
    codes["shared"] = fakes.train(shared, system=fakes.Shared())
    spike(folder)
    for stage in (2, 3):
        aside = fakes.Run(str(folder / f"aside{stage}"), accumulate=2, engine=engine(folder, stage, offload=True))
        codes[f"begun{stage}"] = fakes.train(aside, stop=Asked(joined)) - STOPPED
        codes[f"aside{stage}"] = fakes.train(aside)
        twice = replace(engine(folder, stage), checkpoint_activations=True)
        codes[f"twice{stage}"] = fakes.train(fakes.Run(str(folder / f"twice{stage}"), accumulate=2, engine=twice))
    low = fakes.Run(str(folder / "bf16"), engine=engine(folder, 3, "bf16"))
    codes["bf16"] = fakes.train(low)
    muon = fakes.Run(str(folder / "muon"), optimizer=Optimizer(kind="muon"), engine=engine(folder, 0))
    codes["muon"] = fakes.train(muon)
    try:
        fakes.train(replace(muon, run=str(folder / "muon1"), engine=engine(folder, 1)))
    except UserError as error:
        codes["muon1"] = str(error)
    (folder / f"codes{me}.json").write_text(json.dumps(codes))


def spike(folder: Path) -> None:
    """Go back after a spike under ZeRO-3, and leave the same steps out from the start."""
    run = fakes.Run("", steps=28, every=Every(log=1, save=12), engine=engine(folder, 3))
    back = replace(run, run=str(folder / "back"), health=Health(rollbacks=1))
    fakes.train(back, system=fakes.System(leaps={26: fakes.second_half(step=26)}))
    fakes.train(replace(run, run=str(folder / "skipped"), health=Health(skip=[(25, 26)])))


class Stuck(fakes.System):
    """One rank stops breathing in the third step."""

    def loss(self, batch: Any, *, seed: int, step: int, player: str) -> Any:
        if step == 3 and os.environ["RANK"] == "1":
            time.sleep(2)  # four beats, so that the last one is of this step
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().loss(batch, seed=seed, step=step, player=player)


def stuck(folder: Path) -> None:
    """Wait for a rank that is stopped, for as long as the groups allow, and note how long that was."""
    patient = replace(engine(folder, 2), timeout=5.0)
    try:
        fakes.train(fakes.Run(str(folder / "stuck"), engine=patient, health=Health(beat=0.5)), system=Stuck())
    finally:
        last = (folder / "stuck" / "log.jsonl").stat().st_mtime
        (folder / "waited.json").write_text(json.dumps(time.time() - last))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stuck", action="store_true")
    parser.add_argument("--local_rank")
    code = 0
    try:
        args = parser.parse_args()
        (stuck if args.stuck else main)(args.folder)
    except Exception:
        traceback.print_exc()
        code = 1
    ranks.leave(code)
