"""Make clips from a trained run: python tools/sample_video.py RUN --prompt TEXT --out DIR"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool

CHOICES = ("seed", "steps", "guidance", "sampler", "ema", "scale", "negative", "fps", "size", "seconds")
MATERIAL = ("image", "last_image", "video", "audio", "extend")


def size(text: str) -> tuple[int, int]:
    """HxW -> (h, w)"""
    height, width = text.lower().split("x")
    return int(height), int(width)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="Make clips from a trained run: mp4 with sound, png for one frame, wav for sound alone."
    )
    add = parser.add_argument
    add("run", help="a run folder (runs/a) or a released checkpoint (checkpoints/sounding_objects_joint)")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to make; may be repeated")
    add("--prompts", metavar="FILE", help="a text file with one prompt a line")
    add("--out", required=True, metavar="DIR", help="where clips and their .json side files go")
    add("--seed", type=int, default=0, help="the same seed gives the same clip, whatever the batch (default 0)")
    add("--number", type=int, default=1, help="clips a prompt (default 1)")
    add("--steps", type=int, help="sampling steps (default: the run's own)")
    add("--guidance", type=float, metavar="S", help="guidance scale; 1 is off (default: the run's own)")
    add("--sampler", help="euler, heun, ancestral or dpmpp_2m (default: the run's own)")
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
    add("--size", type=size, metavar="HxW", help="height and width, such as 32x48 (default: the run's own)")
    add("--seconds", type=float, help="length of the clip (default: the run's own)")
    add("--no-ema", dest="ema", action="store_false", help="the raw weights instead of their moving average")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, make, print the paths."""
    args = parse(argv)
    from mmdiff.generate import Settings, read_prompts, sample_prompts
    from mmdiff.material import Material

    material = Material(**{name: getattr(args, name) for name in MATERIAL})
    settings = Settings(**{name: getattr(args, name) for name in CHOICES}, material=material)
    paths = sample_prompts(
        args.run,
        args.prompt + (read_prompts(args.prompts) if args.prompts else []),
        out=args.out,
        settings=settings,
        number=args.number,
        batch=args.batch,
        devices=[name for name in args.device.split(",") if name],
    )
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
