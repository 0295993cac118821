"""Tables in other projects' words: understood by their columns, and what is not used is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mmdiff.data.manifest import Entry, read_entries, read_listing
from mmdiff.data.tables import FORMATS, recognised
from mmdiff.errors import UserError


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for name in ("v/a.mp4", "v/b.mp4", "a.wav", "b.wav", "r.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_open_sora(clips: Path) -> None:
    table = clips / "meta.csv"
    table.write_text(f"path,text,num_frames,height,width,fps\nv/a.mp4,one,48,64,96,24\n{clips}/v/b.mp4,,48,64,96,24\n")
    listing = read_listing(table)
    a, b = listing.entries
    assert a == Entry("v/a.mp4", clips / "v/a.mp4", None, ("one",)) and a.facts["num_frames"] == "48"
    assert b.video == clips / "v/b.mp4" and b.captions == ()
    (note,) = listing.notes
    assert "path is video, text is captions. Not used: num_frames, height, width, fps." in note


def test_javisdit(clips: Path) -> None:
    head = "path,id,relpath,num_frames,height,width,aspect_ratio,fps,resolution,audio_path,audio_fps,text"
    row = "v/a.mp4,a,sub/a.mp4,240,480,640,0.75,24,307200,a.wav,16000,a dog barks"
    table = clips / "train_jav.csv"
    table.write_text(f"{head},unpaired_audio_path\n{row},b.wav\n")
    (entry,) = read_entries(table)
    assert entry == Entry("sub/a.mp4", clips / "v/a.mp4", clips / "a.wav", ("a dog barks",))
    assert "unpaired_audio_path" in read_listing(table).notes[0]


def test_the_first_stage_of_javisdit_is_sound_alone(clips: Path) -> None:
    table = clips / "train_audio.csv"
    table.write_text("path,audio_path,text,audio_text\nplaceholder.mp4,a.wav,placeholder,rain\n")
    (entry,) = read_entries(table)
    assert entry == Entry("a.wav", None, clips / "a.wav", ("rain",))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize("column", ["media_path", "video_path"])
def test_ltx(suffix: str, column: str, clips: Path) -> None:
    table, row = clips / f"dataset{suffix}", {"caption": "a cake", column: "v/a.mp4", "reference_path": "r.mp4"}
    text = {
        ".json": json.dumps([row]),
        ".jsonl": json.dumps(row),
        ".csv": ",".join(row) + "\n" + ",".join(row.values()),
    }
    table.write_text(text[suffix])
    listing = read_listing(table)
    assert listing.entries == [Entry("v/a.mp4", clips / "v/a.mp4", None, ("a cake",))]
    assert listing.entries[0].facts == row and "Not used: reference_path." in listing.notes[0]


def test_a_path_may_lead_to_a_sound(clips: Path) -> None:
    table = clips / "t.csv"
    table.write_text("path,text\na.wav,rain\n")
    assert read_entries(table) == [Entry("a.wav", None, clips / "a.wav", ("rain",))]


def test_what_is_not_used_is_logged(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    (clips / "t.csv").write_text("path,text,aes\nv/a.mp4,x,5.1\n")
    with caplog.at_level(logging.WARNING):
        read_entries(clips / "t.csv")
    assert "Not used: aes." in caplog.text
    caplog.clear()
    (clips / "m.jsonl").write_text(json.dumps({"video": "v/a.mp4", "aes": 5.1}))
    assert read_entries(clips / "m.jsonl")[0].facts["aes"] == 5.1 and not caplog.records  # our own: kept for others


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", '{"a": 1}', "t.json: a dict, not a list"),
        ("t.json", '[{"media_path": "v/a.mp4"}, 3]', "t.json:row 2: a int, not an object"),
        ("t.json", '[{"media_path": "v/gone.mp4"}]', "t.json:row 1: video 'v/gone.mp4' is no file"),
        ("t.json", "[", "t.json: not JSON"),
        ("t.json", "[" * 100_000, "t.json: not JSON"),
        ("t.csv", "url,text\nhttp://x,y\n", r"t.csv:1: missing column.*audio_path, audio_text, media_path, path"),
        ("t.parquet", "", "no such data. Give a folder of clips, a .tar, or a manifest: .jsonl, .json, .csv"),
    ],
)
def test_mistakes(name: str, text: str, message: str, clips: Path) -> None:
    (clips / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_entries(clips / name)


def test_every_format_is_known_by_columns_of_its_own() -> None:
    for n, known in enumerate(FORMATS):
        columns: dict[str, Any] = dict.fromkeys(known.known_by)
        assert recognised(columns) is known, n
        assert known.fields is None or set(known.known_by) <= {c for names in known.fields.values() for c in names}
    assert recognised({"name": None}) is None
