"""Judge a run or a folder of clips: python tools/evaluate.py RUN --split iid --n 64"""

from __future__ import annotations

import argparse
import sys

from mmdiff.errors import run_tool


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="Exact numbers with intervals, anchors and the protocol: a JSON file and a page to look at."
    )
    add = parser.add_argument
    add("run", nargs="?", help="a run folder or a released checkpoint; may be left out with --clips")
    add("--split", default="iid", help="of the run's data; several with commas, such as iid,comp (default iid)")
    add("--n", type=int, default=64, help="captions of each split, 100 or more for a result (default 64)")
    add("--prompts", metavar="FILE", help="one prompt a line, judged instead of the split's captions")
    add("--against", metavar="FOLDER", help="real clips for the distances, instead of held-out clips of the split")
    add("--clips", metavar="FOLDER", help="judge these clips (a manifest, or .txt or .json captions beside them)")
    add(
        "--give", metavar="TASK", help="what is given of each held-out clip, such as video_to_audio, first_frame, frame"
    )
    add("--out", metavar="FILE", help="the JSON (default RUN/evaluation.json); the page is the same name in .html")
    add("--seed", type=int, default=1, help="of the clips and the intervals (default 1)")
    add("--number", type=int, default=1, help="clips a caption (default 1); 2 or more also measure diversity")
    add("--steps", type=int, help="sampling steps (default: the run's own)")
    add("--guidance", metavar="G", help="a scale or a guide, such as apg:scale=4 (default: the run's own)")
    add("--sampler", metavar="S", help="such as heun or ancestral:eta=0.5 (default: the run's own)")
    add("--no-ema", dest="ema", action="store_false", help="the raw weights instead of their moving average")
    add("--training", type=int, metavar="N", help="search copies in N training clips (default: all; 0: leave it out)")
    add("--cache", metavar="FOLDER", help="what was made and measured (default RUN/evaluation); runs may share one")
    add("--plugin", action="append", default=[], metavar="NAME=PATH", help="weights of fvd, fid, fad_vggish, ...")
    add("--batch", type=int, help="clips at once (default: what fits the memory)")
    add("--device", default="", help="cpu, cuda:0 or several with commas (default: every GPU, else the CPU)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Parse, judge, print where the results are."""
    args = parse(argv)
    from mmdiff.config import spoken
    from mmdiff.generate import Settings, read_prompts
    from mmdiff.report.evaluation import judge

    said = {name: spoken(getattr(args, name)) for name in ("guidance", "sampler") if getattr(args, name) is not None}
    choices = Settings(steps=args.steps, ema=args.ema, **said)
    prompts = read_prompts(args.prompts) if args.prompts else None
    devices = [name for name in args.device.split(",") if name]
    same = ("run", "split", "n", "against", "clips", "give", "out", "seed", "number", "training", "cache", "batch")
    plugins = dict(item.partition("=")[::2] for item in args.plugin)
    options = {name: getattr(args, name) for name in same}
    paths = judge(plugins=plugins, settings=choices, prompts=prompts, devices=devices, **options)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
