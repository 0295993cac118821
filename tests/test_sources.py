"""No tool changes what it reads: every tool's main on a small folder of clips whose every byte is hashed around it."""

from __future__ import annotations

import hashlib
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmdiff import build, noise
from mmdiff.config import dump
from mmdiff.data import media

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path.stem for path in ROOT.glob("tools/*.py"))
CPU = ["--device", "cpu"]
CAPTION = "a large red ball falls and bounces twice with a bell sound"


def written(path: Path, base: str, *changes: str) -> str:
    """A config of its own -> its path."""
    path.write_text(dump(build.read(ROOT / base, changes)))
    return str(path)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder of clips, which nobody may write to, and what the tools need beside it."""
    here = tmp_path_factory.mktemp("sources")
    (data := here / "data").mkdir()
    draw = noise.generator(0)
    for i in range(6):
        video = (torch.rand(8, 16, 16, 3, generator=draw) * 255).to(torch.uint8)
        media.write_clip(data / f"{i}.mp4", video, fps=8, audio=torch.rand(1, 8000, generator=draw) - 0.5, rate=8000)
        (data / f"{i}.txt").write_text(f"{CAPTION}\n")
    media.write_png(data / "p.png", video[0])
    media.write_wav(data / "s.wav", torch.rand(1, 8000, generator=draw) - 0.5, rate=8000)
    (data / "broken.mp4").write_bytes(b"no clip")
    smoke = "configs/sounding_objects/smoke.yaml"
    small = [f"data.path={data}", "prepare=null", "steps=1", "batch=4", "held_out=null", "data.split=null"]
    small += [f"system.{m}.components=4" for m in ("video", "audio")]
    small += [f"system.denoiser.net.{m}.channels=4" for m in ("video", "audio")]
    quiet = ["every={log: 1, save: 1, sample: 0, evaluate: 0}"]
    config = written(here / "config.yaml", smoke, *small, *quiet, f"run={here / 'runs/one'}")
    shape = "{kind: clip_shape, frames: 8, fps: 8, size: [16, 16], rate: 8000}"
    plan = "{kind: plan, widths: [8, 8], strides: [[2, 2, 2]], kernel: [3, 3, 3], blocks: 1, groups: 4}"
    codec = f"{{kind: vae, channels: 3, latent: 4, plan: {plan}}}"
    parts = f"system={{kind: autoencoding, autoencoder: {codec}, shape: {shape}}}"
    vae = written(here / "vae.yaml", smoke, parts, *small[:6], *quiet, f"run={here / 'runs/vae'}")
    question = {"base": config, "question": "Anything?", "vary": {"lr": {"low": {"optimizer.lr": 1e-4}, "high": {}}}}
    (here / "question.yaml").write_text(dump(question | {"seeds": [0], "budget": {"match": "steps"}}))
    found = SimpleNamespace(here=here, data=data, config=config, run=here / "runs/one", vae=here / "runs/vae")
    for text in (config, vae):
        assert call("train", text) in (0, None)
    call(
        "sample_video",
        str(found.run),
        "--prompt",
        CAPTION,
        "--out",
        str(here / "clips"),
        "--steps",
        "1",
        *CPU,
    )
    for path in [*data.iterdir(), data]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return found


def call(tool: str, *arguments: str) -> object:
    """A tool's main in this process -> what it returned."""
    main = runpy.run_path(str(ROOT / f"tools/{tool}.py"))["main"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [tool, *arguments])
        return main(list(arguments)) if main.__code__.co_argcount else main()


def commands(at: SimpleNamespace) -> dict[str, list[str]]:
    """A line for every tool, with the clips as what it reads, directly or by way of a run that was trained on them."""
    run, out = str(at.run), str(at.here / "out")
    given = ["--image", str(at.data / "p.png"), "--audio", str(at.data / "s.wav")]
    return {
        "ablate": [str(at.here / "question.yaml"), "--dry-run", "--out", f"{out}/ablation"],
        "contact_sheet": [str(at.here / "clips"), "--data", str(at.data), "--out", f"{out}/sheet.png", "--frames", "1"],
        "encode": [at.config, "--out", f"{out}/latents"],
        "evaluate": [run, *"--split val --n 2 --training 2 --steps 1".split(), *CPU],
        "export": [run, f"{out}/export"],
        "inspect_data": [str(at.data), at.config, "--out", f"{out}/inspection", "--previews", "1"],
        "leaderboard": [str(at.here / "runs"), "--out", f"{out}/leaderboard.md"],
        "listen": [run, "--split", "val", "--n", "1", "--out", f"{out}/words.json"],
        "reconstruct": [str(at.vae), "--split", "val", "--count", "1"],
        "report": [run, "--clips", str(at.here / "clips"), "--count", "2"],
        "sample_video": [run, "--prompt", "a red ball", "--out", f"{out}/made", "--steps", "1", *given, *CPU],
        "supervise": ["--run", run, "--", sys.executable, "-c", "pass"],
        "train": [at.config, f"run={out}/run"],
    }


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 and time of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f): f"{hashlib.sha256(f.read_bytes()).hexdigest()} {f.stat().st_mtime_ns}" for f in files}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", TOOLS)
def test_sources_stay_as_they_are(tool: str, at: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("mmdiff.inspection.speed.SECONDS", 0.05)
    lines = commands(at)
    assert tool in lines, f"say in {Path(__file__).name} how tools/{tool}.py is called"
    before = hashes(at.data)
    if tool == "leaderboard":  # it tells of runs that were evaluated
        call("evaluate", *lines["evaluate"])
    assert call(tool, *lines[tool]) in (0, None) and hashes(at.data) == before
