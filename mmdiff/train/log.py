"""What a run says about itself: log.jsonl, TensorBoard, and a line of progress. Only the first rank writes.

A log never holds a step twice: after a crash the lines beyond the checkpoint are cut off before the run goes on. A
full disk ends no run here: lines wait until there is room, and what TensorBoard and previews lose is told.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mmdiff.batch import Batch
from mmdiff.data import media
from mmdiff.files import write_text

Record = dict[str, Any]


class Log:
    """The log of one run, from the step after `step` on; does nothing where `active` is false."""

    def __init__(self, folder: Path, *, step: int, steps: int, active: bool) -> None:
        self.folder, self.steps, self.active = folder, steps, active
        self.board: Any = None
        if active:
            cut(folder / "log.jsonl", after=step)
            self.lines = Lines(folder / "log.jsonl")
            self.line = Line(step, steps)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.active:
            self.line.close()
            with self._survived("the end of log.jsonl"):
                self.lines.close()
        if self.board is not None:
            with self._survived("the end of the TensorBoard file"):
                self.board.close()

    def write(self, step: int, record: Record) -> None:
        """One line of log.jsonl, and its numbers to TensorBoard; an empty record writes nothing."""
        if not self.active or not record:
            return
        with self._survived(f"the line of step {step}, which waits,"):
            self.lines.add(json.dumps({"step": step} | record))
        with self._survived(f"TensorBoard's numbers of step {step}"):
            for name, value in flat(record).items():
                self._tensorboard(step).add_scalar(name, value, step)

    def progress(self, step: int, record: Record) -> None:
        """Show where the run is."""
        if self.active:
            self.line.show(step, record)

    def previews(self, clips: Batch, step: int) -> None:
        """Write clips to samples/step-N/ and to TensorBoard."""
        if self.active:
            with self._survived(f"previews of step {step}"):
                self._write_previews(clips, step)

    def _write_previews(self, clips: Batch, step: int) -> None:
        folder = self.folder / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "prompts.json", json.dumps(clips["text"], ensure_ascii=False, indent=1) + "\n")
        for i in range(len(clips["text"])):
            video = media.pixels(clips["video"][i]) if "video" in clips else None  # (t h w 3)
            audio = clips["audio"][i].float().cpu() if "audio" in clips else None  # (1 n)
            media.write_any(
                folder / f"{i:02d}", video, audio, fps=float(clips["fps"][i]), rate=int(clips.get("rate", 0))
            )
            self._show_preview(i, video, audio, clips, step)

    def _show_preview(self, i: int, video: Tensor | None, audio: Tensor | None, clips: Batch, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        board = self._tensorboard(step)
        if video is not None:
            picture = Summary.Image(height=video.shape[1], width=video.shape[2], colorspace=3)
            picture.encoded_image_string = gif(video, fps=float(clips["fps"][i]))
            board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=f"clip/{i}", image=picture)]), step)
        if audio is not None:
            board.add_audio(f"sound/{i}", audio.clamp(-1, 1), step, sample_rate=int(clips["rate"]))
        board.add_text(f"prompt/{i}", clips["text"][i], step)

    @contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """Go on where the disk refuses something, and say so."""
        try:
            yield
        except OSError as error:
            self.board = None  # after an error its thread has ended
            print(f"{what} could not be written in {self.folder}: {error}", file=sys.stderr, flush=True)

    def _tensorboard(self, step: int) -> Any:
        """The TensorBoard writer, made when it is first needed."""
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        return self.board


class Lines:
    """Lines at the end of a file, each whole or not there; those that a full disk refuses wait for the next."""

    def __init__(self, path: Path) -> None:
        self.file, self.waiting = open(path, "ab", buffering=0), b""

    def add(self, line: str) -> None:
        """Write a line after those that wait. Raises OSError and keeps them if there is no room."""
        self.waiting += f"{line}\n".encode()
        self._write()

    def close(self) -> None:
        """The last chance of what waits."""
        with self.file:
            self._write()

    def _write(self) -> None:
        size = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(self.waiting) < len(self.waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.file.truncate(size)
            raise
        self.waiting = b""


def cut(path: Path, *, after: int) -> None:
    """Remove the lines of later steps, and a line that a crash left unfinished."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    write_text(path, "".join(f"{line}\n" for line in lines if _step(line) <= after))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def flat(record: Record, prefix: str = "") -> dict[str, float]:
    """The numbers of a record by path: {"a": {"b": 1}} -> {"a/b": 1.0}."""
    out: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            out[f"{prefix}{key}"] = float(value)
    return out


class Line:
    """One line that tells step, loss, speed and the time left; a plain line a record where nobody watches."""

    def __init__(self, step: int, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.began, self.first, self.steps = time.monotonic(), step, steps
        console = Console(stderr=True)
        self.live = console.is_terminal
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.rich = Progress(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not self.live
        )
        self.rich.start()
        self.task = self.rich.add_task("", total=steps, completed=step)

    def show(self, step: int, record: Record) -> None:
        """Show a record."""
        share = record["data_wait_s"] / max(record["step_s"], 1e-9)
        words = f"loss {record['loss']:.4f}  {record['samples_s']:.1f} samples/s  data {share:.0%}"
        self.rich.update(self.task, completed=step, description=words)
        if not self.live:
            left = (time.monotonic() - self.began) / (step - self.first) * (self.steps - step)
            print(f"step {step}/{self.steps}  {words}  left {left:.0f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        self.rich.stop()


def gif(video: Tensor, *, fps: float) -> bytes:
    """(t h w 3) uint8 -> an animated GIF, which is what TensorBoard plays."""
    from PIL import Image

    frames = [Image.fromarray(frame.numpy()) for frame in video]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return out.getvalue()
