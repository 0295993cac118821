"""Train a model, or continue: the same command goes on from the newest sound checkpoint in the run's folder.

    python tools/train.py configs/sounding_objects/smoke.yaml run=runs/a steps=100
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
    parser.add_argument("--deepspeed_config", metavar="JSON", help="the same as engine.config=JSON")
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)  # the launcher says so anyway
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # and this, beside the environment
    args = parser.parse_intermixed_args()
    if args.deepspeed_config:
        args.overrides.append(f"engine.config={args.deepspeed_config}")
    try:
        return train(args.config, args.overrides)
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
    held_out = build.make(build.overlay(run.data, run.held_out or {}))
    data, system = build.make(run.data), build.make_system(run)
    return fit(run, config=tree, system=system, train=data, held_out=held_out, ranks=ranks, stop=stop)


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    leave = sys.modules.get("mmdiff.train.ranks")
    sys.exit(code) if leave is None else leave.leave(code)
