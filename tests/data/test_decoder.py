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

from mmdiff.data import media, window
from mmdiff.data.clips import Clips
from mmdiff.data.decoder import Decoder
from mmdiff.data.loader import loader
from mmdiff.data.manifest import read_entries
from mmdiff.data.media import BadMedia
from mmdiff.data.window import Draws, Policy

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
    "hang": (hold_everything, "gave no answer within 1 s"),
    "crash": (crash, "crashed (signal 11)"),
    "leave": (lambda: os._exit(3), "crashed (exit code 3)"),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("workers", [0, 2])
def test_harm_costs_one_clip_which_is_named(harm: str, workers: int, folder: Path, monkeypatch: Any) -> None:
    act, reason = HARM[harm]
    monkeypatch.setattr(window.media, "read_video", harmful(act))
    clips = Clips(folder, frames=4, fps=8, size=[16, 16], rate=8000, split=None, patience=1.0)
    batches = loader(clips, plan=clips.plan(4), steps=2, workers=workers)
    names = [name for _, parts in batches for part in parts for name in part["id"]]
    assert len(names) == 8 and set(names) == {"0.mp4", "1.mp4", "3.mp4"}
    (bad,) = clips.bad
    assert bad["id"] == "2.mp4" and f"2.mp4: the decoder {reason}." in bad["reason"]


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
    time.sleep(0.05)
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
