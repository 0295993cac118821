"""Look at clips before training on them: python tools/inspect_data.py FOLDER configs/folder.yaml"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmdiff.errors import UserError, run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="Every clip kept or dropped with its reason, buckets, epochs, sound, sync, speed and previews, "
        "as one HTML page and as JSON. No file of the data is changed."
    )
    add = parser.add_argument
    add("data", help="a folder of clips, a .tar, or a manifest (.jsonl, .json, .csv)")
    add("config", nargs="?", help="the training that it is for; without one: --frames, --fps, --size, --rate")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config, such as steps=1000")
    add("--frames", type=int, default=16, help="frames of a window, without a config (default 16)")
    add("--fps", type=float, default=8.0, help="frames a second (default 8)")
    add("--size", default="64x64", metavar="HxW", help="height and width (default 64x64)")
    add("--rate", type=int, default=16000, help="audio samples a second (default 16000)")
    add("--clips", type=int, metavar="N", help="look at N clips, drawn by their ids (default: all)")
    add("--previews", type=int, default=12, metavar="N", help="clips to see and hear on the page (default 12)")
    add("--out", metavar="DIR", help="where the page goes (default runs/inspection/NAME)")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    """Parse, look, write, print."""
    args = parse(argv)
    from mmdiff.inspection import inspect, summary, write

    size = args.size.lower().split("x")
    if not all(part.isdecimal() for part in size):
        raise UserError(f"--size is height x width, such as 64x96, not {args.size!r}.")
    own = {"frames": args.frames, "fps": args.fps, "size": [int(n) for n in size], "rate": args.rate}
    shape = own if args.config is None else None
    found = inspect(args.data, config=args.config, overrides=args.overrides, shape=shape, count=args.clips)
    out = args.out or Path("runs/inspection") / Path(args.data).resolve().stem
    paths = write(found, out, previews=args.previews)
    print(summary(found), *paths, sep="\n")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
