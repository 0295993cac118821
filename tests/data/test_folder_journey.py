"""A folder of clips that nobody rendered: trained on by the shipped recipe and sampled from, by the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import torch

from mmdiff.data import media

ROOT = Path(__file__).resolve().parents[2]
TINY = ["system.denoiser.net.depth=1", "engine.precision=fp32", "steps=2", "batch=4", "every.save=2", "every.log=1"]


def tool(*arguments: str) -> str:
    """A tool that has to succeed -> what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_anyones_clips_become_a_model_and_a_clip(ordinary: Path, studio: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    whole = ordinary.read_bytes()
    for k in range(4):
        (folder / f"clip{k}.mp4").write_bytes(whole)
        (folder / f"clip{k}.txt").write_text("a grey wall lights up\nlight, with a click\n")
    studio.encode(folder / "silent.mp4", studio.moving(60, 480, 640))
    studio.encode(folder / "song.wav", None, studio.click(3, 48000, [1.0, 2.0], 2), audio="pcm_s16le", rate=48000)
    media.write_png(folder / "still.png", torch.full((480, 640, 3), 200, dtype=torch.uint8))
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")

    said = tool("tools/train.py", "configs/folder.yaml", f"data.path={folder}", f"run={tmp_path / 'run'}", *TINY)
    assert [said.count(f"skipped clip {name}.mp4") for name in ("broken", "empty")] == [1, 1], said
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and rows[-1]["loss/video"] > 0 and rows[-1]["loss/audio"] >= 0

    out = tmp_path / "out"
    tool("tools/sample_video.py", str(tmp_path / "run"), "--prompt", "light", "--out", str(out), "--steps", "2")
    (clip,) = out.glob("*.mp4")
    with av.open(str(clip)) as made:
        assert {stream.codec_context.name for stream in made.streams} == {"h264", "aac"}
        assert sum(1 for _ in made.decode(video=0)) == 16 and made.streams.video[0].width == 64
