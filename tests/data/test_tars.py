"""Archives as folders: the index against Python's tarfile, media read in place, and everything hostile refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdiff.data import media, tars
from mmdiff.data.clips import Clips
from mmdiff.data.manifest import read_entries, read_listing
from mmdiff.errors import UserError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
Change = Callable[[tarfile.TarInfo], None]


def pack(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT, change: Change | None = None) -> Path:
    with tarfile.open(path, "w", format=form) as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            out.addfile(info, io.BytesIO(data))
    return path


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=60)
NAMES = st.lists(NAME, min_size=1, max_size=4).map("/".join).filter(lambda n: not set(n.split("/")) & {".", ".."})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, unique=True, max_size=5), form=st.sampled_from(FORMATS[1:]), size=st.integers(0, 1300))
def test_the_index_is_that_of_tarfile(names: list[str], form: int, size: int, tmp_path: Path) -> None:
    files = {name: bytes((n + k) % 251 for k in range(size)) for n, name in enumerate(names)}
    path = pack(tmp_path / "a.tar", files, form)
    tars._members.cache_clear()  # the clock may be too coarse to tell two archives of one size apart
    with tarfile.open(path) as theirs:
        expected = {info.name: (info.offset_data, info.size) for info in theirs.getmembers()}
    assert tars.members(path) == expected
    assert {name: tars.read(path / name) for name in files} == files


@pytest.mark.parametrize("form", FORMATS)
def test_long_names_and_folders(form: int, tmp_path: Path) -> None:
    long = "/".join(["part" * 10] * 4) + "/clip.mp4"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as out:
        folder = tarfile.TarInfo("./sub/")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        for name in (long, "./sub/b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            out.addfile(info, io.BytesIO(b"abc"))
    assert list(tars.members(tmp_path / "a.tar")) == [long, "sub/b.txt"]
    assert tars.read(tmp_path / "a.tar" / long) == b"abc"


def test_large_sizes_in_base_256(tmp_path: Path) -> None:
    """A member of 9 GiB that is a hole: only its header is read."""
    info = tarfile.TarInfo("big.mp4")
    info.size = 9 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(512 + info.size + 1024)
    assert tars.members(path) == {"big.mp4": (512, 9 << 30)}


def test_a_window_is_a_file(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"x": b"before", "y": b"0123456789", "z": b"after"})
    with tars.stream(path / "y") as file:
        assert file.seek(-3, io.SEEK_END) == 7 and file.read() == b"789" and file.read() == b""
        assert file.seek(2) == 2 and file.read(3) == b"234" and file.tell() == 5
        assert file.seek(99) == 99 and file.read() == b""
    assert tars.size(path / "y") == 10 and tars.is_file(path / "y") and not tars.is_file(path / "w")
    with pytest.raises(FileNotFoundError):
        tars.size(path / "w")


# ---- media and entries ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shard(studio: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips and the same files in an archive: folder/, folder.tar."""
    folder = tmp_path_factory.mktemp("shards") / "folder"
    for name in ("a.mp4", "b.mkv", "c.avi"):
        audio = {"a.mp4": "aac", "b.mkv": "flac", "c.avi": "pcm_s16le"}[name]
        video = "mpeg4" if name == "c.avi" else "libx264"
        studio.encode(folder / name, studio.grey(40, 48, 64), studio.click(1.7, 48000, [1.0]), audio=audio, video=video)
    studio.encode(folder / "d.wav", None, studio.click(2, 8000, [1.0]), audio="pcm_s16le", rate=8000)
    media.write_png(folder / "e.png", torch.full((20, 30, 3), 200, dtype=torch.uint8))
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-2000])
    (folder / "a.txt").write_text("one\ntwo\n")
    pack(folder.with_suffix(".tar"), {file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    return folder


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.avi"])
def test_pictures_are_read_in_place(name: str, reader: str, shard: Path) -> None:
    loose, packed = shard / name, shard.with_suffix(".tar") / name
    assert media.probe(loose) == media.probe(packed)
    window = {"start": 0.5, "fps": 8.0, "frames": 8, "reader": reader}
    assert torch.equal(media.read_video(loose, **window), media.read_video(packed, **window))


def test_sounds_and_images_are_read_in_place(shard: Path) -> None:
    for name in ("a.mp4", "b.mkv", "c.avi", "d.wav"):
        loose, packed = (place / name for place in (shard, shard.with_suffix(".tar")))
        heard = [media.read_audio(path, start=0.2, seconds=1.3, rate=16000) for path in (loose, packed)]
        assert torch.equal(*heard)
    assert torch.equal(media.read_image(shard / "e.png"), media.read_image(shard.with_suffix(".tar") / "e.png"))
    for path in (shard / "cut.mp4", shard.with_suffix(".tar") / "cut.mp4"):
        with pytest.raises(media.BadMedia, match=f"^{path}: cannot be read"):
            media.probe(path)


def test_a_data_set_of_archives_is_that_of_the_files(shard: Path, tmp_path: Path) -> None:
    recipe = {"frames": 8, "fps": 8, "size": [32, 32], "rate": 8000, "split": None}
    loose, packed = Clips(shard, **recipe), Clips(shard.with_suffix(".tar"), **recipe)
    packed = pickle.loads(pickle.dumps(packed))
    assert [entry.id for entry in packed.entries] == [entry.id for entry in loose.entries]
    for position in range(2 * len(loose)):
        mine, theirs = loose[position], packed[position]
        assert torch.equal(mine["video"], theirs["video"]) and torch.equal(mine["audio"], theirs["audio"])
        assert mine["text"] == theirs["text"] and mine["id"] == theirs["id"]


def test_web_data_set_conventions(tmp_path: Path) -> None:
    said = {"caption": "from the json", "duration": "PT10S", "url": "http://x"}
    files = {
        "k1.mp4": b"x", "k1.txt": b"from the text", "k1.json": json.dumps(said).encode(),
        "k2.left.mp4": b"x", "k2.right.mp4": b"x", "k2.json": json.dumps({**said, "split": "val"}).encode(),
        "k2.flac": b"x", "k2.npy": b"x", "._k2.mp4": b"x", "README": b"x",
    }  # fmt: skip
    for n in range(2):
        pack(tmp_path / f"shard-{n}.tar", files)
    listing = read_listing(tmp_path)
    entries = {entry.id: entry for entry in listing.entries}
    tar = tmp_path / "shard-1.tar"
    assert len(entries) == 6 and entries["shard-1.tar/k1.mp4"].captions == ("from the text",)
    right = entries["shard-1.tar/k2.right.mp4"]
    assert right.captions == ("from the json",) and right.audio == tar / "k2.flac" and right.split == "val"
    assert right.start == 0 and right.duration is None and right.facts["url"] == "http://x"
    assert "Not used: duration, url." in listing.notes[0] and "2 README, 2 .npy" in listing.notes[1]
    assert [entry.id for entry in read_entries(tar, "val")] == ["k2.left.mp4", "k2.right.mp4"]


# ---- strangers' archives -------------------------------------------------------------------------------------------


def kind(value: bytes) -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = value, "/etc/passwd"

    return change


@pytest.mark.parametrize(
    "value, word", [(b"1", "hard link"), (b"2", "symbolic link"), (b"3", "device"), (b"6", "pipe")]
)
def test_links_and_devices_are_refused(value: bytes, word: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.mp4": b""}, change=kind(value))
    with pytest.raises(UserError, match=f"'a.mp4' is a {word}"):
        read_entries(path)
    with pytest.raises(UserError, match="a.tar"):
        read_entries(tmp_path)


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/a.mp4", "x/../../a.mp4", "./"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {name: b"x"}, tarfile.GNU_FORMAT)
    if name == "./":
        assert tars.members(path) == {}
        return
    with pytest.raises(UserError, match="leads out of the archive"):
        tars.members(path)


def broken(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damage_is_never_taken_for_the_end(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.tar", {"a.mp4": bytes(700), "b.mp4": b"x" * 700}).read_bytes()
    cut = {512 + 100: "ends beyond", 512 + 1024: "without an end", 2048: "ends beyond", 512 * 6: "without an end"}
    for n, (length, message) in enumerate(cut.items()):
        with pytest.raises(UserError, match=message):
            tars.members(broken(tmp_path / f"{n}.tar", whole[:length]))
    flipped = bytearray(whole)
    flipped[512 * 3 + 5] ^= 1  # in the second name
    changed = {
        "damaged at byte 1536": bytes(flipped),
        "goes on after its end": whole + whole,
        "no tar archive": b"\x1f\x8b" + bytes(range(256)) * 4,
        "without an end": b"",
    }
    for n, (message, data) in enumerate(changed.items()):
        with pytest.raises(UserError, match=message):
            tars.members(broken(tmp_path / f"c{n}.tar", data))
    with pytest.raises(UserError, match="two members are named 'a'"):
        double = tarfile.TarInfo("a").tobuf() * 2 + bytes(1024)
        tars.members(broken(tmp_path / "d.tar", double))


def test_headers_are_bounded(tmp_path: Path) -> None:
    """A header that claims a terabyte, and one of a sparse file."""
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(UserError, match="a header of 1099511627776 bytes"):
        tars.members(broken(tmp_path / "a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))
    for records in ({"GNU.sparse.major": "1"}, {"size": "-5"}, {"size": "9" * 30}):
        data = tarfile.TarInfo.create_pax_header  # a writer of headers as they may come
        head = data(
            tarfile.TarInfo("a"), {"name": "a", "mode": 0, "size": 0} | tarfile.TarInfo("a").get_info(), "utf-8"
        )
        info = tarfile.TarInfo("a")
        info.pax_headers = records
        with pytest.raises(UserError, match="pax header"):
            tars.members(broken(tmp_path / f"{len(str(records))}.tar", info.tobuf(tarfile.PAX_FORMAT) + head))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_an_index_or_a_refusal(data: st.DataObject, tmp_path: Path) -> None:
    whole = bytearray(pack(tmp_path / "w.tar", {"a" * 120: b"x" * 30, "b": b"y"}).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    tars._members.cache_clear()
    try:
        places = tars.members(broken(tmp_path / "fuzz.tar", bytes(whole)))
    except UserError as error:
        assert str(tmp_path / "fuzz.tar") in str(error)
    else:
        assert all(0 <= place.offset <= place.offset + place.size <= len(whole) for place in places.values())
