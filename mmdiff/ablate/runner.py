"""Runs the cells of a question: each one a training and an evaluation command, side by side, and again after any stop.

The one idea: the runner keeps no state. What is done lies in the cells' own folders, where the commands left it, so a
runner that was killed anywhere is started again by the same command, and a cell that was trained by hand is as good as
one of its own. A cell that fails keeps its error and does not stop the others.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, BinaryIO

from mmdiff import config, evaluate, records
from mmdiff.ablate.question import ROOT, Cell, Question, shorter
from mmdiff.errors import UserError
from mmdiff.progress import Advance, bar
from mmdiff.train.folder import plain

STOPPED = 75  # a training that saved and left because it was told to
PATIENCE = 1.0  # seconds between looks at a cell on which another process still works


@dataclass
class Runner:
    """Where cells go and how they are started."""

    question: Question
    steps: dict[str, int]  # of each arm
    out: Path
    jobs: int = 1
    gpus: Sequence[str] = ()  # one cell on each at a time; empty: `jobs` cells on whatever the commands find
    launcher: str = "{command}"
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopping: bool = False

    def __post_init__(self) -> None:
        if "{command}" not in self.launcher:
            raise UserError(f"The launcher {self.launcher!r} must say where the cell's command goes: {{command}}.")

    # ---- what a cell is --------------------------------------------------------------------------------------------

    def folder(self, cell: Cell) -> Path:
        """Its run folder."""
        return self.out / "cells" / cell.name

    def training(self, cell: Cell) -> list[str]:
        """The command that trains it."""
        return cell.command(self.question.base, self.folder(cell), steps=self.steps[cell.arm])

    def judging(self, cell: Cell) -> list[str]:
        """The command that evaluates it; cells share what they are compared with."""
        judge, folder = self.question.judge, self.folder(cell)
        options = {"split": judge.split, "n": judge.n, "seed": judge.seed, "training": judge.training}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += ["--out", str(shorter(folder / "evaluation.json")), "--cache", str(shorter(self.out / "evaluation"))]
        return [sys.executable, "tools/evaluate.py", str(shorter(folder)), *words]

    def trained(self, cell: Cell) -> bool:
        """Whether its folder holds the finished training of this very config."""
        folder, steps = self.folder(cell), self.steps[cell.arm]
        if not (folder / "DONE").is_file() or not (folder / "config.yaml").is_file():
            return False
        asked = config.read(self.question.base, [*cell.overrides, f"steps={steps}", f"run={shorter(folder)}"])
        return config.read(folder / "config.yaml") == plain(asked)

    def judged(self, cell: Cell) -> bool:
        """Whether its evaluation is there, of its last step, as the question asks for it."""
        try:
            protocol = evaluate.read(self.folder(cell) / "evaluation.json")["protocol"]
            known = records.read(self.folder(cell) / "judge.json", [records.MAYBE], again="")
        except UserError:
            return False
        judge = self.question.judge
        asked = (judge.split, [judge.seed], self.steps[cell.arm])
        found = (protocol["split"], protocol["seeds"], protocol["checkpoint"]["step"])
        return found == asked and known == [judge.n, judge.training]

    # ---- running them ----------------------------------------------------------------------------------------------

    def run(self, *, progress: bool = True) -> dict[str, str | None]:
        """Run what is not done -> cell: None, or the error that it ended with. Ctrl-c lets trainings save first."""
        cells, slots = self.question.cells(), Queue[str | None]()
        for gpu in self.gpus:
            slots.put(gpu)
        for _ in range(0 if self.gpus else self.jobs):
            slots.put(None)
        (self.out / "cells").mkdir(parents=True, exist_ok=True)
        with bar("cells", total=len(cells), show=progress) as advance, self._interruptible():
            with ThreadPoolExecutor(slots.qsize()) as pool:
                futures = [pool.submit(self._in_slot, cell, slots, advance) for cell in cells]
                try:
                    return {cell.name: future.result() for cell, future in zip(cells, futures, strict=True)}
                except BaseException:
                    self._stop()
                    raise

    def _in_slot(self, cell: Cell, slots: Queue[str | None], advance: Advance) -> str | None:
        slot = slots.get()
        try:
            return None if self.stopping else self._cell(cell, slot)
        finally:
            slots.put(slot)
            advance(1)

    def _cell(self, cell: Cell, slot: str | None) -> str | None:
        """Train and judge one cell -> its error."""
        with open(self.out / "cells" / f"{cell.name}.log", "ab") as log:
            self._claim(log)
            if not self.trained(cell) and (error := self._call(cell, self.training(cell), slot, log)):
                return error
            if not self.judged(cell):
                if error := self._call(cell, self.judging(cell), slot, log):
                    return error
                judge = self.question.judge
                (self.folder(cell) / "judge.json").write_text(json.dumps([judge.n, judge.training]))
        return None

    def _claim(self, log: BinaryIO) -> None:
        """Lock a cell by its log, which commands inherit: what a killed runner left behind finishes its work first."""
        while not claimed(log):
            if self.stopping:
                raise KeyboardInterrupt
            time.sleep(PATIENCE)

    def _call(self, cell: Cell, words: list[str], slot: str | None, log: BinaryIO) -> str | None:
        """Run a command, its output into the cell's log -> its error."""
        chosen = {} if slot is None else {"CUDA_VISIBLE_DEVICES": slot}
        begins = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            launched(self.launcher, words, name=cell.name), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | chosen, start_new_session=True,
        )  # fmt: skip
        self.running.append(process)
        if self.stopping:
            process.terminate()
        code = process.wait()
        self.running.remove(process)
        if self.stopping:
            raise KeyboardInterrupt
        if code == STOPPED:
            return "stopped by a signal after saving; the same command goes on with it"
        return said(Path(log.name), begins, code).replace(f"{shorter(self.out)}/", "") if code else None

    def _stop(self) -> None:
        """Tell every running command to save and leave."""
        self.stopping = True
        for process in list(self.running):
            process.terminate()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A scheduler's SIGTERM is a ctrl-c."""

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def claimed(log: BinaryIO) -> bool:
    """Whether the lock of an open log is ours now; it lasts until the log is closed here and in what we started."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def launched(template: str, words: Sequence[str], *, name: str) -> list[str]:
    """A launcher such as "srun --gres=gpu:1 --job-name={name} {command}" around a command."""
    found: list[str] = []
    for word in shlex.split(template):
        inner = word.replace("{name}", name)
        found += words if word == "{command}" else [inner.replace("{command}", shlex.join(words))]
    return found


def said(log: Path, begins: int, code: int) -> str:
    """The last line that a failed command wrote, which is its error."""
    with open(log, "rb") as file:
        file.seek(begins)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "it wrote nothing")
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return f"{last.removeprefix('error: ')} ({how})"
