"""VGGSound (Chen et al. 2020) as a manifest: prepare.py SOURCE --out DIR

vggsound.csv names a video, its start, a label and a split; clips are files ID_START.mp4, anywhere below SOURCE.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mmdiff import adapt
from mmdiff.errors import run_tool

COLUMNS = ("video", "start", "label", "split")  # the table has no line of names


def found(source: str) -> Iterator[adapt.Found]:
    """Every row of the table, and every clip that has none."""
    videos, sounds, listed = adapt.files(source, "video"), adapt.files(source, "audio"), set()
    for row in adapt.records(adapt.find(source, "vggsound.csv"), COLUMNS):
        name = f"{row['video']}_{int(row['start']):06d}" if row["start"].isdigit() else row["video"]
        video, sound = videos.get(name), sounds.get(name)
        listed.add(name)
        if video is None and sound is None:
            yield adapt.Dropped(name, "no clip of this name")
        else:
            about = {"label": row["label"], "source": f"youtube.com/watch?v={row['video']}"}
            yield adapt.Clip(name, video, sound, (row["label"],), row["split"], facts=about)
    for name in sorted((videos.keys() | sounds.keys()) - listed):
        yield adapt.Dropped(name, "a clip that vggsound.csv does not list")


def main(argv: list[str]) -> None:
    """Parse, walk, write."""
    args = adapt.parser(__doc__ or "").parse_args(argv)
    adapt.publish(found(args.source), args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
