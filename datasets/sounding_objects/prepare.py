"""Write the sounding world to disk as ordinary media: prepare.py --tier cpu --clips N --out DIR

Every clip is an H.264 + AAC mp4 with its sound beside it in 16-bit WAV, because AAC moves and smears samples; one line
of manifest.jsonl names both. A clip is a pure function of (seed, split, index), so the same seed gives the same bytes
whatever the number of workers, a stopped run goes on where it was, and a larger --clips only adds. The manifest is
written last and in one piece: where it stands, the data set is whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import UserError, run_tool
from mmdiff.files import write_text
from mmdiff.progress import cores

if TYPE_CHECKING:
    from mmdiff.world.clip import Clip

VERSIONS = {"ci": 1, "cpu": 1, "gpu-s": 1, "gpu-m": 1, "gpu-l": 2}  # raised by what alters the bytes of a tier's clips


@dataclass(frozen=True)
class Recipe:
    """What determines every clip."""

    tier: str
    seed: int
    binding: str
    version: int
    rate: int | None = None  # of the sound; None is the tier's

    def record(self) -> dict[str, Any]:
        """What recipe.json says."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Job:
    """One clip to write below `out`."""

    out: str
    recipe: Recipe
    split: str
    index: int


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; torch is not imported yet, so --help answers at once."""
    parser = argparse.ArgumentParser(
        description="Make the data set of the sounding world: mp4, wav and manifest.jsonl."
    )
    add = parser.add_argument
    add("--tier", default="cpu", choices=list(VERSIONS), help="resolution (default cpu)")
    add("--clips", type=int, default=4096, metavar="N", help="training clips; the other splits scale (default 4096)")
    add("--out", required=True, metavar="DIR", help="where to write; the same command again continues")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    add("--binding", default="by_shape", choices=["by_shape", "by_material_text", "random"], help="what decides sounds")
    add("--rate", type=int, metavar="HZ", help="of the sound, such as 44100 (default: the tier's)")
    add("--workers", type=int, default=0, metavar="N", help="processes (default: one a core)")
    return parser.parse_args(argv)


def sizes(clips: int, binding: str) -> dict[str, int]:
    """Clips in each split for `clips` training clips: an eighth up to 512, or a sixteenth up to 256, at least 8."""
    eighth, sixteenth = min(512, max(8, clips // 8)), min(256, max(8, clips // 16))
    rest = {"val": eighth, "iid": eighth, "comp": eighth, "count": sixteenth, "para": eighth}
    return {"train": clips, **rest, **({"bind": sixteenth} if binding == "by_material_text" else {})}


def main(argv: list[str]) -> None:
    """Parse, check the folder, write what is missing, then the manifest."""
    args = parse(argv)
    if args.clips < 1 or args.workers < 0:
        raise UserError(f"--clips is at least 1 and --workers at least 0, not {args.clips} and {args.workers}.")
    out, recipe = Path(args.out), Recipe(args.tier, args.seed, args.binding, VERSIONS[args.tier], args.rate)
    wanted = sizes(args.clips, args.binding)
    claim(out, recipe)
    if complete(out, wanted):
        print(f"{out}: complete, {sum(wanted.values())} clips; nothing to do.")
        return
    jobs = [Job(str(out), recipe, split, index) for split, number in wanted.items() for index in range(number)]
    publish(out, run(jobs, args.workers or cores()))
    print(f"{out / 'manifest.jsonl'}: {', '.join(f'{split} {number}' for split, number in wanted.items())}")


def claim(out: Path, recipe: Recipe) -> None:
    """Mark the folder as this recipe's, or refuse one that holds something else."""
    mark = out / "recipe.json"
    if not mark.is_file():
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UserError(f"{out} is not empty and was not made by prepare.py; give --out a new folder.")
        out.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(recipe.record()) + "\n")
    found = json.loads(mark.read_text() or "{}")
    if found != recipe.record():
        raise UserError(f"{out} holds clips of {found}, not of {recipe.record()}; give --out a new folder.")


def complete(out: Path, wanted: dict[str, int]) -> bool:
    """Whether a manifest with exactly these numbers of clips stands there, and every file that it names."""
    manifest = out / "manifest.jsonl"
    if not manifest.is_file():
        return False
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    files = (out / row[kind] for row in rows for kind in ("video", "audio"))
    return Counter(row["split"] for row in rows) == Counter(wanted) and all(file.is_file() for file in files)


def run(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Manifest rows in the order of the jobs, with a bar that tells the time left."""
    import multiprocessing

    from mmdiff.progress import bar

    with bar("clips", total=len(jobs)) as advance:
        if workers == 1:
            yield from _counted(map(write, jobs), advance)
            return
        with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
            yield from _counted(pool.imap(write, jobs, chunksize=8), advance)


def _counted(rows: Iterable[dict[str, Any]], advance: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    for row in rows:
        advance(1)
        yield row


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def write(job: Job) -> dict[str, Any]:
    """Write one clip unless its files are there (they appear in one piece) -> its row of the manifest."""
    import torch

    from mmdiff.data.media import write_clip, write_wav
    from mmdiff.world.clip import make_clip
    from mmdiff.world.scene import TIERS

    out, recipe, tier = Path(job.out), job.recipe, TIERS[job.recipe.tier].at(job.recipe.rate)
    name = f"{job.split}/{job.index:06d}"
    clip = make_clip(seed=recipe.seed, index=job.index, split=job.split, tier=tier, binding=recipe.binding)
    sound = torch.from_numpy(clip.audio)[None]  # (1 n)
    if not (out / f"{name}.wav").is_file():
        write_wav(out / f"{name}.wav", sound, rate=tier.rate)
    if not (out / f"{name}.mp4").is_file():
        write_clip(out / f"{name}.mp4", torch.from_numpy(clip.video), fps=tier.fps, audio=sound, rate=tier.rate)
    return row(job, clip, name, sha256(out / f"{name}.mp4"))


def row(job: Job, clip: Clip, name: str, digest: str) -> dict[str, Any]:
    """The clip's line of the manifest."""
    tier = clip.tier
    return {
        "id": name.replace("/", "-"),
        "video": f"{name}.mp4",
        "audio": f"{name}.wav",
        "fps": tier.fps,
        "num_frames": tier.frames,
        "size": [tier.size, tier.size],
        "rate": tier.rate,
        "start": 0.0,
        "duration": tier.seconds,
        "captions": [said.text for said in clip.captions],
        "split": job.split,
        "events": [{"t": event.t, "type": "impact", "object": event.object} for event in clip.events],
        "scene": clip.scene.to_json(),
        "sha256": digest,
        **({} if tier.view == "plain" else {"camera": clip.camera.round(6).tolist()}),
    }


def sha256(path: Path) -> str:
    """Hex digest of a file, as `sha256sum` prints it."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def publish(out: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Let the manifest appear when all clips are there."""
    write_text(out / "manifest.jsonl", "".join([json.dumps(row) + "\n" for row in rows]))


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
