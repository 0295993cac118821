"""UCF-101 (Soomro et al. 2012) as a manifest: prepare.py SOURCE --out DIR --fold 1

The lists of a fold, trainlist0N.txt and testlist0N.txt, name the split. Names are compared without regard to case,
because a class is written in two ways (HandstandPushups, HandStandPushups) in the lists and in the archive.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mmdiff import adapt
from mmdiff.errors import run_tool

NAME = re.compile(r"v_(\w+)_g(\d+)_c(\d+)")  # v_ApplyEyeMakeup_g08_c01


def found(source: str, fold: int) -> Iterator[adapt.Found]:
    """Every video, and every name of the lists that has none."""
    lists = {split: adapt.find(source, f"{split}list0{fold}.txt") for split in ("train", "test")}
    listed = {Path(line.split()[0]).stem.lower(): s for s, path in lists.items() for line in adapt.lines(path)}
    videos = {name.lower(): path for name, path in adapt.files(source, "video").items()}
    for name, path in sorted(videos.items()):
        match = NAME.fullmatch(path.stem)
        if match is None:
            yield adapt.Dropped(path.stem, "not named as UCF-101 names its videos")
        elif name not in listed:
            yield adapt.Dropped(path.stem, f"in neither list of fold {fold}")
        else:
            facts = {"label": match[1], "group": int(match[2])}
            yield adapt.Clip(path.stem, path, None, (words(match[1]),), listed[name], facts=facts)
    yield from (adapt.Dropped(name, "listed, but no such video") for name in sorted(listed.keys() - videos.keys()))


def words(label: str) -> str:
    """ApplyEyeMakeup -> apply eye makeup."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower()


def main(argv: list[str]) -> None:
    """Parse, walk, write."""
    parser = adapt.parser(__doc__ or "")
    parser.add_argument("--fold", type=int, default=1, choices=[1, 2, 3], help="which lists (default 1)")
    args = parser.parse_args(argv)
    adapt.publish(found(args.source, args.fold), args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
