"""Files become the clips and masks of a request, cut to the window of what is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdiff.batch import ClipShape
from mmdiff.data import media
from mmdiff.errors import UserError
from mmdiff.material import Material, read

SHAPE = ClipShape(frames=8, fps=8.0, size=(16, 16), rate=8000)
SECONDS = {"video": (torch.arange(4) + 0.5) / 4, "audio": (torch.arange(16) + 0.5) / 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    image = torch.full((16, 16, 3), 200, dtype=torch.uint8)
    media.write_png(folder / "a.png", image)
    t = torch.arange(16000) / 8000
    media.write_wav(folder / "a.wav", 0.5 * torch.sin(2 * torch.pi * 440 * t)[None], rate=8000)
    return {"png": str(folder / "a.png"), "wav": str(folder / "a.wav")}


def test_a_picture_stands_still_for_one_latent_step(files: dict[str, str]) -> None:
    found = read(Material(image=files["png"], last_image=files["png"]), SHAPE, SECONDS)
    assert found["held"]["video"][0, 0, :, 0, 0].tolist() == [True, False, False, True]
    torch.testing.assert_close(found["video"][0, :, :2], torch.full((3, 2, 16, 16), 200 / 127.5 - 1))
    assert list(found["held"]) == ["video"]


def test_sound_is_given_up_to_the_step_before_the_cut(files: dict[str, str]) -> None:
    whole = read(Material(audio=files["wav"]), SHAPE, SECONDS)
    assert whole["held"]["audio"].all() and whole["audio"].shape == (1, 1, 8000)
    after = read(Material(audio=files["wav"], extend=0.5), SHAPE, SECONDS)
    assert after["held"]["audio"][0, 0].tolist() == [True] * 7 + [False] * 9
    assert after["audio"][..., 4000:].abs().max() == 0 and after["audio"][..., :4000].abs().max() > 0.4
    before = read(Material(audio=files["wav"], extend=-0.5), SHAPE, SECONDS)
    assert torch.equal(before["held"]["audio"], after["held"]["audio"].flip(2))


def test_what_cannot_be_is_said(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is left"):
        read(Material(audio=files["wav"]), SHAPE, {"audio": SECONDS["audio"]})
    with pytest.raises(UserError, match="makes video only"):
        read(Material(audio=files["wav"]), SHAPE, {"video": SECONDS["video"]})
    with pytest.raises(UserError, match="--seconds"):
        read(Material(audio=files["wav"], extend=1.0), SHAPE, SECONDS)
    with pytest.raises(UserError, match="holds no picture"):
        read(Material(video=files["wav"]), SHAPE, SECONDS)
    with pytest.raises(UserError, match="give the clip"):
        Material(extend=1.0)


def test_files_are_recorded_by_their_hash(files: dict[str, str]) -> None:
    hashes = Material(image=files["png"]).hashes()
    assert list(hashes) == [files["png"]] and len(hashes[files["png"]]) == 64
