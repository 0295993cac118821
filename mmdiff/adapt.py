"""Someone's copy of a published data set -> a manifest: what every datasets/NAME/prepare.py shares.

The one idea: a data set is a function that walks its published layout and yields clips, and what it cannot use with the
reason; here every file is looked for, and every row is accounted for: kept + dropped = found. Nothing is downloaded,
decoded or changed, and the manifest points to the files where they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmdiff.errors import UserError
from mmdiff.files import replacing

MANIFEST, DROPPED = "manifest.jsonl", "dropped.jsonl"


@dataclass(frozen=True)
class Clip:
    """A row of the manifest to be; `facts` are kept as they are beside our fields."""

    id: str
    video: Path | None = None
    audio: Path | None = None
    captions: tuple[str, ...] = ()
    split: str | None = None
    start: float | None = None  # s into the files
    duration: float | None = None  # s
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """Something of the data set that does not become a clip, and why."""

    id: str
    reason: str


Found = Clip | Dropped


def parser(doc: str) -> argparse.ArgumentParser:
    """The command line that all share: SOURCE --out DIR."""
    made = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    made.add_argument("source", help="the folder that holds your copy of the data set; nothing in it is changed")
    made.add_argument("--out", required=True, metavar="DIR", help=f"where {MANIFEST} and {DROPPED} go")
    return made


def publish(found: Iterable[Found], out: str | Path) -> None:
    """Write manifest.jsonl, in one piece, and dropped.jsonl; print how many there are of each and why.

    Raises UserError if nothing is kept, or where a manifest stands that was not made here.
    """
    folder = Path(out)
    if (folder / MANIFEST).exists() and not (folder / DROPPED).exists():
        raise UserError(f"{folder / MANIFEST} was not made by prepare.py; give --out another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[Clip] = []
    dropped: list[Dropped] = []
    ids: set[str] = set()
    for one in checked(found, ids):
        kept.append(one) if isinstance(one, Clip) else dropped.append(one)
    _write(folder / DROPPED, ({"id": one.id, "reason": one.reason} for one in dropped))
    if not kept:
        first = "; ".join(f"{reason} ({n})" for reason, n in _reasons(dropped)[:3])
        raise UserError(
            f"No clip was found; {len(dropped)} were dropped: {first or 'nothing looks like this data set'}."
        )
    _write(folder / MANIFEST, (row(clip, folder) for clip in kept))
    splits = ", ".join(f"{name or 'no split'} {n}" for name, n in sorted(Counter(c.split or "" for c in kept).items()))
    print(f"{folder / MANIFEST}: {len(kept)} clips ({splits})")
    print("\n".join([f"{folder / DROPPED}: {len(dropped)}", *(f"  {n}: {reason}" for reason, n in _reasons(dropped))]))


def checked(found: Iterable[Found], ids: set[str]) -> Iterator[Found]:
    """The same, with what has no usable file or no id of its own dropped."""
    for one in found:
        reason = _fault(one, ids) if isinstance(one, Clip) else None
        if isinstance(one, Clip):
            ids.add(one.id)
        yield one if reason is None else Dropped(one.id, reason)


def _fault(clip: Clip, ids: set[str]) -> str | None:
    if clip.id in ids:
        return "the id occurs a second time"
    files = [file for file in (clip.video, clip.audio) if file is not None]
    if not files:
        return "no file"
    if any(not file.is_file() for file in files):
        return "the file is not there"
    return "the file is empty" if any(file.stat().st_size == 0 for file in files) else None


def row(clip: Clip, folder: Path) -> dict[str, Any]:
    """A clip's line of the manifest in `folder`; absent fields are left out."""
    files = {"video": clip.video, "audio": clip.audio}
    paths = {name: os.path.relpath(file, folder) for name, file in files.items() if file is not None}
    said = {"captions": list(clip.captions), "split": clip.split, "start": clip.start, "duration": clip.duration}
    return {"id": clip.id, **paths, **{name: value for name, value in said.items() if value is not None}, **clip.facts}


def _reasons(dropped: Iterable[Dropped]) -> list[tuple[str, int]]:
    return Counter(one.reason for one in dropped).most_common()


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as staged, staged.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


# ---- what layouts are made of --------------------------------------------------------------------------------------


def files(source: str | Path, kind: Literal["video", "audio"]) -> dict[str, Path]:
    """Stem -> file of every video or sound below `source`; of files that share a stem, the first by path."""
    from mmdiff.data.media import AUDIO, VIDEO

    known, found = {"video": VIDEO, "audio": AUDIO}[kind], dict[str, Path]()
    for folder, below, names in os.walk(_folder(source), followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in known and not name.startswith("."):
                found.setdefault(Path(name).stem, Path(folder) / name)
    return found


def find(source: str | Path, name: str) -> Path:
    """The file of that name (a pattern) nearest to `source`. Raises UserError where there is none."""
    found = sorted(_folder(source).rglob(name), key=lambda path: (len(path.parts), path))
    if not found:
        raise UserError(
            f"{source}: holds no {name}, by which this data set is known. See the README beside prepare.py."
        )
    return found[0]


def lines(path: Path) -> list[str]:
    """The lines of a text that hold something. Raises UserError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def records(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[dict[str, str]]:
    """Rows of a CSV by the names of its first line, or by `columns` where it has no such line. Raises UserError."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, fieldnames=columns, strict=True)
        try:
            for one in reader:
                if None in one or None in one.values():
                    raise UserError(f"{path}:{reader.line_num}: not as many fields as there are columns.")
                yield one
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}:{reader.line_num}: not CSV in UTF-8 ({error}).") from error


def _folder(source: str | Path) -> Path:
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such folder. Give the one that holds your copy of the data set.")
    return Path(source)
