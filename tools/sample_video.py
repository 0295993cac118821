"""Make clips from a trained run: python tools/sample_video.py RUN --prompt TEXT --out DIR"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(description="Make clips from a trained run: mp4 with sound, png or wav.")
    add = parser.add_argument
    add("run", help="a run folder (runs/a) or a released checkpoint (checkpoints/sounding_objects_joint)")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to make; repeatable; A | B: A, then B")
    add("--prompts", metavar="FILE", help="a text file with one prompt a line")
    add("--out", required=True, metavar="DIR", help="where clips and their .json side files go")
    add("--seed", type=int, default=0, help="the same seed gives the same clip, whatever the batch (default 0)")
    add("--number", type=int, default=1, help="clips a prompt (default 1)")
    add("--steps", type=int, help="sampling steps (default: the run's own)")
    add("--guidance", metavar="G", help="a scale (1 is off) or a guide, such as apg:scale=4 (default: the run's own)")
    add("--sampler", metavar="S", help="such as heun, unipc or ancestral:eta=0.5 (default: the run's own)")
    add("--batch", type=int, help="clips at once (default: what fits the memory)")
    add("--device", default="", help="cpu, cuda:0 or several with commas (default: every GPU, else the CPU)")
    add("--scale", type=int, default=1, help="enlarge the pictures by this whole number (default 1)")
    add("--negative", metavar="TEXT", help="what guidance moves away from (default: the empty prompt)")
    add("--image", metavar="FILE", help="a picture that the clip begins with")
    add("--last-image", metavar="FILE", help="a picture that the clip ends with")
    add("--video", metavar="FILE", help="a clip: alone it gets a sound; with --extend it goes on")
    add("--audio", metavar="FILE", help="a sound: alone it gets a picture; with --extend it goes on")
    add("--extend", type=float, metavar="SECONDS", help="new seconds after the given clip; negative: before it")
    add("--fps", type=float, help="frames a second (default: the run's own)")
    add("--size", metavar="HxW", help="height and width, such as 32x48 (default: the run's own)")
    add("--seconds", type=float, help="length of the clip; beyond the run's own it is made window by window")
    add("--overlap", type=float, metavar="SECONDS", help="what such windows share (default: half a window)")
    add("--no-ema", dest="ema", action="store_false", help="the raw weights instead of their moving average")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, make, print the paths."""
    args = parse(argv)
    from mmdiff.generate import Settings, read_prompts, sample_prompts

    prompts = args.prompt + (read_prompts(args.prompts) if args.prompts else [])
    devices, settings = [name for name in args.device.split(",") if name], Settings.of(vars(args))
    paths = sample_prompts(
        args.run, prompts, out=args.out, settings=settings, number=args.number, batch=args.batch, devices=devices
    )
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
