"""Numbers of a config that no run can use are refused by their key before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdiff import build
from mmdiff.errors import UserError
from mmdiff.train.ranges import RANGES

CONFIGS = Path(__file__).parents[2] / "configs"
DDPM = CONFIGS / "lineage" / "ddpm.yaml"


@pytest.mark.parametrize("path", RANGES)
def test_a_number_out_of_its_range_is_an_error_that_names_the_key(path: str) -> None:
    value = {"data.size": "[-1,-1]", "optimizer.betas": "[-1,0.9]"}.get(path, "-1")
    for wrong in (value, value.replace("-1", ".nan")):
        with pytest.raises(UserError, match=path):
            build.parse(build.read(DDPM, [f"{path}={wrong}"]))


@pytest.mark.parametrize("wrong", ["sample.steps=0", "data.frames=0", "sample.guidance=.nan", "system.drop=.nan"])
def test_nothing_and_nan_are_no_numbers_either(wrong: str) -> None:
    with pytest.raises(UserError, match=wrong.split("=")[0]):
        build.parse(build.read(DDPM, [wrong]))
