"""A run as something to give away: python tools/export.py RUN OUT"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(description="Write a run's averaged weights and config into a folder.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("out", help="the folder for model.safetensors and config.yaml; sample_video.py takes it as RUN")
    parser.add_argument("--half", action="store_true", help="store matrices as float16: half the size")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, write, print the path."""
    args = parse(argv)
    from mmdiff.export import export

    print(export(args.run, args.out, half=args.half))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
