"""Answer a question by controlled runs: python tools/ablate.py configs/ablations/noise_coupling.yaml"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="Price, match, train, judge and compare the cells of a question; the same command continues."
    )
    add = parser.add_argument
    add("question", help="a YAML file with base, vary, seeds, budget (mmdiff/ablate/question.py says how)")
    add("--out", metavar="DIR", help="where cells, result.json and report.html go (default runs/ablations/NAME)")
    add("--dry-run", action="store_true", help="show the cells, their costs and their commands, and train nothing")
    add("--only", default="", metavar="ARM,ARM", help="some of the arms; the others are compared with the first")
    add("--jobs", type=int, default=1, help="cells at once where there is no GPU or a launcher is used (default 1)")
    add("--gpus", metavar="0,1", help="a cell on each of these at a time (default: every GPU; none with --launcher)")
    add("--launcher", default="{command}", help="such as 'srun --gres=gpu:1 --job-name={name} {command}'")
    add("--no-clips", dest="clips", action="store_false", help="leave the clips out of the page")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, plan, run, print where the answer is."""
    args = parse(argv)
    from mmdiff.ablate import answer, plan
    from mmdiff.generate import default_devices

    found = [name.partition(":")[2] for name in default_devices() if args.launcher == "{command}" and ":" in name]
    gpus = found if args.gpus is None else [name for name in args.gpus.split(",") if name]
    only = [name for name in args.only.split(",") if name]
    planned = plan(args.question, out=args.out, only=only, jobs=args.jobs, gpus=gpus, launcher=args.launcher)
    print(planned, flush=True)
    if not args.dry_run:
        print("\n".join(map(str, answer(planned, clips=args.clips))))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
