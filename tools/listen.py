"""What a model believes of real clips: which words it hears, or bits per number. python tools/listen.py RUN --n 64"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="One fact of each real clip's caption is exchanged: how much likelier is the clip under its own?"
    )
    add = parser.add_argument
    add("run", help="a run folder or a released checkpoint, trained on the embedded world")
    add("--split", default="iid", help="of the run's data (default iid)")
    add("--n", type=int, default=64, help="clips (default 64)")
    add("--seed", type=int, default=1, help="of the noise, the exchanges and the intervals (default 1)")
    add("--no-ema", dest="ema", action="store_false", help="the raw weights instead of their moving average")
    add("--device", default="cpu", help="such as cuda:0 (default cpu)")
    add("--bits", type=int, metavar="STEPS", help="instead: bits per number of the clips, bounded in so many steps")
    add("--out", metavar="FILE", help="the JSON (default RUN/words.json or RUN/bits.json)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Listen, print the table and where it is kept."""
    args = parse(argv)
    from mmdiff.evaluate import bits, words
    from mmdiff.evaluate.asking import Asked

    asked = Asked(args.run, args.split, args.n, args.seed, args.ema, args.device)
    if args.bits is not None:
        found, path = bits.bits(asked, steps=args.bits, out=args.out)
        print(bits.table(found), path, sep="\n")
    else:
        heard, path = words.listen(asked, out=args.out)
        print(words.table(heard), path, sep="\n")


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
