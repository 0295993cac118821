"""Tables of clips as people have them: .jsonl, .json or .csv, in the words of this project or of another.

The one idea: a format is a dictionary from our fields to its columns, and a table is of the first format whose own
columns it has; so a new format is one line of FORMATS. What a table holds and nobody here uses is told.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.data import tars
from mmdiff.data.media.files import AUDIO
from mmdiff.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """Whose table it is, the columns by which it is known, and our field -> its columns, the first that says something.

    `fields` None: the columns are our own, and whatever else a row holds are facts that others may ask for.
    """

    name: str
    known_by: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]] | None = None


LTX = {"audio": ("audio_path",), "captions": ("caption", "prompt", "text"), "id": ("id",), "split": ("split",)}
FORMATS = (
    Format("mmdiff", ("video",)),
    Format("mmdiff", ("audio",)),
    # github.com/JavisDiT/JavisDiT, stage 1: `path` and `text` hold placeholders
    Format("JavisDiT (sound)", ("audio_path", "audio_text"), {"audio": ("audio_path",), "captions": ("audio_text",)}),
    # github.com/hpcaitech/Open-Sora and JavisDiT; `id` is a file's stem there, which need not be unique
    Format(
        "Open-Sora / JavisDiT",
        ("path",),
        {"video": ("path",), "audio": ("audio_path",), "captions": ("text",), "id": ("relpath",), "split": ("split",)},
    ),
    # github.com/Lightricks/LTX-Video-Trainer and the trainer of LTX-2; columns are options there, these the defaults
    Format("LTX trainer", ("media_path",), {"video": ("media_path",), **LTX}),
    Format("LTX trainer", ("video_path",), {"video": ("video_path",), **LTX}),
)
# the .json of a clip in a tar, as github.com/iejMac/video2dataset writes it; its times are those of the source
WEBDATASET = Format("WebDataset", (), {"captions": ("captions", "caption", "text", "prompt"), "split": ("split",)})


@dataclass(frozen=True)
class Line:
    """One row in our words, as it was written, and where that is: "table.csv:7"."""

    row: Row
    written: Row
    where: str


def read_table(path: Path) -> tuple[list[Line], list[str]]:
    """Lines in their order, and what is to be told about the table. Raises UserError naming file and line."""
    found = list(SUFFIXES[path.suffix.lower()](path))
    columns = dict.fromkeys(name for _, row in found for name in row)
    known = recognised(columns)
    if known is None or known.fields is None:
        return [Line(row, row, where) for where, row in found], []
    lines = [Line(translated(known, row), row, where) for where, row in found]
    return lines, [f"{path}: {told(known, columns)}"]


def recognised(columns: Mapping[str, Any]) -> Format | None:
    """The format of a table with these columns."""
    return next((known for known in FORMATS if set(known.known_by) <= set(columns)), None)


def translated(known: Format, row: Row) -> Row:
    """A row in our words: of each field the first column that says something."""
    made: Row = {}
    for ours, theirs in (known.fields or {}).items():
        value = next((row[name] for name in theirs if row.get(name) not in (None, "")), None)
        if ours == "video" and isinstance(value, str) and Path(value).suffix.lower() in AUDIO:
            ours = "audio"  # a path may lead to a sound
        if value is not None:
            made.setdefault(ours, value)
    return made


def told(known: Format, columns: Mapping[str, Any]) -> str:
    """How the columns of a foreign table were understood, and which were not used."""
    used = {name: ours for ours, theirs in (known.fields or {}).items() for name in theirs if name in columns}
    meant = ", ".join(f"{name} is {ours}" for name, ours in used.items())
    rest = ", ".join(str(name) for name in columns if name not in used)
    return f"read as {known.name}: {meant}. " + (f"Not used: {rest}." if rest else "Every column is used.")


# ---- the three ways to write one -----------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            yield f"{path}:{line}", _object(_json(text, f"{path}:{line}"), f"{path}:{line}")


def _json_list(path: Path) -> Iterator[tuple[str, Row]]:
    rows = _json(read_text(path), str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: a {type(rows).__name__}, not a list. A .json table is a list of objects.")
    yield from ((f"{path}:row {n}", _object(row, f"{path}:row {n}")) for n, row in enumerate(rows, start=1))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}). A .jsonl table has one JSON object a line.") from error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object. A clip is one JSON object.")
    return row


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(read_text(path).splitlines(keepends=True), strict=True)
    try:
        if recognised(dict.fromkeys(reader.fieldnames or ())) is None:
            known = sorted({name for known in FORMATS for name in known.known_by})
            raise UserError(
                f"{path}:1: missing column. The first line names the columns; 'video' or 'audio' is needed, or those "
                f"of another format ({', '.join(known)})."
            )
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}:{reader.line_num}: not as many fields as the first line has columns.")
            yield f"{path}:{reader.line_num}", {name: value for name, value in row.items() if value != ""}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}).") from error


def read_json(path: Path) -> Row:
    """A file that holds one JSON object. Raises UserError."""
    return _object(_json(read_text(path), str(path)), str(path))


def read_text(path: Path) -> str:
    """A file, or a member of an archive, as UTF-8. Raises UserError."""
    try:
        with io.TextIOWrapper(tars.stream(path), encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


SUFFIXES: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
}
