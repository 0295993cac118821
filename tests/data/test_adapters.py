"""Every adapter on a tiny look-alike of its data set: what is kept, what is dropped and why, and what can be read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmdiff import adapt
from mmdiff.data.clips import Clips
from mmdiff.data.manifest import read_entries
from mmdiff.errors import UserError

DATASETS = Path(__file__).parents[2] / "datasets"
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def template(studio: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files to copy: a clip of 2.5 s with and without sound, an avi, a sound."""
    path = tmp_path_factory.mktemp("templates")
    images, sound = studio.grey(60, 32, 32), studio.click(2.5, 16000, [0.5, 1.5])
    made = {
        "clip": studio.encode(path / "a.mp4", images, sound, rate=16000),
        "mute": studio.encode(path / "b.mp4", images),
        "avi": studio.encode(path / "c.avi", images, sound, rate=16000, video="mpeg4", audio="pcm_s16le"),
        "wav": studio.encode(path / "d.wav", None, sound, rate=16000, audio="pcm_s16le"),
    }
    return {name: file.read_bytes() for name, file in made.items()}


@pytest.fixture
def make(template: dict[str, bytes], tmp_path: Path) -> Make:
    """make("clip", "a/b.mp4", ...) puts copies into the look-alike's folder and returns it."""
    source = tmp_path / "source"

    def put(kind: str, *names: str) -> Path:
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(template[kind])
        return source

    return put


def prepare(name: str, source: Path, *options: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Run an adapter -> its manifest's rows and the reasons of what was dropped, by id; the source stays as it was."""
    spec = spec_from_file_location(f"{name}_prepare", DATASETS / name / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    before, out = hashes(source), source.parent / "out"
    for _ in range(2):  # the same command again gives the same
        module.main([str(source), "--out", str(out), *options])
    assert hashes(source) == before
    kept, dropped = ([json.loads(line) for line in (out / file).read_text().splitlines()] for file in FILES)
    assert len(read_entries(out)) == len(kept)
    return {row["id"]: row for row in kept}, {row["id"]: row["reason"] for row in dropped}


FILES = ("manifest.jsonl", "dropped.jsonl")


def hashes(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_greatest_hits(make: Make, tmp_path: Path) -> None:
    source = make("clip", *[f"vis-data-256/{name}_denoised.mp4" for name in ("2015-a", "2015-b", "2015-c")])
    make("wav", "vis-data-256/2015-a_denoised.wav")
    folder = source / "vis-data-256"
    (folder / "2015-a_times.txt").write_text("0.50 wood hit static\n0.9 None None None\n1.50 metal scratch deform\n")
    (folder / "2015-b_times.txt").write_text("0.2 wood hit static\n0.4 cloth hit static\n")
    (folder / "2015-d_times.txt").write_text("0.2 wood hit static\n")
    (folder / "2015-c_times.txt").write_text("soon wood hit\n")
    (folder / "train.txt").write_text("2015-a\n2015-gone\n")
    (folder / "test.txt").write_text("2015-b\n")
    kept, dropped = prepare("greatest_hits", source, "--seconds", "1")
    assert set(kept) == {"2015-a-000", "2015-a-001", "2015-b-000", "2015-b-001"}
    first, second = kept["2015-a-000"], kept["2015-a-001"]
    assert first["captions"] == ["a drumstick hits wood"] and second["captions"] == ["a drumstick scratches metal"]
    assert second["events"] == [{"t": 0.5, "material": "metal", "action": "scratch", "reaction": "deform"}]
    assert (second["start"], second["duration"], second["split"]) == (1.0, 1.0, "train")
    assert kept["2015-b-000"]["captions"] == ["a drumstick hits wood and cloth"] and not kept["2015-b-001"]["captions"]
    assert kept["2015-b-000"]["split"] == "test" and "audio" in first and "audio" not in kept["2015-b-000"]
    assert dropped["2015-d"] == "times without a video" and dropped["2015-gone"] == "listed without times"
    assert "not a time" in dropped["2015-c"] and "shorter" in dropped["2015-a-rest"]
    clips = Clips(tmp_path / "out", frames=8, fps=8, size=[16, 16], rate=8000, split="train")
    sample = next(clips[p] for p in range(2) if clips[p]["id"] == "2015-a-001")
    assert abs(int(sample["audio"].abs().argmax()) / 8000 - 0.5) < 0.01  # the event is heard where it is said to be


def test_vggsound(make: Make) -> None:
    source = make("clip", "video/--0PQM4-hqg_000030.mp4", "video/abc_000001.mp4", "more/zzz_000009.mp4")
    make("wav", "audio/abc_000001.wav")
    (source / "vggsound.csv").write_text(
        '--0PQM4-hqg,30,waterfall burbling,train\nabc,1,"dog barking, howling",test\ngone,5,rain,train\n'
    )
    kept, dropped = prepare("vggsound", source)
    assert kept["--0PQM4-hqg_000030"]["captions"] == ["waterfall burbling"]
    assert kept["abc_000001"]["captions"] == ["dog barking, howling"] and kept["abc_000001"]["split"] == "test"
    assert kept["abc_000001"]["audio"].endswith("audio/abc_000001.wav") and len(kept) == 2
    assert dropped["gone_000005"] == "no clip of this name"
    assert dropped["zzz_000009"] == "a clip that vggsound.csv does not list"


def test_landscape_and_aist(make: Make) -> None:
    dance = "aist/train/gBR_sBM_cAll_d04_mBR0_ch01.mp4"
    source = make("clip", "landscape/train/fire_crackling/a.mp4", "landscape/test/thunder/b.mp4", dance, "x.mp4")
    make("mute", "landscape/train/thunder/mute.mp4")
    (source / "landscape/train/cut.mp4").write_bytes((source / dance).read_bytes()[:700])
    kept, dropped = prepare("landscape", source)
    assert kept["landscape/train/fire_crackling/a.mp4"]["captions"] == ["fire crackling"]
    assert kept["landscape/test/thunder/b.mp4"]["split"] == "test"
    assert kept[dance]["captions"] == ["break dance"] and kept[dance]["split"] == "train"
    assert kept["x.mp4"]["captions"] == [] and "split" not in kept["x.mp4"]
    assert dropped["landscape/train/thunder/mute.mp4"].startswith("no sound inside")
    assert "cannot be read" in dropped["landscape/train/cut.mp4"] and len(kept) == 4
    kept, _ = prepare("landscape", source, "--silent")
    assert kept["landscape/train/thunder/mute.mp4"]["sound"] is False


def test_mugen(make: Make) -> None:
    source = make("clip", "coinrun/seed_1/videos/v1.mp4", "coinrun/seed_1/videos/v2.mp4")
    release = source / "coinrun_dataset_jsons" / "release"
    release.mkdir(parents=True)
    texts = [{"text": "rule", "type": "auto"}, {"text": "person", "type": "manual"}]

    def sample(name: str) -> dict[str, Any]:
        about = {"id": name, "video_file": f"seed_1/videos/{name}.mp4", "num_frames": 96, "game_events": ["die"]}
        return {"video": about, "annotations": texts}

    (release / "train.json").write_text(json.dumps({"metadata": {}, "data": [sample("v1"), sample("gone")]}))
    (release / "test.json").write_text(json.dumps({"metadata": {}, "data": [sample("v2")]}))
    kept, dropped = prepare("mugen", source)
    assert kept["v1"]["captions"] == ["person", "rule"] and kept["v1"]["game_events"] == ["die"]
    assert (kept["v1"]["split"], kept["v2"]["split"]) == ("train", "test")
    assert dropped == {"gone": "no video of this name", "val.json": "no such list; the split is left out"}
    (release / "train.json").write_text('{"data": [3]}')
    with pytest.raises(UserError, match=r"train.json: no list of MUGEN's"):
        prepare("mugen", source)


def test_ucf101(make: Make) -> None:
    eye, push, lost = "v_ApplyEyeMakeup_g08_c01", "v_HandStandPushups_g01_c02", "v_TaiChi_g01_c01"
    source = make("avi", f"UCF-101/ApplyEyeMakeup/{eye}.avi", f"UCF-101/HandstandPushups/{push}.avi", "UCF-101/x.avi")
    make("avi", f"UCF-101/TaiChi/{lost}.avi")
    lists = source / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text(f"ApplyEyeMakeup/{eye}.avi 1\nYoYo/v_YoYo_g01_c01.avi 101\n")
    (lists / "testlist01.txt").write_text("HandstandPushups/v_HandstandPushups_g01_c02.avi\n")
    kept, dropped = prepare("ucf101", source)
    assert kept[eye]["captions"] == ["apply eye makeup"] and kept[eye]["split"] == "train" and kept[eye]["group"] == 8
    assert kept[push]["captions"] == ["hand stand pushups"] and kept[push]["split"] == "test" and len(kept) == 2
    assert dropped[lost] == "in neither list of fold 1" and dropped["v_yoyo_g01_c01"] == "listed, but no such video"
    assert dropped["x"] == "not named as UCF-101 names its videos"
    with pytest.raises(UserError, match="holds no trainlist02.txt"):
        prepare("ucf101", source, "--fold", "2")


def test_webvid(make: Make) -> None:
    source = make("clip", "videos/006001_006050/1025.mp4", "videos/77.mp4", "videos/unlisted.mp4")
    head = "videoid,contentUrl,duration,page_dir,name\n"
    (source / "results_2M_train.csv").write_text(
        head + '1025,https://x/1.mp4,PT00H00M18S,006001_006050,"A ball, red"\n99,https://x/2.mp4,PT00H00M18S,d,gone\n'
    )
    (source / "results_2M_val.csv").write_text(head + "77,https://x/3.mp4,PT00H00M18S,d,A cat\n")
    (source / "other.csv").write_text("a,b\n1,2\n")
    kept, dropped = prepare("webvid_csv", source)
    assert kept["1025"]["captions"] == ["A ball, red"] and kept["1025"]["split"] == "train"
    assert (
        kept["77"]["split"] == "val"
        and kept["77"]["about"]["duration"] == "PT00H00M18S"
        and "duration" not in kept["77"]
    )
    assert dropped == {"99": "no file of this name", "unlisted": "a file that no table lists"}
    (source / "mine.csv").write_text("file,text\n77,mine\n")
    kept, _ = prepare("webvid_csv", source, "--id", "file", "--caption", "text")
    assert list(kept) == ["77"] and kept["77"]["captions"] == ["mine"]


# ---- what they share -----------------------------------------------------------------------------------------------


def test_every_row_is_accounted_for(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make("clip", "a.mp4", "b.mp4")
    (source / "empty.mp4").write_bytes(b"")
    found = [
        adapt.Clip("a", source / "a.mp4", split="train"), adapt.Clip("a", source / "b.mp4"), adapt.Clip("none"),
        adapt.Clip("e", source / "empty.mp4"), adapt.Clip("g", source / "gone.mp4"), adapt.Dropped("x", "why"),
    ]  # fmt: skip
    adapt.publish(iter(found), tmp_path / "out")
    said = capsys.readouterr().out
    assert "1 clips (train 1)" in said and "dropped.jsonl: 5" in said
    reasons = Counter(json.loads(line)["reason"] for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines())
    assert reasons == Counter(
        ["the id occurs a second time", "no file", "the file is empty", "the file is not there", "why"]
    )


def test_what_keeps_an_adapter_from_working(make: Make, tmp_path: Path) -> None:
    source = make("clip", "a.mp4")
    with pytest.raises(UserError, match="No clip was found; 1 were dropped: why"):
        adapt.publish([adapt.Dropped("x", "why")], tmp_path / "out")
    (source / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was not made by prepare.py"):
        adapt.publish([adapt.Clip("a", source / "a.mp4")], source)
    with pytest.raises(UserError, match="no such folder"):
        prepare("vggsound", tmp_path / "absent")
    with pytest.raises(UserError, match="holds no vggsound.csv, by which this data set is known"):
        prepare("vggsound", source)


@pytest.mark.parametrize("folder", sorted(p.parent for p in DATASETS.glob("*/prepare.py")), ids=lambda p: p.name)
def test_every_data_set_has_a_card(folder: Path) -> None:
    (card,) = [path for path in (folder / "README.md", folder / "card.md") if path.is_file()]
    text = card.read_text().lower()
    assert "licence" in text and "prepare.py" in text and "dropped" in text or folder.name == "sounding_objects"
