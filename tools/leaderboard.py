"""All finished recipes in one document: python tools/leaderboard.py"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmdiff.errors import UserError, run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(description="Write costs and scores of all finished, evaluated runs as Markdown.")
    parser.add_argument("runs", nargs="?", default="runs/lineage", help="a folder of runs (default runs/lineage)")
    parser.add_argument("--out", metavar="FILE", default="docs/leaderboard.md", help="default docs/leaderboard.md")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, collect, write, print the path."""
    args = parse(argv)
    from mmdiff.leaderboard import collect, document

    rows = collect(args.runs)
    if not rows:
        raise UserError(
            f"{args.runs} holds no run with DONE and evaluation.json. Train a recipe, then evaluate it: "
            "tools/evaluate.py RUN --n 192"
        )
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(rows, command=f"python tools/leaderboard.py {args.runs}"), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
