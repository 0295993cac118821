"""Bits of a run: the bound of the exact model of Gaussian data, and what has none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.coupling import SharedCoupling, ShiftedCoupling
from mmdiff.errors import UserError
from mmdiff.evaluate.bits import bound, table
from mmdiff.process import DDPM

N = 64


class Exact:
    """The exact model of N(0, 1)."""

    device, coupling, codecs = torch.device("cpu"), SharedCoupling(), {"video": None}

    def __init__(self) -> None:
        self.denoiser, self.process = self, DDPM()

    def check_start(self, times: Tensor) -> None: ...

    def encode(self, batch: Any) -> Tensor:
        return batch["x"]

    def condition(self, batch: Any) -> Any:
        return {}

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, None]:
        a, s = self.process(t[:, None].double())
        return (a * x / (a**2 + s**2)).float(), None


def batch() -> Any:
    ids = [str(i) for i in range(N)]
    return {"id": ids, "x": noise.normal((256,), keys=noise.keys(0, "x", 0, ids))}


def test_the_exact_model_pays_the_entropy_of_its_data() -> None:
    """-log N(x; 0, 1) in bits: log2(2 pi e) / 2 on average; a bound of many steps is little more."""
    found = bound(Exact(), batch(), steps=200, seed=0)
    entropy = math.log2(2 * math.pi * math.e) / 2
    assert sum(found["total"]) / N == pytest.approx(entropy, abs=0.03)
    parts = sum(sum(found[name]) for name in ("prior", "steps", "data"))
    assert parts == pytest.approx(sum(found["total"]), rel=1e-5)
    assert found == bound(Exact(), batch(), steps=200, seed=0) != bound(Exact(), batch(), steps=200, seed=1)


def test_what_has_no_bound_is_refused() -> None:
    apart = Exact()
    apart.coupling = ShiftedCoupling({"audio": 2.0})
    with pytest.raises(UserError, match="own pace"):
        bound(apart, batch(), steps=10, seed=0)
    with pytest.raises(UserError, match="2 or more"):
        bound(Exact(), batch(), steps=1, seed=0)


def test_the_table_shows_every_term() -> None:
    row = {"value": 1.25, "low": 1.0, "high": 1.5, "n": 3}
    assert "total    1.250 (1.000 to 1.500)" in table({"prior": row, "total": row})
