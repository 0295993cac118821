"""Every flag of tools/sample_video.py that gives or shapes a clip, through the tool itself in one process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff import generate
from mmdiff.autoencoders.pixels import Pixels
from mmdiff.batch import ClipShape
from mmdiff.conditioners import Conditioners
from mmdiff.data import media
from mmdiff.denoiser import Denoiser
from mmdiff.errors import UserError
from mmdiff.process import Linear, Uniform
from mmdiff.systems.joint import Joint
from mmdiff.tasks import TASKS

SHAPE = ClipShape(frames=16, fps=8.0, size=(32, 32), rate=8000)
GREY = 90


class Still(nn.Module):
    """A network of nothing: it moves no picture and no sound."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor], cond: Any) -> dict[str, Tensor]:
        return {name: torch.zeros_like(part) for name, part in x.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    sound = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 8000)[None]
    media.write_png(folder / "a.png", torch.full((40, 50, 3), GREY, dtype=torch.uint8))
    media.write_wav(folder / "a.wav", sound, rate=8000)
    grey = torch.full((16, 32, 32, 3), GREY, dtype=torch.uint8)
    clip = media.write_any(folder / "clip", grey, sound, fps=8.0, rate=8000)
    return {"png": str(folder / "a.png"), "wav": str(folder / "a.wav"), "mp4": str(clip)}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    denoiser = Denoiser(Still(), process=Linear(), target="flow", draw=Uniform())
    tasks = dict.fromkeys(TASKS, 1.0)
    codecs: Any = {"video": Pixels(), "audio": Pixels(channels=1)}
    system = Joint(conditioner=Conditioners(), denoiser=denoiser, shape=SHAPE, tasks=tasks, **codecs)
    monkeypatch.setattr(generate.build, "load", lambda run, *, ema, device: (system, {}, {"step": 1, "hash": "a"}))
    path = Path(__file__).parents[1] / "tools" / "sample_video.py"
    spec = importlib.util.spec_from_file_location("sample_video", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(tool: ModuleType, out: Path, *flags: str) -> tuple[Tensor, dict[str, Any]]:
    """-> frames (t h w 3) and the side file."""
    given = ["run", "--prompt", "a ball", "--device", "cpu", "--steps", "2", "--guidance", "1", "--out", str(out)]
    tool.main([*given, *flags])
    (path,) = out.glob("*.json")
    side = json.loads(path.read_text(encoding="utf-8"))
    size = (side["size"][0], side["size"][1])
    clip = out / side["file"]
    return media.read_video(str(clip), start=0.0, fps=side["fps"], frames=side["frames"], size=size), side


def grey(frames: Tensor) -> list[bool]:
    """Which frames are the given grey."""
    return ((frames.float() - GREY).abs().mean((1, 2, 3)) < 12).tolist()


@pytest.mark.parametrize(
    ("flags", "held"),
    [
        (["--image", "png"], [0]),
        (["--last-image", "png"], [15]),
        (["--image", "png", "--last-image", "png"], [0, 15]),
        (["--video", "mp4"], list(range(16))),
        (["--video", "mp4", "--extend", "1"], list(range(8))),
        (["--video", "mp4", "--extend", "-1"], list(range(8, 16))),
        (["--audio", "wav"], []),
        (["--audio", "wav", "--extend", "1"], []),
    ],
)
def test_what_is_given_is_in_the_clip(
    tool: ModuleType, files: dict[str, str], tmp_path: Path, flags: list[str], held: list[int]
) -> None:
    frames, side = made(tool, tmp_path, *[files.get(flag, flag) for flag in flags])
    assert [i for i, same in enumerate(grey(frames)) if same] == held
    assert set(side["material"]["sha256"]) == {files[flag] for flag in flags if flag in files}


@pytest.mark.parametrize(
    ("flags", "frames", "size", "fps", "samples"),
    [
        (["--size", "32x48"], 16, [32, 48], 8.0, 16000),
        (["--seconds", "3"], 24, [32, 32], 8.0, 24000),
        (["--seconds", "1"], 8, [32, 32], 8.0, 8000),
        (["--fps", "4"], 8, [32, 32], 4.0, 16000),
        (["--seconds", "3", "--fps", "4", "--overlap", "0.5"], 12, [32, 32], 4.0, 24000),
        (["--negative", "a box", "--guidance", "2"], 16, [32, 32], 8.0, 16000),
    ],
)
def test_clips_have_the_shape_that_was_asked_for(
    tool: ModuleType, tmp_path: Path, flags: list[str], frames: int, size: list[int], fps: float, samples: int
) -> None:
    _, side = made(tool, tmp_path, *flags)
    assert [side[name] for name in ("frames", "size", "fps", "samples")] == [frames, size, fps, samples]


def test_a_picture_may_begin_and_end_a_clip_of_several_windows(
    tool: ModuleType, files: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--prompt", "a | b", "--seconds", "4", "--image", files["png"], "--last-image", files["png"]]
    given = ["run", "--device", "cpu", "--steps", "2", "--guidance", "1", "--out", str(tmp_path)]
    tool.main([*given, *flags])
    (path,) = tmp_path.glob("*.mp4")
    frames = media.read_video(str(path), start=0.0, fps=8.0, frames=32, size=(32, 32))
    assert [i for i, same in enumerate(grey(frames)) if same] == [0, 31]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "32"], "32x48"),
        (["--extend", "1"], "--video or --audio"),
        (["--video", "mp4", "--image", "png"], "give one"),
        (["--video", "mp4", "--extend", "3"], "--seconds"),
        (["--seconds", "3", "--overlap", "3"], "--overlap"),
        (["--prompt", "a | b | c | d", "--seconds", "3"], "4 parts"),
        (["--image", "absent.png"], "absent.png"),
    ],
)
def test_what_cannot_be_made_is_said(
    tool: ModuleType, files: dict[str, str], tmp_path: Path, flags: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        made(tool, tmp_path, *[files.get(flag, flag) for flag in flags])
