"""What there is to learn from: a manifest (.jsonl, .json or .csv) or any folder of clips -> a list of entries.

One row is one clip: `id`, `video` and / or `audio` (paths relative to the manifest's folder), `captions` (a list; in a
CSV one `caption`, or a JSON list in `captions`), and optionally `split`, `start` and `duration` in seconds; the row is
kept whole in `facts`, where buckets look for the picture's `size` [h, w] before they open a file. Tables in other
projects' words are understood too (tables.py). In a folder, captions stand in a .txt of the clip's name, one a line; a
sound file of that name is the video's own sound without loss. A folder that holds manifest.jsonl or manifest.csv is
read as that manifest. A .tar is a folder (tars.py); in it, as WebDataset has it, a clip's name ends at its first dot,
and captions may also stand in a .json.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdiff import noise
from mmdiff.data import tars
from mmdiff.data.media.files import AUDIO, IMAGES, VIDEO
from mmdiff.data.tables import SUFFIXES, WEBDATASET, Line, Row, read_json, read_table, read_text, told, translated
from mmdiff.errors import UserError

MEDIA = VIDEO + IMAGES + AUDIO
LARGEST_SIDECAR = 1 << 20  # bytes
HELD_OUT = 20  # one file in this many is held out where nobody has split the data
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One clip. `video` may be an image; None means that the modality is absent."""

    id: str
    video: Path | None
    audio: Path | None  # None with a video: the sound inside the video, if it has any
    captions: tuple[str, ...] = ()
    split: str | None = None
    start: float = 0.0  # s into the file
    duration: float | None = None  # s; None: to the end
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Listing:
    """All entries of a place, in a fixed order, and what it holds that nobody uses."""

    path: Path
    entries: list[Entry]
    notes: list[str] = field(default_factory=list)

    def of(self, split: str | None) -> list[Entry]:
        """All entries or those of one split. Raises UserError for a split that the data does not name.

        Without any split in the data, one entry in HELD_OUT (at least one, if there are two) is held out by the hash of
        its id: "train" is the rest, and any other name is the held-out part.
        """
        return self.entries if split is None else _of_split(self.entries, split, self.path)


def read_entries(path: str | Path, split: str | None = None) -> list[Entry]:
    """The entries of a folder or a manifest, all of them or those of one split (see Listing.of).

    What they hold and nobody uses is logged. Raises UserError naming file and line.
    """
    listing = read_listing(path)
    for note in listing.notes:
        log.warning(note)
    return listing.of(split)


def read_listing(path: str | Path) -> Listing:
    """Everything that a folder or a manifest lists. Raises UserError naming file and line."""
    path = Path(path)
    if path.is_dir():
        listed = [path / name for name in ("manifest.jsonl", "manifest.csv") if (path / name).is_file()]
        path = listed[0] if listed else path
    if path.is_dir() or (path.suffix.lower() == tars.SUFFIX and path.is_file()):
        listing = _folder(path)
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        listing = _manifest(path)
    else:
        raise UserError(f"{path}: no such data. Give a folder of clips, a .tar, or a manifest: {', '.join(SUFFIXES)}.")
    if not listing.entries:
        raise UserError(f"{path}: nothing to read. Clips end in {' '.join(MEDIA)}; a manifest has a row each.")
    return listing


def _of_split(entries: list[Entry], split: str, path: Path) -> list[Entry]:
    names = sorted({entry.split for entry in entries if entry.split})
    if names:
        chosen = [entry for entry in entries if entry.split == split]
        if not chosen:
            raise UserError(f"{path}: no clip has split '{split}'; there are: {', '.join(names)}.")
        return chosen
    held = _held_out([entry.id for entry in entries])
    return [entry for entry in entries if (entry.id in held) == (split != "train")] or entries


def _held_out(ids: Sequence[str]) -> set[str]:
    """By the hash of the id alone, so that adding a file moves no other file across the line."""
    hashed = {name: noise.key("held-out", name) for name in ids}
    held = {name for name, key in hashed.items() if key % HELD_OUT == 0}
    return held if held and len(held) < len(ids) else {min(hashed, key=hashed.__getitem__)} if len(ids) > 1 else set()


# ---- manifests -----------------------------------------------------------------------------------------------------


def _manifest(path: Path) -> Listing:
    lines, notes = read_table(path)
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for line in lines:
        entry = _entry(line, path.parent)
        if entry.id in places:
            raise UserError(
                f"{line.where}: the id '{entry.id}' was already used in {places[entry.id]}; ids are unique."
            )
        places[entry.id] = line.where
        entries.append(entry)
    return Listing(path, entries, notes)


def _entry(line: Line, folder: Path) -> Entry:
    """A row -> Entry, every field checked."""
    row, where = line.row, line.where
    video, audio = (_file(row, name, folder, where) for name in ("video", "audio"))
    if video is None and audio is None:
        raise UserError(f"{where}: missing column. A clip needs 'video' or 'audio', a path beside the manifest.")
    name = row.get("id", row.get("video") or row.get("audio"))
    name = str(name) if type(name) is int else name
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: an id is a text, not {name!r}.")
    start, duration = _seconds(row, "start", where), _seconds(row, "duration", where)
    captions, split = _captions(row, where), _split(row, where)
    return Entry(name, video, audio, captions, split, start or 0.0, duration, line.written)


def _file(row: Row, column: str, folder: Path, where: str) -> Path | None:
    value = row.get(column)
    if value is None:
        return None
    file = folder / value if isinstance(value, str) and value and "\0" not in value else None
    if file is None or not tars.is_file(file):
        raise UserError(f"{where}: {column} '{value}' is no file. Paths are relative to {folder}.")
    known = VIDEO + IMAGES if column == "video" else AUDIO + VIDEO
    if file.suffix.lower() not in known:
        raise UserError(f"{where}: {column} '{value}' is of no known kind: {' '.join(known)}.")
    return file


def _seconds(row: Row, column: str, where: str) -> float | None:
    value = row.get(column)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number is not None and not 0 <= number < float("inf"):
        raise UserError(f"{where}: {column} is a number of seconds, not {value!r}.")
    return number


def _split(row: Row, where: str) -> str | None:
    value = row.get("split")
    if not isinstance(value, str | None):
        raise UserError(f"{where}: a split is a text, not {value!r}.")
    return value


def _captions(row: Row, where: str) -> tuple[str, ...]:
    value = row.get("captions", row.get("caption")) or []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass  # a caption that begins with a bracket
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(caption, str) for caption in value):
        raise UserError(f"{where}: captions are a list of texts, not {value!r}.")
    return tuple(value)


# ---- folders and archives ------------------------------------------------------------------------------------------


def _folder(path: Path) -> Listing:
    """Every known file below `path`, by name; an id is the path inside the folder."""
    everything = sorted(_walk(path))
    files = [file for file in everything if file.suffix.lower() in MEDIA]
    videos = {_stem(file) for file in files if file.suffix.lower() in VIDEO}
    sounds = {_stem(file): file for file in files if file.suffix.lower() in AUDIO}
    entries, columns = [], dict[str, None]()
    for file in files:
        stem, kind = _stem(file), file.suffix.lower()
        if kind in AUDIO and stem in videos:
            continue  # it is the sound of that video
        video, audio = (None, file) if kind in AUDIO else (file, sounds.get(stem) if kind in VIDEO else None)
        said = _said(stem) if tars.inside(file) else {}
        row, name = translated(WEBDATASET, said), file.relative_to(path).as_posix()
        captions = _sidecar(stem) or _captions(row, f"{stem}.json")
        entries.append(Entry(name, video, audio, captions, _split(row, f"{stem}.json"), facts=said))
        columns |= dict.fromkeys(said)
    return Listing(path, entries, _left(path, everything, files, columns))


def _walk(path: Path) -> Iterator[Path]:
    """Known files and all members of archives, links followed once, hidden ones left alone."""
    if path.is_file():
        yield from (path / name for name in tars.members(path) if not Path(name).name.startswith("."))
    seen: set[str] = set()
    for folder, below, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else [name for name in below if not name.startswith(".")]
        for name in names if real not in seen else ():
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in MEDIA:
                yield Path(folder) / name
            elif Path(name).suffix.lower() == tars.SUFFIX:
                yield from _walk(Path(folder) / name)
        seen.add(real)


def _stem(file: Path) -> Path:
    """What a clip's files share of their names."""
    return file.parent / file.name.split(".")[0] if tars.inside(file) else file.with_suffix("")


def _sidecar(stem: Path) -> tuple[str, ...]:
    file = _beside(stem, ".txt")
    return tuple(line.strip() for line in read_text(file).splitlines() if line.strip()) if file else ()


def _said(stem: Path) -> Row:
    """The .json of a clip in an archive."""
    file = _beside(stem, ".json")
    return read_json(file) if file else {}


def _beside(stem: Path, suffix: str) -> Path | None:
    """The small file of that name, if there is one."""
    file = stem.parent / f"{stem.name}{suffix}"
    if not tars.is_file(file):
        return None
    if tars.size(file) > LARGEST_SIDECAR:
        raise UserError(f"{file}: more than {LARGEST_SIDECAR} bytes of captions for one clip.")
    return file


def _left(path: Path, everything: list[Path], files: list[Path], columns: dict[str, None]) -> list[str]:
    """What the archives below `path` hold that nobody uses."""
    read = {_stem(file).with_name(f"{_stem(file).name}{end}") for file in files for end in (".txt", ".json")}
    rest = Counter(file.suffix.lower() or file.name for file in everything if file.suffix.lower() not in MEDIA)
    rest -= Counter(file.suffix.lower() for file in everything if file in read)
    notes = [f"{path}: {told(WEBDATASET, columns)}"] if columns else []
    kinds = ", ".join(f"{count} {kind}" for kind, count in rest.most_common(9))
    return notes + ([f"{path}: members of archives that are not used: {kinds}."] if kinds else [])
