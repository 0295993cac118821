"""Encode a data set once: latents of every clip, and captions where the text encoder is frozen.

    python tools/encode.py configs/sounding_objects/smoke.yaml --out data/latents
    python tools/train.py  configs/sounding_objects/smoke.yaml data.latents=data/latents
Started again, it goes on, finds what changed, and writes over nothing.
"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", metavar="CONFIG|RUN", help="a config, or a run whose autoencoders are to be used")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    add("--out", required=True, metavar="FOLDER", help="where the latents go")
    add("--shard-size", type=_count, default=256, metavar="N", help="clips a shard (default 256)")
    add("--batch", type=_count, default=8, metavar="N", help="clips that are encoded at once (default 8)")
    add("--views", type=_count, default=1, metavar="N", help="windows and crops that are drawn of a clip (default 1)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of latents (default float32)")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default cpu)")
    add("--executor", default="local", choices=("local", "slurm", "ray"), help="who works (default local)")
    add("--workers", type=_count, default=1, metavar="N", help="processes that encode at once (default 1)")
    return parser.parse_intermixed_args(argv)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(argv: list[str]) -> None:
    """Parse, encode, tell."""
    args = parse(argv)
    from mmdiff.encode import Job, encode

    job = Job(
        source=args.source,
        out=args.out,
        overrides=tuple(args.overrides),
        shard_size=args.shard_size,
        batch=args.batch,
        views=args.views,
        dtype=args.dtype,
        device=args.device,
    )
    print("\n".join(encode(job, executor=args.executor, workers=args.workers)))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
