"""What an autoencoder loses of held-out clips: python tools/reconstruct.py RUN --against "{kind: pca, ...}" """

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(description="Rebuild held-out clips and print what is lost, beside other codecs.")
    add = parser.add_argument
    add("run", help="a run that trained an autoencoder, such as runs/lineage/vae")
    add("--against", action="append", default=[], metavar="NODE", help="another codec, as YAML; may be repeated")
    add("--tower", metavar="RUN", help="a run of configs/lineage/tower.yaml, for the distance that its features see")
    add("--split", default="iid", help="of the run's data set (default iid)")
    add("--count", type=int, default=256, help="clips (default 256)")
    add("--seed", type=int, default=0, help="of the bootstrap intervals (default 0)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, compare, print."""
    args = parse(argv)
    from mmdiff.evaluate.reconstruct import compare, table

    rows = compare(args.run, against=args.against, split=args.split, count=args.count, tower=args.tower, seed=args.seed)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
