"""WebVid (Bain et al. 2021) and tables like it as a manifest: prepare.py SOURCE --out DIR

Every .csv below SOURCE that has the two columns names videos (by the stem of a file, anywhere below SOURCE) and texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mmdiff import adapt
from mmdiff.errors import UserError, run_tool


def found(source: str, name: str, text: str) -> Iterator[adapt.Found]:
    """Every row of every table that has the columns `name` and `text`, and every video that none lists."""
    videos, sounds, listed = adapt.files(source, "video"), adapt.files(source, "audio"), set()
    tables = [path for path in sorted(Path(source).rglob("*.csv")) if {name, text} <= set(columns(path))]
    if not tables:
        raise UserError(f"{source}: no .csv with the columns {name} and {text}; --id and --caption name others.")
    for path in tables:
        split = next((one for one in ("train", "val", "test") if one in path.stem.lower()), None)
        for row in adapt.records(path):
            stem = row[name]
            listed.add(stem)
            if stem not in videos and stem not in sounds:
                yield adapt.Dropped(stem, "no file of this name")
            else:
                said = (row[text],) if row[text] else ()
                yield adapt.Clip(stem, videos.get(stem), sounds.get(stem), said, split, facts={"about": row})
    for stem in sorted((videos.keys() | sounds.keys()) - listed):
        yield adapt.Dropped(stem, "a file that no table lists")


def columns(path: Path) -> list[str]:
    """The names in a table's first line."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [name.strip().strip('"') for name in file.readline().split(",")]


def main(argv: list[str]) -> None:
    """Parse, walk, write."""
    parser = adapt.parser(__doc__ or "")
    parser.add_argument("--id", default="videoid", metavar="COLUMN", help="the stem of the file (default videoid)")
    parser.add_argument("--caption", default="name", metavar="COLUMN", help="the text (default name)")
    args = parser.parse_args(argv)
    adapt.publish(found(args.source, args.id, args.caption), args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
