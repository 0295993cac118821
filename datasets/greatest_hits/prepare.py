"""The Greatest Hits (Owens et al. 2016) as a manifest of stretches: prepare.py SOURCE --out DIR --seconds 4

Every video is cut, by start and duration, into stretches; the hits and scratches inside one are its `events` and make
its caption.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mmdiff import adapt
from mmdiff.errors import UserError, run_tool

PICTURES = ("_denoised.mp4", "_mic.mp4", "_denoised_thumb.mp4")
SOUNDS = ("_denoised.wav", "_mic.wav")
TIMES = "_times.txt"
ACTIONS = {"hit": "hits", "scratch": "scratches"}
Event = dict[str, str | float]


def found(source: str, seconds: float) -> Iterator[adapt.Found]:
    """Stretches of every video that has a list of times."""
    folder = adapt.find(source, f"*{TIMES}").parent
    splits = {name: split for split in ("train", "test") for name in _listed(folder / f"{split}.txt")}
    for times in sorted(folder.glob(f"*{TIMES}")):
        name = times.name.removesuffix(TIMES)
        picture, sound = (_first(folder, name, endings) for endings in (PICTURES, SOUNDS))
        if picture is None:
            yield adapt.Dropped(name, "times without a video")
        else:
            yield from stretches(name, picture, sound, times, splits.get(name, "unlisted"), seconds)
    known = {times.name.removesuffix(TIMES) for times in folder.glob(f"*{TIMES}")}
    yield from (adapt.Dropped(name, "listed without times") for name in sorted(splits.keys() - known))


def stretches(
    name: str, picture: Path, sound: Path | None, times: Path, split: str, seconds: float
) -> Iterator[adapt.Found]:
    """One video's stretches of so many seconds, and the rest that does not fill one."""
    from mmdiff.data.media import BadMedia, probe

    try:
        span = probe(picture).picture
        events = [event(line, f"{times}:{n}") for n, line in enumerate(adapt.lines(times), start=1)]
    except (BadMedia, UserError) as error:
        yield adapt.Dropped(name, str(error))
        return
    length = span[1] if span else 0.0
    for k in range(int(length / seconds)):
        start = k * seconds
        inside = [
            {**e, "t": round(float(e["t"]) - start, 6)} for e in events if start <= float(e["t"]) < start + seconds
        ]
        yield adapt.Clip(f"{name}-{k:03d}", picture, sound, caption(inside), split, start, seconds, {"events": inside})
    if length % seconds > 0.05:
        yield adapt.Dropped(f"{name}-rest", "the end of a video, shorter than a stretch")


def event(line: str, where: str) -> Event:
    """ "12.34 wood hit static" -> time in seconds, material, action, what it did."""
    parts = line.split()
    try:
        return {"t": float(parts[0]), **dict(zip(("material", "action", "reaction"), parts[1:]))}
    except ValueError as error:
        raise UserError(f"{where}: not a time, a material and an action: {line[:60]!r}.") from error


def caption(events: list[Event]) -> tuple[str, ...]:
    """What the labels say, in words: ("a drumstick hits wood and metal, scratches cloth",)."""
    said = []
    for action, verb in ACTIONS.items():
        mine = [e for e in events if e.get("action") == action]
        materials = dict.fromkeys(str(e["material"]) for e in mine if e.get("material") not in (None, "None"))
        said += [f"{verb} {' and '.join(materials) or 'something'}"] if mine else []
    return (f"a drumstick {', '.join(said)}",) if said else ()


def _first(folder: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    return next((folder / f"{name}{end}" for end in endings if (folder / f"{name}{end}").is_file()), None)


def _listed(path: Path) -> list[str]:
    return adapt.lines(path) if path.is_file() else []


def main(argv: list[str]) -> None:
    """Parse, walk, write."""
    parser = adapt.parser(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a stretch (default 4)")
    args = parser.parse_args(argv)
    if args.seconds <= 0:
        raise UserError(f"--seconds is above zero, not {args.seconds}.")
    adapt.publish(found(args.source, args.seconds), args.out)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
