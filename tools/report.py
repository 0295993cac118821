"""A run as one HTML file: python tools/report.py RUN --clips DIR [--clips DIR]"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="Write RUN/report.html: clips, scores and learning curves in one file."
    )
    add = parser.add_argument
    add("run", help="a run folder, such as runs/demo")
    add(
        "--clips", action="append", default=[], metavar="DIR", help="a folder of tools/sample_video.py; may be repeated"
    )
    add(
        "--count",
        type=int,
        default=64,
        help="held-out prompts to score each model on; 0 leaves scores out (default 64)",
    )
    add("--seed", type=int, default=1, help="of the scored clips (default 1)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, write, print the path."""
    args = parse(argv)
    from mmdiff.report import write_report

    path = write_report(args.run, clips=args.clips, count=args.count, seed=args.seed)
    print(f"The report is in {path.resolve()}")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
