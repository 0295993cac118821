"""How well the readers read our own renders: read_back.py --clips N prints the table of the data card.

Scenes of all splits are rendered, spoilt in the way that the row names, read back and compared with the scene, never
with a caption. The numbers bound what any score made with these readers can mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmdiff.errors import run_tool

WAYS = ("clean", "mp4", "blur and noise")
COLUMNS = ("colour_count", "shape", "size", "direction", "bounces", "timbre", "facts")


def main(argv: list[str]) -> None:
    """Print one row a tier and way."""
    parser = argparse.ArgumentParser(description="Measure the readers on renders of the sounding world.")
    parser.add_argument("--clips", type=int, default=200, metavar="N", help="scenes a row (default 200)")
    parser.add_argument("--tiers", nargs="+", default=["ci", "cpu", "gpu-s", "gpu-m"], metavar="TIER")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--rate", type=int, metavar="HZ", help="of the sound (default: the tier's)")
    args = parser.parse_args(argv)
    print("| tier, way | " + " | ".join(COLUMNS) + " | impacts F1, MAE | onsets F1, MAE | sync F1 |")
    print("| --- |" + " ---: |" * (len(COLUMNS) + 3))
    for tier in args.tiers:
        for way in args.ways:
            print(line(tier, way, args.clips, args.rate), flush=True)


def line(tier: str, way: str, number: int, rate: int | None = None) -> str:
    """One row of the table."""
    import numpy as np

    from mmdiff.metrics.faithfulness import compare, read
    from mmdiff.metrics.sync import match
    from mmdiff.world.clip import make_clip
    from mmdiff.world.scene import SPLITS, TIERS, truth

    grid, marks, found = TIERS[tier].at(rate), [], []
    for i in range(number):
        clip = make_clip(seed=77, index=i, split=SPLITS[i % 6], tier=grid)
        reading = read(*spoil(clip, way, i), fps=grid.fps, rate=grid.rate)
        marks.append(compare(reading, truth(clip.scene, grid.seconds)))
        times = [event.t for event in clip.events]
        pairs = ((times, reading.impacts), (times, reading.onsets), (reading.impacts, reading.onsets))
        found.append([match(*pair, expected=bool(times)) for pair in pairs])
    share = [np.mean([mark[name] for mark in marks if mark[name] is not None]) for name in COLUMNS]
    f1 = [np.nanmean([row[k].f1 for row in found]) for k in range(3)]
    late = [1000 * np.nanmean([row[k].mae for row in found]) for k in range(2)]
    timed = [f"{f1[k]:.3f}, {late[k]:.1f} ms" for k in range(2)]
    return " | ".join([f"| {tier}, {way}", *(f"{value:.3f}" for value in share), *timed, f"{f1[2]:.3f} |"])


def spoil(clip: Any, way: str, index: int) -> tuple[Any, Any]:
    """(video, audio) of a clip as the way leaves them."""
    ways: dict[str, Callable[[Any, int], tuple[Any, Any]]] = {"mp4": through_mp4, "blur and noise": worn}
    return ways[way](clip, index) if way in ways else (clip.video, clip.audio)


def through_mp4(clip: Any, index: int) -> tuple[Any, Any]:
    """H.264 with 4:2:0 colour and AAC, as a generated clip is written."""
    import torch

    from mmdiff.data.media import read_audio, read_video, write_clip

    tier = clip.tier
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        sound = torch.from_numpy(clip.audio)[None]  # (1 n)
        write_clip(path, torch.from_numpy(clip.video), fps=tier.fps, audio=sound, rate=tier.rate)
        video = read_video(path, start=0.0, fps=tier.fps, frames=tier.frames).numpy()
        return video, read_audio(path, start=0.0, seconds=tier.seconds, rate=tier.rate)[0].numpy()


def worn(clip: Any, index: int) -> tuple[Any, Any]:
    """Blur of .8 pixel of a 32-pixel canvas, noise of .05 on the picture and of .005 on the sound."""
    import numpy as np

    from mmdiff.noise import key, rng

    sigma, draw = 0.8 * clip.tier.size / 32, rng(key("read back", index))
    kernel = np.exp(-0.5 * (np.arange(-int(4 * sigma) - 1, int(4 * sigma) + 2) / sigma) ** 2)
    side = len(kernel) // 2
    x = np.pad(clip.video / 255.0, ((0, 0), (side, side), (side, side), (0, 0)), mode="edge")
    for axis in (1, 2):
        x = np.apply_along_axis(np.convolve, axis, x, kernel / kernel.sum(), "valid")
    x = np.clip(x + 0.05 * draw.standard_normal(x.shape), 0, 1)
    return np.rint(255 * x).astype(np.uint8), clip.audio + 0.005 * draw.standard_normal(len(clip.audio))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
