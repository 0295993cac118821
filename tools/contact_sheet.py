"""Models beside each other in one picture: python tools/contact_sheet.py DIR [DIR ...] --out sheet.png"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(description="One row a model, a few frames of each of the same captions.")
    add = parser.add_argument
    add("clips", nargs="+", metavar="DIR", help="folders of tools/sample_video.py, from top to bottom")
    add("--data", metavar="PATH", help="a data set: its clips of the same captions become the first row")
    add("--fps", type=float, default=8.0, help="at which the clips of --data are read (default 8)")
    add("--out", required=True, metavar="FILE", help="the picture, a png")
    add("--frames", type=int, default=3, help="of each clip (default 3)")
    add("--scale", type=int, default=2, help="enlarge the pictures by this whole number (default 2)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, lay out, print the path."""
    args = parse(argv)
    from mmdiff.data.media import write_png
    from mmdiff.report.sheet import made, real, sheet

    rows = [made(folder) for folder in args.clips]
    if args.data:
        clip = max((video for row in rows for video in row.values()), key=len)
        rows.insert(0, real(args.data, list(rows[0]), frames=len(clip), fps=args.fps))
    write_png(args.out, sheet(rows, frames=args.frames, scale=args.scale))
    print(args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
