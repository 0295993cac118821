"""MUGEN (Hayes et al. 2022), its videos of 3.2 s, as a manifest: prepare.py SOURCE --out DIR

train.json, val.json and test.json list videos and their texts; the sound is inside the videos. What people wrote comes
before what the game's rules wrote, so `caption: first` takes a person's words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mmdiff import adapt
from mmdiff.errors import UserError, run_tool

SPLITS = ("train", "val", "test")


def found(source: str) -> Iterator[adapt.Found]:
    """Every video of the three lists."""
    videos, folder = adapt.files(source, "video"), adapt.find(source, "train.json").parent
    for split in SPLITS:
        path = folder / f"{split}.json"
        if not path.is_file():
            yield adapt.Dropped(path.name, "no such list; the split is left out")
            continue
        yield from (clip(sample, split, videos) for sample in _read(path))


def clip(sample: dict, split: str, videos: dict[str, Path]) -> adapt.Found:
    """One sample of a list."""
    about = sample["video"]
    name = str(about["id"])
    video = videos.get(Path(str(about.get("video_file", name))).stem)
    if video is None:
        return adapt.Dropped(name, "no video of this name")
    texts = sorted(sample.get("annotations", []), key=lambda one: one.get("type") != "manual")
    captions = tuple(str(one["text"]) for one in texts if one.get("text"))
    facts = {key: about[key] for key in ("game_events", "gt_characters", "num_frames") if key in about}
    return adapt.Clip(name, video, None, captions, split, facts=facts)


def _read(path: Path) -> list[dict]:
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["data"]
        if not all(isinstance(sample["video"]["id"], str) for sample in samples):
            raise TypeError("an id that is no text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no list of MUGEN's ({type(error).__name__}: {error}).") from error
    return samples


def main(argv: list[str]) -> None:
    """Parse, walk, write."""
    args = adapt.parser(__doc__ or "").parse_args(argv)
    adapt.publish(found(args.source), args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
