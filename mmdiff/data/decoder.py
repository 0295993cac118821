"""Decoding in a process of its own, which is killed when it hangs, replaced when it dies, and bounded in memory.

FFmpeg meets files from anywhere. Some make a decoder hang deep in C, where no signal handler runs, some crash it, some
make it ask for all memory; each costs that clip and never the run. The answer comes back as numbers and JSON, not as
Python objects: what a hostile file could do to its decoder, it could not do to this process by way of the answer.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mmdiff.data import media
from mmdiff.data.buckets import Extent
from mmdiff.data.manifest import Entry
from mmdiff.data.media import BadMedia, Facts
from mmdiff.data.window import Draws, Policy, Reading, extent, read_window
from mmdiff.errors import UserError

MEMORY = 4 << 30  # bytes that a decoder may take beside what it inherits
REMEMBERED = 1 << 16  # files whose facts are kept
STARTS, GREETING = 3, 60.0  # tries to start a child, and s that each may take
ERRORS = {"bad": BadMedia, "user": UserError, "failed": RuntimeError}
Header = dict[str, Any]
Answer = tuple[Header, list[Tensor]]
Probe = Callable[[Path], Facts]


class Decoder:
    """One child a process, forked on the first call; safe to pickle, to copy and to fork, used by one thread.

    `refused` maps the ids of clips, and the paths of files, that hung or crashed a decoder to what they did: they are
    not tried again.
    """

    def __init__(self, seconds: float, refused: dict[str, str] | None = None) -> None:
        self.seconds, self.refused = seconds, {} if refused is None else refused
        self._owner, self._child = 0, 0
        self._line: Connection | None = None

    def window(self, entry: Entry, policy: Policy, draws: Draws) -> Reading:
        """`read_window` in the child. Raises BadMedia also for an answer that takes longer than `seconds`."""
        header, (video, audio) = self._ask(entry.id, _file(entry), "window", entry, policy, draws)
        return Reading(video, audio, header["valid"], header["settled"], header["took"])

    def extent(self, entry: Entry, policy: Policy) -> Extent:
        """`extent` in the child."""
        header, _ = self._ask(entry.id, _file(entry), "extent", entry, policy)
        return Extent(header["seconds"], None if header["size"] is None else (header["size"][0], header["size"][1]))

    def probe(self, path: str | Path) -> Facts:
        """`media.probe` in the child."""
        header, _ = self._ask(str(path), str(path), "probe", Path(path))
        spans = {name: header[name] and tuple(header[name]) for name in ("size", "picture", "sound")}
        return Facts(**{name: value for name, value in header.items() if name not in ("tensors", "took")} | spans)

    def read(self, reader: str, path: str | Path, **named: Any) -> Tensor:
        """`media.read_video`, `read_image` or `read_audio` in the child."""
        return self._ask(str(path), str(path), reader, Path(path), named)[1][0]

    def _ask(self, name: str, file: str, task: str, *arguments: Any) -> Answer:
        if name in self.refused:
            raise BadMedia(self.refused[name])
        line = self._connected()
        try:
            return self._answer(line, (task, arguments))
        except (TimeoutError, EOFError, ConnectionError) as error:
            hung = isinstance(error, TimeoutError)
            reason = f"gave no answer within {self.seconds:g} s" if hung else f"crashed ({self._cause()})"
            self.close()
            self.refused[name] = f"{file}: the decoder {reason}."
            raise BadMedia(self.refused[name]) from error

    def _answer(self, line: Connection, request: tuple[Any, ...]) -> Answer:
        line.send(request)
        if not line.poll(self.seconds):
            raise TimeoutError
        header = json.loads(line.recv_bytes())
        for kind, error in ERRORS.items():
            if kind in header:
                raise error(header[kind])
        return header, [_received(line, shape, dtype) for shape, dtype in header.get("tensors", [])]

    # ---- the child's life ------------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        """The line to a living child of this very process."""
        if self._line is not None and self._owner == os.getpid():
            if os.waitpid(self._child, os.WNOHANG) == (0, 0):
                return self._line
            self._line.close()
        media.load()  # so that no child has to
        for _ in range(STARTS):
            line = self._forked()
            if _greeted(line):
                return line
            self.close()
        raise UserError(
            f"No process that decodes could be started here ({STARTS} tries): each ended or fell silent before it saw a "
            "file. Free memory, or look at the limits of this machine (ulimit -a); docs/data.md says what it needs."
        )

    def _forked(self) -> Connection:
        """A new child, which may or may not come up."""
        ours, theirs = Pipe()
        self._line, self._owner = ours, os.getpid()
        self._child = os.fork()
        if self._child == 0:
            ours.close()  # or it would never see the end of the line
            _serve(theirs, self._owner)
        theirs.close()
        return ours

    def _cause(self) -> str:
        """How the child ended, which it did or is about to."""
        for _ in range(100):
            child, status = os.waitpid(self._child, os.WNOHANG)
            if child:
                self._owner = 0
                code = os.waitstatus_to_exitcode(status)
                return f"signal {-code}" if code < 0 else f"exit code {code}"
            time.sleep(0.01)
        return "it fell silent"

    def close(self) -> None:
        """Kill the child; the next call has another."""
        if self._line is not None:
            self._line.close()
        if self._line is not None and self._owner == os.getpid():
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._owner, self._line = 0, None

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "refused": self.refused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _file(entry: Entry) -> str:
    return str(entry.video or entry.audio or entry.id)


def _greeted(line: Connection) -> bool:
    """Whether a child is ready. One that forked while a lock was held may never be, which is no file's fault."""
    try:
        return line.poll(GREETING) and line.recv_bytes() == b""
    except (EOFError, ConnectionError):
        return False


def _received(line: Connection, shape: list[int], dtype: str) -> Tensor:
    """The next tensor on the line."""
    kind = getattr(torch, dtype)
    count = torch.Size(shape).numel()
    buffer = bytearray(count * kind.itemsize)
    line.recv_bytes_into(buffer)
    return torch.frombuffer(buffer, dtype=kind, count=count).view(shape)


# ---- inside the child ----------------------------------------------------------------------------------------------


def _serve(line: Connection, parent: int) -> NoReturn:
    """Answer until the other end is gone."""
    try:
        _settle(parent)
        line.send_bytes(b"")
        facts: dict[Path, Facts | str] = {}
        while True:
            (task, arguments), began = line.recv(), time.monotonic()
            header, tensors = _done(task, lambda path: _probed(path, facts), arguments)
            header |= {"tensors": [_described(t) for t in tensors], "took": time.monotonic() - began}
            line.send_bytes(json.dumps(header).encode())
            for tensor in tensors:
                line.send_bytes(memoryview(tensor.numpy().data).cast("B"))
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)  # never back into the code that forked


def _settle(parent: int) -> None:
    """Die with the parent and by its hand alone, on one thread, within the memory."""
    gc.freeze()  # what was inherited is not this process's to collect
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = taken + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)  # threads do not survive a fork
    if os.getppid() != parent:
        os._exit(0)


def _done(task: str, probed: Probe, arguments: tuple[Any, ...]) -> Answer:
    """What a request asks for, or why there is none -> what is said, and the tensors behind it."""
    try:
        return TASKS[task](probed, *arguments)
    except BadMedia as error:
        return {"bad": str(error)}, []
    except UserError as error:
        return {"user": str(error)}, []
    except Exception:
        return {"failed": traceback.format_exc()}, []


def _window(probed: Probe, entry: Entry, policy: Policy, draws: Draws) -> Answer:
    reading = read_window(entry, policy, draws, probed)
    return {"valid": reading.valid, "settled": reading.settled}, [reading.video, reading.audio]


def _extent(probed: Probe, entry: Entry, policy: Policy) -> Answer:
    return asdict(extent(entry, policy, probed)), []


TASKS: dict[str, Callable[..., Answer]] = {
    "window": _window,
    "extent": _extent,
    "probe": lambda _, path: (asdict(media.probe(path)), []),
    "read_video": lambda _, path, named: ({}, [media.read_video(path, **named)]),
    "read_image": lambda _, path, named: ({}, [media.read_image(path, **named)]),
    "read_audio": lambda _, path, named: ({}, [media.read_audio(path, **named)]),
}


def _described(tensor: Tensor) -> tuple[list[int], str]:
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _probed(path: Path, known: dict[Path, Facts | str]) -> Facts:
    """Facts or the reason against the file, remembered: they hang on the file alone."""
    if path not in known:
        if len(known) >= REMEMBERED:
            known.clear()
        try:
            known[path] = media.probe(path)
        except BadMedia as error:
            known[path] = str(error)
    facts = known[path]
    if isinstance(facts, str):
        raise BadMedia(facts)
    return facts
