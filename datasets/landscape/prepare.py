"""Landscape and AIST++ as MM-Diffusion (Ruan et al. 2023) uses them, as a manifest: prepare.py SOURCE --out DIR

The split is a folder named train or test, the caption the class: a folder's name (Landscape) or the genre in a file's
name (AIST++). Copies without any sound are in circulation, so every file is asked for its sound.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mmdiff import adapt
from mmdiff.errors import run_tool

SPLITS = ("train", "val", "test")
GENRES = {
    "BR": "break dance", "PO": "pop dance", "LO": "lock dance", "MH": "middle hip-hop dance", "HO": "house dance",
    "LH": "LA-style hip-hop dance", "WA": "waacking dance", "KR": "krump dance", "JS": "street jazz dance",
    "JB": "ballet jazz dance",
}  # fmt: skip
AIST = re.compile(r"g([A-Z]{2})_s\w+_c\w+_d\d+_m\w+_ch\d+")  # gBR_sBM_cAll_d04_mBR0_ch01


def found(source: str, *, silent: bool) -> Iterator[adapt.Found]:
    """Every video below `source`; those without sound are kept if `silent`."""
    from mmdiff.data.media import VIDEO, BadMedia, probe

    for path in sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in VIDEO and p.name[0] != "."):
        inside = path.relative_to(source)
        try:
            sounds = probe(path).sound is not None
        except BadMedia as error:
            yield adapt.Dropped(inside.as_posix(), str(error).removeprefix(f"{path}: "))
            continue
        if sounds or silent:
            split = next((part.lower() for part in inside.parts if part.lower() in SPLITS), None)
            said = caption(inside)
            yield adapt.Clip(inside.as_posix(), path, None, (said,) if said else (), split, facts={"sound": sounds})
        else:
            yield adapt.Dropped(inside.as_posix(), "no sound inside (--silent keeps such clips)")


def caption(path: Path) -> str:
    """The class of a file, from its own name or its folder's; empty where neither tells one."""
    if match := AIST.match(path.stem):
        return GENRES.get(match[1], "dance")
    folder = path.parent.name.lower()
    return "" if folder in ("", "landscape", *SPLITS) else re.sub(r"[_\-\s]+", " ", folder).strip()


def main(argv: list[str]) -> None:
    """Parse, walk, write."""
    parser = adapt.parser(__doc__ or "")
    parser.add_argument("--silent", action="store_true", help="keep clips that have no sound")
    args = parser.parse_args(argv)
    adapt.publish(found(args.source, silent=args.silent), args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
