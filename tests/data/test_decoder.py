"""Decoders that hang, crash or take all memory: each costs one clip, is named, and leaves no process behind."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmdiff.batch import ClipShape
from mmdiff.data import apart, media, window
from mmdiff.data.clips import Clips
from mmdiff.data.decoder import Decoder
from mmdiff.data.loader import loader
from mmdiff.data.manifest import read_entries
from mmdiff.data.media import BadMedia
from mmdiff.data.window import Draws, Policy
from mmdiff.errors import UserError
from mmdiff.evaluate.folder import folder as judged
from mmdiff.inspection.offsets import spot
from mmdiff.material import Material
from mmdiff.material import read as given

POLICY = Policy(4, 8.0, (16, 16), 8000)
DRAWS = Draws(0.5, (0.5, 0.5))


@pytest.fixture(scope="module")
def folder(studio: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder")
    for k in range(4):
        studio.encode(path / f"{k}.mp4", studio.grey(24, 32, 32), studio.click(1, 8000, [0.5]), rate=8000)
    return path


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(20.0)
    yield made
    made.close()


def harmful(act: Any) -> Any:
    """`read_video` that does harm to the clip 2."""
    read = media.read_video

    def harms(path: Path, **arguments: Any) -> torch.Tensor:
        if path.name == "2.mp4":
            act()
        return read(path, **arguments)

    return harms


def hold_everything() -> None:
    ctypes.PyDLL(None).sleep(1000)  # in C, with the interpreter's lock: no thread of this process runs


def crash() -> None:
    faulthandler.disable()  # pytest's, which would print what is meant to happen
    os.kill(os.getpid(), signal.SIGSEGV)


HARM = {
    "hang": (hold_everything, "gave no answer within 3 s"),
    "crash": (crash, "crashed (signal 11)"),
    "leave": (lambda: os._exit(3), "crashed (exit code 3)"),
}
PATIENCE = {"hang": 3.0, "crash": 60.0, "leave": 60.0}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("workers", [0, 2])
def test_harm_costs_one_clip_which_is_named(harm: str, workers: int, folder: Path, monkeypatch: Any) -> None:
    act, reason = HARM[harm]
    monkeypatch.setattr(window.media, "read_video", harmful(act))
    clips = Clips(folder, frames=4, fps=8, size=[16, 16], rate=8000, split=None, patience=PATIENCE[harm])
    batches = loader(clips, plan=clips.plan(4), steps=2, workers=workers)
    names = [name for _, parts in batches for part in parts for name in part["id"]]
    assert len(names) == 8 and set(names) == {"0.mp4", "1.mp4", "3.mp4"}
    (bad,) = clips.bad
    assert bad["id"] == "2.mp4" and f"2.mp4: the decoder {reason}." in bad["reason"]


@pytest.mark.parametrize("harm", HARM)
def test_files_that_tools_are_given_are_decoded_apart(harm: str, folder: Path, monkeypatch: Any) -> None:
    """sample_video.py --video, evaluate.py --clips and inspect_data.py: the file is named, and the tool lives on."""
    act, reason = HARM[harm]
    shape, steps = ClipShape(8, 8.0, (16, 16), 8000), {"video": torch.zeros(4), "audio": torch.zeros(16)}
    monkeypatch.setattr(media, "read_video", harmful(act))
    monkeypatch.setattr(apart._own, "decoder", Decoder(PATIENCE[harm]))
    tools = {
        "sample": lambda path: given(Material(video=str(path)), shape, steps),
        "evaluate": lambda path: judged(path.parent, shape=shape),
        "inspect": lambda path: spot(next(e for e in read_entries(path.parent) if e.video == path)),
    }
    for tool, use in tools.items():
        with pytest.raises(UserError) as caught:
            use(folder / "2.mp4")
        assert str(caught.value) == f"{folder / '2.mp4'}: the decoder {reason}.", tool
        apart._own.decoder.refused.clear()
    assert apart.read_video(folder / "1.mp4", start=0.0, fps=8, frames=4).any()
    apart._own.decoder.close()


def test_apart_the_readers_give_the_same(folder: Path, tmp_path: Path) -> None:
    path, asked = folder / "0.mp4", {"start": 0.1, "fps": 8.0, "frames": 4}
    assert apart.probe(path) == media.probe(path)
    assert torch.equal(apart.read_video(path, **asked), media.read_video(path, **asked))
    assert torch.equal(*(m.read_audio(path, start=0.2, seconds=0.5, rate=16000) for m in (apart, media)))
    media.write_png(tmp_path / "a.png", torch.full((9, 9, 3), 77, dtype=torch.uint8))
    assert torch.equal(*(m.read_image(tmp_path / "a.png", size=(4, 5)) for m in (apart, media)))
    assert apart.probe(tmp_path / "a.png") == media.probe(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"another")  # nothing is remembered of a file that may change
    with pytest.raises(BadMedia, match="not a png"):
        apart.probe(tmp_path / "a.png")


def test_a_machine_on_which_no_decoder_starts_is_no_fault_of_the_clip(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mmdiff.data.decoder._settle", lambda parent: os._exit(3))
    decoder = Decoder(20.0)
    with pytest.raises(UserError, match="No process that decodes could be started here") as caught:
        decoder.window(read_entries(folder)[0], POLICY, DRAWS)
    assert not isinstance(caught.value, BadMedia) and not decoder.refused and decoder._line is None


def test_the_answer_is_that_of_this_process(folder: Path, decoder: Decoder) -> None:
    for entry in read_entries(folder):
        ours = window.read_window(entry, POLICY, DRAWS, media.probe)
        theirs = decoder.window(entry, POLICY, DRAWS)
        assert torch.equal(ours.video, theirs.video) and torch.equal(ours.audio, theirs.audio)
        assert (ours.valid, ours.settled) == (theirs.valid, theirs.settled) and theirs.video.dtype == torch.uint8
        assert decoder.extent(entry, POLICY) == window.extent(entry, POLICY, media.probe)


def test_memory_is_bounded(folder: Path, decoder: Decoder, monkeypatch: Any) -> None:
    monkeypatch.setattr(window.media, "read_video", harmful(lambda: torch.ones(6 << 30, dtype=torch.uint8)))
    entries = read_entries(folder)
    with pytest.raises((BadMedia, RuntimeError), match="memory"):
        decoder.window(entries[2], POLICY, DRAWS)
    assert decoder.window(entries[1], POLICY, DRAWS).video.any()


def test_nothing_is_left_behind_and_copies_have_their_own(folder: Path) -> None:
    decoder, entry = Decoder(20.0), read_entries(folder)[0]
    decoder.window(entry, POLICY, DRAWS)
    other = pickle.loads(pickle.dumps(decoder))
    other.window(entry, POLICY, DRAWS)
    pids = [decoder._child, other._child]
    assert len(set(pids)) == 2
    os.kill(pids[0], signal.SIGKILL)  # a child that dies between two calls is nobody's fault
    os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
    assert decoder.window(entry, POLICY, DRAWS).video.any()
    pids.append(decoder._child)
    decoder.close()
    del other
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_decoder_dies_with_its_process(folder: Path) -> None:
    entry, (out, into) = read_entries(folder)[0], os.pipe()
    child = os.fork()
    if child == 0:
        decoder = Decoder(20.0)
        decoder.window(entry, POLICY, DRAWS)
        os.write(into, str(decoder._child).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int(os.read(out, 20))
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the decoder outlived its process")
