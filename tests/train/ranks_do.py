"""What two ranks of one launch do for test_zero.py: `deepspeed ranks_do.py FOLDER`. Each part leaves a run folder."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
torch.set_num_threads(1)

import fakes  # noqa: E402

from mmdiff.errors import UserError  # noqa: E402
from mmdiff.train import ranks  # noqa: E402
from mmdiff.train.settings import Engine, Every, Optimizer  # noqa: E402
from mmdiff.train.stop import Stop  # noqa: E402


def engine(folder: Path, stage: int, precision: str = "fp32") -> Engine:
    """The settings of a ZeRO stage; small buckets, so that there are several, and no parameter kept whole."""
    zero = {"stage": stage, "reduce_bucket_size": 200, "allgather_bucket_size": 200}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 20, "stage3_prefetch_bucket_size": 100}
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    return Engine(config=str(path), precision=precision)


class Asked(Stop):
    """Asked to stop on one rank only, at the third look."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.looks = 3 if rank == 1 else 10**9

    @property
    def asked(self) -> bool:
        self.looks -= 1
        return self.looks <= 0

    @asked.setter
    def asked(self, value: bool) -> None: ...


def main(folder: Path) -> None:
    me = ranks.join(engine(folder, 0)).rank
    codes = {}
    for stage in (0, 1, 2, 3):
        run = fakes.Run(str(folder / f"whole{stage}"), accumulate=2, engine=engine(folder, stage))
        codes[f"whole{stage}"] = fakes.train(run)
        cut = replace(run, run=str(folder / f"cut{stage}"), keep=3)
        codes[f"stop{stage}"] = fakes.train(cut, stop=Asked(me))
        codes[f"cut{stage}"] = fakes.train(replace(cut, every=Every(log=1, save=4, sample=5, evaluate=5)))
        bad = replace(run, run=str(folder / f"nan{stage}"), accumulate=1)
        codes[f"nan{stage}"] = fakes.train(bad, system=fakes.System({3: fakes.second_half(step=3)}))
    for before, after in ((1, 3), (3, 2)):
        moved = fakes.Run(str(folder / f"from{before}to{after}"), accumulate=2, engine=engine(folder, before))
        fakes.train(moved, stop=Asked(me))
        codes[f"from{before}to{after}"] = fakes.train(replace(moved, engine=engine(folder, after)))
    fakes.train(fakes.Run(str(folder / "to1"), engine=engine(folder, 2)), stop=Asked(me))
    low = fakes.Run(str(folder / "bf16"), engine=engine(folder, 3, "bf16"))
    codes["bf16"] = fakes.train(low)
    muon = fakes.Run(str(folder / "muon"), optimizer=Optimizer(kind="muon"), engine=engine(folder, 0))
    codes["muon"] = fakes.train(muon)
    try:
        fakes.train(replace(muon, run=str(folder / "muon1"), engine=engine(folder, 1)))
    except UserError as error:
        codes["muon1"] = str(error)
    (folder / f"codes{me}.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--local_rank")
    code = 0
    try:
        main(parser.parse_args().folder)
    except Exception:
        traceback.print_exc()
        code = 1
    ranks.leave(code)
