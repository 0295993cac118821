"""A checkpoint that an earlier version wrote (tests/golden/VERSION, of the tiny system of fakes.py) still continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fakes
import pytest

from mmdiff.train import checkpoint

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden").iterdir())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_a_checkpoint_of_an_earlier_version_continues_with_the_same_losses(path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(path, tmp_path / "run"))
    expected = json.loads((run / "losses.json").read_text())
    assert checkpoint.load_weights(run)[1] == 4
    assert fakes.train(fakes.Run(str(run))) == 0
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 6, 7, 8]
    assert [row["loss"] for row in rows] == pytest.approx(expected[4:], rel=1e-4)
