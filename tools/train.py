"""Train a model, or continue: the same command goes on from the newest sound checkpoint in the run's folder.

    python tools/train.py configs/sounding_objects/smoke.yaml run=runs/a steps=100 --skip-steps 31-34,40
    deepspeed --num_gpus 8 tools/train.py configs/... engine.config=configs/deepspeed/zero2.json
Exit codes: 0 done, 2 wrong configuration, 3 checkpoints exist but none is sound, 75 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from mmdiff.errors import NoSoundCheckpoint, UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/sounding_objects/smoke.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as optimizer.lr=1e-3")
    for flag, key in (("--deepspeed_config", "engine.config={}"), ("--skip-steps", 'health.skip="{}"')):
        parser.add_argument(flag, type=key.format, dest="named", action="append", metavar="X", help=key.format("X"))
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)  # launchers may say these two
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    try:
        return train(args.config, args.overrides + (args.named or []))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or getattr(error, "own", False):
            print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, NoSoundCheckpoint) else 2


def train(config: str, overrides: list[str]) -> int:
    """Everything after the command line -> the exit code."""
    from mmdiff import build, prepare
    from mmdiff.train.loop import fit
    from mmdiff.train.ranks import join
    from mmdiff.train.stop import Stop, follow_launcher

    tree = build.read(config, overrides)
    run = build.parse(tree)
    stop, ranks = Stop(), join(run.engine)
    if ranks.launched:
        follow_launcher()
    prepare.prepare(run, rank=ranks.rank)
    data = build.make(run.data)
    held_out = data if run.held_out is None else build.make(build.overlay(run.data, run.held_out))
    return fit(run, config=tree, system=build.make_system(run), train=data, held_out=held_out, ranks=ranks, stop=stop)


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    leave = sys.modules.get("mmdiff.train.ranks")
    sys.exit(code) if leave is None else leave.leave(code)
