"""A small data set as files, and systems that know its clips: a perfect one, and ones that cheat."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from worlds_made import save, worlds

from mmdiff import build
from mmdiff.evaluate.clips import as_batch
from mmdiff.metrics.score import Clip

COUNTS = {"train": 24, "iid": 36, "comp": 12}
NUMBERS = count()
Change = Callable[[Clip, int], Clip]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for split, number in COUNTS.items():
        for i, (clip, text) in enumerate(worlds(split, number)):
            save(folder, name := f"{split}-{i:03d}", clip)
            rows.append(
                {"id": name, "video": f"{name}.mp4", "audio": f"{name}.wav", "captions": [text], "split": split}
            )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Oracle:
    """A system that answers a caption with the very clip that it describes, changed in some way; an identity codec."""

    def __init__(self, known: dict[str, Clip], change: Change, has: tuple[str, ...]) -> None:
        self.known, self.change, self.has, self.made, self.patience = known, change, has, 0, 10**9

    def generate(self, batch: dict[str, Any], *, report: Any, **settings: Any) -> dict[str, Any]:
        if self.made + len(batch["text"]) > self.patience:
            raise KeyboardInterrupt
        clips = [self.change(self.known[text], i + self.made) for i, text in enumerate(batch["text"])]
        self.made += len(clips)
        whole = as_batch(clips)
        return {**batch, **{k: v for k, v in whole.items() if k in (*self.has, "fps", "rate")}}

    def encode(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def decode(self, z: dict[str, Any], batch: dict[str, Any], *, keys: list[int]) -> dict[str, Any]:
        return z


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all models, whose anchors are the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Callable[..., tuple[Path, Oracle]]:
    """A function that makes a run folder whose system is an `Oracle`."""

    def make(change: Change = lambda clip, i: clip, has: tuple[str, ...] = ("video", "audio")) -> tuple[Path, Oracle]:
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        tree = {"data": {"kind": "clips", "path": str(data), "frames": 16, "fps": 8, "size": [32, 32], "rate": 8000}}
        tree |= {"system": {"kind": "oracle"}, "seed": 0, "sample": {"steps": 3, "sampler": "euler", "guidance": 1.0}}
        (run / "config.yaml").write_text(json.dumps(tree))
        known = {text: clip for split, number in COUNTS.items() for clip, text in worlds(split, number)}
        system = Oracle(known, change, has)
        answer = (system, tree, {"step": 9, "hash": f"model {next(NUMBERS)}"})  # so that no two share clips
        monkeypatch.setattr(build, "load", lambda run, *, ema=True, device="cpu": answer)
        return run, system

    return make
