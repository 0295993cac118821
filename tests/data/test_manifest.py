"""Manifests and folders: what is read, and that every mistake is named with its file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff.data.manifest import Entry, read_entries
from mmdiff.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def manifest(folder: Path, rows: list[Any], name: str = "manifest.jsonl") -> Path:
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return folder / name


def test_jsonl_rows_become_entries(tmp_path: Path) -> None:
    touch(tmp_path, "clips/a.mp4", "clips/a.flac", "b.wav")
    rows = [
        {
            "id": "a",
            "video": "clips/a.mp4",
            "audio": "clips/a.flac",
            "captions": ["one", "two"],
            "split": "train",
            "events": [],
        },
        "",
        {"id": 7, "audio": "b.wav", "video": None, "start": 1.5, "duration": 2, "split": "val"},
    ]
    path = manifest(tmp_path, rows)
    first, second = read_entries(path)
    assert first == Entry("a", tmp_path / "clips/a.mp4", tmp_path / "clips/a.flac", ("one", "two"), "train")
    assert first.facts["events"] == []
    assert second == Entry("7", None, tmp_path / "b.wav", (), "val", 1.5, 2.0)
    assert read_entries(tmp_path, "val") == [second]  # a folder with a manifest is that manifest
    with pytest.raises(UserError, match="no clip has split 'test'; there are: train, val"):
        read_entries(path, "test")


def test_csv_is_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "m.csv"
    path.write_text(
        '\ufeffid,video,caption,start\na,a.mp4,"a ball, red",\nb,b.mp4,"[""x"", ""y""]",0.5\n', encoding="utf-8"
    )
    first, second = read_entries(path)
    assert first.captions == ("a ball, red",) and first.start == 0
    assert second.captions == ("x", "y") and second.start == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a list, not an object"),
        ({"id": "b", "captions": ["x"]}, "needs 'video' or 'audio'"),
        ({"id": "a", "video": "a.mp4"}, "already used in .*m.*jsonl:1; ids are unique"),
        ({"id": "b", "video": "gone.mp4"}, "'gone.mp4' is no file"),
        ({"id": "b", "video": 3}, "'3' is no file"),
        ({"id": "b", "video": "a.txt"}, "of no known kind"),
        ({"id": "b", "video": "a.mp4", "start": "soon"}, "start is a number of seconds, not 'soon'"),
        ({"id": "b", "video": "a.mp4", "duration": -1}, "duration is a number of seconds"),
        ({"id": "b", "video": "a.mp4", "captions": [1]}, "captions are a list of texts"),
        ({"id": "b", "video": "a.mp4", "split": 3}, "a split is a text, not 3"),
    ],
)
def test_every_mistake_names_file_and_line(row: Any, message: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.txt")
    path = manifest(tmp_path, [{"id": "a", "video": "a.mp4"}, row])
    with pytest.raises(UserError, match=message) as caught:
        read_entries(path)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,caption\na,b\n", ":1: missing column"),
        ("video,caption\na.mp4\n", ":2: not as many fields"),
        ("video,caption\na.mp4,x,y\n", ":2: not as many fields"),
        ("", ":1: missing column"),
    ],
)
def test_csv_mistakes(text: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_entries(tmp_path / "m.csv")


def test_a_folder_of_anything(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.mp4", "a.wav", "sub/b.WEBM", "c.png", "d.ogg", ".hidden.mp4", "._a.mp4", "notes.md", ".git/e.mp4"
    )
    (tmp_path / "a.txt").write_text("first caption\n\n  second caption \n")
    (tmp_path / "loop").symlink_to(tmp_path)
    entries = {entry.id: entry for entry in read_entries(tmp_path)}
    assert sorted(entries) == ["a.mp4", "c.png", "d.ogg", "sub/b.WEBM"]
    assert entries["a.mp4"].captions == ("first caption", "second caption")
    assert entries["a.mp4"].audio == tmp_path / "a.wav"  # the lossless sound of the clip
    assert entries["d.ogg"].video is None and entries["c.png"].audio is None


def test_a_folder_holds_some_clips_out_and_keeps_them_out(tmp_path: Path) -> None:
    touch(tmp_path, *[f"{k:03d}.mp4" for k in range(200)])
    train, held = (read_entries(tmp_path, split) for split in ("train", "val"))
    assert len(train) + len(held) == 200 and 2 <= len(held) <= 25
    touch(tmp_path, "new.mp4")
    again = {entry.id for entry in read_entries(tmp_path, "val")}
    assert {entry.id for entry in held} <= again
    single = tmp_path / "one"
    touch(single, "a.mp4")
    assert read_entries(single, "train") == read_entries(single, "val")


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "gone", manifest(tmp_path, [""], "m.jsonl")):
        with pytest.raises(UserError, match=str(path)):
            read_entries(path)
